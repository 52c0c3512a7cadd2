"""The colours that a file shows: palettes resolved, transparency laid over white."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from tifffile import TiffPage

# Values of TIFF's tags PhotometricInterpretation and ExtraSamples.
_GREY, _COLOURS = (0, 1), (2, 6)
PREMULTIPLIED, UNASSOCIATED = 1, 2
# Pillow's modes whose pixels are the channels.
_CHANNELS = {"L", "RGB", "RGBA", "LA", "I;16", "I;16B", "I;16L", "I", "F"}


def channels_kept(samples: int, *, alpha: bool, wanted: int | None) -> int:
    """Channels of an image of `samples`, the last of them alpha or not.

    Alpha goes, unless a model wants just as many channels as there are samples.

    >>> [channels_kept(4, alpha=True, wanted=wanted) for wanted in (None, 3, 4)]
    [3, 3, 4]
    >>> channels_kept(4, alpha=False, wanted=3)
    4
    """
    return samples - 1 if alpha and wanted != samples else samples


def composite_on_white(image: Pixels, *, premultiplied: bool = False) -> Pixels:
    """Lay an image over white.

    Args:
        image: (channels and alpha, ...) of unsigned integers, or of floats from 0 to 1.
        premultiplied: the colours are already multiplied by alpha.

    Returns:
        (channels, ...) of the same type, rounded to the nearest.
    """
    colours, alpha = image[:-1], image[-1]
    if np.issubdtype(image.dtype, np.floating):
        clear = 1 - alpha
        blended: Pixels = (colours if premultiplied else colours * alpha) + clear
        return blended
    white = np.iinfo(image.dtype).max
    if (alpha == white).all():  # nearly every slide
        return colours
    if premultiplied:
        opaque: Pixels = np.minimum(colours, alpha) + (white - alpha)
        return opaque
    wide = np.uint32 if image.dtype.itemsize < 3 else np.uint64
    opaque = alpha.astype(wide)
    over = colours.astype(wide)
    over *= opaque
    over += (white - opaque) * wide(white) + wide(white // 2)
    over //= wide(white)
    return over.astype(image.dtype)


def tiff_alpha(page: "TiffPage") -> int | None:
    """What a TIFF page's last sample is: `PREMULTIPLIED` or `UNASSOCIATED` alpha, or no alpha.

    Args:
        page: a `tifffile.TiffPage`.
    """
    extra = tuple(page.extrasamples)
    if page.photometric in (*_GREY, *_COLOURS) and extra in ((PREMULTIPLIED,), (UNASSOCIATED,)):
        return int(extra[0])
    return None


def composite_slide_on_white(region: Any) -> NDArray[np.uint8]:
    """(rows, columns, 3) of what OpenSlide's `read_region` returns; nothing scanned is white."""
    from PIL import Image

    white = Image.new("RGBA", region.size, "white")
    pixels: NDArray[np.uint8] = np.asarray(Image.alpha_composite(white, region))
    return pixels[..., :3]


def picture_mode(image: "Image") -> str:
    """The mode of Pillow whose samples are the channels, alpha among them; "1" for one bit.

    >>> from PIL import Image
    >>> [picture_mode(Image.new(mode, (1, 1))) for mode in ("L", "P", "PA", "CMYK")]
    ['L', 'RGB', 'RGBA', 'RGB']
    """
    if image.mode == "1":
        return "1"
    if "transparency" in image.info:
        return "LA" if image.mode == "L" else "RGBA" if image.mode in ("P", "RGB") else image.mode
    if image.mode in _CHANNELS:
        return str(image.mode)
    return {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB")
