"""TIFF files: tiled or in strips, classic or big, OME, ImageJ, Aperio, pyramidal."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.deferred_files import is_whole, open_binary, require_read
from nnunet_octreenca.errors import InputError, OctreeNCAError
from nnunet_octreenca.images import orientation
from nnunet_octreenca.images.downsample import area_average, covered
from nnunet_octreenca.images.levels import MICRONS_PER_MM, Bounds, pyramid
from nnunet_octreenca.images.pixels import channels_kept, composite_on_white
from nnunet_octreenca.images.tiff_colours import TiffColours, cmyk_as_rgb
from nnunet_octreenca.images.tiff_levels import largest_series, level_series
from nnunet_octreenca.images.tiff_pages import PageLayout
from nnunet_octreenca.images.tiff_resolution import (
    microns_per_pixel,
    plane_distance,
    spacing_beside,
)
from nnunet_octreenca.images.tiff_segments import TiffSegments
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from tifffile import TiffFile


def samples_to_convert(path: Path | str) -> int | None:
    """Samples a pixel of a TIFF file whose first page is stored otherwise than viewers show it.

    None where what is stored is what is shown.

    Raises:
        InputError: the colours cannot be read.
    """
    with import_optional("tifffile", "slides").TiffFile(path) as tiff:
        page = tiff.pages[0]
        colours = TiffColours(page, Path(path))
        unscanned = 0 in page.databytecounts and colours.fill.any()
        turned = orientation.of_tiff(page) != orientation.STORED
        return int(page.samplesperpixel) if colours.changes or unscanned or turned else None


class TiffReader:
    """The largest image of a TIFF file, a `SlideReader`.

    Args:
        path: the file.
        channels: that the model takes. RGBA is laid over white and CMYK turned into RGB unless
            it is 4; a palette is turned into colours if it is 3; unnamed pages are channels if
            there are so many.
        stored: for masks: numbers of a palette, alpha and CMYK as they are stored.
        threads: that decode a window.

    Attributes:
        levels, channels, dtype, orientation: as `SlideReader` has them.
        planes: of a stack; 1 of a 2-D image.
        stack_spacing: mm (z, y, x) of a stack; ones where the file says nothing.

    Raises:
        InputError: the file is truncated, or no image that can be read.
        EnvironmentMismatchError: tifffile is not installed.
    """

    bounds: Bounds | None = None

    def __init__(
        self, path: Path, *, channels: int | None = None, stored: bool = False, threads: int = 1
    ) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._segments: dict[int, TiffSegments] = {}
        self._opened: TiffFile | None = None
        tifffile = import_optional("tifffile", "slides")
        # Of a path tifffile finds the other files of a multi-file image too.
        opened: Path | BinaryIO = path if is_whole(path) else open_binary(path)
        try:
            self._tiff: TiffFile = tifffile.TiffFile(opened)
            self._opened = self._tiff
            series = largest_series(self._tiff, path)
            self._series = level_series(self._tiff, series)
            self._layouts = [PageLayout(level, channels, path) for level in self._series]
            self._colours = [
                TiffColours(level.keyframe, path, stored=stored) for level in self._series
            ]
            finest = microns_per_pixel(self._tiff, series)
            distance = plane_distance(self._tiff, series)
            beside = spacing_beside(path) if self._layouts[0].pages.shape[1] > 1 else None
            require_read(opened)
        except Exception as error:  # a damaged header makes tifffile raise nearly anything
            self.close()
            require_read(opened)
            if isinstance(error, OctreeNCAError):
                raise
            raise InputError(
                f"{path} cannot be read as TIFF ({error}); is it truncated?"
            ) from error
        layout = self._layouts[0]
        self.planes = layout.pages.shape[1]
        self.orientation = orientation.STORED
        if self.planes == 1:  # viewers of stacks do not turn them, nor does nnU-Net's reader
            self.orientation = orientation.of_tiff(self._series[0].keyframe)
        self._shapes = [one.shape for one in self._layouts]
        shown = [orientation.shown_pair(shape, self.orientation) for shape in self._shapes]
        if finest is not None:
            finest = orientation.shown_pair(finest, self.orientation)
        self.levels = pyramid(shown, finest)
        samples = layout.samples * layout.pages.shape[0]
        coloured = samples == 1 and channels == 3 and not stored
        self._palette = layout.palette if coloured else None
        self._cmyk = layout.cmyk and samples == 4 and channels != 4 and not stored
        # As OpenSlide does in Aperio's files, where tiles of coarse levels may be missing.
        self._finer_helps = bool(self._tiff.is_svs) and not stored and self.planes == 1
        kept = channels_kept(samples, alpha=layout.alpha and not stored, wanted=channels)
        self._blend = kept < samples
        self.channels = 3 if self._cmyk or self._palette is not None else kept
        self.dtype = layout.dtype if self._palette is None else np.dtype(np.uint8)
        between = 1.0 if distance is None else distance / MICRONS_PER_MM
        self.stack_spacing: tuple[float, ...] = beside or (between, *self.levels[0].spacing)

    def rows(self, level: int) -> int:
        """Rows decoded together, as `SlideReader.rows` has it."""
        segments = self._of(level)
        return segments.columns if orientation.swaps_axes(self.orientation) else segments.rows

    def region(
        self, level: int, y: int, x: int, height: int, width: int, *, plane: int = 0
    ) -> Pixels:
        """A window, as `SlideReader.region` has it, of a plane of a stack."""
        window, shape = (y, x, height, width), self.levels[level].shape
        stored = orientation.stored_window(window, shape, self.orientation)
        return orientation.turned(self._stored(level, *stored, plane=plane), self.orientation)

    def _stored(
        self, level: int, y: int, x: int, height: int, width: int, *, plane: int = 0
    ) -> Pixels:
        """A window before it is turned."""
        layout, segments = self._layouts[level], self._of(level)
        samples, numbers = layout.samples, layout.pages[:, plane]
        colours = self._colours[level]
        window = np.empty((len(numbers) * samples, height, width), layout.dtype)
        missing = []
        for place, number in enumerate(numbers):
            part = window[place * samples : (place + 1) * samples]
            part[:] = colours.fill
            missing = segments.read(int(number), y, x, part)
            colours.apply(part)
        if self._blend:
            window = composite_on_white(window, premultiplied=layout.premultiplied)
        if self._cmyk:
            window = cmyk_as_rgb(window)
        if self._palette is not None:
            window = self._palette[:, window[0]]
        if level and self._finer_helps:
            for top, left, rows, columns in missing:
                window[:, top : top + rows, left : left + columns] = self._from_finer(
                    level, y + top, x + left, rows, columns
                )
        return window

    def _from_finer(self, level: int, y: int, x: int, height: int, width: int) -> Pixels:
        """A window averaged from the next finer level."""
        shapes = self._shapes[level - 1 : level + 1]
        (top, bottom, rows), (left, right, columns) = (
            covered(first, first + count, fine / coarse, fine, self.dtype)
            for first, count, fine, coarse in zip((y, x), (height, width), *shapes, strict=True)
        )
        fine = self._stored(level - 1, top, left, bottom - top, right - left)
        return area_average(fine, rows, columns)

    def _of(self, level: int) -> TiffSegments:
        if level not in self._segments:
            run = map if self._pool is None else self._pool.map
            pages = self._layouts[level].pages.size
            try:
                self._segments[level] = TiffSegments(
                    self._path, self._tiff, self._series[level], pages, run
                )
            except (ArithmeticError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self._path} has a damaged directory of its tiles ({error!r})"
                ) from error
        return self._segments[level]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._opened is not None:
            self._opened.close()
