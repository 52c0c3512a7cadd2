"""Phantoms: the same from the same seed, as nnU-Net wants them, and no matter of a threshold."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_octreenca.datasets import phantoms
from nnunet_octreenca.datasets.phantoms import draw_case, make_phantoms
from nnunet_octreenca.errors import InputError

TINY = (8, 20, 24)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout_is_nnunets(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "Dataset001_Tiny"
    make_phantoms(folder, training=2, test=1, shape=TINY, channels=2)
    assert sorted(files(folder)) == [
        "dataset.json",
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_000_0001.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTr/phantom_001_0001.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "imagesTs/phantom_002_0001.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTs/phantom_002.nii.gz",
    ]
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "organ": 1, "lesion": 2}
    assert described["channel_names"] == {"0": "contrast 0", "1": "contrast 1"}
    assert described["numTraining"] == 2
    assert described["file_ending"] == ".nii.gz"


def test_same_seed_same_bytes_and_other_seed_other_voxels(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_phantoms(tmp_path / name, training=1, test=1, seed=seed, shape=TINY)
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a if name.endswith(".nii.gz"))


def test_a_larger_data_set_begins_with_the_smaller_one(tmp_path: Path) -> None:
    make_phantoms(tmp_path / "small", training=1, test=0, shape=TINY)
    make_phantoms(tmp_path / "large", training=2, test=1, shape=TINY)
    image = "imagesTr/phantom_000_0000.nii.gz"
    assert files(tmp_path / "small")[image] == files(tmp_path / "large")[image]


def test_geometry_of_image_and_labels(tmp_path: Path) -> None:
    make_phantoms(tmp_path / "data", training=6, test=0, shape=TINY)
    shapes = set()
    for number in range(6):
        image = sitk.ReadImage(str(tmp_path / f"data/imagesTr/phantom_{number:03d}_0000.nii.gz"))
        labels = sitk.ReadImage(str(tmp_path / f"data/labelsTr/phantom_{number:03d}.nii.gz"))
        assert image.GetSpacing() == labels.GetSpacing() == (1.0, 1.0, 2.5)  # x, y, z
        assert image.GetSize() == labels.GetSize()
        assert image.GetOrigin() == labels.GetOrigin()
        assert image.GetDirection() == labels.GetDirection()
        middle = image.TransformContinuousIndexToPhysicalPoint(
            [(n - 1) / 2 for n in image.GetSize()]
        )
        assert middle == pytest.approx((0, 0, 0), abs=1e-5)
        shapes.add(image.GetSize()[::-1])
    assert len(shapes) > 1
    assert any(n % 2 for shape in shapes for n in shape)
    for shape in shapes:
        assert all(abs(n - wanted) <= wanted // 8 for n, wanted in zip(shape, TINY, strict=True))


@pytest.mark.parametrize("shape", [phantoms.SHAPE, phantoms.MIN_SHAPE, (10, 33, 29)])
def test_every_case_has_both_classes_and_the_lesion_lies_in_the_organ(shape) -> None:
    for number in range(4):
        images, labels = draw_case(shape, 1, np.random.default_rng([0, number]))
        assert images.dtype == np.int16
        assert labels.dtype == np.uint8
        assert images.shape == (1, *labels.shape)
        counts = np.bincount(labels.ravel(), minlength=3)
        assert len(counts) == 3
        assert counts.min() >= phantoms.MIN_VOXELS
        # The lesion's neighbours are of the organ, but for where it reaches the organ's surface.
        lesion = labels == 2
        around = np.zeros_like(lesion)
        for axis in range(3):
            for step in (-1, 1):
                around |= np.roll(lesion, step, axis)
        around &= ~lesion
        assert (labels[around] == 1).mean() > 0.4


def best_threshold_dice(image: np.ndarray, mask: np.ndarray) -> float:
    """The highest Dice that any interval of brightness reaches."""
    edges = np.quantile(image, np.linspace(0, 1, 101))
    all_, inside = (
        np.concatenate([[0], np.cumsum(np.histogram(values, edges)[0])])
        for values in (image, image[mask])
    )
    low, high = np.triu_indices(len(edges), 1)
    hits, chosen = inside[high] - inside[low], all_[high] - all_[low]
    return float((2 * hits / (chosen + mask.sum())).max())


def test_no_threshold_finds_the_classes() -> None:
    # The threshold is even fitted to each case, with its truth at hand.
    cases = [draw_case(phantoms.SHAPE, 1, np.random.default_rng([0, n])) for n in range(10)]
    organ, lesion = (
        np.mean([best_threshold_dice(images[0], labels == label) for images, labels in cases])
        for label in (1, 2)
    )
    assert organ < 0.8
    assert lesion < 0.5


def test_thresholds_are_found_where_there_are_some() -> None:
    image = np.arange(1000.0)
    assert best_threshold_dice(image, (image >= 300) & (image < 500)) > 0.97


def test_channels_show_the_same_anatomy_in_other_contrasts() -> None:
    images, labels = draw_case((12, 40, 40), 2, np.random.default_rng(0))
    brightness = [[image[labels == label].mean() for label in (1, 2)] for image in images]
    assert brightness[0][1] > 1.1 * brightness[0][0]  # lesion above organ
    assert brightness[1][1] > 1.1 * brightness[1][0]
    assert not np.array_equal(images[0], images[1])
    assert abs(np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1]) < 0.95


def test_shapes_have_their_volumes() -> None:
    grid = phantoms.millimetres((60, 60, 60), (0.5, 0.5, 0.5))
    radii = np.array([6.0, 9.0, 12.0])
    axes = phantoms.rotation(np.random.default_rng(0))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    ellipsoid = phantoms.superellipsoid(grid, np.ones(3), radii, axes=axes)
    assert ellipsoid.sum() / 8 == pytest.approx(4 / 3 * np.pi * radii.prod(), rel=0.02)
    box = phantoms.superellipsoid(grid, np.zeros(3), radii, exponent=200)
    assert box.sum() / 8 == pytest.approx(8 * radii.prod(), rel=0.05)
    end = 10 * axes[0]
    tube = phantoms.tube(grid, [-end, np.zeros(3), end], radius=4.0)
    capsule = np.pi * 16 * 20 + 4 / 3 * np.pi * 64
    assert tube.sum() / 8 == pytest.approx(capsule, rel=0.03)


def test_bias_field_is_smooth_and_as_strong_as_told() -> None:
    field = np.log(phantoms.bias_field((12, 40, 40), np.random.default_rng(0), strength=0.3))
    assert field.mean() == pytest.approx(0, abs=1e-12)
    assert field.std() == pytest.approx(0.3)
    assert max(np.abs(np.diff(field, n=3, axis=axis)).max() for axis in range(3)) < 1e-10


def test_blur_keeps_the_sum_away_from_the_border() -> None:
    point = np.zeros((5, 5, 5))
    point[2, 2, 2] = 1
    blurred = phantoms.blurred(point)
    assert blurred.sum() == pytest.approx(1)
    assert blurred[2, 2, 2] == pytest.approx(0.75**3)
    assert blurred[1, 2, 2] == pytest.approx(0.125 * 0.75**2)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        make_phantoms(tmp_path, training=1, test=0)
    with pytest.raises(InputError, match="not an empty folder"):
        make_phantoms(tmp_path / "mine.txt", training=1, test=0)
    assert files(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"training": 0, "test": 1}, r"training \(0\)"),
        ({"training": 1, "test": -1}, r"test \(-1\)"),
        ({"training": 1, "test": 0, "channels": 0}, r"channels \(0\)"),
        ({"training": 1, "test": 0, "shape": (3, 40, 40)}, r"\(3, 40, 40\)"),
        ({"training": 1, "test": 0, "shape": (40, 40)}, r"\(40, 40\)"),
    ],
)
def test_numbers_that_cannot_be(tmp_path: Path, options: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        make_phantoms(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()
