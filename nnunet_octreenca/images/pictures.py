"""PNG, JPEG and BMP of any size."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import orientation
from nnunet_octreenca.images.header_checks import require_deflated, require_memory
from nnunet_octreenca.images.levels import Bounds, Level
from nnunet_octreenca.images.picture_checks import require_whole_png
from nnunet_octreenca.images.pixels import channels_kept, composite_on_white, picture_mode
from nnunet_octreenca.images.source import ImageInfo
from nnunet_octreenca.libraries import unlimited_pillow

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# What Pillow raises where a file is damaged; that it is not an image is an OSError too.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


class PictureSource:
    """A PNG, JPEG or BMP file, decoded at the first read into Pillow's own buffer.

    That takes 4 bytes a pixel for colours, 1 for grey values and palettes; bands are cut from
    it. Palettes become RGB, bilevel images 0 and 1, CMYK becomes RGB; 16-bit grey stays. Pillow
    has no 16-bit colours: it reads them as 8-bit, as nnU-Net's own reader does. Pixels are turned
    as the file's EXIF orientation says, those of masks as well.

    Args:
        path: the file.
        channels: that the model takes; alpha is laid over white unless it takes it too.
        stored: samples as they are stored, for masks: numbers of a palette, alpha, CMYK.

    Attributes:
        shape: (y, x), as viewers show it.
        orientation: of the eight that EXIF has.
        levels: the one there is.
        spacing: ones; what such files say is for printing.

    Raises:
        InputError: the file is missing or no such picture, or too large for this machine.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    spacing: tuple[float, ...] = (1.0, 1.0)
    planes = 1
    bounds: Bounds | None = None

    def __init__(
        self, path: Path | str, *, channels: int | None = None, stored: bool = False
    ) -> None:
        self._path = Path(path)
        self._image: Picture
        self._whole = False
        try:
            with unlimited_pillow():
                self._image = Image.open(self._path, formats=("PNG", "JPEG", "BMP"))
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist") from error
        except _DAMAGED as error:
            raise InputError(f"{path} cannot be read as a picture ({error})") from error
        image = self._image
        self.orientation = orientation.of_picture(image, self._path)
        rows, columns = orientation.shown_pair((image.height, image.width), self.orientation)
        self.shape = (rows, columns)
        self.levels = [Level((rows, columns), None)]
        self._mode = image.mode if stored else picture_mode(image)
        probe = self._pixels(Image.new(image.mode, (1, 1)))
        self._alpha = self._mode in ("LA", "RGBA") and not stored
        self.channels = channels_kept(probe.shape[0], alpha=self._alpha, wanted=channels)
        self.dtype = probe.dtype
        kept = image.width * image.height * _bytes_per_pixel(image.mode)
        self.info = ImageInfo(
            base_shape=(rows, columns),
            kept_bytes=kept,
            notes=orientation.note(self._path.name, self.orientation),
        )
        try:
            require_memory(self._path, kept)
            if image.format == "PNG":
                bits = image.width * image.height * len(image.getbands())
                require_deflated(self._path, bits // 8, self._path.stat().st_size)
        except InputError:
            self.close()
            raise

    def read(self, first: int, end: int) -> Pixels:
        """The band, as `ImageSource.read` has it.

        Raises:
            InputError: the file is truncated or damaged, wherever that is.
        """
        return self.region(0, first, 0, end - first, self.shape[1])

    def rows(self, level: int) -> int:
        """Rows decoded together: all."""
        return self.shape[0]

    def region(self, level: int, y: int, x: int, height: int, width: int) -> Pixels:
        """A window, as `SlideReader.region` has it."""
        image = self._image
        window, shape = (y, x, height, width), self.levels[level].shape
        y, x, height, width = orientation.stored_window(window, shape, self.orientation)
        if not self._whole:
            require_whole_png(self._path)
            self._whole = True
        try:
            image.load()  # does nothing the second time
            with unlimited_pillow():
                band = image.crop((x, y, x + width, y + height))
        except (*_DAMAGED, MemoryError) as error:
            raise InputError(
                f"{self._path} cannot be decoded ({error}); it is truncated or damaged"
            ) from error
        pixels = orientation.turned(self._pixels(band), self.orientation)
        return composite_on_white(pixels) if pixels.shape[0] > self.channels else pixels

    def _pixels(self, image: "Picture") -> Pixels:
        """(channels and alpha, y, x) of what was cut out."""
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)[None]
        pixels = np.asarray(image if image.mode == self._mode else image.convert(self._mode))
        if pixels.dtype.byteorder == ">":
            pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)

    def close(self) -> None:
        """Release the picture; a second call does nothing."""
        self._image.close()


def _bytes_per_pixel(mode: str) -> int:
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode.startswith("I;16") else 4
