"""A state that is lost ends in one sentence and no file, whichever way one predicts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stock_prediction import workers_here
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca import segment_file
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import NotFiniteError

WORDS = r"% of the cells on level \d \(0 is the full resolution, \d the coarsest\) are NaN or infin"


def damage(model: Path, factor: float, steps: int | None = None) -> Path:
    """Make a model's weights larger, and its levels longer."""
    for file in model.glob("fold_*/checkpoint_final.pth"):
        checkpoint = torch.load(file, weights_only=False)
        for weight in checkpoint["network_weights"].values():
            weight *= factor
        torch.save(checkpoint, file)
    if steps is not None:
        plans = json.loads((model / "plans.json").read_text())
        (configuration,) = plans["configurations"].values()
        arguments = configuration["architecture"]["arch_kwargs"]
        arguments["steps"] = [steps] * len(arguments["steps"])
        (model / "plans.json").write_text(json.dumps(plans))
    return model


@pytest.fixture
def picture(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(1, 255, (61, 45, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a_0000.png")
    return folder / "a_0000.png"


def volume(path, highest):
    import SimpleITK

    voxels = np.random.default_rng(0).uniform(0, highest, (11, 20, 18)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(path))
    return path


def files_in(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def refused(model, image, output, capsys, *flags):
    given = ["predict", "-m", str(model), "-i", str(image), "-o", str(output), "-device", "cpu"]
    assert main([*given, *flags]) == 1
    assert not files_in(output)
    error = capsys.readouterr().err
    assert "no segmentation was written" in error
    return error


@pytest.mark.parametrize(
    ("factor", "steps", "flags"),
    [
        (100, None, ("--disable_tta",)),
        (100, None, ()),
        (100, None, ("--disable_tta", "--seeds", "0", "1")),
        (10, 40, ("--disable_tta",)),
        (1.5, 1000, ("--disable_tta",)),
        (3, None, ("--disable_tta", "--precision", "float16")),
    ],
)
def test_predict_writes_nothing(factor, steps, flags, picture, tmp_path, capsys):
    model = damage(model_folder(tmp_path / "model"), factor, steps)
    error = refused(model, picture, tmp_path / "out", capsys, *flags)
    assert "NaN or infinite" in error
    assert ("float32 instead of float16" in error) == ("float16" in flags)
    assert error.count("\n") <= 4


def test_float16_is_what_went_wrong(picture, tmp_path):
    """The same model in float32 has a result."""
    model = damage(model_folder(tmp_path / "model"), 3)
    assert len(np.unique(segment_file(picture, model, mirror=False))) > 1
    with pytest.raises(NotFiniteError, match=WORDS):
        segment_file(picture, model, mirror=False, float16=True)


@pytest.mark.parametrize("mirror", [False, True])
def test_intensities_near_the_end_of_float32(mirror, tmp_path, capsys):
    """Not normalized; the average of eight voxels is infinite on the coarser levels."""
    model = model_folder(
        tmp_path / "model", patch=(8, 16, 16), channels=1, ending=".nii.gz",
        schemes=["NoNormalization"],
    )  # fmt: skip
    image = volume(tmp_path / "a_0000.nii.gz", 3.4e38)
    flags = () if mirror else ("--disable_tta",)
    assert "% of the cells on level" in refused(model, image, tmp_path / "out", capsys, *flags)
    with pytest.raises(NotFiniteError, match=WORDS):
        segment_file(image, model, mirror=mirror)


def test_regions_and_resampling(picture, tmp_path, capsys):
    """Both need logits."""
    regions = model_folder(
        tmp_path / "regions", labels={"background": 0, "whole": [1, 2], "core": [2]},
        regions=(1, 2),
    )  # fmt: skip
    refused(damage(regions, 100), picture, tmp_path / "out", capsys, "--disable_tta")
    coarse = model_folder(
        tmp_path / "coarse", patch=(8, 16, 16), channels=1, ending=".nii.gz", spacing=(2, 1, 1)
    )
    image = volume(tmp_path / "b_0000.nii.gz", 100)
    refused(damage(coarse, 100), image, tmp_path / "out", capsys, "--disable_tta")


@pytest.mark.parametrize("mirror", [False, True])
def test_stock_prediction_writes_nothing(mirror, picture, tmp_path, monkeypatch):
    workers_here(monkeypatch)
    model = damage(model_folder(tmp_path / "model"), 100)
    predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(NotFiniteError, match=WORDS):
        predictor.predict_from_files(
            [[str(picture)]], [str(out / "a")],
            num_processes_preprocessing=1, num_processes_segmentation_export=1,
        )  # fmt: skip
    assert not list(out.glob("a*"))


def test_validation_of_the_trainer(make_trainer):
    """Its predictor is the one of the commands: what it refuses ends the validation."""
    trainer = make_trainer()
    trainer.initialize()
    predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None,
        trainer.dataset_json, "OctreeNCATrainer", (0, 1, 2),
    )  # fmt: skip
    with torch.no_grad():
        for weight in trainer.network.parameters():
            weight.normal_(0, 20)
    with pytest.raises(NotFiniteError, match=WORDS):
        predictor.predict_sliding_window_return_logits(torch.randn(1, 9, 12, 7))
