"""The connected regions of a label map as polygons, found in bands of rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.io.write_whole import bands, imported

BAND_ROWS = 2048
"""Rows traced at a time: two masks of 100 MB for a slide 50,000 pixels wide."""


def region_polygons(labels: NDArray, band_rows: int = BAND_ROWS) -> Iterator[tuple[int, Any]]:
    """Every 4-connected region of one label above 0, as its exact outline along pixel edges.

    Each band is traced by GDAL (rasterio). A region that lies within a band is given at once;
    pieces that touch a seam wait until the region has come to its end, and are united.

    Args:
        labels: (y, x), uint8 or int16.
        band_rows: rows of a band; the regions do not depend on it, only their order and the
            point at which an outline begins.

    Yields:
        label, shapely Polygon with holes in pixel coordinates (x, y); pixel (0, 0) covers
        (0, 0) to (1, 1). Its area is right, but its outline may touch itself: see `mended`.
    """
    shapely = imported("shapely", "slides")
    waiting = _Waiting()
    above = np.empty(0, np.int64)
    for first, end in bands(band_rows, len(labels)):
        below = np.full(labels.shape[1], -1)
        from_above = np.full(labels.shape[1], -1)
        for label, rings in _traced(labels[first:end], first):
            polygon = shapely.Polygon(rings[0], rings[1:])
            on_top = first > 0 and rings[0][:, 1].min() == first
            at_bottom = end < len(labels) and rings[0][:, 1].max() == end
            if not on_top and not at_bottom:
                yield label, polygon
                continue
            piece = waiting.add(label, polygon)
            if on_top:
                _claim(from_above, rings, first, piece)
            if at_bottom:
                _claim(below, rings, end, piece)
        if first > 0:
            same = (labels[first - 1] == labels[first]) & (labels[first] > 0)
            for pair in np.unique(np.stack([above[same], from_above[same]]), axis=1).T.tolist():
                waiting.unite(*pair)
        yield from waiting.ended(set(below[below >= 0].tolist()))
        above = below


def mended(polygons: Sequence[Any]) -> NDArray[np.object_]:
    """The same areas as valid geometries: an outline that touches itself becomes one with holes.

    Args:
        polygons: shapely geometries.

    Returns:
        (number,) of Polygon or MultiPolygon; an area of 0 may become an empty one.
    """
    shapely = imported("shapely", "slides")
    result = np.array(polygons, dtype=object)
    for index in np.flatnonzero(~shapely.is_valid(result)).tolist():
        parts = shapely.get_parts(shapely.make_valid(result[index]))
        areas = [part for part in parts if part.geom_type.endswith("Polygon")]
        result[index] = areas[0] if len(areas) == 1 else shapely.union_all(areas)
    return result


def _traced(band: NDArray, first: int) -> Iterator[tuple[int, list[NDArray]]]:
    features = imported("rasterio.features", "slides")
    below = imported("affine", "slides").Affine.translation(0, first)
    for geometry, label in features.shapes(band, mask=band > 0, transform=below):
        yield int(label), [np.array(ring) for ring in geometry["coordinates"]]


def _claim(columns: NDArray, rings: Sequence[NDArray], row: int, piece: int) -> None:
    # The seam is a border of the piece, so its edges along it say which columns it covers.
    for ring in rings:
        x, on_seam = ring[:, 0].astype(int), ring[:, 1] == row
        for edge in np.flatnonzero(on_seam[:-1] & on_seam[1:]).tolist():
            columns[min(x[edge], x[edge + 1]) : max(x[edge], x[edge + 1])] = piece


class _Waiting:
    """Pieces of regions that may go on in the next band, grouped by region."""

    def __init__(self) -> None:
        self._next = 0
        self._group: dict[int, int] = {}
        self._pieces: dict[int, list[int]] = {}
        self._polygons: dict[int, Any] = {}
        self._label: dict[int, int] = {}

    def add(self, label: int, polygon: Any) -> int:
        piece, self._next = self._next, self._next + 1
        self._group[piece] = piece
        self._pieces[piece] = [piece]
        self._polygons[piece] = polygon
        self._label[piece] = label
        return piece

    def unite(self, one: int, other: int) -> None:
        keep, gone = self._group[one], self._group[other]
        if keep == gone:
            return
        if len(self._pieces[keep]) < len(self._pieces[gone]):
            keep, gone = gone, keep
        for piece in self._pieces[gone]:
            self._group[piece] = keep
        self._pieces[keep] += self._pieces.pop(gone)
        del self._label[gone]

    def ended(self, going_on: set[int]) -> Iterator[tuple[int, Any]]:
        """Give and forget the regions that have no piece in `going_on`."""
        shapely = imported("shapely", "slides")
        open_groups = {self._group[piece] for piece in going_on}
        for group in [group for group in self._pieces if group not in open_groups]:
            pieces = self._pieces.pop(group)
            for piece in pieces:
                del self._group[piece]
            polygons = [self._polygons.pop(piece) for piece in pieces]
            label = self._label.pop(group)
            yield label, polygons[0] if len(polygons) == 1 else shapely.union_all(mended(polygons))
