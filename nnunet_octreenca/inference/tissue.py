"""Which bands of a slide hold tissue: a threshold on the coarsest level."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_octreenca.bands import Rows
from nnunet_octreenca.octree import pool

# Below this spread of normalized colour (0 to 1) a slide is glass throughout, and Otsu's threshold
# would only divide its noise.
LEAST_COLOUR = 0.05


class TissueMap:
    """How coloured every node is, gathered band by band.

    Glass is white or grey: the three channels are equal there. What is coloured is told from it by
    Otsu's threshold (1979) on the difference of the largest and the smallest channel.

    Args:
        factor: cells of the image that a node spans along each axis.
    """

    def __init__(self, factor: int) -> None:
        self._factor = factor
        self._rows: list[NDArray[np.float32]] = []

    def add(self, band: NDArray[np.float32]) -> None:
        """The next band of the image, (channels, rows, columns), from a multiple of `factor` on."""
        nodes = torch.from_numpy(np.ascontiguousarray(band))[None]
        shrunk = pool(nodes, (self._factor,) * (band.ndim - 1))[0].numpy()
        colour = shrunk.max(0) - shrunk.min(0) if len(shrunk) > 1 else abs(shrunk[0])
        self._rows.append(colour.reshape(len(colour), -1))

    def ranges(self, bands: list[Rows]) -> list[Rows]:
        """The bands with tissue, neighbours joined."""
        from skimage.filters import threshold_otsu

        colour = np.concatenate(self._rows)
        otsu: Callable[[NDArray[np.float32]], float] = threshold_otsu
        threshold = max(float(otsu(colour)), LEAST_COLOUR)
        rows: NDArray[np.bool_] = np.any(colour > threshold, axis=1)
        joined: list[Rows] = []
        for band in bands:
            first, end = band.first // self._factor, -(-band.end // self._factor)
            if not rows[first:end].any():
                continue
            if joined and joined[-1].end == band.first:
                joined[-1] = Rows(joined[-1].first, band.end)
            else:
                joined.append(band)
        return joined
