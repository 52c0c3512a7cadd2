"""nnU-Net's own prediction and ours give the same labels, to the last voxel."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.stock_prediction import workers_here
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from PIL import Image
from scipy.ndimage import gaussian_filter
from untrained_model import model_folder

from nnunet_octreenca import segment_file

FIVE = {"background": 0, **{str(n): n for n in range(1, 5)}}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions": (1, 2),
}
VOLUME = {"patch": (16, 32, 32), "channels": 1, "ending": ".nii.gz", "labels": FIVE}
CT = {**VOLUME, "schemes": ["CTNormalization"]}


@pytest.fixture
def case(tmp_path):
    """A picture and a volume, by the ending of their files."""
    rng = np.random.default_rng(1)
    picture, volume = tmp_path / "a_0000.png", tmp_path / "a_0000.nii.gz"
    Image.fromarray(rng.integers(1, 255, (200, 250, 3), np.uint8)).save(picture)
    voxels = gaussian_filter(rng.normal(size=(20, 70, 60)), 1) * 300 + 50
    sitk.WriteImage(sitk.GetImageFromArray(voxels.astype(np.float32)), str(volume))
    return {".png": picture, ".nii.gz": volume}


@pytest.mark.parametrize(
    ("model", "mirror", "differs_in_float16"),
    [
        ({"labels": FIVE}, False, False),
        ({"labels": FIVE, "folds": ("0", "1")}, True, False),
        (REGIONS, False, False),
        (VOLUME, False, False),
        ({**VOLUME, "folds": ("0", "1")}, False, False),
        ({**CT, "spacing": (4, 1.3, 1.3)}, False, False),
        ({**VOLUME, "spacing": (1, 1), "patch": (32, 32)}, False, True),
    ],
    ids=["picture", "folds, tta", "regions", "volume", "folds", "resampled", "planes"],
)
def test_the_same_labels(model, mirror, differs_in_float16, case, tmp_path, monkeypatch):
    """Sums in the same order, and logits in float32 on both ways: in float16, in which nnU-Net
    keeps its own, the largest of some voxels' logits come out level with the next.
    """
    workers_here(monkeypatch)
    ending = model.get("ending", ".png")
    folds = tuple(int(fold) for fold in model.get("folds", ("0",)))
    folder = model_folder(tmp_path / "model", **model)
    expected = segment_file(case[ending], folder, mirror=mirror)

    def stock(name):
        predictor = nnUNetPredictor(
            use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), folds)
        predictor.predict_from_files(
            [[str(case[ending])]], [str(tmp_path / name)],
            num_processes_preprocessing=1, num_processes_segmentation_export=1,
        )  # fmt: skip
        written = tmp_path / f"{name}{ending}"
        if ending == ".png":
            return np.asarray(Image.open(written))
        return sitk.GetArrayFromImage(sitk.ReadImage(str(written)))

    assert np.array_equal(stock("found"), expected)
    assert len(np.unique(expected)) > 1

    in_float32 = nnUNetPredictor.predict_sliding_window_return_logits
    monkeypatch.setattr(
        nnUNetPredictor, "predict_sliding_window_return_logits",
        lambda self, image: in_float32(self, image).clamp(-65504, 65504).half(),
    )  # fmt: skip
    differ = np.mean(stock("rounded") != expected)
    assert differ < 1e-3
    if differs_in_float16:
        assert differ > 0
