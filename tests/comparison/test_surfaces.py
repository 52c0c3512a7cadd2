"""Surface distances: closed forms, another program's values, and pairs measured one by one."""

import numpy as np
import pytest

from nnunet_octreenca.comparison.surfaces import (
    bounding_box,
    element_areas,
    hausdorff,
    surface_dice,
    surface_distances,
)


def blobs(seed: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    fields = [generator.standard_normal(shape) for _ in range(2)]
    return [gaussian_filter(field, 1.5, mode="constant") > 0.05 for field in fields]


# Of `surface-distance` 0.1 (DeepMind), with NumPy 1's and SciPy 1.7's names given back to it:
# seed, shape, spacing, tolerance, surface Dice, HD95, HD.
PUBLISHED = [
    (0, (12, 14, 9), (1.0, 1.0, 1.0), 1.0, 0.3080758176938739, 5.385164807134504, 6.557438524302),
    (1, (8, 15, 13), (3.3, 0.7, 0.7), 1.0, 0.5190887074196179, 4.42718872423573, 6.3),
    (2, (7, 7, 16), (1.0, 5.0, 0.5), 2.5, 0.6528382103597109, 6.4031242374328485, 7.87400787401181),
    (3, (20, 23), (1.0, 1.0), 1.0, 0.6729594699905829, 4.0, 6.324555320336759),
    (4, (20, 17), (0.4, 2.1), 0.9, 0.43743338705974216, 4.0, 4.83735464897913),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"seed{row[0]}")
def test_values_of_the_published_program(row):
    seed, shape, spacing, tolerance, overlap, hd95, hd = row
    distances = surface_distances(*blobs(seed, shape), spacing)
    assert surface_dice(distances, tolerance) == pytest.approx(overlap, rel=1e-6)
    assert hausdorff(distances, 95) == pytest.approx(hd95)
    assert hausdorff(distances, 100) == pytest.approx(hd)


def test_distances_are_those_of_all_pairs_of_corners():
    """No distance transform: every corner against every corner."""
    truth, prediction = blobs(5, (6, 8, 7))
    spacing = np.array([2.5, 0.6, 1.1])

    def corners(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        sums = sum(
            padded[z : z + 7, y : y + 9, x : x + 8].astype(int)
            for z in (0, 1)
            for y in (0, 1)
            for x in (0, 1)
        )
        return np.argwhere((sums > 0) & (sums < 8)) * spacing

    a, b = corners(truth), corners(prediction)
    pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    distances = surface_distances(truth, prediction, tuple(spacing))
    assert np.sort(distances.truth) == pytest.approx(np.sort(pairs.min(1)))
    assert np.sort(distances.prediction) == pytest.approx(np.sort(pairs.min(0)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_plate(axis):
    """A plate of one voxel, shifted along its normal: all distances but the rim's are the shift."""
    spacing = (4.0, 0.5, 2.0)
    truth, prediction = np.zeros((2, 14, 14, 14), bool)
    place = [slice(2, 12)] * 3
    place[axis] = slice(2, 3)
    truth[tuple(place)] = True
    place[axis] = slice(5, 6)
    prediction[tuple(place)] = True
    distances = surface_distances(truth, prediction, spacing)
    assert hausdorff(distances, 100) == pytest.approx(3 * spacing[axis])
    # The near faces are 2 voxels apart, the far ones 3; both have half of the area.
    assert set(np.round(distances.truth / spacing[axis]).tolist()) == {2.0, 3.0}
    assert surface_dice(distances, 2 * spacing[axis]) == pytest.approx(0.5, abs=0.01)
    assert surface_dice(distances, 1.9 * spacing[axis]) == 0
    assert surface_dice(distances, 3 * spacing[axis]) == 1


def test_areas_of_a_box_but_for_its_edges():
    """Faces' areas are exact; each edge is cut off, as the definition of the elements has it."""
    spacing = (2.0, 3.0, 0.5)
    cells = np.array([10, 20, 40])
    box = np.ones(cells, bool)
    areas = surface_distances(box, box, spacing).truth_areas.sum()
    z, y, x = cells * spacing
    assert areas == pytest.approx(2 * (z * y + y * x + x * z), rel=0.05)
    assert areas < 2 * (z * y + y * x + x * z)


def test_area_and_distances_of_balls():
    """Steps of voxels have some tenth more area than the ball; the radii differ by 4 mm."""
    spacing = (2.0, 1.0, 1.0)
    z, y, x = np.ogrid[-15:16, -30:31, -30:31]
    radius = np.sqrt((2.0 * z) ** 2 + y**2 + x**2)
    distances = surface_distances(radius <= 24, radius <= 20, spacing)
    assert 1 < distances.truth_areas.sum() / (4 * np.pi * 24**2) < 1.13
    assert hausdorff(distances, 95) == pytest.approx(4, abs=1.2)
    assert surface_dice(distances, 6) == 1
    assert surface_dice(distances, 2) == pytest.approx(0, abs=0.02)


def test_a_mask_and_its_complement_have_the_same_elements():
    for spacing in ((1.0, 2.0), (1.0, 2.0, 0.3)):
        areas = element_areas(spacing)
        assert areas == pytest.approx(areas[::-1])
        assert areas[0] == 0
        assert (areas[1:-1] > 0).all()


def test_elements_of_a_contour():
    areas = element_areas((3.0, 4.0))
    assert areas[0b0001] == 2.5  # a corner is cut off
    assert areas[0b1001] == 5  # two are
    assert areas[0b0011] == 4  # along x
    assert areas[0b0101] == 3  # along y


def test_weights_of_the_percentile():
    """95 % of the area, not of the elements."""
    from nnunet_octreenca.comparison.surfaces import SurfaceDistances

    values = np.array([5.0, 1.0, 9.0])
    areas = np.array([0.5, 94.0, 5.5])
    empty = np.array([])
    distances = SurfaceDistances(values, empty, areas, empty)
    assert hausdorff(distances, 94) == 1
    assert hausdorff(distances, 94.5) == 5
    assert hausdorff(distances, 95) == 9
    assert surface_dice(distances, 5) == pytest.approx(0.945)


def test_empty_masks():
    full, empty = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    assert np.isnan(hausdorff(surface_distances(empty, empty, (1, 1)), 95))
    assert np.isnan(surface_dice(surface_distances(empty, empty, (1, 1)), 1))
    for pair in ((full, empty), (empty, full)):
        assert hausdorff(surface_distances(*pair, (1, 1)), 95) == np.inf
        assert surface_dice(surface_distances(*pair, (1, 1)), 100) == 0
    assert bounding_box(empty) == (slice(0, 0), slice(0, 0))
