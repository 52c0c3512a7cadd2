"""The one place that opens slides: TIFF, vendors' formats, pictures."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnunet_octreenca import deferred_files
from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, OctreeNCAError
from nnunet_octreenca.images.companions import with_companions
from nnunet_octreenca.images.levels import Bounds, Level
from nnunet_octreenca.images.pictures import PictureSource
from nnunet_octreenca.images.tiff_reader import TiffReader
from nnunet_octreenca.images.vendor_slides import OpenSlideReader
from nnunet_octreenca.libraries import import_optional

OPENSLIDE_ENDINGS = (".mrxs", ".ndpi", ".scn", ".vms", ".vmu", ".bif", ".svslide")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_ENDINGS = (".tif", ".tiff", ".svs", ".btf", ".tf2", ".tf8")
SLIDE_ENDINGS = (*TIFF_ENDINGS, *OPENSLIDE_ENDINGS, *PICTURE_ENDINGS)
# Vendors whose TIFF files tifffile decodes as they are shown. Of the others the tiles overlap
# (Ventana, Trestle), lie scattered (Leica, Philips), or are one JPEG of gigapixels (Hamamatsu).
_STORED_AS_SHOWN = {None, "aperio", "generic-tiff"}


class SlideReader(Protocol):
    """An open slide, of which windows are decoded without the rest.

    Attributes:
        levels: shape and resolution of each, the finest first.
        channels: samples a pixel.
        dtype: of the samples.
        planes: of a stack; 1 of a 2-D image. Only `TiffReader.region` reads others than the first.
        orientation: of the eight that EXIF and TIFF have; levels and windows are as shown.
        bounds: (x, y, width, height) in pixels of the finest level of what was scanned, which
            QuPath cuts a slide to; None where the file does not say.
    """

    levels: list[Level]
    channels: int
    dtype: np.dtype[Any]
    planes: int
    orientation: int

    @property
    def bounds(self) -> Bounds | None: ...

    def region(self, level: int, y: int, x: int, height: int, width: int) -> Pixels:
        """A window that lies within its level, (channels, height, width).

        Raises:
            InputError: the file is damaged there.
            EnvironmentMismatchError: the library that decodes it is not installed.
        """
        ...

    def rows(self, level: int) -> int:
        """How many rows are decoded at once, whatever window is read.

        Raises:
            InputError: the level's data lie beyond the file's end.
        """
        ...

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        ...


def open_reader(
    path: Path | str, *, channels: int | None = None, stored: bool = False, threads: int = 1
) -> SlideReader:
    """Open a slide or a picture.

    Args:
        path: the file.
        channels: that the model takes. Alpha is laid over white unless it takes that too; a
            palette is turned into colours if it takes 3; unnamed pages of a TIFF file are
            channels if there are so many.
        stored: samples as they are stored, for masks.
        threads: that decode a window.

    Raises:
        InputError: the file is missing, truncated, or no slide.
        EnvironmentMismatchError: the library that reads it is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"the slide {path} does not exist")
    ending = path.suffix.lower()
    if ending in PICTURE_ENDINGS:
        deferred_files.fetch(path)
        return PictureSource(path, channels=channels, stored=stored)
    if is_tiff(path):
        if not openslide_knows_better(path):
            return TiffReader(path, channels=channels, stored=stored, threads=threads)
    elif ending in TIFF_ENDINGS:
        with deferred_files.open_binary(path) as file:
            begin = file.read(4)
        raise InputError(
            f"{path} cannot be read as TIFF: it begins with {begin!r}; is it truncated, or of "
            f"another format?"
        )
    for part in with_companions(path):
        deferred_files.fetch(part)
    return OpenSlideReader(path, threads=threads)


def read_whole(path: Path | str, *, channels: int = 3, stored: bool = False) -> Pixels:
    """A picture's or slide's finest level, (rows, columns, channels); see `open_reader`.

    Raises:
        InputError: as `open_reader`, or it is a stack of planes.
    """
    reader = open_reader(path, channels=None if stored else channels, stored=stored)
    try:
        require_one_plane(reader, path)
        pixels = reader.region(0, 0, 0, *reader.levels[0].shape)
    finally:
        reader.close()
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))


def orientation_of(path: Path | str) -> int:
    """Of the eight orientations that EXIF and TIFF have, a file's; its pixels are not read.

    Raises:
        InputError: as `open_reader`.
    """
    reader = open_reader(path, stored=True)
    try:
        return reader.orientation
    finally:
        reader.close()


def require_one_plane(reader: SlideReader, path: Path | str) -> None:
    """Refuse a stack.

    Raises:
        InputError: there are several planes.
    """
    if reader.planes > 1:
        raise InputError(f"{path} is a stack of {reader.planes} planes; save the one to use")


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF and BigTIFF do."""
    with deferred_files.open_binary(path) as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def openslide_knows_better(path: Path) -> bool:
    """Whether a TIFF is a vendor's whose tiles are not simply the image.

    Raises:
        EnvironmentMismatchError: it is by its name, and OpenSlide is not installed.
    """
    try:
        openslide = import_optional("openslide", "slides")
    except EnvironmentMismatchError:
        if path.suffix.lower() in OPENSLIDE_ENDINGS:
            raise
        return False
    _keep_directories(path)
    return openslide.OpenSlide.detect_format(path) not in _STORED_AS_SHOWN


def _keep_directories(path: Path) -> None:
    """Have the directories of a deferred TIFF lie in its place, where OpenSlide looks for them."""
    if deferred_files.is_whole(path):
        return
    tifffile = import_optional("tifffile", "slides")
    with deferred_files.keeping(path), deferred_files.open_binary(path) as file:
        try:
            with tifffile.TiffFile(file) as tiff:
                for page in tiff.pages:
                    for tag in page.aspage().tags:
                        _ = tag.value  # some are read when they are asked for
        except OctreeNCAError:
            raise
        except Exception:  # damaged: said by the reader that finds it
            pass
        deferred_files.require_read(file)
