"""A slide's pyramid, of which windows are read without the rest.

For training straight from slides, and for what is cut from them. Nothing is opened before the
first window is asked for, so that a slide can be handed to another process.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.slide_reader import SlideReader, open_reader, require_one_plane

# A level that should be 4 times coarser is 4.0003 times coarser, for its size is whole.
_TOLERANCE = 0.02
_PIXELS = 1 << 20  # averaged at a time


class SlideRegions:
    """Windows of a slide's levels; a picture is a slide of one level.

    Args:
        path: .tif, .svs and what else tifffile reads, vendors' formats that OpenSlide reads, PNG
            or JPEG.
        stored: samples as they are stored, for masks; else the pixels that an RGB model is
            given in a prediction.

    Attributes (asking for one opens the file):
        shapes: (rows, columns) of every level, the finest first.
        downsamples: how many pixels of the finest level a pixel of each level spans.
        channels: samples a pixel.
        dtype: of the samples.
        mpp: microns per pixel of the finest level; None where the file does not say.
        orientation: of the eight that EXIF and TIFF have; windows are as viewers show them.
        corner: pixel (x, y) of the finest level that QuPath's coordinates begin at.

    Raises:
        InputError: on opening or reading: the file is missing, damaged, or no slide.
        EnvironmentMismatchError: the library that reads it is not installed.
    """

    def __init__(self, path: Path | str, *, stored: bool = False) -> None:
        self.path = Path(path)
        self._stored = stored
        self._opened: SlideReader | None = None

    @property
    def _reader(self) -> SlideReader:
        if self._opened is None:
            channels = None if self._stored else 3
            reader = open_reader(self.path, channels=channels, stored=self._stored)
            try:
                require_one_plane(reader, self.path)
            except InputError:
                reader.close()
                raise
            self._opened = reader
        return self._opened

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [level.shape for level in self._reader.levels]

    @property
    def downsamples(self) -> list[float]:
        rows, columns = self.shapes[0]
        return [(rows / r + columns / c) / 2 for r, c in self.shapes]

    @property
    def channels(self) -> int:
        return self._reader.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._reader.dtype

    @property
    def mpp(self) -> float | None:
        return self._reader.levels[0].mean_mpp

    @property
    def orientation(self) -> int:
        return self._reader.orientation

    @property
    def corner(self) -> tuple[int, int]:
        return self._reader.bounds[:2] if self._reader.bounds else (0, 0)

    def region(self, level: int, y: int, x: int, height: int, width: int) -> Pixels:
        """A window of a level, (height, width, channels); only the tiles it touches are read.

        Raises:
            InputError: the file is damaged there.
            ValueError: the window is not within the level.
        """
        rows, columns = self.shapes[level]
        if y < 0 or x < 0 or y + height > rows or x + width > columns:
            raise ValueError(
                f"rows {y} to {y + height - 1} and columns {x} to {x + width - 1} are not within "
                f"level {level} of {self.path.name}, which has {rows} x {columns}"
            )
        return np.moveaxis(self._reader.region(level, y, x, height, width), 0, -1)

    def source_level(self, downsample: float) -> tuple[int, int]:
        """The coarsest level from which a coarser image is had by averaging whole pixels.

        Args:
            downsample: pixels of the finest level that one pixel of the wanted image spans.

        Returns:
            The level, and how many of its pixels are averaged per axis.

        Raises:
            InputError: `downsample` is no multiple of any level's.
        """
        found = None
        for level, own in enumerate(self.downsamples):
            factor = max(1, round(downsample / own))
            if abs(downsample / own / factor - 1) <= _TOLERANCE:
                found = level, factor
        if found is None:
            raise InputError(
                f"{self.path} has levels {', '.join(f'{d:.4g}' for d in self.downsamples)} times "
                f"coarser than its finest; {downsample:.4g} is not a multiple of any of them"
            )
        return found

    def scaled(
        self, downsample: float, y: int, x: int, height: int, width: int
    ) -> NDArray[np.float32]:
        """A window of the image at any multiple of a level, (height, width, channels).

        Read from the nearest finer level and averaged. At the border a pixel averages what there
        is, as `octree.image_pyramid` does; pixels that the file rounded away repeat the last.

        Args:
            downsample: pixels of the finest level that one pixel of the window spans.
            y, x, height, width: in pixels of the window.
        """
        level, factor = self.source_level(downsample)
        rows, columns = self.shapes[level]
        first, left = min(y, (rows - 1) // factor), min(x, (columns - 1) // factor) * factor
        end = max(first + 1, min(y + height, -(-rows // factor)))
        right = max(left + 1, min((x + width) * factor, columns))
        # Some rows at a time: a slide without a pyramid is read at full resolution.
        step = max(1, _PIXELS // (factor * (right - left)))
        parts = []
        for top in range(first, end, step):
            bottom = min((top + step) * factor, end * factor, rows)
            data = self.region(level, top * factor, left, bottom - top * factor, right - left)
            parts.append(_averaged(data.astype(np.float32, order="C"), factor))
        return _repeated(np.concatenate(parts), height, width)

    def close(self) -> None:
        """Close the file; asking for something opens it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> "SlideRegions":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Loaders keep slides open for as long as they live.
        if getattr(self, "_opened", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}  # a process opens its own


def _averaged(data: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means of blocks; an incomplete block at the end repeats its last pixels.

    By halves, so that the border's pixels weigh as they do in the octree.
    """
    while factor > 1:
        times = 2 if factor % 2 == 0 else factor
        rows, columns = (-(-n // times) for n in data.shape[:2])
        data = _repeated(data, rows * times, columns * times)
        data = data.reshape(rows, times, columns, times, -1).mean((1, 3))
        factor //= times
    return data


def _repeated(data: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Made larger at its end by repeating the last row and column."""
    missing = [height - data.shape[0], width - data.shape[1]]
    return (
        np.pad(data, [(0, missing[0]), (0, missing[1]), (0, 0)], "edge") if any(missing) else data
    )
