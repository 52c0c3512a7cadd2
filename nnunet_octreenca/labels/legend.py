"""What pictures for people share: classes blended over an image, and a legend below it."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.labels.palette import PALETTE

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_PAPER = (255, 255, 255)
_INK = (30, 30, 30)
_FAINT = (110, 110, 110)


def blend(image: NDArray[np.uint8], labels: Labels, opacity: float = 0.4) -> NDArray[np.uint8]:
    """Classes half transparent over an image, their contours in full colour.

    Args:
        image: (y, x, 3) RGB.
        labels: (y, x); 0 leaves the image as it is, from 256 on the colours repeat.
        opacity: of a class's colour, 0 to 1.

    Returns:
        (y, x, 3) RGB.
    """
    # In integers, 256ths of a share, looked up for each label: a third of the time of floats.
    numbers = labels if labels.dtype == np.uint8 else _wrapped(labels)
    share = np.full(256, round(256 * opacity), np.uint16)
    share[0] = 0
    colours = PALETTE.astype(np.uint16) * share[:, None]
    result = image * (256 - share)[numbers][..., None]
    result += colours[numbers]
    result >>= 8
    blended: NDArray[np.uint8] = result.astype(np.uint8)
    edge = contours(numbers)
    blended[edge] = PALETTE[numbers[edge]]
    return blended


def contours(labels: Labels) -> NDArray[np.bool_]:
    """Pixels of a class next to a pixel of another label, above, below, left or right."""
    edge = np.zeros(labels.shape, bool)
    across = labels[1:] != labels[:-1]
    edge[1:] |= across
    edge[:-1] |= across
    along = labels[:, 1:] != labels[:, :-1]
    edge[:, 1:] |= along
    edge[:, :-1] |= along
    return edge & (labels > 0)


def _wrapped(labels: Labels) -> NDArray[np.uint8]:
    return np.where(labels > 255, (labels - 1) % 255 + 1, labels).astype(np.uint8)


def legend(
    entries: Sequence[tuple[tuple[int, int, int], str]], width: int, caption: str = ""
) -> NDArray[np.uint8]:
    """A strip with a caption and a swatch and a name for each class, in as many lines as needed.

    Args:
        entries: colour and text of each class.
        width: pixels.
        caption: the first line; none if empty.

    Returns:
        (height, width, 3) RGB; height 0 when there is nothing to write.
    """
    from PIL import Image, ImageDraw

    entries = [(rgb, _printable(text)) for rgb, text in entries]
    caption = _printable(caption)
    if not entries and not caption:
        return np.zeros((0, width, 3), np.uint8)
    size = min(max(width // 60, 12), 26)
    pad, line = size * 2 // 3, size * 8 // 5
    places, x, y = [], pad, pad + (line if caption else 0)
    for _, text in entries:
        needed = 2 * size + int(font(size).getlength(text))
        if x > pad and x + needed > width - pad:
            x, y = pad, y + line
        places.append((x, y))
        x += needed + size
    height = (y + line if entries else pad + line) + pad // 2
    strip = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(strip)
    if caption:
        draw.text((pad, pad), fitting(caption, width - 2 * pad, size), _FAINT, font(size))
    for (x, y), (rgb, text) in zip(places, entries, strict=True):
        draw.rounded_rectangle((x, y + 1, x + size, y + 1 + size), size // 5, rgb)
        room = width - pad - (x + size * 3 // 2)
        draw.text((x + size * 3 // 2, y), fitting(text, room, size), _INK, font(size))
    return np.asarray(strip)


def _printable(text: str) -> str:
    """Without line breaks and undecodable bytes, which file names may have and fonts lack."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def fitting(text: str, width: int, size: int) -> str:
    """A text, cut to so many pixels at a size of the font."""

    def length(kept: int) -> int:
        return ceil(font(size).getlength(text[:kept] + "…"))

    if font(size).getlength(text) <= width:
        return text
    kept = bisect_right(range(len(text)), width, key=length) - 1
    return text[:kept] + "…" if kept > 0 else ""


@lru_cache
def font(size: int) -> "FreeTypeFont":
    """The font of all pictures, in a size of pixels."""
    # matplotlib brings a font with Greek, Cyrillic and the signs that Pillow's own lacks.
    import matplotlib
    from PIL import ImageFont

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)
