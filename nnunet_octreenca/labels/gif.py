"""Pictures as an animated GIF, all in the same colours."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.labels.output import atomic_output

_WHITE = 248  # Pillow tells colours apart to 8 of 256


def write_gif(
    pictures: Iterable[NDArray[np.uint8]],
    path: Path | str,
    *,
    milliseconds: Sequence[int],
    sample: NDArray[np.uint8],
) -> None:
    """Write an animated GIF that repeats for ever, whole or not at all.

    Args:
        pictures: (y, x, 3) RGB of equal sizes, in order.
        path: the file.
        milliseconds: how long each is shown; a GIF counts in tens.
        sample: (y, x, 3) RGB: what the 256 colours are chosen from.

    Raises:
        OutputError: the disk is full, or the folder is not there.
    """
    from PIL import Image

    palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    colours[(colours >= _WHITE).all(1)] = 255  # paper, which is the mean of all light colours else
    palette.putpalette(colours.tobytes())

    def reduced() -> Iterator[Any]:
        for picture in pictures:
            yield Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)

    frames = reduced()
    first = next(frames)
    with atomic_output(path) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=frames,
            duration=list(milliseconds), loop=0,
        )  # fmt: skip
