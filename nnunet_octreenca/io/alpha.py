"""Transparency, which a network has no channel for, laid over white."""

import numpy as np
from numpy.typing import NDArray


def channels_kept(samples: int, *, alpha: bool, wanted: int | None) -> int:
    """Channels of an image of `samples`, the last of them alpha or not.

    Alpha goes, unless a model wants just as many channels as there are samples.

    >>> [channels_kept(4, alpha=True, wanted=wanted) for wanted in (None, 3, 4)]
    [3, 3, 4]
    >>> channels_kept(4, alpha=False, wanted=3)
    4
    """
    return samples - 1 if alpha and wanted != samples else samples


def over_white(image: NDArray, *, premultiplied: bool = False) -> NDArray:
    """Lay an image over white.

    Args:
        image: (channels and alpha, ...) of unsigned integers, or of floats from 0 to 1.
        premultiplied: the colours are already multiplied by alpha.

    Returns:
        (channels, ...) of the same type, rounded to the nearest.
    """
    colours, alpha = image[:-1], image[-1]
    if np.issubdtype(image.dtype, np.floating):
        clear = 1 - alpha
        return colours + clear if premultiplied else colours * alpha + clear
    white = np.iinfo(image.dtype).max
    if (alpha == white).all():  # nearly every slide
        return colours
    if premultiplied:
        return np.minimum(colours, alpha) + (white - alpha)
    wide = np.uint32 if image.dtype.itemsize < 3 else np.uint64
    opaque = alpha.astype(wide)
    over = colours.astype(wide)
    over *= opaque
    over += (white - opaque) * wide(white) + wide(white // 2)
    over //= wide(white)
    return over.astype(image.dtype)
