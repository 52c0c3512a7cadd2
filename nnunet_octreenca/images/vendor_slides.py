"""Vendors' slides through OpenSlide."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.levels import Bounds, Level
from nnunet_octreenca.images.pixels import composite_slide_on_white
from nnunet_octreenca.images.tiff_resolution import length
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from openslide import OpenSlide

_ROWS = 256  # decoded together where the file does not say how high its tiles are
_TALLEST_TILE = 1024
_COLUMNS = 2048  # one thread reads so many at a time


class OpenSlideReader:
    """A slide through OpenSlide, a `SlideReader`: RGB, whatever is transparent in white.

    OpenSlide takes positions in pixels of the finest level. Where a level's factor is not whole,
    that rounds: windows of one place but of different corners may differ by a pixel's shift.

    Args:
        path: the file.
        threads: that decode a window.

    Raises:
        InputError: the file is no slide, or damaged.
        EnvironmentMismatchError: OpenSlide is not installed.
    """

    channels = 3
    dtype = np.dtype(np.uint8)
    planes = 1
    orientation = 1

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        openslide = import_optional("openslide", "slides")
        self._path = path
        self._closed = False
        self._error = openslide.OpenSlideError
        try:
            self._slide: OpenSlide = openslide.OpenSlide(path)
        except self._error as error:
            raise InputError(
                f"{path} cannot be read as a slide ({error or 'unknown format'})"
            ) from error
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.levels = _levels(self._slide)
        self.bounds: Bounds | None = _bounds(self._slide)

    def rows(self, level: int) -> int:
        """Rows decoded together: of some tiles."""
        height = int(self._slide.properties.get(f"openslide.level[{level}].tile-height", _ROWS))
        return height * -(-_ROWS // height) if height <= _TALLEST_TILE else _ROWS

    def region(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """A window, as `SlideReader.region` has it."""
        downsample = self._slide.level_downsamples[level]
        window = np.empty((3, height, width), np.uint8)

        def place(left: int) -> None:
            columns = min(_COLUMNS, width - left)
            corner = (round((x + left) * downsample), round(y * downsample))
            region = self._slide.read_region(corner, level, (columns, height))
            window[:, :, left : left + columns] = np.moveaxis(
                composite_slide_on_white(region), -1, 0
            )

        run = map if self._pool is None else self._pool.map
        try:
            for _ in run(place, range(0, width, _COLUMNS)):
                pass
        except self._error as error:
            raise InputError(
                f"{self._path} cannot be decoded in rows {y} to {y + height - 1} ({error}); it is "
                f"damaged there"
            ) from error
        return window

    def close(self) -> None:
        """Close the slide; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown()
        if not self._closed:  # a second close is an error of OpenSlide's
            self._slide.close()
            self._closed = True


def _bounds(slide: "OpenSlide") -> Bounds | None:
    """What was scanned, where the slide says so and it is less than the whole."""
    try:
        x, y, width, height = (
            int(slide.properties[f"openslide.bounds-{name}"])
            for name in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return None
    return None if (x, y, width, height) == (0, 0, *slide.dimensions) else (x, y, width, height)


def _levels(slide: "OpenSlide") -> list[Level]:
    """The pyramid, by the scale that OpenSlide works out itself."""
    y, x = (length(slide.properties.get(f"openslide.mpp-{axis}")) for axis in "yx")
    return [
        Level((rows, columns), None if y is None or x is None else (y * downsample, x * downsample))
        for (columns, rows), downsample in zip(
            slide.level_dimensions, slide.level_downsamples, strict=True
        )
    ]
