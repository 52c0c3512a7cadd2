"""Whole-slide images: what tifffile reads tile by tile, and vendors' formats through OpenSlide."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.downsample import Downsampled
from nnunet_octreenca.images.header_checks import require_memory
from nnunet_octreenca.images.levels import Level, choose_level
from nnunet_octreenca.images.pixels import composite_slide_on_white
from nnunet_octreenca.images.slide_files import is_tiff, openslide_knows_better
from nnunet_octreenca.images.source import ImageInfo, ImageSource
from nnunet_octreenca.images.stripes import StripedSource
from nnunet_octreenca.images.tiff import open_tiff
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.resources import decoding_threads

_ROWS = 256  # of a stripe where the file does not say how high its tiles are
_TALLEST_TILE = 1024
_COLUMNS = 2048  # one thread reads so many at a time


def open_slide(
    path: Path | str, *, channels: int | None = None, mpp: float | None = None
) -> ImageSource:
    """Open a whole-slide image, a TIFF file or a vendor's format.

    Args:
        path: the file.
        channels: that the model takes; see `open_tiff`.
        mpp: microns per pixel of the level to read, or to average down to; the finest level's
            if left out.

    Returns:
        (y, x); `info` holds `mpp` and `base_shape`.

    Raises:
        InputError: the file is missing, truncated or no slide, or has no such resolution.
        EnvironmentMismatchError: OpenSlide or tifffile is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if is_tiff(path) and not openslide_knows_better(path):
        return open_tiff(path, channels=channels, mpp=mpp)
    openslide = import_optional("openslide", "slides")
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise InputError(
            f"{path} cannot be read as a slide ({error or 'unknown format'})"
        ) from error
    try:
        levels = _levels(slide)
        index, factor = choose_level(levels, mpp, path)
        source = OpenSlideSource(path, slide, index, levels)
    except BaseException:
        slide.close()
        raise
    if factor is None:
        return source
    assert mpp is not None
    return Downsampled(source, factor, mpp, levels[0].shape)


def _levels(slide: Any) -> list[Level]:
    """The pyramid, by the scale that OpenSlide works out itself."""
    sizes: tuple[float, float] | None
    try:
        sizes = (
            float(slide.properties["openslide.mpp-y"]),
            float(slide.properties["openslide.mpp-x"]),
        )
    except (KeyError, ValueError):
        sizes = None
    return [
        Level(
            (rows, columns),
            None if sizes is None else (sizes[0] * downsample, sizes[1] * downsample),
        )
        for (columns, rows), downsample in zip(
            slide.level_dimensions, slide.level_downsamples, strict=True
        )
    ]


class OpenSlideSource(StripedSource):
    """One level of a slide through OpenSlide: RGB, whatever is transparent in white.

    OpenSlide takes positions in pixels of the finest level. Where a level's factor is not whole,
    that rounds, so stripes have fixed borders and bands are cut from them: every band height
    gives the same pixels.

    Args:
        path: of the file; named in the errors.
        slide: the open `openslide.OpenSlide`; closed by `close`.
        level: index of the level to read.
        levels: all of them, finest first.
    """

    def __init__(self, path: Path, slide: Any, level: int, levels: list[Level]) -> None:
        self._path = path
        self._slide = slide
        self._level = level
        chosen = levels[level]
        mpp = None if chosen.mpp is None else sum(chosen.mpp) / 2
        info = ImageInfo(mpp=mpp, base_shape=levels[0].shape)
        height = int(slide.properties.get(f"openslide.level[{level}].tile-height", _ROWS))
        stripe = height * -(-_ROWS // height) if height <= _TALLEST_TILE else _ROWS
        super().__init__(chosen.shape, 3, np.dtype(np.uint8), chosen.spacing, stripe, info)
        require_memory(path, 2 * self._stripe_bytes)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(decoding_threads())

    def _read_stripe(self, first: int, end: int) -> NDArray[np.uint8]:
        columns = self.shape[1]
        downsample = self._slide.level_downsamples[self._level]
        band = np.empty((3, end - first, columns), np.uint8)

        def place(left: int) -> None:
            width = min(_COLUMNS, columns - left)
            corner = (round(left * downsample), round(first * downsample))
            region = self._slide.read_region(corner, self._level, (width, end - first))
            band[:, :, left : left + width] = np.moveaxis(composite_slide_on_white(region), -1, 0)

        openslide = import_optional("openslide", "slides")
        assert self._pool is not None
        try:
            for _ in self._pool.map(place, range(0, columns, _COLUMNS)):
                pass
        except openslide.OpenSlideError as error:
            raise InputError(
                f"{self._path} cannot be decoded in rows {first} to {end - 1} ({error}); it is "
                f"damaged there"
            ) from error
        return band

    def close(self) -> None:
        """Close the slide; a second call does nothing."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            self._slide.close()
