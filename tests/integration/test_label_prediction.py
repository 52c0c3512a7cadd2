"""Label maps in the place of logits, and the benchmark that adds up what processes hold."""

import os
import pickle
import sys

import numpy as np
import prediction_memory
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_octreenca.integration import label_export
from nnunet_octreenca.integration.label_prediction import LabelPrediction

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


def test_labels_as_logits_are_only_good_for_their_labels():
    labels = RANDOM.integers(0, 40, (2, 3, 4)).astype(np.uint8)
    logits = pickle.loads(pickle.dumps(LabelPrediction(labels, 40))).cpu().as_logits()
    assert logits.shape == (40, 2, 3, 4)
    assert logits.strides[0] == 0  # no memory for each class
    assert type(logits.argmax(0)) is np.ndarray
    np.testing.assert_array_equal(logits.argmax(0), labels)
    with pytest.raises(TypeError, match=r"argmax\(1\)"):
        logits.argmax(1)


def test_benchmark_adds_up_all_processes():
    """Twice 60 MB, in a process and its child."""
    child = "b = b'x' * 60_000_000; import time; time.sleep(0.5)"
    code = "import subprocess, sys; b = b'x' * 60_000_000; "
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    found = prediction_memory.peak_of([sys.executable, "-c", code], dict(os.environ), 0.01)
    assert 120e6 < found["bytes"] < 160e6
    assert len(found["processes"]) == 2
