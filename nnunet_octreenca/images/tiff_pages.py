"""Which page of a TIFF series holds which channel of which plane."""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.pixels import PREMULTIPLIED, tiff_alpha
from nnunet_octreenca.images.tiff_colours import CMYK, palette_colours

if TYPE_CHECKING:
    from tifffile import TiffPageSeries


class PageLayout:
    """What the pages of a series mean.

    Args:
        series: a `tifffile.TiffPageSeries`, or one of its levels.
        channels: that the model takes: plain TIFF files do not say whether their pages are
            channels or planes.
        path: of the file; named in the errors.

    Attributes:
        shape: (y, x) of a page.
        pages: index into the series' pages, (channels / samples, planes).
        samples: of a pixel of one page.
        alpha: the last sample is transparency.
        premultiplied: the others are already multiplied by it.
        palette: (3, 2 ** bits) uint8 where values are numbers of colours, else None.
        cmyk: the samples are cyan, magenta, yellow and black.
        dtype: of a sample, in this machine's byte order; bilevel images are uint8.

    Raises:
        InputError: the axes are no 2-D or 3-D image.
    """

    def __init__(self, series: "TiffPageSeries", channels: int | None, path: Path) -> None:
        page = series.keyframe
        separate, depth, rows, columns, contiguous = page.shaped
        if depth > 1:
            raise InputError(
                f"{path} stores {depth} planes in one page, which cannot be read in bands; "
                f"save it with one plane a page"
            )
        if page.dtype is None or page.dtype.kind not in "buif":
            raise InputError(f"{path} holds samples of an unknown type; save it as integers")
        leading = len(series.axes) - len(page.axes)
        axes, sizes = series.axes[:leading], series.shape[:leading]
        self.samples = separate * contiguous
        self.dtype = np.dtype(np.uint8 if page.dtype.kind == "b" else page.dtype).newbyteorder("=")
        self.palette = palette_colours(page)
        self.cmyk = page.photometric == CMYK and self.samples == 4 and page.dtype.kind == "u"
        alpha = tiff_alpha(page)
        self.alpha = alpha is not None and "C" not in axes
        self.premultiplied = alpha == PREMULTIPLIED
        self.pages = _page_grid(axes, sizes, self.samples, channels, series.axes, path)
        self.shape = (rows, columns)


def _page_grid(
    axes: str,
    sizes: tuple[int, ...],
    samples: int,
    channels: int | None,
    all_axes: str,
    path: Path,
) -> NDArray[np.intp]:
    grid = np.arange(prod(sizes)).reshape(sizes)
    kept = [i for i, n in enumerate(sizes) if n > 1]
    names = "".join(axes[i] for i in kept)
    grid = grid.reshape([sizes[i] for i in kept])
    if names == "":
        return grid.reshape(1, 1)
    if len(names) == 1:
        unnamed = names in "QI" and channels == samples * grid.size and channels > 1
        return grid[:, None] if names == "C" or unnamed else grid[None]
    if len(names) == 2 and "C" in names:
        return grid if names[0] == "C" else grid.T
    raise InputError(
        f"{path} has the axes {all_axes}; only images of channels, y, x and at most one axis "
        f"more can be read"
    )
