"""`--quality`: maps and scores against the seeds predicted one by one, and what is left of runs."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.calibration_record import Calibration, write_calibration
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.images.cases import list_cases
from nnunet_octreenca.inference import resilience
from nnunet_octreenca.inference.resilience import Overlap, disturbed
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.calibrated import model_files
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.prediction.options import SAMPLE_FIRE_RATE, Options
from nnunet_octreenca.prediction.segmentation import segment_file

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models that were never trained, a picture, a volume."""
    import SimpleITK

    base = tmp_path_factory.mktemp("quality")
    model_folder(base / "rgb", folds=("0", "1"), steps=3)
    model_folder(
        base / "regions", labels={"background": 0, "whole": [1, 2], "core": [2]}, regions=(1, 2),
        steps=3,
    )  # fmt: skip
    model_folder(base / "certain", folds=("0", "1"), steps=3, always_fires=True)
    volumes = {"channels": 1, "ending": ".nii.gz", "steps": 2}
    model_folder(base / "volume", patch=(8, 16, 16), spacing=(2, 1, 1), **volumes)
    model_folder(
        base / "turned", patch=(16, 8, 16), spacing=(1, 2, 1), transpose=(1, 0, 2), **volumes
    )
    model_folder(base / "planes", patch=(16, 16), spacing=(1, 1), **volumes)
    generator = np.random.default_rng(0)
    (base / "images").mkdir()
    for name in "ab":
        pixels = generator.integers(1, 255, (45, 37, 3), np.uint8)
        Image.fromarray(pixels).save(base / "images" / f"{name}.png")
    voxels = generator.normal(50, 9, (9, 20, 18)).astype(np.float32)
    voxels[:, :3] = 0
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((1, 1, 2))
    image.SetOrigin((3, -4, 5))
    SimpleITK.WriteImage(image, str(base / "v.nii.gz"))
    return base


def probabilities(model, pixels, seed):
    """(heads, y, x) of the mean of all networks, in one piece."""
    image = torch.from_numpy(pixels.astype(np.float32) / 255).movedim(-1, 0)[None]
    logits = torch.stack([network(image, seed=seed)[0] for network in model.networks]).mean(0)
    return (
        logits.softmax(0) if model.networks[0].constant_background else logits.sigmoid()
    ).numpy()


def table(out):
    """The rows of quality.csv."""
    return list(csv.DictReader((out / "quality.csv").read_text().splitlines()))


@pytest.mark.parametrize("name", ["rgb", "regions"])
def test_the_map_and_the_score_of_a_picture(folder, tmp_path, name):
    model = load_model(folder / name)
    run = predict(
        folder / "images" / "a.png", tmp_path, model, quality=3, probabilities=True, mirror=False,
        band_rows=8,
    )  # fmt: skip
    pixels = np.asarray(Image.open(folder / "images" / "a.png"))
    each = np.stack([probabilities(model, pixels, seed) for seed in SEEDS])
    expected = each.std(0).max(0)
    found = np.asarray(Image.open(tmp_path / "quality" / "a_deviation.tif"))
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-5)
    foreground = 1 - each[:, 0] if name == "rgb" else each.max(1)
    (case,) = run.done
    assert case.quality.nqm == pytest.approx(
        foreground.std(0).sum() / foreground.mean(0).sum(), rel=1e-4
    )
    heads = [1, 2] if name == "rgb" else [0, 1]
    by_class = [each[:, h].std(0).sum() / each[:, h].mean(0).sum() for h in heads]
    assert list(case.quality.nqm_of_classes.values()) == pytest.approx(by_class, rel=1e-4)
    labels = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(
        labels, segment_file(folder / "images" / "a.png", model, seeds=SEEDS, mirror=False)
    )
    with np.load(tmp_path / "quality" / "a_probabilities.npz") as file:
        written = file["probabilities"]
    assert written.shape == (each.shape[1], 1, 45, 37)
    if name == "rgb":
        assert np.array_equal(written[:, 0].argmax(0), labels)
        assert np.allclose(written.sum(0), 1, atol=1e-5)


def test_samples_beside_the_result_where_cells_always_fire(folder, tmp_path):
    """Seeds alone would agree, and each result look certain."""
    model = load_model(folder / "certain")
    run = predict(
        folder / "images" / "a.png", tmp_path, model, quality=3, probabilities=True, mirror=False,
        band_rows=8,
    )  # fmt: skip
    pixels = np.asarray(Image.open(folder / "images" / "a.png"))
    plain = probabilities(model, pixels, 0)
    with np.load(tmp_path / "quality" / "a_probabilities.npz") as file:
        assert np.allclose(file["probabilities"][:, 0], plain, atol=1e-5)
    labels = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(labels, segment_file(folder / "images" / "a.png", model, mirror=False))
    for network in model.networks:
        network.fire_rate = SAMPLE_FIRE_RATE
    each = np.stack([probabilities(model, pixels, seed) for seed in SEEDS])
    found = np.asarray(Image.open(tmp_path / "quality" / "a_deviation.tif"))
    assert np.allclose(found, each.std(0).max(0), atol=1e-5)
    foreground = 1 - each[:, 0]
    (case,) = run.done
    assert case.quality.nqm == pytest.approx(
        foreground.std(0).sum() / foreground.mean(0).sum(), rel=1e-4
    )
    assert case.quality.nqm > 0


def test_seeds_change_nothing_where_cells_always_fire(folder, tmp_path, capsys):
    images, model = str(folder / "images"), str(folder / "certain")
    given = ["predict", "-m", model, "-i", images, "-device", "cpu"]
    assert main([*given, "-o", str(tmp_path / "one")]) == 0
    assert "note:" not in capsys.readouterr().out
    assert main([*given, "-o", str(tmp_path / "three"), "--seeds", "4", "5", "6"]) == 0
    assert "every cell of this model fires" in capsys.readouterr().out
    for name in ("a.png", "b.png"):
        one, three = (tmp_path / out / name for out in ("one", "three"))
        assert one.read_bytes() == three.read_bytes()
    assert len(Options(seeds=(4, 5, 6)).members_of(load_model(folder / "certain"))) == 2


@pytest.mark.parametrize("name", ["volume", "planes", "turned"])
def test_a_volume_keeps_its_place(folder, tmp_path, name):
    """Cropped, resampled and brought back: zeros outside the box, seeds' own spread inside."""
    import SimpleITK

    predict(
        folder / "v.nii.gz", tmp_path, folder / name, quality=2, mirror=False, probabilities=True
    )
    image = SimpleITK.ReadImage(str(folder / "v.nii.gz"))
    found = SimpleITK.ReadImage(str(tmp_path / "quality" / "v_deviation.nii.gz"))
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(found, what)() == getattr(image, what)()
    values = SimpleITK.GetArrayFromImage(found)
    assert values.dtype == np.float32
    assert (values[:, :3] == 0).all()
    assert 0 < values[:, 3:].mean() < values.max() <= 0.5
    with np.load(tmp_path / "quality" / "v_probabilities.npz") as file:
        probable = file["probabilities"]
    assert (probable[0, :, :3] == 1).all()
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "v.nii.gz")))
    assert (probable.argmax(0) == labels).mean() > 0.999


def test_a_video_has_a_page_for_each_frame(folder, tmp_path):
    model = model_folder(
        tmp_path / "model", patch=(8, 16, 16), ending=".nii.gz", steps=2,
        schemes=["RGBTo01Normalization"] * 3,
    )  # fmt: skip
    frames = tmp_path / "clip"
    frames.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(1, 255, (20, 18, 3), np.uint8)
        Image.fromarray(pixels).save(frames / f"{number}.png")
    (case,) = predict(frames, tmp_path / "out", model, quality=2, mirror=False).done
    assert case.kind == "video"
    with Image.open(tmp_path / "out" / "quality" / "clip_deviation.tif") as pages:
        assert (pages.n_frames, pages.size) == (4, (18, 20))
        assert 0 < np.asarray(pages).max() <= 0.5


def test_resilience_counts_what_comes_back(folder, monkeypatch):
    network = load_model(folder / "rgb").networks[0]
    image = torch.rand(1, 3, 30, 26)
    same = disturbed(network, image, 0, noise=0.0)
    strong = disturbed(network, image, 0, noise=3.0)
    assert strong.resilience < same.resilience
    assert strong == disturbed(network, image, 0, noise=3.0)
    with monkeypatch.context() as patch:  # no step follows, no noise: nothing can change
        patch.setattr(resilience, "run_level", lambda network, state, *rest: state)
        still = disturbed(network, image, 0, noise=0.0)
    assert still.both == still.before == still.after > 0
    assert Overlap(1, 2, 2) + Overlap(1, 0, 2) == Overlap(2, 2, 4)
    assert Overlap().resilience is None


def test_no_resilience_where_states_do_not_fit(folder, tmp_path, monkeypatch):
    from nnunet_octreenca.prediction import memory

    monkeypatch.setattr(memory, "resilience_bytes", lambda network, shape: 1 << 60)
    lines = []
    image = folder / "images" / "a.png"
    run = predict(image, tmp_path, folder / "rgb", quality=2, mirror=False, tell=lines.append)
    assert run.done[0].quality.resilience is None
    assert any("resilience is not measured" in line for line in lines)
    rows = table(tmp_path)
    assert rows[0]["resilience"] == ""


def test_states_held_whole_are_planned(folder):
    from nnunet_octreenca.images.open_image import open_channels
    from nnunet_octreenca.prediction.segmentation import Segmentation

    model = load_model(folder / "rgb")
    image = open_channels([folder / "images" / "a.png"], channels=3)
    try:
        plain = Segmentation(image, model, Options()).plan.host
        asked = Segmentation(image, model, Options(quality=2)).plan.host
    finally:
        image.close()
    states = resilience.resilience_bytes(model.networks[0], (45, 37))
    assert asked - plain > states / 2


def command(folder, out, *flags, code=0):
    given = ["predict", "-m", str(folder / "rgb"), "-i", str(folder / "images"), "-o", str(out)]
    assert main([*given, "-device", "cpu", "--disable_tta", *flags]) == code


def test_the_table_begins_with_the_most_doubtful(folder, tmp_path, capsys):
    report = tmp_path / "run.json"
    command(folder, tmp_path / "out", "--quality", "2", "--report", str(report))
    rows = table(tmp_path / "out")
    assert sorted(row["case"] for row in rows) == ["a", "b"]
    assert float(rows[0]["nqm"]) > float(rows[1]["nqm"]) > 0
    assert {row["look"] for row in rows} == {""}
    assert 0 <= float(rows[0]["resilience"]) <= 1
    content = json.loads(report.read_text())
    assert content["seeds"] == [0, 1]
    assert {case["quality"]["case"] for case in content["cases"]} == {"a", "b"}
    assert main(["verify", str(report)]) == 0
    capsys.readouterr()


def test_continue_redoes_only_what_is_missing(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command(folder, out, "--seeds", "0", "1")
    assert not (out / "quality").exists()
    command(folder, out, "--quality", "2", "--continue")  # the same labels, now with their doubt
    assert "left out" not in capsys.readouterr().out
    (out / "quality" / "a.json").write_text("damaged")
    command(folder, out, "--quality", "2", "--continue")
    assert capsys.readouterr().out.count("finished before, left out") == 1
    assert (out / "quality" / "a_deviation.tif").exists()
    assert len(table(out)) == 2


def test_nothing_is_replaced_or_left_outdated(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command(folder, out, "--quality", "2")
    (out / "a.png").unlink()
    (out / "b.png").unlink()
    (out / "overlays").rename(tmp_path / "overlays")
    command(folder, out, "--quality", "2", code=1)
    assert "_deviation.tif exists already" in capsys.readouterr().err
    command(folder, out, "--overwrite")  # other labels, of one seed: what was said is gone
    assert list((out / "quality").iterdir()) == []
    assert not (out / "quality.csv").exists()


def test_results_are_no_cases(folder, tmp_path):
    command(folder, tmp_path, "--quality", "2")
    for frames in (False, True):
        with pytest.raises(InputError, match="no image"):
            list_cases(tmp_path, 3, frames=frames)


def calibration(model, **changed):
    given = {
        "files": model_files(model), "folds": ["0", "1"], "cases": 9, "seeds": 2, "mirror": False,
        "limit": 0.8, "bad": 4, "score": "nqm", "threshold": 0.0, "found": 3, "named": 4,
        "temperatures": [1.0, 2.0, 0.5], "ended": "",
    }  # fmt: skip
    return Calibration(**(given | changed))


def test_a_calibrated_model_warns_and_scales(folder, tmp_path, capsys):
    model = load_model(folder / "rgb")
    image = folder / "images" / "a.png"
    path = write_calibration(folder / "rgb", calibration(model))
    try:
        flags = ("--quality", "2", "--save_probabilities")
        command(folder, tmp_path / "warm", *flags)
        printed = capsys.readouterr().out
        assert "WARNING: look at it" in printed
        assert "3 of 4 such validation cases" in printed
        write_calibration(folder / "rgb", calibration(model, threshold=9.0))
        command(folder, tmp_path / "sure", *flags)
        assert "WARNING" not in capsys.readouterr().out
        write_calibration(folder / "rgb", calibration(model, files={}))
        command(folder, tmp_path / "other", *flags)
        assert "is left out" in capsys.readouterr().out
        path.write_text('{"form": 1}')
        with pytest.raises(InputError, match=r"another version.* calibrate` again"):
            predict(image, tmp_path / "old", model, quality=2)
        path.write_text('{"form": 2}')
        with pytest.raises(InputError, match="damaged"):
            predict(image, tmp_path / "bad", model, quality=2)
    finally:
        path.unlink()
    found = []
    for name in ("warm", "other"):
        with np.load(tmp_path / name / "quality" / "a_probabilities.npz") as file:
            found.append(file["probabilities"])
    warm, cold = found
    logits = np.log(cold / cold[:1])
    scaled = torch.from_numpy(logits / np.array([1, 2, 0.5]).reshape(3, 1, 1, 1)).softmax(0)
    assert np.allclose(warm, scaled.numpy(), atol=1e-4)
    assert np.abs(warm - cold).max() > 0.01


def test_resilience_orders_the_other_way(folder):
    made = calibration(load_model(folder / "rgb"), score="resilience", threshold=0.7)
    assert made.doubtful({"nqm": 9.0, "resilience": 0.6}) is True
    assert made.doubtful({"nqm": 9.0, "resilience": 0.8}) is False
    assert made.doubtful({"nqm": 9.0, "resilience": None}) is None


def test_refused(folder, tmp_path):
    for given, sentence in (
        ({"quality": 1}, "at least 2"),
        ({"quality": 3, "seeds": (1, 2)}, "compares 3 seeds"),
        ({"quality": 2, "seeds": (1, 1)}, "1 different"),
        ({"probabilities": True}, "--quality"),
    ):
        with pytest.raises(InputError, match=sentence):
            Options(**given)
    assert Options(quality=2, seeds=(5, 7)).seeds == (5, 7)
    from nnunet_octreenca.labels.formats import LabelInfo
    from nnunet_octreenca.labels.values import check_values

    with pytest.raises(OutputError, match="4 GiB"):
        check_values((40_000, 40_000), tmp_path / "a.tif", LabelInfo({}, "slide"))
