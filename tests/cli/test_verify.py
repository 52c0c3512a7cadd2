"""`nnunet_octreenca verify`: a run repeated from its report, with what has changed since."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.hashes import file_hash, labels_hash
from nnunet_octreenca.prediction.label_files import read_labels
from nnunet_octreenca.prediction.verify import read_report


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {
        "rgb": model_folder(base / "rgb", folds=("0", "1")),
        "volume": model_folder(
            base / "volume", patch=(8, 16, 16), channels=1, ending=".nii.gz", spacing=(2, 1, 1)
        ),
        "video": model_folder(
            base / "video",
            patch=(8, 16, 16),
            ending=".nii.gz",
            schemes=["RGBTo01Normalization"] * 3,
        ),
    }


def picture(path, seed=0, shape=(40, 44, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def ran(models, tmp_path):
    """Two pictures, segmented with a report; all in a folder of its own, the model too."""
    shutil.copytree(models["rgb"], tmp_path / "model")
    for seed, name in enumerate("ab"):
        picture(tmp_path / "in" / f"{name}.png", seed)
    segment(tmp_path / "model", tmp_path, "--seeds", "3", "4", "--band", "16")
    return tmp_path


def segment(model, folder, *flags, code=0):
    given = ["-m", model, "-i", folder / "in", "-o", folder / "out", "-device", "cpu"]
    report = ["--report", str(folder / "run.json"), *flags]
    assert main(["predict", *map(str, given), *report]) == code


def verify(folder, *flags, code=0):
    assert main(["verify", str(folder / "run.json"), *map(str, flags)]) == code


def test_the_report_holds_what_a_repetition_needs(ran):
    report = json.loads((ran / "run.json").read_text())
    assert report["seeds"] == [3, 4]
    assert report["model"]["files"]["plans.json"] == file_hash(ran / "model" / "plans.json")
    assert {"torch", "numpy", "python", "nnunetv2", "kernels"} <= set(report["versions"])
    case = report["cases"][0]
    image = ran / "in" / "a.png"
    assert case["input_sha256"] == {str(image): file_hash(image)}
    assert case["labels_sha256"] == labels_hash(np.asarray(Image.open(ran / "out" / "a.png")))
    assert case["outputs_sha256"]["a.png"] == file_hash(ran / "out" / "a.png")
    assert report["options"]["band_rows"] == 16


def test_the_same(ran, capsys):
    before = sorted(ran.rglob("*"))
    capsys.readouterr()
    verify(ran)
    assert capsys.readouterr().out.splitlines() == [
        "a: same labels",
        "b: same labels",
        "2 of 2 cases are the same",
    ]
    assert sorted(ran.rglob("*")) == before


def test_moved_to_an_archive(ran, tmp_path_factory, capsys):
    archive = tmp_path_factory.mktemp("archive")
    for name in ("in", "out", "model"):
        (ran / name).rename(archive / name)
    verify(ran, code=1)
    assert "does not exist; give the folder TRAINER__PLANS" in capsys.readouterr().err
    verify(ran, "-m", archive / "model", code=1)
    assert "a.png does not exist; give the folder of the images with -i" in capsys.readouterr().out
    verify(ran, "-m", archive / "model", "-i", archive / "in")
    assert "a: same labels; " in capsys.readouterr().out
    verify(ran, "-m", archive / "model", "-i", archive / "in", "-o", archive / "out")
    assert "a: same labels\n" in capsys.readouterr().out


def test_relative_paths_are_those_of_the_run(models, tmp_path, monkeypatch):
    picture(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    given = ["predict", "-m", str(models["rgb"]), "-i", "in", "-o", "out", "-device", "cpu"]
    assert main([*given, "--report", "run.json", "--disable_tta"]) == 0
    monkeypatch.chdir(tmp_path.parent)
    verify(tmp_path)


def test_another_image(ran, capsys):
    picture(ran / "in" / "a.png", 9)
    verify(ran, code=1)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("a: input")]
    assert f"input changed ({ran / 'in' / 'a.png'}); labels differ in " in line
    assert "b: same labels" in lines
    assert lines[-1] == "1 of 2 cases are the same"


@pytest.mark.parametrize("error", [KeyError("codec"), MemoryError(), OSError(5, "I/O")], ids=repr)
def test_what_cannot_be_repeated_differs(ran, monkeypatch, capsys, error):
    from nnunet_octreenca.prediction import verify as module

    stock, calls = module.segment_file, []

    def segment_file(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return stock(*args, **kwargs)

    monkeypatch.setattr(module, "segment_file", segment_file)
    verify(ran, code=1)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"a: cannot be repeated ({type(error).__name__}") for line in lines)
    assert "b: same labels" in lines


def test_differing_voxels_are_counted(ran, capsys):
    """A report of other labels, whose result is there: as if a program had changed them."""
    path = ran / "out" / "a.png"
    labels = np.array(Image.open(path))
    labels[3, :5] = (labels[3, :5] + 1) % 3
    Image.fromarray(labels).save(path)
    report = json.loads((ran / "run.json").read_text())
    report["cases"][0]["labels_sha256"] = labels_hash(labels)
    report["cases"][0]["outputs_sha256"]["a.png"] = file_hash(path)
    report["versions"]["torch"] = "1.0"
    (ran / "run.json").write_text(json.dumps(report))
    verify(ran, code=1)
    said = capsys.readouterr().out
    assert "a: labels differ in 5 of 1,760 voxels (0.284 %)\n" in said
    assert "note: torch was 1.0 and is " in said
    path.unlink()
    verify(ran, code=1)
    assert "labels differ (in how many voxels, no file" in capsys.readouterr().out


def test_another_version_with_the_same_labels_is_no_difference(ran, capsys):
    report = json.loads((ran / "run.json").read_text())
    report["versions"]["numpy"] = "1.0"
    (ran / "run.json").write_text(json.dumps(report))
    verify(ran)
    assert "note: numpy was 1.0 and is " in capsys.readouterr().out


def test_another_model(ran, models, capsys):
    plans = ran / "model" / "plans.json"
    plans.write_text(plans.read_text() + " ")
    verify(ran, code=1)
    said = capsys.readouterr().out
    assert "a: model changed (plans.json)\n" in said, "and the labels are still the same"
    shutil.copy(ran / "model" / "fold_1" / "checkpoint_final.pth", ran / "model" / "fold_0")
    verify(ran, code=1)
    said = capsys.readouterr().out
    assert "model changed (plans.json, fold_0/checkpoint_final.pth); labels differ in " in said


def test_a_changed_result(ran, capsys):
    (ran / "out" / "a.png").write_bytes(b"by hand")
    verify(ran, code=1)
    assert f"a: result changed ({ran / 'out' / 'a.png'})\n" in capsys.readouterr().out


def test_the_environment_of_the_run(ran, monkeypatch, capsys):
    """Precision chosen by a variable is that of the report, not of today."""
    monkeypatch.setenv("OCTREENCA_STATE", "float16")
    verify(ran)
    segment(ran / "model", ran, "--overwrite", "--disable_tta")
    assert json.loads((ran / "run.json").read_text())["environment"]["OCTREENCA_STATE"] == "float16"
    monkeypatch.delenv("OCTREENCA_STATE")
    verify(ran)


def test_what_was_not_segmented_is_said(ran, capsys):
    (ran / "in" / "a.png").write_bytes(b"\x89PNG")
    picture(ran / "in" / "c.png", 5)
    segment(ran / "model", ran, "--seeds", "3", "4", "--continue", code=3)
    capsys.readouterr()
    verify(ran)
    said = capsys.readouterr().out
    assert "1 of 1 cases are the same" in said
    assert "not repeated, because they failed then: a" in said
    assert "not repeated, because they were finished before that run: b" in said


def test_a_volume_in_two_formats(models, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).normal(50, 30, (11, 20, 18)).astype(np.float32)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((1, 1.5, 2))
    SimpleITK.WriteImage(image, str(tmp_path / "in" / "a.nii.gz"))
    segment(models["volume"], tmp_path, "--formats", "nii.gz", "nrrd", "ome.tif", "--disable_tta")
    verify(tmp_path)
    maps = [read_labels(tmp_path / "out" / f"a.{end}") for end in ("nii.gz", "nrrd", "ome.tif")]
    recorded = json.loads((tmp_path / "run.json").read_text())["cases"][0]["labels_sha256"]
    assert {labels_hash(labels.astype(np.uint8)) for labels in maps} == {recorded}


def test_frames_in_every_format_that_is_read_back(models, tmp_path):
    for number in (9, 10, 11):
        picture(tmp_path / "in" / f"f_{number}.png", number, (20, 24, 3))
    formats = ["frames", "ome.tif", "ome.zarr", "coco.json"]
    segment(models["video"], tmp_path, "--formats", *formats, "--disable_tta")
    verify(tmp_path)
    recorded = json.loads((tmp_path / "run.json").read_text())["cases"][0]["labels_sha256"]
    for name in ("in_frames", "in.ome.tif", "in.ome.zarr"):
        assert labels_hash(read_labels(tmp_path / "out" / name).astype(np.uint8)) == recorded
    assert read_labels(tmp_path / "out" / "in.coco.json") is None
    assert read_labels(tmp_path / "out" / "overlays" / "in_overlay.png") is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "is no report of this program"),
        ({"form": 99, "cases": [1]}, "is no report of this program"),
        ({"form": 1, "cases": []}, "has no case that was segmented"),
    ],
)
def test_what_is_no_report(tmp_path, content, sentence):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        read_report(tmp_path / "run.json")


def test_slides_are_read_at_their_resolution(models, tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (96, 64, 3), np.uint8)
    per_cm = 1e4 / 0.25
    tifffile.imwrite(
        tmp_path / "in" / "a.tif", pixels, photometric="rgb", tile=(32, 32),
        resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
    )  # fmt: skip
    segment(models["rgb"], tmp_path, "--mpp", "0.5", "--tissue", "--disable_tta")
    verify(tmp_path)
