"""Whether all voxels are numbers that a network can be given."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError

LARGEST = float(np.finfo(np.float32).max)  # networks compute in float32


def not_finite(values: Pixels) -> NDArray[np.bool_]:
    """Which values are NaN, infinite, or beyond float32.

    >>> not_finite(np.array([1.0, np.nan, -np.inf, 1e39])).tolist()
    [False, True, True, True]
    """
    finite: NDArray[np.bool_] = np.abs(values) <= LARGEST
    return ~finite


def all_finite(values: Pixels) -> bool:
    """Whether none is, by the extremes, which cost no memory."""
    if values.dtype.kind != "f" or not values.size:
        return True
    return bool(values.min() >= -LARGEST and values.max() <= LARGEST)


def require_finite(
    path: Path | str,
    voxels: Pixels,
    *,
    stored: Pixels | None = None,
    scaled_by: str = "",
) -> None:
    """Refuse voxels that are NaN or infinite, with their number and the first one's place.

    Args:
        path: of the file; named in the error.
        voxels: (channels, z, y, x) or (channels, y, x).
        stored: the same before they were scaled, in any shape.
        scaled_by: what scaled them; named where all that is stored is finite.

    Raises:
        InputError: there is such a voxel.
    """
    if voxels.dtype.kind != "f" or all(all_finite(channel) for channel in voxels):
        return
    count, first = 0, ""
    for number, channel in enumerate(voxels):
        for at, plane in enumerate(channel):
            wrong = not_finite(plane)
            if not wrong.any():
                continue
            if not count:
                place = (at, *(int(axis) for axis in np.unravel_index(wrong.argmax(), wrong.shape)))
                first = _described(place, number if len(voxels) > 1 else None)
            count += int(wrong.sum())
    voxels_are = f"{count:,} voxel{'s are' if count > 1 else ' is'}"
    if stored is not None and all_finite(stored):
        raise InputError(
            f"{path}: {voxels_are} beyond float32 after scaling with {scaled_by}, the first at "
            f"{first}; correct the header"
        )
    raise InputError(
        f"{path}: {voxels_are} NaN or infinite, the first at {first}; replace them (e.g. with the "
        f"background's value) and re-run"
    )


def _described(place: tuple[int, ...], channel: int | None) -> str:
    """A place (z, y, x) or (y, x) as users count it: x first, from 0."""
    names = "zyx"[-len(place) :]
    told = ", ".join(f"{name} {at}" for name, at in zip(names[::-1], place[::-1], strict=True))
    return told if channel is None else f"{told} of channel {channel}"
