"""Which of a TIFF file's pages are one image at several resolutions."""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_octreenca.errors import InputError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries


def largest_series(tiff: "TiffFile", path: Path) -> "TiffPageSeries":
    """The `tifffile.TiffPageSeries` with the most pixels a page.

    Raises:
        InputError: there is no image, or one of no pixels.
    """
    images = [series for series in tiff.series if prod(series.shape) > 0]
    if not images:
        raise InputError(f"{path} holds no image; is it truncated?")
    empty = next((series for series in tiff.series if prod(series.shape) == 0), None)
    if empty is not None:  # it may have been the largest
        raise InputError(
            f"{path} is damaged: its page {empty.keyframe.index} has "
            f"{empty.keyframe.imagewidth} x {empty.keyframe.imagelength} pixels"
        )
    return max(images, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)


def level_series(tiff: "TiffFile", series: "TiffPageSeries") -> list["TiffPageSeries"]:
    """A series' levels, the finest first, as `tifffile.TiffPageSeries` each.

    tifffile joins only factors of 2 to 4, and what is marked as reduced. Here every tiled page
    of the same form and samples is a level, in the first page's sub-directories or after it:
    ASAP's pyramids carry no mark.
    """
    levels = {level.keyframe.imagelength: level for level in reversed(series.levels)}
    if len(series) > 1:  # of a stack or of channels in pages only tifffile knows what is whose
        return _finest_first(levels)
    first = series.keyframe
    for page in (*(first.pages or ()), *tiff.pages):
        page = page.aspage()
        if page.is_tiled and _is_copy(page, first):
            form = {"shape": page.shape, "dtype": page.dtype, "axes": page.axes}
            levels.setdefault(page.imagelength, type(series)([page], **form))
    return _finest_first(levels)


def _is_copy(page: "TiffPage", first: "TiffPage") -> bool:
    """Whether a page is smaller than the first in proportion, but for whole sizes."""
    kind = ("samplesperpixel", "dtype", "photometric", "planarconfig")
    if any(getattr(page, name) != getattr(first, name) for name in kind):
        return False
    form = first.imagelength / first.imagewidth
    return bool(
        page.imagewidth < first.imagewidth
        and abs(page.imagewidth * form - page.imagelength) <= 1 + form
    )


def _finest_first(levels: dict[int, "TiffPageSeries"]) -> list["TiffPageSeries"]:
    return [levels[rows] for rows in sorted(levels, reverse=True)]
