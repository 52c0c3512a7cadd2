"""Statistics of an image in one pass: nonzero box and what normalization requires."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.finite import all_finite, not_finite
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.preprocessing.crop import (
    Box,
    around,
    box_from_the_borders,
    box_slices,
    filled_holes,
    nonzero_box,
    nonzero_mask,
    placed,
    read_bands,
    volume_shape,
    whole_box,
)

# Values that are summed at a time, as float64: 1 MiB, which stays in the cache.
_SUMMED = 1 << 17


@dataclass(frozen=True)
class RequiredStatistics:
    """What to collect besides the nonzero box, per channel; each item takes time.

    Attributes:
        moments: mean and standard deviation.
        extremes: smallest and largest value.
        masked: of the nonzero mask's voxels rather than of the box's.
        slices: axis (z, y, x) across which the extremes are wanted slice by slice; None for those
            of the whole.
    """

    moments: Sequence[bool]
    extremes: Sequence[bool]
    masked: Sequence[bool]
    slices: int | None = None

    @property
    def only_the_box(self) -> bool:
        """Whether nothing besides the box is required."""
        return not any((*self.moments, *self.extremes, *self.masked))


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of one channel's voxels within the box, or within the mask.

    Attributes:
        count: voxels.
        mean: None where it is not required; 0 without voxels.
        std: likewise.
        lowest: (slices,) smallest values, None where not required; infinite for a slice
            without voxels of the mask.
        highest: likewise, the largest.
        outside: (slices,) whether a slice of the box has voxels outside the mask.
    """

    count: int
    mean: float | None
    std: float | None
    lowest: NDArray[np.float64] | None
    highest: NDArray[np.float64] | None
    outside: NDArray[np.bool_]


@dataclass(frozen=True)
class ImageStatistics:
    """The statistics of an image, from one pass over it.

    Attributes:
        box: first cell and end per axis (z, y, x) of the smallest box around all that is not
            zero; the whole image where nothing is.
        channels: one entry a channel.
        mask: (z, y, x) of the box: not zero in some channel, holes filled; None where no channel
            is normalized within it. It takes 1 byte a voxel of the image, and 5 while its holes
            are filled.
    """

    box: Box
    channels: tuple[ChannelStatistics, ...]
    mask: NDArray[np.bool_] | None


def collect_statistics(
    source: ImageSource, required: RequiredStatistics, *, band: int
) -> ImageStatistics:
    """Read an image once, or only its borders where that suffices.

    Args:
        source: in the plans' axes.
        required: what to collect besides the box.
        band: rows (2-D) or planes (3-D) that are read at a time.

    Raises:
        InputError: NaN or infinite voxels, or no voxels at all.
    """
    shape = volume_shape(source)
    if min(shape) < 1 or source.channels < 1:
        raise InputError(
            f"{source.info.name} is empty: {source.channels} channels of {source.shape} cells"
        )
    exact = np.issubdtype(source.dtype, np.integer) or source.dtype == np.bool_
    if exact and required.only_the_box:
        nowhere = np.zeros(1, bool)
        box = box_from_the_borders(source, band)
        blank = ChannelStatistics(
            prod(end - first for first, end in box), None, None, None, None, nowhere
        )
        return ImageStatistics(box, (blank,) * source.channels, None)
    return _read_all(source, required, band, exact)


def _read_all(
    source: ImageSource, required: RequiredStatistics, band: int, exact: bool
) -> ImageStatistics:
    shape = volume_shape(source)
    mask = np.zeros(shape, bool) if any(required.masked) else None
    channels = [
        _Channel(shape, required.slices, moments, extremes or not exact)
        for moments, extremes in zip(required.moments, required.extremes, strict=True)
    ]
    boxes: list[Box] = []
    wrong, where = 0, ""
    for first, values in read_bands(source, range(0, source.shape[0], band), band):
        local = nonzero_box(values)
        if local is None:
            continue
        within = (slice(None), *box_slices(local))
        inner = values[within]
        if not exact:
            bad = 0 if all_finite(inner) else int(not_finite(inner).sum())
            if bad and not wrong:
                where = f"rows or planes {first} to {min(first + band, source.shape[0]) - 1}"
            wrong += bad
            if wrong:
                continue
        (box,) = placed(local, 3 - len(source.shape), first)
        boxes.append(box)
        inside = None
        if mask is not None:
            inside = mask[box_slices(box)]
            nonzero_mask(inner, out=inside)
        for channel, values_here, masked in zip(channels, inner, required.masked, strict=True):
            channel.add(values_here, box, inside if masked else None)
    if wrong:
        raise InputError(
            f"{source.info.name} has {wrong} voxels that are NaN or infinite, the first in "
            f"{where}. Repair the file (e.g. replace them with the background value) and re-run"
        )
    box = around(boxes) if boxes else whole_box(shape)
    filled = None
    if mask is not None:
        filled = filled_holes(mask[box_slices(box)])
    finished = tuple(
        channel.finish(box, filled if masked else None)
        for channel, masked in zip(channels, required.masked, strict=True)
    )
    return ImageStatistics(box, finished, filled)


class _Channel:
    """Running sums of one channel, merged band by band (Chan et al. 1983)."""

    def __init__(
        self, shape: Sequence[int], slices: int | None, moments: bool, extremes: bool
    ) -> None:
        self._slices, self._moments, self._extremes = slices, moments, extremes
        self._across = tuple(axis for axis in range(3) if axis != slices)
        count = 1 if slices is None else shape[slices]
        self._lowest, self._highest = np.full(count, np.inf), np.full(count, -np.inf)
        self._covered = np.zeros(count, np.int64)
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, values: Pixels, box: Box, inside: NDArray[np.bool_] | None) -> None:
        """Add the voxels (z, y, x) of a box, all or only those `inside`."""
        at = slice(None) if self._slices is None else slice(*box[self._slices])
        across = self._across
        if inside is None:
            self._covered[at] += values.size // len(self._covered[at])
            if self._extremes:
                lowest, highest = values.min(across), values.max(across)
        else:
            self._covered[at] += inside.sum(across)
            if self._extremes:
                values = values.astype(np.float32, copy=False)
                lowest = values.min(across, where=inside, initial=np.inf)
                highest = values.max(across, where=inside, initial=-np.inf)
            values = values[inside]
        if self._extremes:
            self._lowest[at] = np.minimum(self._lowest[at], lowest)
            self._highest[at] = np.maximum(self._highest[at], highest)
        if self._moments:
            # Rows of the box, or the chosen voxels, which are without rows.
            lines = values if values.ndim == 3 else values[None]
            step = max(_SUMMED // prod(lines.shape[2:]), 1)
            for plane in lines:
                for row in range(0, len(plane), step):
                    part = plane[row : row + step].astype(np.float64).ravel()
                    mean = float(part.mean())
                    part -= mean
                    self._combine(part.size, mean, float(np.dot(part, part)))

    def _combine(self, count: int, mean: float, squares: float) -> None:
        total = self._count + count
        shift = mean - self._mean
        self._squares += squares + shift * shift * self._count * count / total
        self._mean += shift * count / total
        self._count = total

    def finish(self, box: Box, mask: NDArray[np.bool_] | None) -> ChannelStatistics:
        """Add the zeros of the final box or filled mask that no band contained."""
        at = slice(None) if self._slices is None else slice(*box[self._slices])
        covered = self._covered[at]
        cells = prod(end - first for first, end in box) // len(covered)
        wanted = np.full(len(covered), cells) if mask is None else mask.sum(self._across)
        wanted = np.atleast_1d(wanted)
        zeros = covered < wanted
        lowest, highest = self._lowest[at], self._highest[at]
        lowest[zeros] = np.minimum(lowest, 0)[zeros]
        highest[zeros] = np.maximum(highest, 0)[zeros]
        count = int(wanted.sum())
        if self._moments and count > self._count:
            self._combine(count - self._count, 0.0, 0.0)
        std = float(np.sqrt(self._squares / count)) if count else 0.0
        return ChannelStatistics(
            count,
            self._mean if self._moments else None,
            std if self._moments else None,
            lowest if self._extremes else None,
            highest if self._extremes else None,
            wanted < cells,
        )
