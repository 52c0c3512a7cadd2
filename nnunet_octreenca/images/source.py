"""What an image looks like to everything that reads it in bands."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ImageSource(Protocol):
    """An image that is read band by band along its first spatial axis, never as a whole.

    Attributes:
        shape: cells per axis, (y, x) or (z, y, x); of a video (frame, y, x).
        channels: how many, as the data set's `channel_names` counts them.
        dtype: of what `read` returns.
        spacing: mm per axis in the order of `shape`; 1.0 where the file says nothing.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype
    spacing: tuple[float, ...]

    def read(self, first: int, end: int) -> NDArray:
        """Rows (2-D) or planes (3-D) `first` to `end - 1`: (channels, end - first, *shape[1:]).

        Any order and any overlap is allowed; ascending bands are what a source is fastest at.

        Raises:
            InputError: the file is damaged there.
        """
        ...

    def close(self) -> None:
        """Give back what is open; a second call does nothing."""
        ...


class ArraySource:
    """An array in memory.

    Args:
        array: (channels, *spatial) of any number type; not copied.
        spacing: mm per spatial axis; ones if left out.
    """

    def __init__(self, array: NDArray, spacing: Sequence[float] | None = None) -> None:
        self.array = array
        self.shape = tuple(array.shape[1:])
        self.channels = array.shape[0]
        self.dtype = array.dtype
        self.spacing = tuple(spacing) if spacing is not None else (1.0,) * len(self.shape)

    def read(self, first: int, end: int) -> NDArray:
        """A view of the band."""
        return self.array[:, first:end]

    def close(self) -> None:
        """Nothing is open."""
