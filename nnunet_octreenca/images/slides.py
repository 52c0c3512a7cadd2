"""Slides and TIFF files in bands: full-width regions of one level, or planes of a stack."""

from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import orientation
from nnunet_octreenca.images.downsample import Downsampled
from nnunet_octreenca.images.header_checks import require_memory
from nnunet_octreenca.images.levels import Bounds, choose_level
from nnunet_octreenca.images.slide_reader import SlideReader, open_reader
from nnunet_octreenca.images.source import ImageInfo, ImageSource
from nnunet_octreenca.images.stripes import StripedSource
from nnunet_octreenca.images.tiff_reader import TiffReader
from nnunet_octreenca.resources import decoding_threads

# Rows read at a time where the file would allow single ones.
_ROWS = 128


def open_slide(
    path: Path | str, *, channels: int | None = None, mpp: float | None = None
) -> ImageSource:
    """Open a whole-slide image: a TIFF file's largest image, or a vendor's format.

    Args:
        path: the file.
        channels: that the model takes; see `open_reader`.
        mpp: microns per pixel of the level to read, or to average down to; the finest level's
            if left out.

    Returns:
        (y, x), or (z, y, x) for a stack; `info` holds `mpp` and `base_shape`.

    Raises:
        InputError: the file is missing, truncated or no slide, or has no such resolution.
        EnvironmentMismatchError: OpenSlide, tifffile or imagecodecs is not installed.
    """
    path = Path(path)
    reader = open_reader(path, channels=channels, threads=decoding_threads())
    try:
        if isinstance(reader, TiffReader) and reader.planes > 1:
            if mpp is not None:
                raise InputError(
                    f"{path} is a stack of planes; a resolution (--mpp) is for 2-D images"
                )
            return StackSource(path, reader)
        index, factor = choose_level(reader.levels, mpp, path)
        source = SlideSource(path, reader, index)
    except BaseException:
        reader.close()
        raise
    if factor is None:
        return source
    assert mpp is not None
    return Downsampled(source, factor, mpp, reader.levels[0].shape)


class SlideSource(StripedSource):
    """One level of a slide in bands.

    Stripes have fixed borders and bands are cut from them, so that every band height gives the
    same pixels.

    Args:
        path: of the file; named in the errors.
        reader: the open slide; closed by `close`.
        level: index of the level to read.

    Raises:
        InputError: data that the file's directory names lie beyond its end.
    """

    def __init__(self, path: Path, reader: SlideReader, level: int) -> None:
        self._reader = reader
        self._level = level
        chosen = reader.levels[level]
        info = ImageInfo(
            mpp=chosen.mean_mpp,
            base_shape=reader.levels[0].shape,
            bounds=reader.bounds,
            notes=(
                *orientation.note(path.name, reader.orientation, "TIFF"),
                *_bounds_note(path, reader.bounds),
            ),
        )
        rows = reader.rows(level)
        stripe = rows * -(-_ROWS // rows)
        super().__init__(chosen.shape, reader.channels, reader.dtype, chosen.spacing, stripe, info)
        require_memory(path, 2 * self._stripe_bytes)

    def _read_stripe(self, first: int, end: int) -> Pixels:
        return self._reader.region(self._level, first, 0, end - first, self.shape[1])

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        super().close()
        self._reader.close()


def _bounds_note(path: Path, bounds: Bounds | None) -> tuple[str, ...]:
    if bounds is None:
        return ()
    x, y, width, height = bounds
    return (
        f"{path.name}: {width} x {height} pixels from x {x}, y {y} were scanned. GeoJSON begins "
        f"there, as QuPath does; other results cover the whole slide",
    )


class StackSource(StripedSource):
    """The planes of a TIFF stack, one in memory at a time.

    Args:
        path: of the file; named in the errors.
        reader: the open stack; closed by `close`.

    Raises:
        InputError: data that the file's directory names lie beyond its end.
    """

    def __init__(self, path: Path, reader: TiffReader) -> None:
        self._reader = reader
        plane = reader.levels[0]
        info = ImageInfo(mpp=plane.mean_mpp, base_shape=plane.shape)
        reader.rows(0)  # checks that the file is whole
        shape = (reader.planes, *plane.shape)
        dtype = np.dtype(reader.dtype)
        super().__init__(shape, reader.channels, dtype, reader.stack_spacing, 1, info)
        require_memory(path, 2 * self._stripe_bytes)

    def _read_stripe(self, first: int, end: int) -> Pixels:
        return self._reader.region(0, 0, 0, *self.shape[1:], plane=first)[:, None]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        super().close()
        self._reader.close()
