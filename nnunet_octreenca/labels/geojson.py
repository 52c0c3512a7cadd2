"""A label map as polygons with class names, as QuPath imports them."""

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.labels.output import (
    atomic_output,
    check_axes,
    class_name,
    greatest_label,
    in_order,
)
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.labels.polygons import filled, mended, united
from nnunet_octreenca.labels.regions import CORNERS, HOLES, TILE, Regions
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from shapely import Polygon

# Polygons, and points of them, that one thread unites, simplifies and formats at a time.
_BATCH, _BATCH_POINTS = 1024, 100_000
MIN_AREA = 2.0  # pixels


def write_geojson(
    labels: Labels,
    path: Path | str,
    *,
    names: dict[int, str],
    simplify: float = 1.0,
    min_area: float = MIN_AREA,
    scale: float | tuple[float, float] = 1.0,
    offset: tuple[float, float] = (0.0, 0.0),
    tile: int = TILE,
    corners: int = CORNERS,
    holes: int = HOLES,
) -> tuple[int, int, int]:
    """Write a FeatureCollection with one annotation for each connected region of a class.

    The background is not written. The file grows polygon by polygon and is never whole in
    memory. With `simplify=0, min_area=0, scale=1` the polygons are exactly the labels.

    A region with more corners or holes than the limits, as noise has it, is cut along a grid of
    tiles, since no program can show it whole: it becomes one annotation of its class for each
    connected piece within a tile, and each piece is simplified on its own.

    Args:
        labels: (y, x), uint8 or int16.
        path: the file, `.geojson`.
        names: label to class name.
        simplify: pixels of the label map by which an outline may move, twice that where it
            begins (Douglas-Peucker, no ring lost); 0 leaves every pixel's edge. Neighbours are
            simplified each on its own, so that thin gaps and overlaps come up between them.
        min_area: regions of fewer pixels are left out and holes of fewer are filled; by default
            single pixels. What lies in such a
            hole is left out as well, so that no two annotations overlap by this.
        scale: pixels of the slide's level 0 per pixel of the label map, one number or (x, y).
        offset: level-0 coordinates (x, y) of the label map's upper left corner.
        tile: pixels of a tile's side; a region within the limits does not depend on it.
        corners: a region stays whole up to so many before it is simplified; those on the
            borders of tiles are not counted.
        holes: a region stays whole up to so many that are not filled; those across the borders
            of tiles count in any case.

    Returns:
        How many regions were written, how many were left out as too small, and how many of
        those written were cut into pieces.

    Raises:
        OutputError: the labels have three axes or negative values, or the disk is full.
        EnvironmentMismatchError: shapely is not installed.
    """
    check_axes(labels, path, (2,))
    greatest_label(labels, path)
    import_optional("shapely", "slides")
    placed = (np.broadcast_to(np.asarray(scale, float), 2), np.asarray(offset, float))
    regions = Regions(labels, min_area=min_area, tile=tile, corners=corners, holes=holes)
    with atomic_output(path) as temporary, temporary.open("w", encoding="utf-8") as file:

        def finish(batch: list[tuple[int, Sequence["Polygon"]]]) -> list[str]:
            return _features(batch, names, simplify, min_area, *placed)

        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for features in in_order(finish, _batches(regions)):
            for feature in features:
                file.write(separator)
                file.write(feature)
                separator = ",\n"
        file.write("\n]}\n")
    return regions.written, regions.left_out, regions.cut


def _batches(
    regions: Iterable[tuple[int, Sequence["Polygon"]]],
) -> Iterator[list[tuple[int, Sequence["Polygon"]]]]:
    shapely = import_optional("shapely", "slides")
    batch: list[tuple[int, Sequence[Polygon]]] = []
    points = 0
    for label, pieces in regions:
        batch.append((label, pieces))
        points += int(shapely.get_num_coordinates(pieces).sum())
        if len(batch) >= _BATCH or points >= _BATCH_POINTS:
            yield batch
            batch, points = [], 0
    if batch:
        yield batch


def _features(
    batch: list[tuple[int, Sequence["Polygon"]]],
    names: dict[int, str],
    simplify: float,
    min_area: float,
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
) -> list[str]:
    shapely = import_optional("shapely", "slides")
    polygons = np.empty(len(batch), object)
    polygons[:] = [united(pieces) for _, pieces in batch]
    # Normal polygons begin at their leftmost point, wherever the tiles lie.
    polygons = shapely.normalize(filled(polygons, min_area))
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
