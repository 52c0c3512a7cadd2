"""Metrics of one class in one case: closed forms, nnU-Net's own numbers, empty masks."""

from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_octreenca.comparison.metrics import METRICS, cl_dice, dice, frame_dice, measure
from nnunet_octreenca.comparison.statistics import Interval
from nnunet_octreenca.comparison.tables import digits_of, interval_text


def test_dice_is_nnunets_to_the_last_digit(tmp_path):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_octreenca.labels.volume import write_volume

    generator = np.random.default_rng(0)
    for number in range(20):
        truth, prediction = (generator.random((2, 5, 6, 7)) < 0.4).astype(np.uint8)
        for name, labels in (("t.nii.gz", truth), ("p.nii.gz", prediction)):
            write_volume(labels, tmp_path / name)
        stock = compute_metrics(
            str(tmp_path / "t.nii.gz"), str(tmp_path / "p.nii.gz"), SimpleITKIO(), [1]
        )
        assert dice(truth == 1, prediction == 1) == stock["metrics"][1]["Dice"], number


def test_a_shifted_cube_in_millimetres():
    """10 voxels a side, shifted by 2 along z, where a voxel measures 3 mm."""
    truth, prediction = np.zeros((2, 20, 14, 14), bool)
    truth[2:12, 2:12, 2:12] = True
    prediction[4:14, 2:12, 2:12] = True
    found = measure(
        truth, prediction, (3.0, 0.5, 0.5), names=("dice", "nsd", "hd95", "volume_difference"),
        tolerance=6.0,
    )  # fmt: skip
    assert found["dice"] == 0.8
    assert found["hd95"] == pytest.approx(6.0)  # the ends; the sides are at most 2.5 mm off
    assert found["nsd"] == 1
    assert found["volume_difference"] == 0
    smaller = prediction.copy()
    smaller[4] = False
    found = measure(truth, smaller, (3.0, 0.5, 0.5), names=("volume_difference",), tolerance=1)
    assert found == {"volume_difference": pytest.approx(100 * 3 * 0.25 / 1000)}


def test_pictures_are_measured_in_pixels():
    truth, prediction = np.zeros((2, 30, 30), bool)
    truth[5:15, 5:15] = True
    prediction[5:15, 5:25] = True
    found = measure(
        truth, prediction, (1.0, 1.0), names=("hd95", "volume_difference"), tolerance=1,
        millilitres=False,
    )  # fmt: skip
    assert found == {"hd95": pytest.approx(10), "volume_difference": 100}


def test_centreline_dice_of_a_line():
    """A broken thin line loses as much of its length; a thick one of the same course loses none."""
    thin = np.zeros((21, 101), bool)
    thin[10] = True
    broken = thin.copy()
    broken[:, 50:] = False
    thick = np.zeros_like(thin)
    thick[8:13] = True
    assert cl_dice(thin, thin) == 1
    assert cl_dice(thin, broken) == pytest.approx(2 * 1 * (50 / 101) / (1 + 50 / 101))
    assert cl_dice(thin, thick) == pytest.approx(1, abs=0.02)  # skeletons fork at the ends
    assert dice(thin, thick) < 0.4
    elsewhere = np.zeros_like(thin)
    elsewhere[0] = True
    assert cl_dice(thin, elsewhere) == 0
    assert cl_dice(np.stack([thin] * 3), np.stack([thin] * 3)) == 1


def test_frames_of_a_video():
    truth, prediction = np.zeros((2, 3, 8, 8), bool)
    truth[0, :4] = True
    prediction[0, :4] = True  # 1
    truth[1, :4] = True
    prediction[1, 2:6] = True  # 0.5
    assert frame_dice(truth, prediction) == 0.75  # the third frame is empty in both
    truth[2, 0, 0] = True  # 0
    assert frame_dice(truth, prediction) == 0.5
    found = measure(
        truth, prediction, (1.0, 1.0), names=("frame_dice", "hd95"), tolerance=1, millilitres=False
    )
    assert found["hd95"] == pytest.approx((0 + 2 + np.hypot(8, 8)) / 3)


def test_empty_masks_follow_the_stated_rule():
    full, empty = np.ones((2, 6, 8), bool)
    empty[:] = False
    names = tuple(name for name in METRICS if name != "frame_dice")
    spacing = (3.0, 4.0)
    both = measure(empty, empty, spacing, names=names, tolerance=1)
    assert both.pop("volume_difference") == 0
    assert all(np.isnan(value) for value in both.values())
    for truth, prediction in ((full, empty), (empty, full)):
        found = measure(truth, prediction, spacing, names=names, tolerance=100)
        assert found["hd95"] == pytest.approx(np.hypot(6 * 3, 8 * 4))
        assert found["dice"] == found["nsd"] == found["cldice"] == 0
        assert found["volume_difference"] == pytest.approx(48 * 12 / 1000)


def test_figures_have_as_many_digits_as_they_carry():
    """A mean of 11,529.55 pixels stood as 11529.550."""
    shown = [
        digits_of("volume_difference", SimpleNamespace(units={"volume": unit}))
        for unit in ("px", "mm²", "ml")
    ]
    assert shown == [0, 1, 3]
    assert digits_of("dice", SimpleNamespace(units={"volume": "px"})) == 3
    text = interval_text(Interval(11529.55, -8575.253, 14120.944, 9), 0, signed=True)
    assert text == "+11,530 (-8,575 to +14,121)"
