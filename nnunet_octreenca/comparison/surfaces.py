"""Distances between the surfaces of two masks, weighted by area, on anisotropic grids.

The convention is that of DeepMind's `surface-distance`: a surface element lies at each corner that
2 x 2 (x 2) pixels share where some of them are of the mask and some are not, and has the area that
marching cubes gives it. Programs that take border voxels for the surface, or leave areas and
spacing out, differ from it by millimetres on the same masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]

CONVENTION = (
    "surface elements at the corners between pixels, weighted by their marching-cubes area (the "
    "convention of DeepMind's surface-distance), with exact Euclidean distances"
)


@dataclass(frozen=True)
class SurfaceDistances:
    """The surface elements of two masks, each with its distance to the other mask's surface.

    Attributes:
        truth, prediction: distances in mm; empty where that mask is, infinite where the other is.
        truth_areas, prediction_areas: of the elements, in mm2 (mm of a 2-D contour).
    """

    truth: Numbers
    prediction: Numbers
    truth_areas: Numbers
    prediction_areas: Numbers


def surface_distances(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure the surfaces of two masks against each other.

    Args:
        truth, prediction: (y, x) or (z, y, x).
        spacing: mm per axis in the same order.
    """
    from scipy.spatial import cKDTree

    box = bounding_box(truth | prediction)
    codes = [_corner_codes(mask[box]) for mask in (truth, prediction)]
    areas = element_areas(tuple(float(step) for step in spacing))
    full = len(areas) - 1
    borders = [(code > 0) & (code < full) for code in codes]
    # Trees of the elements alone: distance transforms take 70 bytes for every voxel of the box.
    places = [np.argwhere(border) * np.asarray(spacing, float) for border in borders]
    found = [
        cKDTree(places[other]).query(places[own])[0]
        if len(places[own]) and len(places[other])
        else np.full(len(places[own]), np.inf)
        for own, other in ((0, 1), (1, 0))
    ]
    weights = [areas[code[border]] for code, border in zip(codes, borders, strict=True)]
    return SurfaceDistances(found[0], found[1], weights[0], weights[1])


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """Normalised surface distance: the share of both surfaces' area within a tolerance, 0 to 1.

    Args:
        distances: of both surfaces.
        tolerance: mm.

    Returns:
        NaN where both masks are empty, 0 where one is.
    """
    total = float(distances.truth_areas.sum() + distances.prediction_areas.sum())
    if not total:
        return float("nan")
    # A distance that is the tolerance but for rounding counts as within it.
    within = tolerance * (1 + 1e-9)
    close = (
        distances.truth_areas[distances.truth <= within].sum()
        + distances.prediction_areas[distances.prediction <= within].sum()
    )
    return float(close) / total


def hausdorff(distances: SurfaceDistances, percent: float) -> float:
    """Robust Hausdorff distance in mm: the larger of both directions' percentiles, by area.

    Returns:
        NaN where both masks are empty, infinity where one is.
    """
    both = [
        _percentile(values, areas, percent)
        for values, areas in (
            (distances.truth, distances.truth_areas),
            (distances.prediction, distances.prediction_areas),
        )
        if len(values)
    ]
    return max(both, default=float("nan"))


def _percentile(values: Numbers, areas: Numbers, percent: float) -> float:
    """The first distance up to which `percent` of the area lies."""
    order = np.argsort(values, kind="stable")
    shares = np.cumsum(areas[order]) / areas.sum()
    place = int(np.searchsorted(shares, percent / 100))
    return float(values[order][min(place, len(values) - 1)])


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box around a mask; an empty one of an empty mask.

    >>> bounding_box(np.array([[False, False], [True, False]]))
    (slice(1, 2, None), slice(0, 1, None))
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        places = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0))
    return tuple(box)


def _corner_codes(mask: Mask) -> NDArray[np.uint8]:
    """Which of a corner's 4 or 8 pixels are of the mask, a bit each; beyond the box none is."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, offsets in enumerate(product((0, 1), repeat=mask.ndim)):
        shifted = padded[
            tuple(slice(offset, offset + n) for offset, n in zip(offsets, codes.shape, strict=True))
        ]
        codes |= shifted << np.uint8(bit)
    return codes


@lru_cache(maxsize=256)
def element_areas(spacing: tuple[float, ...]) -> Numbers:
    """The area of the surface element of each of a corner's 16 or 256 codes.

    Args:
        spacing: mm per axis, two or three.
    """
    axes = len(spacing)
    count = 2**2**axes
    areas = np.zeros(count)
    for code in range(1, count - 1):
        corners = np.array([code >> bit & 1 for bit in range(2**axes)], bool)
        corners = corners.reshape((2,) * axes)
        areas[code] = _length(corners, spacing) if axes == 2 else _area(corners, spacing)
    areas.setflags(write=False)
    return areas


def _length(corners: Mask, spacing: tuple[float, ...]) -> float:
    """Of the contour among 2 x 2 pixels, which meets their edges' middles, in mm."""
    pixels = int(corners.sum())
    oblique = float(np.hypot(spacing[0], spacing[1])) / 2
    if pixels != 2:
        return oblique
    if corners[0, 0] == corners[1, 1]:
        return 2 * oblique
    return spacing[1] if corners[0, 0] == corners[0, 1] else spacing[0]


def _area(corners: Mask, spacing: tuple[float, ...]) -> float:
    """Of the triangles among 2 x 2 x 2 voxels, which meet their edges' middles, in mm2.

    A mask and its complement have the same surface: the fewer voxels are what is cut off.
    """
    from skimage.measure import marching_cubes, mesh_surface_area

    if corners.sum() > 4:
        corners = ~corners
    vertices, faces, _, _ = marching_cubes(corners.astype(np.float32), 0.5, method="lorensen")
    return float(mesh_surface_area(vertices.astype(np.float64) * np.asarray(spacing), faces))
