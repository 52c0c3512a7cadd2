"""TIFF files in bands: tiled or in strips, classic or big, OME, ImageJ, Aperio, pyramidal."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.downsample import Downsampled
from nnunet_octreenca.images.header_checks import require_memory
from nnunet_octreenca.images.levels import MICRONS_PER_MM, choose_level, pyramid
from nnunet_octreenca.images.pixels import channels_kept, composite_on_white
from nnunet_octreenca.images.source import ImageSource
from nnunet_octreenca.images.stripes import StripedSource
from nnunet_octreenca.images.tiff_pages import PageLayout
from nnunet_octreenca.images.tiff_resolution import (
    microns_per_pixel,
    plane_distance,
    spacing_beside,
)
from nnunet_octreenca.libraries import import_optional, missing_decoder
from nnunet_octreenca.resources import decoding_threads

# Rows read at a time where the file would allow single ones.
_ROWS = 128
_JPEG = (6, 7, 34892, 33007)  # values of the tag Compression that need the tables beside


def open_tiff(
    path: Path | str, *, channels: int | None = None, mpp: float | None = None
) -> ImageSource:
    """Open the largest image of a TIFF file.

    Args:
        path: the file.
        channels: that the model takes. RGBA is laid over white unless it is 4; a palette is
            turned into colours if it is 3; unnamed pages are channels if there are so many.
        mpp: microns per pixel of the level to read, or to average down to; the finest level's
            if left out.

    Returns:
        (y, x), or (z, y, x) for a stack. `info` holds `mpp` and `base_shape`.

    Raises:
        InputError: the file is missing, truncated or no TIFF, or has no such resolution.
        EnvironmentMismatchError: tifffile or imagecodecs is not installed.
    """
    path = Path(path)
    tifffile = import_optional("tifffile", "slides")
    try:
        tiff = tifffile.TiffFile(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except Exception as error:  # a damaged header makes tifffile raise nearly anything
        raise InputError(f"{path} cannot be read as TIFF ({error}); is it truncated?") from error
    try:
        return _open(tiff, path, channels, mpp)
    except BaseException:
        tiff.close()
        raise


def _open(tiff: Any, path: Path, channels: int | None, mpp: float | None) -> ImageSource:
    try:
        series = _largest(tiff)
        levels = _levels(tiff, series)
        finest = microns_per_pixel(tiff, series)
        layouts = [PageLayout(level, channels, path) for level in levels]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read as TIFF ({error}); is it truncated?") from error
    known = pyramid([(layout.shape[-2], layout.shape[-1]) for layout in layouts], finest)
    if mpp is not None and len(layouts[0].shape) == 3:
        raise InputError(f"{path} is a stack of planes; a resolution (--mpp) is for 2-D images")
    index, factor = choose_level(known, mpp, path)
    layout, chosen = layouts[index], known[index]
    spacing: tuple[float, ...] = chosen.spacing
    if len(layout.shape) == 3:
        distance = plane_distance(tiff, series)
        between = 1.0 if distance is None else distance / MICRONS_PER_MM
        spacing = spacing_beside(path) or (between, *spacing)
    source = TiffSource(path, tiff, levels[index], layout, spacing, channels)
    mean = None if chosen.mpp is None else sum(chosen.mpp) / 2
    source.info = replace(source.info, mpp=mean, base_shape=known[0].shape)
    if factor is None:
        return source
    assert mpp is not None
    return Downsampled(source, factor, mpp, known[0].shape)


def _largest(tiff: Any) -> Any:
    def area(series: Any) -> int:
        keyframe = series.keyframe
        return keyframe.imagelength * keyframe.imagewidth

    images = [series for series in tiff.series if prod(series.shape) > 0]
    if not images:
        raise InputError(f"{tiff.filename} holds no image; is it truncated?")
    return max(images, key=area)


def _levels(tiff: Any, series: Any) -> list[Any]:
    """The series' levels, finest first, with those that tifffile leaves as series of their own.

    It joins only factors of 2 to 4; a tiled page marked as reduced that has the same form is a
    level whatever its factor.
    """
    levels = list(series.levels)
    page = series.keyframe
    for other in tiff.series:
        reduced = other.keyframe
        if (
            other is not series
            and other.kind == "generic"
            and reduced.is_reduced
            and reduced.is_tiled
            and (reduced.samplesperpixel, reduced.dtype) == (page.samplesperpixel, page.dtype)
            and abs(reduced.imagewidth * page.imagelength / page.imagewidth - reduced.imagelength)
            <= 1 + page.imagelength / page.imagewidth
        ):
            levels.append(other)
    return sorted(levels, key=lambda level: -level.keyframe.imagelength)


class TiffSource(StripedSource):
    """One level of one image of a TIFF file: only the segments a band touches are decoded.

    Args:
        path: of the file; named in the errors.
        tiff: the open `tifffile.TiffFile`; closed by `close`.
        level: the `TiffPageSeries` to read.
        layout: what its pages mean.
        spacing: mm per axis.
        channels: that the model takes, or None.

    Raises:
        InputError: data that the file's directory names lie beyond its end.
    """

    def __init__(
        self,
        path: Path,
        tiff: Any,
        level: Any,
        layout: PageLayout,
        spacing: tuple[float, ...],
        channels: int | None,
    ) -> None:
        self._path = path
        self._tiff = tiff
        self._level = level
        self._page = level.keyframe
        self._layout = layout
        self._colours = layout.palette is not None and channels == 3
        samples = layout.samples * layout.pages.shape[0]
        self._blend = layout.alpha and channels_kept(samples, alpha=True, wanted=channels) < samples
        super().__init__(
            layout.shape,
            3 if self._colours else samples - self._blend,
            np.dtype(np.uint8) if self._colours else layout.dtype,
            spacing,
            1 if len(layout.shape) == 3 else self._stripe_rows(),
        )
        require_memory(path, self._stripe_bytes)
        self._pool: ThreadPoolExecutor | None = None
        # Where all pages follow one another without a gap, tifffile may list the first only.
        self._start = level.dataoffset if self._page.is_final else None
        self._require_whole()

    def _stripe_rows(self) -> int:
        page = self._page
        if page.is_final:
            return _ROWS
        rows = min(page.tilelength if page.is_tiled else page.rowsperstrip, page.imagelength)
        return rows * -(-_ROWS // rows)

    def _require_whole(self) -> None:
        size = self._tiff.filehandle.size
        if self._start is not None:
            end = self._start + self._layout.pages.size * self._page.nbytes
        else:
            end = 0
            segments = prod(self._page.chunked)
            for page in map(self._page_at, range(self._layout.pages.size)):
                offsets, counts = page.dataoffsets, page.databytecounts
                if len(offsets) < segments or len(counts) < segments:
                    raise InputError(
                        f"{self._path} lists {len(offsets)} of {segments} tiles; it is damaged"
                    )
                if page.parent is self._tiff:
                    end = max(end, max(map(sum, zip(offsets, counts, strict=False))))
        if end > size:
            raise InputError(
                f"{self._path} is truncated: its directory names data up to byte {end:,} and the "
                f"file ends at {size:,}"
            )

    def _page_at(self, index: int) -> Any:
        page = self._level[index]
        if page is None:
            raise InputError(f"{self._path} lacks page {index}; is one of its files missing?")
        return page

    def _read_stripe(self, first: int, end: int) -> NDArray:
        layout = self._layout
        stack = len(layout.shape) == 3
        plane, low, high = (first, 0, layout.shape[1]) if stack else (0, first, end)
        samples = layout.samples
        shape = (layout.pages.shape[0] * samples, high - low, layout.shape[-1])
        band = np.full(shape, self._page.nodata or 0, layout.dtype)
        for number, page in enumerate(layout.pages[:, plane]):
            part = band[number * samples : (number + 1) * samples]
            if self._page.is_final:
                self._read_rows(int(page), low, high, part)
            else:
                self._decode(self._page_at(int(page)), low, high, part)
        if self._blend:
            band = composite_on_white(band, premultiplied=layout.premultiplied)
        if self._colours:
            assert layout.palette is not None
            band = layout.palette[:, band[0]]
        return band[:, None] if stack else band

    def _read_rows(self, index: int, low: int, high: int, out: NDArray) -> None:
        """Rows of a page that is stored as it is."""
        page = self._page
        separate, _, rows, columns, contiguous = page.shaped
        stored = page.dtype.newbyteorder(page.parent.byteorder)
        width = columns * contiguous * stored.itemsize
        if self._start is not None:
            handle, start = self._tiff.filehandle, self._start + index * page.nbytes
        else:
            own = self._page_at(index)
            handle, start = own.parent.filehandle, own.dataoffsets[0]
        for sample in range(separate):
            data = self._bytes(handle, start + (sample * rows + low) * width, (high - low) * width)
            pixels = np.frombuffer(data, stored).reshape(high - low, columns, contiguous)
            out[sample * contiguous : (sample + 1) * contiguous] = np.moveaxis(pixels, -1, 0)

    def _decode(self, page: Any, low: int, high: int, out: NDArray) -> None:
        """Rows of a page from the tiles or strips that they touch, by several threads."""
        key = self._page
        separate, _, _, columns, contiguous = key.shaped
        height, width = key.rowsperstrip, columns
        if key.is_tiled:
            height, width = key.tilelength, key.tilewidth
        height = min(height, key.imagelength)
        across, down = -(-columns // width), -(-key.imagelength // height)
        tables = {}
        if key.compression in _JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}

        def place(job: tuple[int, bytes]) -> None:
            index, data = job
            pixels, (sample, _, row, column, _), _ = key.decode(data, index, **tables)
            pixels = pixels[0]
            top, bottom = max(low, row), min(high, row + pixels.shape[0])
            right = min(column + pixels.shape[1], columns)
            out[sample : sample + contiguous, top - low : bottom - low, column:right] = np.moveaxis(
                pixels[top - row : bottom - row, : right - column], -1, 0
            )

        indices = [
            (sample * down + row) * across + column
            for sample in range(separate)
            for row in range(low // height, -(-high // height))
            for column in range(across)
        ]
        # A tile of no bytes was never written: it stays at the file's "no data".
        jobs = [
            (index, self._bytes(page.parent.filehandle, page.dataoffsets[index], count))
            for index in indices
            if (count := page.databytecounts[index])
        ]
        try:
            for _ in self._threads().map(place, jobs):
                pass
        except Exception as error:
            raise missing_decoder(self._path, error) or InputError(
                f"{self._path} cannot be decoded in rows {low} to {high - 1} ({error}); it is "
                f"damaged there"
            ) from error

    def _bytes(self, handle: Any, offset: int, count: int) -> bytes:
        if handle.closed:  # one of several files that belong together
            handle.open()
        handle.seek(offset)
        data = handle.read(count)
        if len(data) < count:
            raise InputError(f"{self._path} is truncated: it ends before byte {offset + count:,}")
        return data

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(decoding_threads())
        return self._pool

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._tiff.close()
