"""The connected regions of a label map as polygons, found in square tiles."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.bands import split_range
from nnunet_octreenca.labels.outlines import outlines
from nnunet_octreenca.labels.polygons import filled
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from shapely import Polygon

TILE = 256
"""Pixels of a tile's side; with 512, noise takes twice as long."""
CORNERS = 500_000
"""Corners of a region that stays whole; some 100,000 are left once it is simplified."""
HOLES = 1_000
"""Holes of a region that stays whole: simplifying compares every corner with every hole,
2 s for a region at both limits."""


@dataclass
class _Region:
    """What is known of a region that continues in the next tile, or did."""

    label: int
    area: int
    corners: int
    holes: int
    pieces: list["Polygon"]
    given: int = 0
    """Pieces that have been given already, for the region is beyond the limits."""

    def take(self, other: "_Region") -> None:
        self.area += other.area
        self.corners += other.corners
        self.holes += other.holes
        self.pieces += other.pieces
        self.given += other.given


class Regions:
    """Every 4-connected region of one label above 0, as polygons along pixel edges.

    Iterating, once, gives label and pieces: valid shapely Polygons in pixel coordinates (x, y),
    pixel (0, 0) covers (0, 0) to (1, 1), that together are one region. A region beyond the
    limits is given several times, each time with its piece in one tile, so that nothing grows
    with the square of its size. Only a row of tiles and the regions that continue
    below it are held.

    Args:
        labels: (y, x) of integers, none below 0.
        min_area: pixels; regions of fewer are left out, holes of fewer are filled where they lie
            within a tile.
        tile: pixels of a tile's side. A region within the limits does not depend on it once its
            pieces are united and its holes filled.
        corners: a region's limit; those along the tiles' borders are not counted.
        holes: a region's limit; those filled are not counted.

    Attributes:
        written: regions given so far.
        left_out: regions left out so far.
        cut: how many of the regions given were given in pieces.
    """

    def __init__(
        self,
        labels: Labels,
        *,
        min_area: float = 0.0,
        tile: int = TILE,
        corners: int = CORNERS,
        holes: int = HOLES,
    ) -> None:
        self.written = self.left_out = self.cut = 0
        self._labels = labels
        self._min_area = min_area
        self._tile = tile
        self._corners = corners
        self._holes = holes
        self._regions: dict[int, _Region] = {}  # by number, those that touch a seam
        self._parent: dict[int, int] = {}
        self._next = 1

    def __iter__(self) -> Iterator[tuple[int, Sequence["Polygon"]]]:
        height, width = self._labels.shape
        above = np.zeros(width, np.int64)
        for top, bottom in split_range(0, height, self._tile):
            below = np.zeros(width, np.int64)
            beside = np.zeros(bottom - top, np.int64)
            for left, right in split_range(0, width, self._tile):
                tile = np.asarray(self._labels[top:bottom, left:right])
                borders = yield from self._tile_regions(tile, top, left)
                if top > 0:
                    over = self._labels[top - 1, left:right]
                    self._unite(above[left:right], borders[0], over == tile[0])
                if left > 0:
                    over = self._labels[top:bottom, left - 1]
                    self._unite(beside, borders[1], over == tile[:, 0])
                if top > 0 and left > 0 and borders[0][0] > 0:
                    around = self._labels[top - 1 : top + 1, left - 1 : left + 1]
                    if (around == tile[0, 0]).all():
                        # The four tiles touch in a circle, with no hole in their middle.
                        self._regions[self._root(int(borders[0][0]))].holes -= 1
                below[left:right], beside = borders[2:]
            if bottom == height:
                below[:] = 0
            above = yield from self._end_row(below)

    def _tile_regions(
        self, tile: Labels, top: int, left: int
    ) -> Generator[tuple[int, Sequence["Polygon"]], None, list[NDArray[np.int64]]]:
        """Give the regions within a tile; return the numbers of those along its borders.

        The borders are the first row, the first column, the last row and the last column.
        """
        shapely = import_optional("shapely", "slides")
        found, polygons = outlines(tile)
        label = np.zeros(len(polygons) + 1, np.int64)
        label[found] = tile
        area = np.bincount(found.ravel(), minlength=len(label))
        on_seam = np.zeros(len(label), bool)
        height, width = self._labels.shape
        borders = [found[0], found[:, 0], found[-1], found[:, -1]]
        seams = [top > 0, left > 0, top + len(tile) < height, left + tile.shape[1] < width]
        for border, is_seam in zip(borders, seams, strict=True):
            on_seam[border] |= is_seam
        kept = np.flatnonzero(on_seam | (area >= self._min_area))
        kept = kept[kept > 0]
        self.left_out += len(polygons) - len(kept)
        polygons = filled(polygons[kept - 1], self._min_area)
        corners = _corners_within(polygons, tile.shape)
        holes = shapely.get_num_interior_rings(polygons)
        corner = np.array([left, top])
        polygons = shapely.transform(polygons, lambda points: points + corner)
        number = np.zeros(len(label), np.int64)
        for index, region in enumerate(kept.tolist()):
            if on_seam[region]:
                number[region] = self._next
                self._parent[self._next] = self._next
                self._regions[self._next] = _Region(
                    label=int(label[region]),
                    area=int(area[region]),
                    corners=int(corners[index]),
                    holes=int(holes[index]),
                    pieces=[polygons[index]],
                )
                self._next += 1
            else:
                self.written += 1
                yield int(label[region]), [polygons[index]]
        return [number[border] for border in borders]

    def _unite(self, one: Labels, other: Labels, same: Labels) -> None:
        """Unite what touches across a seam: numbers on either side, and where labels agree."""
        pairs = np.stack([one, other])
        touching = same & (other > 0)
        begins = touching.copy()
        begins[1:] &= ~touching[:-1] | (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
        for pair in pairs[:, begins].T.tolist():
            keep, gone = map(self._root, pair)
            if keep == gone:
                self._regions[keep].holes += 1  # closed by touching once more
                continue
            if len(self._regions[keep].pieces) < len(self._regions[gone].pieces):
                keep, gone = gone, keep
            self._parent[gone] = keep
            self._regions[keep].take(self._regions.pop(gone))

    def _root(self, number: int) -> int:
        while (parent := self._parent[number]) != number:
            self._parent[number] = self._parent[parent]
            number = parent
        return number

    def _end_row(
        self, below: NDArray[np.int64]
    ) -> Generator[tuple[int, Sequence["Polygon"]], None, NDArray[np.int64]]:
        """Give what has ended or is beyond the limits; return `below` with united numbers."""
        numbers, where = np.unique(below, return_inverse=True)
        numbers = np.array([self._root(number) if number else 0 for number in numbers.tolist()])
        self._parent = {number: number for number in numbers.tolist() if number}
        for number, region in list(self._regions.items()):
            ended = number not in self._parent
            large_enough = region.area >= self._min_area
            beyond = region.given or region.corners > self._corners or region.holes > self._holes
            if large_enough and beyond:
                region.given += len(region.pieces)
                yield from ((region.label, [piece]) for piece in region.pieces)
                region.pieces = []
            elif large_enough and ended:
                yield region.label, region.pieces
            if ended:
                del self._regions[number]
                self.written += large_enough
                self.left_out += not large_enough
                self.cut += region.given > 1
        return numbers[where]


def _corners_within(polygons: NDArray[np.object_], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """(number,) of corners that do not lie on the border of a tile of `shape`."""
    shapely = import_optional("shapely", "slides")
    points, polygon = shapely.get_coordinates(polygons, return_index=True)
    within = ((points > 0) & (points < shape[::-1])).all(axis=1)
    return np.bincount(polygon[within], minlength=len(polygons))
