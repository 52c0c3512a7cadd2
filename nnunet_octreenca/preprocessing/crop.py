"""The nonzero region of an image, to which nnU-Net crops before anything else."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.images.source import ImageSource

Box = tuple[tuple[int, int], ...]


def volume_shape(source: ImageSource) -> tuple[int, ...]:
    """(z, y, x) of an image; z is 1 for a 2-D image, as nnU-Net reads it."""
    return (1, *source.shape) if len(source.shape) == 2 else tuple(source.shape)


def nonzero_mask(values: Pixels, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Mask of the cells that are nonzero in any channel; holes are not filled.

    Args:
        values: (channels, *spatial).
        out: (*spatial), where the mask is written; a new array if left out.

    >>> nonzero_mask(np.array([[0, 1, 0], [0, 1, 2]]))
    array([False,  True,  True])
    """
    mask = np.not_equal(values[0], 0, out=out)
    for channel in values[1:]:
        mask |= channel != 0
    return mask


def nonzero_box(values: Pixels) -> Box | None:
    """Bounds per axis of the cells that are nonzero in any channel.

    Args:
        values: (channels, *spatial).

    Returns:
        None if all is zero.

    >>> nonzero_box(np.eye(5, dtype=int)[None, 1:3])
    ((0, 2), (1, 3))
    """
    box = []
    for axis in range(1, values.ndim):
        cells = values.shape[axis]
        # The other axes tell whether a single row or plane is zero.
        if cells == 1 and values[0].size > 1:
            box.append((0, 1))
            continue
        # Most images end in cells that are not zero, which saves looking at the rest.
        slabs = np.moveaxis(values, axis, 0)
        if slabs[0].any() and slabs[-1].any():
            box.append((0, cells))
            continue
        found = np.flatnonzero(values.any(axis=tuple({*range(values.ndim)} - {axis})))
        if not len(found):
            return None
        box.append((int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def whole_box(shape: Sequence[int]) -> Box:
    """The box of the whole image, which nnU-Net keeps where all is zero."""
    return tuple((0, int(cells)) for cells in shape)


def box_slices(box: Box | Sequence[Sequence[int]]) -> tuple[slice, ...]:
    """A box as indices of an array (*spatial)."""
    return tuple(slice(*ends) for ends in box)


def placed(box: Box | None, lead: int, first: int) -> list[Box]:
    """Translate a band's box, if any, to image coordinates."""
    if box is None:
        return []
    begin, end = box[lead]
    return [(*box[:lead], (begin + first, end + first), *box[lead + 1 :])]


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that contains all boxes."""
    return tuple(
        (min(first for first, _ in axis), max(end for _, end in axis))
        for axis in zip(*boxes, strict=True)
    )


def read_bands(
    source: ImageSource, starts: Iterable[int], band: int
) -> Iterator[tuple[int, Pixels]]:
    """The bands that begin at `starts` as (channels, z, y, x), integers or float32."""
    for first in starts:
        values = source.read(first, min(first + band, source.shape[0]))
        if not np.issubdtype(values.dtype, np.integer) and values.dtype != np.bool_:
            with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite
                values = values.astype(np.float32, copy=False)
        # Interleaved colours, as most files have them, are reduced 20 times as fast once sorted.
        if values.strides[-1] != values.itemsize:
            values = np.ascontiguousarray(values)
        yield first, values[:, None] if values.ndim == 3 else values


def box_from_the_borders(source: ImageSource, band: int) -> Box:
    """Find the box by reading from both ends until nothing in between can widen it."""
    shape = volume_shape(source)
    lead = 3 - len(source.shape)
    starts = range(0, source.shape[0], band)
    found: list[Box] = []
    read = 0
    for first, values in read_bands(source, starts, band):
        read += 1
        found += placed(nonzero_box(values), lead, first)
        if found and all(
            axis == lead or side == (0, shape[axis]) for axis, side in enumerate(around(found))
        ):
            break
    for first, values in read_bands(source, starts[: read - 1 : -1], band):
        last = placed(nonzero_box(values), lead, first)
        found += last
        if last:
            break
    return around(found) if found else whole_box(shape)


def filled_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the mask's holes: (z, y, x).

    A plane or two can enclose nothing: every cell lies on the border of the volume.
    """
    if min(mask.shape) <= 2:
        return mask
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(mask)
