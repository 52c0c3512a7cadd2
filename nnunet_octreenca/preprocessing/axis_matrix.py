"""Resampling along one axis, as a banded matrix from source cells to target cells.

nnU-Net resamples with `skimage.transform.resize(mode="edge", anti_aliasing=False)`, which is
`scipy.ndimage.zoom(grid_mode=True, mode="nearest")`, or with `torch.nn.functional.interpolate`.
All of them are separable: the same matrix an axis gives the same image.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kernel = Literal[
    "nearest", "linear", "cubic", "torch_nearest", "torch_nearest_exact", "torch_linear"
]
# Cells beyond the image that scipy copies from its border before it filters.
_SCIPY_PADDING = 12
# The spline's weights fall by 0.268 a cell, so beyond 16 cells they are below 1e-9 ...
_SMALLEST = 1e-9
# ... and where a window of so many cells is cut off within an image is not seen at all.
_CUBIC_WINDOW = 48
# Target cells that one dense product makes. More of them share a window, but each then
# multiplies more zeros; of 8 to 128, 16 is the fastest for 512 cells, linear or cubic.
TILE = 16


class AxisMatrix:
    """Resampling of one axis to another resolution.

    Args:
        cells_in: cells of the source.
        cells_out: cells of the target; both cover the same extent.
        kernel: "nearest", "linear" and "cubic" are scipy's orders 0, 1 and 3; the others are
            torch's modes, which count in float32.
        tile: target cells that are computed together.

    Attributes:
        identity: source and target have the same cells.
    """

    def __init__(self, cells_in: int, cells_out: int, kernel: Kernel, tile: int = TILE) -> None:
        self.cells_in, self.cells_out, self.kernel, self.tile = cells_in, cells_out, kernel, tile
        self.identity = cells_in == cells_out
        self._chosen: NDArray[np.intp] | None = None
        self._tiles: list[tuple[int, NDArray[np.float32]]] = []
        if self.identity:
            self._chosen = np.arange(cells_in)
        elif kernel.startswith(("nearest", "torch_nearest")):
            self._chosen = _nearest(cells_in, cells_out, kernel)
        else:
            starts, weights = _weights(cells_in, cells_out, kernel)
            for first in range(0, cells_out, tile):
                part = slice(first, first + tile)
                self._tiles.append(_dense(starts[part], weights[part]))

    def window(self, first: int, end: int) -> tuple[int, int]:
        """Source cells that target cells `first` (a multiple of the tile) to `end - 1` need."""
        if self._chosen is not None:
            return int(self._chosen[first]), int(self._chosen[end - 1]) + 1
        tiles = self._tiles[first // self.tile : -(-end // self.tile)]
        return min(start for start, _ in tiles), max(
            start + dense.shape[1] for start, dense in tiles
        )

    def __call__(
        self,
        values: NDArray[np.float32],
        axis: int,
        first: int = 0,
        end: int | None = None,
        offset: int = 0,
    ) -> NDArray[np.float32]:
        """Target cells `first` to `end - 1` along `axis`.

        Args:
            values: contiguous, of any shape.
            axis: not negative.
            first: a multiple of the tile.
            end: `cells_out` if left out; otherwise the end of a tile.
            offset: the source cell that `values` begins with along `axis`.
        """
        end = self.cells_out if end is None else end
        if self._chosen is not None:
            if self.identity and end - first == values.shape[axis]:
                return values
            return np.take(values, self._chosen[first:end] - offset, axis=axis)
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        values = values.reshape((*before, values.shape[axis], -1))
        # The last axis is multiplied from the right, so that no product has a single column.
        last = not after
        if last:
            values = values.reshape((-1, values.shape[-2]))
        shape = (*before, end - first, *after)
        target = np.empty(
            (values.shape[0], end - first) if last else (*before, end - first, values.shape[-1]),
            np.float32,
        )
        for tile in range(first // self.tile, -(-end // self.tile)):
            start, dense = self._tiles[tile]
            source = slice(start - offset, start - offset + dense.shape[1])
            at = slice(tile * self.tile - first, tile * self.tile - first + dense.shape[0])
            if last:
                np.matmul(values[:, source], dense.T, out=target[:, at])
            else:
                np.matmul(dense, values[..., source, :], out=target[..., at, :])
        return target.reshape(shape)


def _nearest(cells_in: int, cells_out: int, kernel: Kernel) -> NDArray[np.intp]:
    if kernel == "nearest":
        at = np.clip(_positions(cells_in, cells_out), 0, cells_in - 1) + 0.5
    elif kernel == "torch_nearest_exact":
        at = _torch_positions(cells_in, cells_out, fused=True) + np.float32(0.5)
    else:
        scale = np.float32(cells_in) / np.float32(cells_out)
        at = np.arange(cells_out, dtype=np.float32) * scale
    return np.minimum(np.floor(at).astype(np.intp), cells_in - 1)


def _positions(cells_in: int, cells_out: int) -> NDArray[np.float64]:
    """Centres of the target cells, in source cells."""
    return (np.arange(cells_out, dtype=np.float64) + 0.5) * (cells_in / cells_out) - 0.5


def _torch_positions(cells_in: int, cells_out: int, fused: bool) -> NDArray[np.float32]:
    """The same coordinates with torch's float32 rounding.

    Its build fuses product and difference for the nearest cell, which decides where a target cell
    lies just between two, and rounds both for the linear weights.
    """
    scale = np.float32(cells_in) / np.float32(cells_out)
    centres = np.arange(cells_out, dtype=np.float32) + np.float32(0.5)
    if fused:
        return (scale.astype(np.float64) * centres - 0.5).astype(np.float32)
    return scale * centres - np.float32(0.5)


def _weights(
    cells_in: int, cells_out: int, kernel: Kernel
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each target cell, the first source cell of its window and the window's weights."""
    if kernel == "cubic":
        return _cubic(cells_in, cells_out)
    if kernel == "torch_linear":
        at = _torch_positions(cells_in, cells_out, fused=False).astype(np.float64)
    else:
        at = _positions(cells_in, cells_out)
    at = np.clip(at, 0.0, cells_in - 1.0)
    starts = np.minimum(np.floor(at).astype(np.intp), max(cells_in - 2, 0))
    part = at - starts
    weights = np.stack([1 - part, part], axis=1)
    return starts, weights[:, : min(cells_in, 2)]


@lru_cache(maxsize=8)
def _prefilter(cells: int) -> NDArray[np.float64]:
    """Matrix from `cells` samples to spline coefficients, including some beyond either border."""
    from scipy.ndimage import spline_filter1d

    samples = np.pad(np.eye(cells), ((_SCIPY_PADDING,) * 2, (0, 0)), mode="edge")
    return spline_filter1d(samples, order=3, axis=0, mode="nearest")


def _cubic(cells_in: int, cells_out: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    at = _positions(cells_in, cells_out)
    below = np.floor(at).astype(np.intp)
    t = at - below
    spline = np.stack(
        [
            (1 - t) ** 3 / 6,
            (4 - 6 * t**2 + 3 * t**3) / 6,
            (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
            t**3 / 6,
        ]
    )
    width = min(cells_in, _CUBIC_WINDOW)
    starts = np.clip(below - width // 2 + 1, 0, cells_in - width)
    coefficients = _prefilter(width)
    row = below - 1 - starts + _SCIPY_PADDING
    weights = sum(spline[k][:, None] * coefficients[row + k] for k in range(4))
    weights = np.asarray(weights)
    weights[np.abs(weights) < _SMALLEST] = 0
    return starts, weights


def _dense(
    starts: NDArray[np.intp], weights: NDArray[np.float64]
) -> tuple[int, NDArray[np.float32]]:
    """Rows of the matrix, and the source cell of their first column."""
    rows, columns = np.nonzero(weights)
    sources = starts[rows] + columns
    first, end = int(sources.min()), int(sources.max()) + 1
    dense = np.zeros((len(starts), end - first), np.float32)
    # A clipped window can hold a source cell once only, so nothing is added twice.
    dense[rows, sources - first] = weights[rows, columns]
    return first, dense
