"""The strips and tiles of a TIFF level: which a window touches, read and decoded."""

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.libraries import missing_decoder

if TYPE_CHECKING:
    from tifffile import FileHandle, TiffFile, TiffFrame, TiffPage, TiffPageSeries

_JPEG = (6, 7, 34892, 33007)  # values of the tag Compression that need the tables beside
_STRIP_LENGTHS, _TILE_LENGTHS = 279, 325  # tags
_JPEG2000 = (33003, 33004, 33005, 34712)

Window = tuple[int, int, int, int]  # y, x, height, width


class TiffSegments:
    """The pages of one level.

    Args:
        path: of the file; named in the errors.
        tiff: the open `tifffile.TiffFile`.
        level: its `TiffPageSeries`.
        pages: how many of them.
        run: `map`, or that of a pool.

    Attributes:
        rows: that are decoded together: of a tile or a strip, 1 where nothing is encoded.
        columns: likewise: of a tile, else all.

    Raises:
        InputError: data that the directory names lie beyond the file's end.
    """

    def __init__(
        self,
        path: Path,
        tiff: "TiffFile",
        level: "TiffPageSeries",
        pages: int,
        run: Callable[..., Iterable[Any]],
    ) -> None:
        self._path = path
        self._tiff = tiff
        self._level = level
        self._run = run
        page = self._page = level.keyframe
        if int(page.compression) in _JPEG2000:  # which restores what it subsampled
            page.subsampling = (1, 1)
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        self.rows: int = 1 if page.is_final else min(rows, page.imagelength)
        tiled = page.is_tiled and not page.is_final
        self.columns: int = min(page.tilewidth, page.imagewidth) if tiled else page.imagewidth
        # Where all pages follow one another without a gap, tifffile may list the first only.
        self._start = level.dataoffset if page.is_final else None
        self._require_whole(pages)

    def _require_whole(self, pages: int) -> None:
        size = self._tiff.filehandle.size
        segments = prod(self._page.chunked)
        # tifffile leaves out those too many; the tag still tells of all.
        lengths = self._page.tags.get(_TILE_LENGTHS if self._page.is_tiled else _STRIP_LENGTHS)
        if lengths is not None and lengths.count > segments:
            raise self._miscounted(lengths.count, lengths.count, segments)
        self._require_size()
        if self._start is not None:
            end = self._start + pages * self._page.nbytes
        else:
            end = 0
            for page in map(self._page_at, range(pages)):
                offsets, counts = page.dataoffsets, page.databytecounts
                if len(offsets) != segments or len(counts) != segments:
                    raise self._miscounted(len(offsets), len(counts), segments)
                if page.parent is self._tiff:
                    end = max(end, max(map(sum, zip(offsets, counts, strict=False))))
        if end > size:
            raise InputError(
                f"{self._path} is truncated: its directory names data up to byte {end:,} and the "
                f"file ends at {size:,}"
            )

    def _miscounted(self, offsets: int, lengths: int, segments: int) -> InputError:
        return InputError(
            f"{self._path} lists {offsets} offsets and {lengths} lengths for the {segments} tiles "
            f"or strips of {self._size}; it is damaged"
        )

    @property
    def _size(self) -> str:
        return f"{self._page.imagewidth} x {self._page.imagelength} pixels"

    def _require_size(self) -> None:
        """Refuse uncompressed strips or tiles that are longer than their rows and columns."""
        page = self._page
        if page.compression != 1 or page.bitspersample % 8 or self._subsampled():
            return
        columns = page.tilewidth if page.is_tiled else page.imagewidth
        rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        samples = page.samplesperpixel if page.planarconfig == 1 else 1
        holds = rows * columns * samples * page.bitspersample // 8
        longest = max(page.databytecounts)
        whole = page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8
        if longest > holds and not (len(page.databytecounts) == 1 and longest == whole):
            raise InputError(
                f"{self._path} holds {longest:,} bytes where {columns} x {rows} pixels take "
                f"{holds:,}; its header, which says {self._size}, is damaged"
            )

    def _subsampled(self) -> bool:
        return bool(self._page.subsampling and max(self._page.subsampling) > 1)

    def _page_at(self, index: int) -> "TiffPage | TiffFrame":
        page = self._level[index]
        if page is None:
            raise InputError(f"{self._path} lacks page {index}; is one of its files missing?")
        return page

    def read(self, index: int, y: int, x: int, out: Pixels) -> list[Window]:
        """Read a window of a page.

        Args:
            index: of the page.
            y, x: of the window's first pixel.
            out: (samples, height, width); what was never written stays as it is.

        Returns:
            What was never written: (y, x, height, width) within `out`.

        Raises:
            InputError: the file is damaged there.
            EnvironmentMismatchError: imagecodecs is needed and not installed.
        """
        try:
            if self._page.is_final:
                self._read_rows(index, y, x, out)
                return []
            return self._decode(self._page_at(index), y, x, out)
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._path} has a damaged directory of its tiles ({error!r})"
            ) from error

    def _read_rows(self, index: int, y: int, x: int, out: Pixels) -> None:
        """A window of a page that is stored as it is."""
        page = self._page
        separate, _, rows, columns, contiguous = page.shaped
        _, height, width = out.shape
        assert page.dtype is not None  # the layout was checked
        stored = page.dtype.newbyteorder(page.parent.byteorder)
        stride = columns * contiguous * stored.itemsize
        if self._start is not None:
            handle, start = self._tiff.filehandle, self._start + index * page.nbytes
        else:
            own = self._page_at(index)
            handle, start = own.parent.filehandle, own.dataoffsets[0]
        for sample in range(separate):
            data = self._bytes(handle, start + (sample * rows + y) * stride, height * stride)
            pixels = np.frombuffer(data, stored).reshape(height, columns, contiguous)
            out[sample * contiguous : (sample + 1) * contiguous] = np.moveaxis(
                pixels[:, x : x + width], -1, 0
            )

    def _decode(self, page: "TiffPage | TiffFrame", y: int, x: int, out: Pixels) -> list[Window]:
        """A window of a page from the tiles or strips that it touches."""
        key = self._page
        separate, _, _, columns, contiguous = key.shaped
        _, height, width = out.shape
        tile_width = key.tilewidth if key.is_tiled else columns
        across, down = -(-columns // tile_width), -(-key.imagelength // self.rows)
        tables = {}
        if key.compression in _JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}

        def place(job: tuple[int, bytes]) -> None:
            number, data = job
            decoded, (sample, _, row, column, _), _ = key.decode(data, number, **tables)
            assert decoded is not None  # there are data
            pixels = decoded[0]
            top, bottom = max(y, row), min(y + height, row + pixels.shape[0])
            left, right = max(x, column), min(x + width, column + pixels.shape[1])
            out[sample : sample + contiguous, top - y : bottom - y, left - x : right - x] = (
                np.moveaxis(pixels[top - row : bottom - row, left - column : right - column], -1, 0)
            )

        jobs, missing = [], []
        for row in range(y // self.rows, -(-(y + height) // self.rows)):
            for column in range(x // tile_width, -(-(x + width) // tile_width)):
                for sample in range(separate):
                    number = (sample * down + row) * across + column
                    count = page.databytecounts[number]
                    if count:
                        handle, offset = page.parent.filehandle, page.dataoffsets[number]
                        jobs.append((number, self._bytes(handle, offset, count)))
                if not count:
                    top, left = max(row * self.rows - y, 0), max(column * tile_width - x, 0)
                    bottom = min((row + 1) * self.rows - y, height)
                    right = min((column + 1) * tile_width - x, width)
                    missing.append((top, left, bottom - top, right - left))
        try:
            for _ in self._run(place, jobs):
                pass
        except NotImplementedError as error:
            raise InputError(
                f"{self._path} cannot be decoded ({error}); save it in another compression"
            ) from error
        except Exception as error:
            raise missing_decoder(self._path, error) or InputError(
                f"{self._path} cannot be decoded in rows {y} to {y + height - 1} ({error}); it is "
                f"damaged there"
            ) from error
        return missing

    def _bytes(self, handle: "FileHandle", offset: int, count: int) -> bytes:
        if handle.closed:  # one of several files that belong together
            handle.open()
        handle.seek(offset)
        data = bytes(handle.read(count))
        if len(data) < count:
            raise InputError(f"{self._path} is truncated: it ends before byte {offset + count:,}")
        return data
