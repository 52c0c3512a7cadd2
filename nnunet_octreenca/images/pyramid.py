"""A slide's pyramid, of which windows are read without the rest.

For training straight from slides, and for what is cut from them. Nothing is opened before the
first window is asked for, so that a slide can be handed to another process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.images.slide_files import Pyramid, open_pyramid
from nnunet_octreenca.libraries import missing_decoder

# A level that should be 4 times coarser is 4.0003 times coarser, for its size is whole.
_TOLERANCE = 0.02
_PIXELS = 1 << 20  # averaged at a time


class SlideRegions:
    """Windows of a slide's levels; a picture is a slide of one level.

    Args:
        path: .tif, .svs and what else tifffile reads, vendors' formats that OpenSlide reads, PNG
            or JPEG.
        stored: samples as they are stored, for masks; of a slide, alpha is laid over white.

    Attributes (asking for one opens the file):
        shapes: (rows, columns) of every level, the finest first.
        downsamples: how many pixels of the finest level a pixel of each level spans.
        channels: samples a pixel.
        dtype: of the samples.
        mpp: microns per pixel of the finest level; None where the file does not say.

    Raises:
        InputError: on opening or reading: the file is missing, damaged, or no slide.
        EnvironmentMismatchError: the library that reads it is not installed.
    """

    def __init__(self, path: Path | str, *, stored: bool = False) -> None:
        self.path = Path(path)
        self._stored = stored
        self._opened: Pyramid | None = None

    @property
    def _pyramid(self) -> Pyramid:
        if self._opened is None:
            if not self.path.exists():
                raise InputError(f"the slide {self.path} does not exist")
            self._opened = self._guarded(lambda: open_pyramid(self.path, stored=self._stored))
        return self._opened

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return self._pyramid.shapes

    @property
    def downsamples(self) -> list[float]:
        rows, columns = self.shapes[0]
        return [(rows / r + columns / c) / 2 for r, c in self.shapes]

    @property
    def channels(self) -> int:
        return self._pyramid.channels

    @property
    def dtype(self) -> np.dtype:
        return self._pyramid.dtype

    @property
    def mpp(self) -> float | None:
        return self._pyramid.mpp

    def region(self, level: int, y: int, x: int, height: int, width: int) -> NDArray:
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
        return self._guarded(lambda: self._pyramid.region(level, y, x, height, width))

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
            parts.append(_averaged(data.astype(np.float32), factor))
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # a process opens its own

    def _guarded(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (InputError, EnvironmentMismatchError):
            raise
        except Exception as error:  # decoders raise what they please
            raise missing_decoder(self.path, error) or InputError(
                f"{self.path} cannot be read ({error}). It may be truncated or damaged: copy it "
                f"again, or take it out"
            ) from error


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
