"""Slides of a few hundred pixels, written as scanners' programs write them."""

from pathlib import Path

import numpy as np
import tifffile


def picture(rows: int, columns: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth colours with some noise, so that levels and places can be told apart."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    waves = [127 + 90 * np.sin(y / (5 + 3 * c) + x / (11 - 2 * c)) for c in range(channels)]
    noise = generator.integers(-20, 21, (rows, columns, channels))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def halved(pixels: np.ndarray, times: int = 1) -> np.ndarray:
    """Averages of 2 x 2, the last row and column repeated where they are odd."""
    for _ in range(times):
        pixels = np.pad(
            pixels, [(0, n % 2) for n in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2), "edge"
        )
        rows, columns = pixels.shape[0] // 2, pixels.shape[1] // 2
        blocks = pixels.reshape(rows, 2, columns, 2, *pixels.shape[2:])
        pixels = np.rint(blocks.mean((1, 3), dtype=np.float64)).astype(np.uint8)
    return pixels


def write_pyramid(
    path: Path,
    levels: list[np.ndarray],
    *,
    sub_ifds: bool = True,
    reduced: bool = True,
    mpp: float | None = None,
    tile: int | None = 32,
    **options,
) -> list[np.ndarray]:
    """A tiled TIFF of levels, finest first; returns them.

    Coarse levels lie in sub-directories of the first, as OME-TIFF has it, or as pages after it,
    marked as reduced images or not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"tile": (tile, tile)} if tile else {}
    more |= {"photometric": "rgb" if levels[0].ndim == 3 else "minisblack", "metadata": None}
    if mpp is not None:
        more |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    more |= options
    if options.get("planarconfig") == "separate":
        levels = [np.moveaxis(level, -1, 0) for level in levels]
    with tifffile.TiffWriter(path) as file:
        coarse = levels[1:]
        file.write(levels[0], subifds=len(coarse) if sub_ifds else None, **more)
        for level in coarse:
            file.write(level, subfiletype=int(reduced), **more)
    return levels


_LEICA = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">
<collection name="c" uuid="urn:uuid:2" sizeX="{across}" sizeY="{down}">
<image name="image_0" uuid="urn:uuid:3">
<creationDate>2024-01-01T10:00:00Z</creationDate><device model="X" version="1"/>
<pixels sizeX="{columns}" sizeY="{rows}" firstIFD="0">
<dimension sizeX="{columns}" sizeY="{rows}" r="0" ifd="0"/></pixels>
<view sizeX="{width}" sizeY="{height}" offsetX="{left}" offsetY="{top}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
</image></collection></scn>"""


def write_leica(path: Path, pixels: np.ndarray, place: tuple[int, int], whole: tuple[int, int]):
    """Leica's SCN, in which a scanned area (rows, columns, 3) lies within a larger slide.

    `place` (x, y) of its corner and `whole` (width, height) are in pixels, of 0.5 microns.
    """
    nanometres, (rows, columns) = 500, pixels.shape[:2]
    text = _LEICA.format(
        rows=rows,
        columns=columns,
        across=whole[0] * nanometres,
        down=whole[1] * nanometres,
        width=columns * nanometres,
        height=rows * nanometres,
        left=place[0] * nanometres,
        top=place[1] * nanometres,
    )
    more = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}}
    more |= {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        path, pixels, tile=(128, 128), description=text, metadata=None, bigtiff=True, **more
    )
