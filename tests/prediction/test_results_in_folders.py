"""Where results go, what --continue writes, and what others find in the output folder."""

import io
import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.result_record import overlay_path


@pytest.fixture(scope="module")
def folder_of_rgb(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "rgb")


@pytest.fixture(scope="module")
def rgb(folder_of_rgb):
    return load_model(folder_of_rgb)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "volume"
    spacing = {"patch": (8, 16, 16), "spacing": (2, 1, 1)}
    return load_model(model_folder(folder, channels=1, ending=".nii.gz", **spacing))


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 44, 3), np.uint8)
    Image.fromarray(pixels).save(path, format={".jpg": "JPEG"}.get(path.suffix, "PNG"))
    return path


def scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(50, 30, (18, 20, 11)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def went_on(source, out, model, *formats):
    """Names of the cases that `resume` segments."""
    run = predict(source, out, model, formats=formats or None, resume=True, mirror=False)
    assert not run.failed
    return [case.case for case in run.done]


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_continue_looks_at_every_file(rgb, tmp_path):
    for seed, name in enumerate("ab"):
        picture(tmp_path / "in" / f"{name}.png", seed)
    out = tmp_path / "out"
    assert went_on(tmp_path / "in", out, rgb, "png") == ["a", "b"]
    before = times(out)
    assert went_on(tmp_path / "in", out, rgb, "png") == []
    assert went_on(tmp_path / "in", out, rgb) == [], "png is the usual format of pictures"
    assert times(out) == before
    # A format more: the labels that are there stay, the missing ones are written.
    assert went_on(tmp_path / "in", out, rgb, "png", "geojson") == ["a", "b"]
    assert (out / "a.png").stat().st_mtime_ns == before[out / "a.png"]
    assert (out / "b.geojson").stat().st_size > 10
    assert went_on(tmp_path / "in", out, rgb, "geojson") == []
    # What was deleted comes back, alone.
    (out / "a.png").unlink()
    (out / "b.geojson").unlink()
    assert went_on(tmp_path / "in", out, rgb) == ["a"]
    assert went_on(tmp_path / "in", out, rgb, "geojson", "png") == ["b"]
    overlay_path(out, "a").unlink()
    assert went_on(tmp_path / "in", out, rgb, "png") == ["a"]


def test_continue_overwrites_nothing(rgb, tmp_path):
    """A mask of the image's name in the output folder may be somebody's work."""
    picture(tmp_path / "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"by hand")
    with pytest.raises(OutputError, match=r"a\.png exists already, and no record says"):
        predict(tmp_path / "a.jpg", tmp_path / "out", rgb, resume=True, mirror=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert (tmp_path / "out" / "a.png").read_bytes() == b"by hand"


@pytest.mark.parametrize("out", ["in", "in/out", "in/results/1"])
def test_results_in_the_folder_of_the_images(volume, tmp_path, out):
    for seed, name in enumerate("ab"):
        scan(tmp_path / "in" / f"{name}_0000.nii.gz", seed)
    out = tmp_path / out
    assert went_on(tmp_path / "in", out, volume) == ["a", "b"]
    assert went_on(tmp_path / "in", out, volume) == []
    assert went_on(tmp_path / "in", out, volume, "nii.gz", "ome.tif") == ["a", "b"]
    scan(tmp_path / "in" / "c_0000.nii.gz", 3)
    assert went_on(tmp_path / "in", out, volume) == ["c"]
    overlay_path(out, "b").unlink()  # as if interrupted before it was written
    (out / "b.ome.tif").unlink()
    assert went_on(tmp_path / "in", out, volume) == ["b"]
    run = predict(tmp_path / "in", out, volume, overwrite=True, mirror=False)
    assert [case.case for case in run.done] == ["a", "b", "c"]


def test_a_result_is_not_written_over_its_image(rgb, tmp_path):
    before = picture(tmp_path / "a.png").read_bytes()
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputError, match="is the image itself; give another folder"):
            predict(tmp_path / "a.png", tmp_path, rgb, mirror=False, **how)
    assert (tmp_path / "a.png").read_bytes() == before


def test_results_do_not_leave_the_output_folder(rgb, tmp_path, monkeypatch):
    for name in (".png", "..png", "...png"):
        picture(tmp_path / "in" / name)
        predict(tmp_path / "in" / name, tmp_path / "out", rgb, mirror=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["...png", "..png", ".png"]
    monkeypatch.chdir(tmp_path / "in")
    picture(tmp_path / "in" / "p.jpg")
    predict(".", "../other", rgb, mirror=False)
    found = {path.name for path in (tmp_path / "other").rglob("*")}
    assert found == {"p.png", "overlays", "p_overlay.png", ".octreenca", "p.json"}


def test_nnunet_evaluates_the_output_folder(folder_of_rgb, rgb, tmp_path):
    """Of all pictures there, only label maps lie where nnU-Net looks."""
    for seed in range(2):
        picture(tmp_path / "in" / f"p{seed}.jpg", seed)
    truth, out = tmp_path / "truth", tmp_path / "out"
    predict(tmp_path / "in", out, rgb, formats=("plain.png", "geojson", "coco.json"), mirror=False)
    predict(tmp_path / "in", truth, rgb, formats=("plain.png",), mirror=False)
    environment = {
        name: str(tmp_path) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    subprocess.run(
        ["nnUNetv2_evaluate_folder", truth, out, "-djfile", folder_of_rgb / "dataset.json",
         "-pfile", folder_of_rgb / "plans.json", "-np", "1"],
        env={**os.environ, **environment}, check=True, capture_output=True,
    )  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == 1
    assert len(summary["metric_per_case"]) == 2


NAMES = ["脳 [1]", "b [red]", "100%", "мозг.1.5", "r\udcff", "f\u0308", "x\ny", "c#d?e", "i:j"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_the_console_lacks(folder_of_rgb, tmp_path, monkeypatch, encoding):
    if sys.getfilesystemencoding() != "utf-8" or sys.platform in ("win32", "darwin"):
        pytest.skip("the file system takes no such names")
    for seed, name in enumerate(NAMES):
        picture(tmp_path / "in" / f"{name}.png", seed)
    picture(tmp_path / "in" / "damaged é.png").write_bytes(b"\x89PNG")
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    out, report = tmp_path / "out", tmp_path / "run.json"
    given = ["-m", folder_of_rgb, "-i", tmp_path / "in", "-o", out, "--report", report]
    formats = ["--formats", "png", "ome.tif", "geojson", "coco.json"]
    code = main(["predict", *map(str, given), "-device", "cpu", "--disable_tta", *formats])
    assert code == 3, "the damaged one"
    endings = ("png", "ome.tif", "geojson", "coco.json")
    expected = {f"{name}.{ending}" for name in NAMES for ending in endings}
    assert {path.name for path in out.iterdir()} == expected | {"overlays", ".octreenca"}
    assert {case["case"] for case in json.loads(report.read_text())["cases"]} == set(NAMES)
    for name in NAMES:
        coco = json.loads((out / f"{name}.coco.json").read_text())
        assert [image["file_name"] for image in coco["images"]] == [f"{name}.png"]
