"""What is done to polygons between tracing and writing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from shapely import Polygon


def filled(polygons: NDArray[np.object_], min_area: float) -> NDArray[np.object_]:
    """The same polygons without their holes of less than `min_area`.

    Args:
        polygons: (number,) of shapely Polygon.
    """
    shapely = import_optional("shapely", "slides")
    pierced = np.flatnonzero(shapely.get_num_interior_rings(polygons))
    if min_area <= 0 or len(pierced) == 0:
        return polygons
    rings, polygon = shapely.get_rings(polygons[pierced], return_index=True)
    shell = np.diff(polygon, prepend=-1) > 0
    kept = shell | (shapely.area(shapely.polygons(rings)) >= min_area)
    result: NDArray[np.object_] = polygons.copy()
    result[pierced] = shapely.polygons(rings[kept], indices=polygon[kept])
    return result


def united(pieces: Sequence["Polygon"]) -> "Polygon":
    """One polygon of pieces that share pixel edges; corners on straight lines are removed."""
    shapely = import_optional("shapely", "slides")
    if len(pieces) == 1:
        return pieces[0]
    rings = shapely.get_rings(shapely.union_all(pieces))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    last = np.diff(ring, append=-1) != 0
    points, ring = points[~last], ring[~last]
    first = np.searchsorted(ring, np.arange(len(rings)))
    end = np.append(first[1:], len(ring)) - 1
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    before[first], after[end] = points[end], points[first]
    corner = ((before != points) != (after != points)).any(axis=1)
    return shapely.polygons(
        shapely.linearrings(points[corner], indices=ring[corner]),
        indices=np.zeros(len(rings), int),
    )[0]


def mended(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """The same areas as valid geometries: an outline that touches itself becomes one with holes.

    Args:
        polygons: (number,) of shapely geometries.

    Returns:
        (number,) of Polygon or MultiPolygon; an area of 0 may become an empty one.
    """
    shapely = import_optional("shapely", "slides")
    result: NDArray[np.object_] = polygons.copy()
    for index in np.flatnonzero(~shapely.is_valid(result)).tolist():
        parts = shapely.get_parts(shapely.make_valid(result[index]))
        areas = [part for part in parts if part.geom_type.endswith("Polygon")]
        result[index] = areas[0] if len(areas) == 1 else shapely.union_all(areas)
    return result
