"""From the samples that a TIFF page stores to the colours that viewers show."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError

if TYPE_CHECKING:
    from tifffile import TiffPage

# Values of the tag PhotometricInterpretation (TIFF 6.0 and its supplements).
_WHITE_IS_ZERO, _RGB, PALETTE, CMYK, _YCBCR = 0, 2, 3, 5, 6
_UNREADABLE = {
    8: "CIELAB",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a camera's colour filter array",
    32844: "logarithmic luminance",
    32845: "logarithmic luminance and chromaticity",
    34892: "a camera's linear raw values",
}
# Values of the tag Compression: what keeps samples as they are, JPEG, and Aperio's JPEG 2000,
# whose photometric tag does not count (openslide.org/formats/aperio).
_LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}
_JPEG = {6, 7, 34892, 33007}
_APERIO_YCBCR, _APERIO_RGB = 33003, 33005
_NODATA = 42113  # GDAL's tag
_COEFFICIENTS, _REFERENCE = 529, 532  # tags YCbCrCoefficients, ReferenceBlackWhite
_BT601 = (0.299, 0.587, 0.114)


class TiffColours:
    """The conversion that a page's samples need, without a change of their number.

    White is the largest value, YCbCr becomes RGB, and 2 or 4 bits become 8. Palettes, CMYK and
    alpha, which change the number of samples, are the reader's.

    Args:
        page: a `tifffile.TiffPage`.
        path: of the file; named in the errors.
        stored: for masks: values of 2 and 4 bits stay, and what was never written is 0. One bit
            with white as 0 is refused: tifffile and scikit-image mark all of their bilevel
            files so, with 1 for the object.

    Attributes:
        fill: (samples, 1, 1), what a tile that was never written stores: white in colours, as
            OpenSlide shows it, the file's "no data" where it has one, else 0.
        changes: whether `apply` does anything.

    Raises:
        InputError: colours that viewers do not agree on, or that cannot be decoded.
    """

    def __init__(self, page: "TiffPage", path: Path, *, stored: bool = False) -> None:
        separate, _, _, _, contiguous = page.shaped
        photometric, bits = int(page.photometric), int(page.bitspersample)
        assert page.dtype is not None  # the layout was checked
        kind = page.dtype.kind
        colours = separate * contiguous >= 3 and photometric in (_RGB, _YCBCR)
        self._page = page
        self._white = 1 if kind == "f" else (1 << (bits - (kind == "i"))) - 1
        self._inverted = photometric == _WHITE_IS_ZERO
        self._ycbcr = colours and _is_ycbcr(page, path)
        self._scale = 1
        if bits in (2, 4) and not stored and photometric not in (PALETTE, CMYK):
            self._scale = 255 // self._white
        if photometric in _UNREADABLE:
            raise InputError(
                f"{path} stores its colours as {_UNREADABLE[photometric]}, which viewers show "
                f"differently; save it as RGB"
            )
        if self._inverted and kind not in "bu":
            raise InputError(
                f"{path} stores white as 0 in samples of {page.dtype}, which have no largest "
                f"value; save it with black as 0"
            )
        if self._inverted and stored and bits == 1:
            raise InputError(
                f"{path} is a mask of one bit in which white is stored as 0: some programs mean "
                f"1 by the object, others white; save it with 8 bits and black as 0"
            )
        self.changes = self._inverted or self._ycbcr or self._scale > 1
        self.fill = np.zeros((separate * contiguous, 1, 1))
        if _NODATA in page.tags:
            self.fill[:] = page.nodata
        elif colours:
            white = 0 if stored else self._white
            middle = (self._white + 1) // 2
            self.fill[:3, 0, 0] = (white, middle, middle) if self._ycbcr else white
        self.fill = self.fill.astype(page.dtype)

    def apply(self, pixels: Pixels) -> None:
        """Convert (samples, rows, columns) in place."""
        if self._inverted:
            np.subtract(pixels.dtype.type(self._white), pixels[0], out=pixels[0])
        if self._ycbcr:
            pixels[:3] = self._rgb(pixels[:3])
        if self._scale > 1:
            pixels *= pixels.dtype.type(self._scale)

    def _rgb(self, stored: Pixels) -> NDArray[np.float32]:
        """TIFF 6.0, section 21."""
        white, middle = float(self._white), float((self._white + 1) // 2)
        red, green, blue = _rationals(self._page, _COEFFICIENTS, _BT601)
        default = (0.0, white, middle, white, middle, white)
        reference = _rationals(self._page, _REFERENCE, default)
        ranges = (white, white - middle, white - middle)
        y, cb, cr = (
            (samples.astype(np.float32) - black) * np.float32(span / (top - black))
            for samples, black, top, span in zip(
                stored, reference[::2], reference[1::2], ranges, strict=True
            )
        )
        r = y + cr * np.float32(2 - 2 * red)
        b = y + cb * np.float32(2 - 2 * blue)
        g = (y - r * np.float32(red) - b * np.float32(blue)) / np.float32(green)
        rgb: NDArray[np.float32] = np.rint(np.stack([r, g, b])).clip(0, white)
        return rgb


def cmyk_as_rgb(pixels: Pixels) -> Pixels:
    """RGB of (cyan, magenta, yellow and black, rows, columns), as libtiff and Pillow have it."""
    white = int(np.iinfo(pixels.dtype).max)
    paper = white - pixels.astype(np.uint64 if pixels.dtype.itemsize > 2 else np.uint32)
    rgb: Pixels = (paper[:3] * paper[3] + white // 2) // white
    return rgb.astype(pixels.dtype)


def palette_colours(page: "TiffPage") -> NDArray[np.uint8] | None:
    """(3, colours) of a page whose samples are numbers of colours, else None."""
    if page.photometric != PALETTE or page.colormap is None:
        return None
    colormap = np.asarray(page.colormap)
    # Some programs write 8 bits where the format has 16; libtiff looks for it too.
    return (colormap >> 8 if colormap.max(initial=0) > 255 else colormap).astype(np.uint8)


def _is_ycbcr(page: "TiffPage", path: Path) -> bool:
    """Whether what the decoder returns is still YCbCr."""
    compression = int(page.compression)
    if compression in (_APERIO_YCBCR, _APERIO_RGB):
        return compression == _APERIO_YCBCR
    if page.photometric != _YCBCR:
        return False
    if compression in _JPEG:
        return bool(page.planarconfig != 1)  # the decoder sees single planes
    if compression not in _LOSSLESS:
        raise InputError(
            f"{path} is marked as YCbCr and compressed by "
            f"{getattr(page.compression, 'name', compression)}, which may have converted it "
            f"already; save it as RGB"
        )
    if page.is_subsampled:
        raise InputError(
            f"{path} stores colours at a lower resolution than brightness (YCbCr, "
            f"{' x '.join(map(str, page.subsampling or ()))}) without JPEG, which cannot be "
            f"decoded; save it as RGB"
        )
    if page.dtype is None or page.dtype.kind != "u":
        raise InputError(f"{path} stores YCbCr as {page.dtype}; save it as RGB")
    return True


def _rationals(page: "TiffPage", tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """A tag's rational numbers; the default where they are missing or make no sense."""
    value = page.tags.valueof(tag)
    try:
        numbers = tuple(a / b for a, b in zip(value[::2], value[1::2], strict=True))
    except (TypeError, ZeroDivisionError, ValueError):
        return default
    steps = [b - a for a, b in zip(numbers[::2], numbers[1::2], strict=False)]
    usable = min(numbers) > 0 if tag == _COEFFICIENTS else min(steps, default=0) > 0
    return numbers if len(numbers) == len(default) and usable else default
