"""How a picture is turned from the way it is stored to the way viewers show it.

EXIF and TIFF number eight ways (TIFF 6.0, tag Orientation; Exif 2.32, section 4.6.4).
"""

import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nnunet_octreenca.arrays import Pixels

_T = TypeVar("_T")

if TYPE_CHECKING:
    from PIL.Image import Image
    from tifffile import TiffPage

TAG = 0x0112
STORED = 1  # as it is shown
# Of the shown picture: axes are swapped first, then rows reversed, then columns.
_WAYS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_WORDS = {
    2: "mirrored left to right",
    3: "rotated by 180°",
    4: "mirrored top to bottom",
    5: "rotated by 90° clockwise and mirrored left to right",
    6: "rotated by 90° clockwise",
    7: "rotated by 90° counterclockwise and mirrored left to right",
    8: "rotated by 90° counterclockwise",
}
_PNG_SIGNATURE = 8  # bytes

Window = tuple[int, int, int, int]  # y, x, height, width


def valid(code: Any) -> int:
    """A tag's value; `STORED` where it is none of the eight.

    >>> valid(6), valid(0), valid("top")
    (6, 1, 1)
    """
    return int(code) if code in _WAYS else STORED


def swaps_axes(code: int) -> bool:
    """Whether stored rows become columns."""
    return _WAYS[code][0]


def shown_pair(pair: tuple[_T, _T], code: int) -> tuple[_T, _T]:
    """(y, x) of something as it is shown, from (y, x) as it is stored, and back."""
    return (pair[1], pair[0]) if swaps_axes(code) else pair


def stored_window(window: Window, shape: tuple[int, int], code: int) -> Window:
    """Where a window of the shown picture, of (y, x) `shape`, is stored."""
    swap, rows, columns = _WAYS[code]
    y, x, height, width = window
    y = shape[0] - y - height if rows else y
    x = shape[1] - x - width if columns else x
    return (x, y, width, height) if swap else (y, x, height, width)


def turned(pixels: Pixels, code: int, *, axis: int = -2) -> Pixels:
    """Stored pixels as they are shown, a view.

    Args:
        pixels: rows and columns are the axes `axis` and `axis + 1`.
        code: of the eight.
        axis: -2 of channels before, 0 of channels behind.

    >>> turned(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    swap, rows, columns = _WAYS[code]
    if swap:
        pixels = pixels.swapaxes(axis, axis + 1)
    if rows:
        pixels = np.flip(pixels, axis)
    return np.flip(pixels, axis + 1) if columns else pixels


def of_picture(image: "Image", path: Path) -> int:
    """The orientation that an open Pillow image says, in EXIF or XMP, without decoding it.

    What cannot be read counts as nothing said, as viewers have it.
    """
    from PIL import Image

    try:
        if image.format == "PNG" and "exif" not in image.info and (late := _late_exif(path)):
            image.info["exif"] = late
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged tags
            return valid(Image.Image.getexif(image).get(TAG))  # PNG's own would decode it
    except Exception:  # damaged tags make Pillow raise nearly anything
        return STORED


def of_tiff(page: "TiffPage") -> int:
    """The orientation of a `tifffile.TiffPage`."""
    tag = page.tags.get(TAG)
    return valid(None if tag is None else tag.value)


def note(subject: object, code: int, said_by: str = "EXIF") -> tuple[str, ...]:
    """What is done, in a sentence; none where nothing is.

    Args:
        subject: a file's name, or how many of which files.
        code: of the eight.
        said_by: "EXIF", "TIFF" or "file's".
    """
    if code == STORED:
        return ()
    return (
        f"{subject}: {_WORDS[code]}, as the {said_by} orientation {code} says; results lie on the "
        f"picture as viewers show it",
    )


def notes_of_many(codes: Mapping[int, int], subject: str) -> tuple[str, ...]:
    """`note` for many files, from how many of them have which orientation."""
    total = sum(codes.values())
    return tuple(
        sentence
        for code, count in sorted(codes.items())
        for sentence in note(f"{count} of {total} {subject}", code)
    )


def _late_exif(path: Path) -> bytes | None:
    """The EXIF data of a PNG that has them behind its pixels."""
    with path.open("rb") as file:
        file.seek(_PNG_SIGNATURE)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return b"Exif\0\0" + file.read(length)
            if kind == b"IEND":
                break
            file.seek(length + 4, 1)
    return None
