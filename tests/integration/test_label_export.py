"""Label maps exported in place of logits; the benchmark that adds up what processes hold."""

import os
import sys

import numpy as np
import prediction_memory
import pytest
import torch
from nnunetv2.inference import export_prediction
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_octreenca.integration import export_worker, label_export

RANDOM = np.random.default_rng(11)


def test_labels_are_those_of_the_rounded_logits(monkeypatch):
    """Ties and logits that float16 rounds to 0, in many bands."""
    monkeypatch.setattr(label_export, "_BAND", 64)
    manager = LabelManager({"background": 0, **{str(n): n for n in range(1, 5)}}, None)
    logits = torch.from_numpy(RANDOM.integers(-1, 2, (5, 2, 23, 31))).half() * 1e-8
    labels = label_export.label_map(manager, logits)
    np.testing.assert_array_equal(labels, manager.convert_logits_to_segmentation(logits.numpy()))
    assert labels.dtype == np.uint8


def test_more_classes_than_a_byte_holds():
    manager = LabelManager({"background": 0, **{str(n): n for n in range(1, 300)}}, None)
    logits = torch.zeros(300, 1, 2, 2, dtype=torch.float16)
    logits[299, 0, 1, 1] = 1
    np.testing.assert_array_equal(label_export.label_map(manager, logits), [[[0, 0], [0, 299]]])


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0)])
def test_label_maps_are_restored_as_nnunet_restores_logits(stock_plans, transpose):
    """Of a box amid what was cropped away, in the plans' axes; logits stay nnU-Net's."""
    stock = stock_plans((8, 8, 8), 1)
    stock["transpose_forward"] = list(transpose)
    stock["transpose_backward"] = [transpose.index(axis) for axis in range(3)]
    plans = PlansManager(stock)
    configuration = plans.get_configuration("3d_fullres")
    manager = plans.get_label_manager({"labels": {"background": 0, "a": 1, "b": 2}})
    logits = torch.from_numpy(RANDOM.normal(size=(3, 4, 5, 6)).astype(np.float32))
    box = [[1, 5], [0, 5], [2, 8]]
    properties = {
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": (7, 5, 9),
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": (4, 5, 6),
    }
    arguments = (plans, configuration, manager, properties)
    convert = "convert_predicted_logits_to_segmentation_with_correct_shape"
    expected = getattr(export_prediction, convert)(logits, *arguments)
    labels = label_export.label_map(manager, logits)
    for prediction in (labels, logits):
        found = getattr(export_worker, convert)(prediction, *arguments)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert expected.shape == tuple((7, 5, 9)[axis] for axis in stock["transpose_backward"])


def test_benchmark_adds_up_all_processes():
    """Twice 60 MB, in a process and its child."""
    child = "b = b'x' * 60_000_000; import time; time.sleep(0.5)"
    code = "import subprocess, sys; b = b'x' * 60_000_000; "
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    found = prediction_memory.peak_of([sys.executable, "-c", code], dict(os.environ), 0.01)
    assert 120e6 < found["bytes"] < 160e6
    assert len(found["processes"]) == 2
