"""The outlines of a small label map's regions along pixel edges, as valid polygons."""

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.libraries import import_optional


def outlines(labels: Labels) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    """Every 4-connected region of one label above 0, with its outline.

    Time and memory grow with the number of pixel edges between regions.

    Args:
        labels: (y, x) of integers, none below 0.

    Returns:
        (y, x), 0 for the background and 1 to number in the regions; (number,) of shapely
        Polygon with holes in pixel coordinates (x, y), pixel (0, 0) covers (0, 0) to (1, 1).
        All are valid: a hole is a 4-connected part of what is not the region, and rings touch
        in single points only.
    """
    from skimage.measure import label

    shapely = import_optional("shapely", "slides")
    if not labels.any():
        return np.zeros(labels.shape, np.int32), np.empty(0, object)
    regions = label(labels, background=0, connectivity=1).astype(np.int32)
    points, corners, region = _rings(regions)
    rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(corners)), corners))
    # A region's shell has its uppermost edge, and was therefore met before its holes.
    order = np.argsort(region, kind="stable")
    return regions, shapely.polygons(rings[order], indices=region[order] - 1)


def _rings(regions: NDArray[np.int32]) -> tuple[Labels, Labels, Labels]:
    """Corners (x, y) of all rings one after the other; how many each has; its region.

    One walks along the edges with the region on the right. An edge is known by its heading
    (east, south, west, north) and the point where it ends.
    """
    padded = np.pad(regions, 1)
    stride = padded.shape[1]
    pixel = padded.ravel()
    # A point is known by the pixel on its upper left. Clockwise from there: to one who arrives
    # with heading h, pixel h is behind on the left, h + 1 ahead on the left, h + 2 ahead on the
    # right, h + 3 behind on the right.
    around = np.array([0, 1, stride + 1, stride])
    points = len(pixel) - around.max()
    clockwise = [pixel[first : first + points] for first in around.tolist()]
    arrivals = [
        np.flatnonzero((clockwise[one - 1] > 0) & (clockwise[one - 1] != clockwise[one]))
        for one in range(4)
    ]
    heading = np.repeat(np.arange(4), [len(ends) for ends in arrivals])
    point = np.concatenate(arrivals)
    region = pixel[point + around[heading - 1]]
    # Where pixels of the region meet in a point only, one goes over to the other: a ring that
    # stayed would meet the point again, and so touch itself.
    left = pixel[point + around[(heading + 1) % 4]] == region
    ahead = pixel[point + around[(heading + 2) % 4]] == region
    turn = np.where(left, -1, np.where(ahead, 0, 1))
    number = np.empty((4, points), np.int32)
    number[heading, point] = np.arange(len(point))
    next_heading = (heading + turn) % 4
    next_edge = number[next_heading, point + np.array([1, stride, -1, -stride])[next_heading]]
    order, first = _cycles(next_edge.tolist())
    corner = turn[order] != 0
    y, x = np.divmod(point[order][corner], stride)
    before = np.concatenate([[0], np.cumsum(corner)])
    corners = np.diff(before[[*first, len(order)]])
    return np.stack([x, y], axis=1).astype(float), corners, region[order][first]


def _cycles(following: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cycles of a permutation one after the other, and where each begins."""
    order: list[int] = []
    first = []
    for start in range(len(following)):
        if following[start] < 0:
            continue
        first.append(len(order))
        here = start
        while (there := following[here]) >= 0:
            order.append(here)
            following[here] = -1
            here = there
    return np.array(order, np.int64), np.array(first, np.int64)
