"""The files that slides are kept in: TIFF, vendors' formats, pictures."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.images.pixels import (
    PREMULTIPLIED,
    composite_on_white,
    composite_slide_on_white,
    picture_mode,
    tiff_alpha,
)
from nnunet_octreenca.libraries import import_optional, unlimited_pillow

# Vendors whose TIFF files tifffile decodes as they are shown. Of the others the tiles overlap
# (Ventana, Trestle), lie scattered (Leica, Philips), or are one JPEG of gigapixels (Hamamatsu).
_STORED_AS_SHOWN = {None, "aperio", "generic-tiff"}
OPENSLIDE_ENDINGS = (".mrxs", ".ndpi", ".scn", ".vms", ".vmu", ".bif", ".svslide")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_ENDINGS = (".tif", ".tiff", ".svs")
SLIDE_ENDINGS = (*TIFF_ENDINGS, *OPENSLIDE_ENDINGS, *PICTURE_ENDINGS)

# Levels of a pyramid have the same proportions but for whole sizes.
_TOLERANCE = 0.02
_MICRONS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}
_CENTIMETRE, _INCH = 1e4, 2.54e4  # in microns
_COARSEST_MPP = 20.0  # of a microscope's finest level; 600 dots per inch are 42


class Pyramid(Protocol):
    """An open slide; what its attributes are says `SlideRegions`."""

    shapes: list[tuple[int, int]]
    channels: int
    dtype: np.dtype
    mpp: float | None

    def region(self, level: int, y: int, x: int, height: int, width: int) -> NDArray:
        """A window that lies within its level, (height, width, channels)."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_pyramid(path: Path, *, stored: bool = False) -> Pyramid:
    """Open a slide or a picture; raises what the libraries raise.

    Args:
        path: of the file.
        stored: samples as they are stored, for masks. Otherwise the pixels that the slide is
            predicted from (`io`), where alpha is laid over white.
    """
    ending = path.suffix.lower()
    if ending in PICTURE_ENDINGS:
        return _Picture(path, stored)
    if (ending in TIFF_ENDINGS or is_tiff(path)) and not openslide_knows_better(path):
        return _Tiff(path, stored)
    return _OpenSlide(path)


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF and BigTIFF do."""
    with path.open("rb") as file:
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
    return openslide.OpenSlide.detect_format(path) not in _STORED_AS_SHOWN


class _Tiff:
    """Tiled or striped TIFF, decoded segment by segment by tifffile."""

    def __init__(self, path: Path, stored: bool) -> None:
        self.file = import_optional("tifffile", "slides").TiffFile(path)
        try:
            self.pages = self._levels()
            first = self.pages[0]
            self.shapes = [(page.imagelength, page.imagewidth) for page in self.pages]
            self.alpha = None if stored else tiff_alpha(first)
            self.samples = first.samplesperpixel
            self.channels = self.samples - (self.alpha is not None)
            self.dtype = first.dtype
            self.mpp = _tiff_mpp(self.file, first)
            if first.imagedepth != 1 or self.dtype is None:
                raise InputError(f"{path} holds no 2-D image that can be read")
        except BaseException:
            self.file.close()
            raise

    def _levels(self) -> list[Any]:
        """The largest image's page, and all that are smaller copies of it, marked so or not.

        tifffile leaves levels out that do not follow in equal steps, and ASAP's carry no mark.
        """
        series = max(self.file.series, key=lambda one: one.keyframe.size)
        known = [level.pages[0].aspage() for level in series.levels]
        first = known[0]
        others = [page.aspage() for page in (*(first.pages or ()), *self.file.pages)]
        copies = {first.imagewidth: first}
        for page in (*known, *(page for page in others if page.is_tiled)):
            same = (page.samplesperpixel, page.dtype) == (first.samplesperpixel, first.dtype)
            times = [first.imagewidth / page.imagewidth, first.imagelength / page.imagelength]
            if same and min(times) > 1 and abs(times[0] / times[1] - 1) <= _TOLERANCE:
                copies.setdefault(page.imagewidth, page)
        return [copies[width] for width in sorted(copies, reverse=True)]

    def region(self, level: int, y: int, x: int, height: int, width: int) -> NDArray:
        page = self.pages[level]
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        columns = page.tilewidth if page.is_tiled else page.imagewidth
        across, down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        result = np.full((height, width, self.samples), page.nodata, self.dtype)
        for plane in range(planes):
            for row in range(y // rows, (y + height - 1) // rows + 1):
                for column in range(x // columns, (x + width - 1) // columns + 1):
                    tile = self._segment(page, (plane * down + row) * across + column)
                    if tile is None:  # left out of the file: nothing is there
                        continue
                    _paste(
                        tile,
                        (row * rows, column * columns),
                        result[..., plane : plane + 1] if planes > 1 else result,
                        (y, x),
                    )
        if self.alpha is None:
            return result
        return _composite_on_white(result, premultiplied=self.alpha == PREMULTIPLIED)

    def _segment(self, page: Any, index: int) -> NDArray | None:
        count = page.databytecounts[index]
        if count == 0:
            return None
        self.file.filehandle.seek(page.dataoffsets[index])
        data = self.file.filehandle.read(count)
        if len(data) < count:
            raise InputError(
                f"{self.file.filehandle.path} is truncated: it ends within a tile. Copy it again"
            )
        tables = {}
        if page.compression in (6, 7, 33007, 34892):  # JPEG, whose tables the page may share
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        tile = page.decode(data, index, **tables)[0]
        return None if tile is None else tile[0]

    def close(self) -> None:
        self.file.close()


def _composite_on_white(pixels: NDArray, *, premultiplied: bool = False) -> NDArray:
    """`composite_on_white` of (rows, columns, colours and alpha)."""
    return np.moveaxis(
        composite_on_white(np.moveaxis(pixels, -1, 0), premultiplied=premultiplied), 0, -1
    )


def _paste(tile: NDArray, at: tuple[int, int], into: NDArray, origin: tuple[int, int]) -> None:
    """Copy the part of a tile that lies in a window whose first pixel is `origin`."""
    places, parts = [], []
    for axis in (0, 1):
        first = max(at[axis], origin[axis])
        end = min(at[axis] + tile.shape[axis], origin[axis] + into.shape[axis])
        places.append(slice(first - origin[axis], end - origin[axis]))
        parts.append(slice(first - at[axis], end - at[axis]))
    into[tuple(places)] = tile[tuple(parts)]


def _tiff_mpp(file: Any, page: Any) -> float | None:
    """microns per pixel: Aperio's description, OME's, or the resolution tags."""
    aperio = re.search(r"MPP\s*=\s*([\d.]+)", page.description or "")
    if aperio:
        return float(aperio[1])
    if file.ome_metadata:
        size = re.search(r'PhysicalSizeX="([\d.eE+-]+)"', file.ome_metadata)
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', file.ome_metadata)
        scale = _MICRONS.get(unit[1] if unit else "µm")
        if size and scale:
            return float(size[1]) * scale
    unit_of_length = {2: _INCH, 3: _CENTIMETRE}.get(int(page.resolutionunit))
    pixels = page.resolution[0]
    if unit_of_length is None or pixels <= 0:
        return None
    # Programs that know nothing of microns write a screen's or a printer's resolution.
    mpp = unit_of_length / pixels
    return float(mpp) if mpp < _COARSEST_MPP else None


class _OpenSlide:
    """Vendors' formats."""

    channels = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path) -> None:
        openslide = import_optional("openslide", "slides")
        self.file = openslide.OpenSlide(path)
        self.shapes = [(height, width) for width, height in self.file.level_dimensions]
        text = self.file.properties.get(openslide.PROPERTY_NAME_MPP_X)
        self.mpp = float(text) if text else None

    def region(self, level: int, y: int, x: int, height: int, width: int) -> NDArray:
        scale = self.file.level_downsamples[level]
        at = (round(x * scale), round(y * scale))
        return composite_slide_on_white(self.file.read_region(at, level, (width, height)))

    def close(self) -> None:
        self.file.close()


class _Picture:
    """PNG or JPEG, which can only be decoded as a whole."""

    mpp: float | None = None

    def __init__(self, path: Path, stored: bool) -> None:
        self.pixels = read_mask(path) if stored else read_picture(path)
        self.shapes = [(self.pixels.shape[0], self.pixels.shape[1])]
        self.channels = self.pixels.shape[2]
        self.dtype = self.pixels.dtype

    def region(self, level: int, y: int, x: int, height: int, width: int) -> NDArray:
        return self.pixels[y : y + height, x : x + width]

    def close(self) -> None:
        del self.pixels


def read_picture(path: Path) -> NDArray:
    """A PNG, JPEG or BMP of any size as it is shown: (rows, columns, 1 or 3).

    Palettes and printers' colours become RGB, alpha is laid over white; one-bit pixels are 0 and
    1.

    Raises:
        InputError: the file cannot be read.
    """

    def shown(image: Any) -> NDArray:
        mode = picture_mode(image)
        pixels = _samples(image if image.mode == mode else image.convert(mode))
        return _composite_on_white(pixels) if mode in ("LA", "RGBA") else pixels

    return _picture(path, shown)


def read_mask(path: Path) -> NDArray:
    """A PNG, JPEG or BMP of any size as it is stored: (rows, columns, samples).

    Colours of a palette stay numbers, alpha is a sample; one-bit pixels are 0 and 1.

    Raises:
        InputError: the file cannot be read.
    """
    return _picture(path, _samples)


def _picture(path: Path, pixels: Callable[[Any], NDArray]) -> NDArray:
    from PIL import Image

    try:
        with unlimited_pillow(), Image.open(path) as image:
            return pixels(image)
    except Exception as error:  # a damaged picture can raise anything
        raise InputError(
            f"{path} cannot be read ({error}); copy it again, or take it out"
        ) from error


def _samples(image: Any) -> NDArray:
    pixels = np.asarray(image)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
