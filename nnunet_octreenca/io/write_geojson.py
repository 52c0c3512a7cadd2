"""A label map as polygons with class names, as QuPath imports them."""

import json
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.io.palette import colour
from nnunet_octreenca.io.write_polygons import BAND_ROWS, mended, region_polygons
from nnunet_octreenca.io.write_whole import (
    check_axes,
    class_name,
    greatest_label,
    imported,
    in_order,
    whole_output,
)

_BATCH = 1024  # polygons mended, simplified and formatted by one thread at a time


def write_geojson(
    labels: NDArray,
    path: Path | str,
    *,
    names: dict[int, str],
    simplify: float = 1.0,
    min_area: float = 4.0,
    scale: float | tuple[float, float] = 1.0,
    offset: tuple[float, float] = (0.0, 0.0),
    band_rows: int = BAND_ROWS,
) -> tuple[int, int]:
    """Write a FeatureCollection with one annotation for each connected region of a class.

    The background is not written. The file grows polygon by polygon and is never whole in
    memory. With `simplify=0, min_area=0, scale=1` the polygons are exactly the labels.

    Args:
        labels: (y, x), uint8 or int16.
        path: the file, `.geojson`.
        names: label to class name.
        simplify: pixels of the label map by which an outline may move, twice that where it
            begins (Douglas-Peucker, no ring lost); 0 leaves every pixel's edge. Neighbours are
            simplified each on its own, so that thin gaps and overlaps come up between them.
        min_area: regions of fewer pixels are left out; by default those that a shift of the
            outline by one pixel may wipe out.
        scale: pixels of the slide's level 0 per pixel of the label map, one number or (x, y).
        offset: level-0 coordinates (x, y) of the label map's upper left corner.
        band_rows: rows traced at a time.

    Returns:
        How many regions were written, and how many were left out as too small.

    Raises:
        OutputError: the labels have three axes or negative values, or the disk is full.
        EnvironmentMismatchError: rasterio or shapely is not installed.
    """
    check_axes(labels, path, (2,))
    greatest_label(labels, path)
    imported("rasterio", "slides")
    imported("shapely", "slides")
    placed = (np.broadcast_to(np.asarray(scale, float), 2), np.asarray(offset, float))
    written = left_out = 0
    with whole_output(path) as temporary, temporary.open("w", encoding="utf-8") as file:

        def finish(batch: list[tuple[int, Any]]) -> tuple[int, list[str]]:
            return len(batch), _features(batch, names, simplify, min_area, *placed)

        file.write('{"type": "FeatureCollection", "features": [')
        for number, features in in_order(finish, _batches(region_polygons(labels, band_rows))):
            for feature in features:
                file.write(",\n" if written else "\n")
                file.write(feature)
                written += 1
            left_out += number - len(features)
        file.write("\n]}\n")
    return written, left_out


def _batches(regions: Iterable[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    iterator = iter(regions)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _features(
    batch: list[tuple[int, Any]],
    names: dict[int, str],
    simplify: float,
    min_area: float,
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
) -> list[str]:
    shapely = imported("shapely", "slides")
    batch = [(label, polygon) for label, polygon in batch if polygon.area >= min_area]
    if not batch:
        return []
    polygons = mended([polygon for _, polygon in batch])
    if simplify > 0:
        simpler = mended(shapely.simplify(polygons, simplify, preserve_topology=True))
        polygons = np.where(shapely.area(simpler) > 0, simpler, polygons)
    polygons = shapely.transform(polygons, lambda points: points * scale + offset)
    return [
        _feature(text, class_name(names, label), colour(label))
        for (label, _), text in zip(batch, shapely.to_geojson(polygons), strict=True)
    ]


def _feature(geometry: str, name: str, rgb: tuple[int, int, int]) -> str:
    properties = {
        "objectType": "annotation",
        "classification": {"name": name, "color": list(rgb)},
    }
    return (
        f'{{"type": "Feature", "id": "{uuid.uuid4()}", "geometry": {geometry}, '
        f'"properties": {json.dumps(properties)}}}'
    )
