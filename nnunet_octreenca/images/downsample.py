"""An image averaged down to a coarser resolution, band by band."""

from dataclasses import replace
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.images.levels import MICRONS_PER_MM
from nnunet_octreenca.images.source import ImageSource

# Bytes of the finer image read at a time. A band of the coarser one comes from factor ** 2 as
# many pixels, which must not be in memory at once.
_CHUNK_BYTES = 32 << 20


class Downsampled:
    """A 2-D image whose pixels are the area average of a finer one's.

    A pixel (i, j) covers rows i * factor to (i + 1) * factor of the finer image, fractions
    included. Each is computed from its own position in a fixed order, so that bands of any
    height give the same bits.

    Args:
        source: the finer image (y, x); closed by `close`.
        factor: finer pixels per pixel (y, x), above 1.
        mpp: microns per pixel that come out.
        base_shape: (y, x) of the file's finest level.
    """

    def __init__(
        self,
        source: ImageSource,
        factor: tuple[float, float],
        mpp: float,
        base_shape: tuple[int, int],
    ) -> None:
        self._source = source
        self._factor = factor
        self.shape: tuple[int, ...] = tuple(
            max(1, round(n / f)) for n, f in zip(source.shape, factor, strict=True)
        )
        self.channels = source.channels
        self.dtype = source.dtype
        self.spacing: tuple[float, ...] = (mpp / MICRONS_PER_MM,) * 2
        self.info = replace(source.info, mpp=mpp, base_shape=base_shape)
        self._sums = _sums(self.dtype)
        _, _, self._columns = covered(0, self.shape[1], factor[1], source.shape[1], self.dtype)

    def read(self, first: int, end: int) -> Pixels:
        """The band, as `ImageSource.read` has it.

        Raises:
            InputError: the file is damaged there.
        """
        band = np.empty((self.channels, end - first, self.shape[1]), self.dtype)
        row_bytes = self.channels * self._source.shape[1] * self._sums.itemsize
        rows = max(1, int(_CHUNK_BYTES / (self._factor[0] * row_bytes)))
        for low in range(first, end, rows):
            high = min(low + rows, end)
            band[:, low - first : high - first] = self._read(low, high)
        return band

    def _read(self, first: int, end: int) -> Pixels:
        top, bottom, rows = covered(first, end, self._factor[0], self._source.shape[0], self.dtype)
        return area_average(self._source.read(top, bottom), rows, self._columns)

    def close(self) -> None:
        """Close the finer image; a second call does nothing."""
        self._source.close()


def _sums(dtype: np.dtype) -> np.dtype:
    """What averages are summed in: float32 holds those of 16 bits to the nearest integer."""
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def covered(
    first: int, end: int, factor: float, limit: int, dtype: np.dtype
) -> tuple[int, int, tuple[NDArray[np.intp], Pixels]]:
    """What the pixels first to end - 1 cover of a finer axis of `limit` cells of a type.

    Returns:
        First and end of the cells; for `area_average`, indices from the first of them and
        weights, (taps, end - first). The weights of a pixel sum to 1.
    """
    begin = min(floor(first * factor), limit - 1)
    low = np.arange(first, end) * factor
    high = np.minimum(np.arange(first + 1, end + 1) * factor, limit)
    taps = np.arange(ceil(factor) + 1)[:, None]
    indices = np.floor(low).astype(np.intp) + taps
    weights = np.minimum(indices + 1, high) - np.maximum(indices, low)
    weights = weights.clip(0, None)
    weights = (weights / weights.sum(0)).astype(_sums(dtype))
    return begin, min(ceil(end * factor), limit), (indices.clip(None, limit - 1) - begin, weights)


def area_average(
    fine: Pixels, rows: tuple[Pixels, Pixels], columns: tuple[Pixels, Pixels]
) -> Pixels:
    """(channels, rows, columns) averaged to what `covered` gives for both axes, of its type."""
    averaged = sum_taps(sum_taps(fine, *rows, axis=1), *columns, axis=2)
    if np.issubdtype(fine.dtype, np.integer):
        limits = np.iinfo(fine.dtype)
        averaged = np.rint(averaged, out=averaged).clip(limits.min, limits.max)
    return averaged.astype(fine.dtype)


def sum_taps(image: Pixels, indices: NDArray[np.intp], weights: Pixels, *, axis: int) -> Pixels:
    """Weighted sum of (taps, n) cells of an axis, which becomes n long; in the weights' type."""
    shape = [1] * image.ndim
    shape[axis] = -1
    indices = indices.clip(0, image.shape[axis] - 1)  # what is beyond has weight 0
    total: Pixels = np.take(image, indices[0], axis) * weights[0].reshape(shape)
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        total += np.take(image, index, axis) * weight.reshape(shape)
    return total
