"""An image that keeps a small picture of itself while it is read."""

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.labels.thumbnail import Thumbnail

# Bytes read at a time where nothing is computed: statistics and overlay.
_READ_BYTES = 64 << 20


class WatchedImage:
    """An `ImageSource` whose bands go into a thumbnail as they are read, each row once.

    Args:
        source: the image.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.shape, self.channels, self.dtype = source.shape, source.channels, source.dtype
        self.spacing, self.info = source.spacing, source.info
        self.thumbnail = Thumbnail(source.shape)
        flat = len(source.shape) == 2
        # Of a volume some planes are shown, which are cheaper read again than watched.
        self._missing = np.full(source.shape[0] if flat else 0, True)

    def read(self, first: int, end: int) -> Pixels:
        """Rows or planes `first` to `end - 1`, as `ImageSource.read` has it."""
        rows = self._source.read(first, end)
        for begin, stop in _runs(self._missing[first:end]):
            self.thumbnail.add(first + begin, rows[:, begin:stop])
        self._missing[first:end] = False
        return rows

    def close(self) -> None:
        """Close the image."""
        self._source.close()

    def picture(self) -> NDArray[np.uint8]:
        """The thumbnail, once what nobody has read is read too."""
        step = rows_at_a_time(self._source)
        for begin, stop in _runs(self._missing):
            for first in range(begin, stop, step):
                self.read(first, min(first + step, stop))
        if len(self.shape) == 3:
            for plane in self.thumbnail.layout.planes:
                self.thumbnail.add(plane, self._source.read(plane, plane + 1))
        return self.thumbnail.picture()


def rows_at_a_time(source: ImageSource) -> int:
    """Rows or planes that are read at a time where nothing is computed."""
    row_bytes = int(np.prod(source.shape[1:])) * source.channels * source.dtype.itemsize
    return min(max(_READ_BYTES // max(row_bytes, 1), 1), source.shape[0])


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where stretches of True begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
