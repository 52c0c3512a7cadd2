"""The command `calibrate`, on a small data set and a model that was never trained."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.calibration_record import FILE, read_calibration
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.comparison.metrics import dice
from nnunet_octreenca.files import read_json, write_json
from nnunet_octreenca.prediction.segmentation import segment_file

NAME = "Dataset903_Hand"
CASES = [f"case_{n}" for n in range(6)]


@pytest.fixture
def calibrate(tmp_path, monkeypatch, capsys):
    """Runs the command with further flags; exit code and what was printed."""
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    model = model_folder(tmp_path / "model", folds=("0", "1"), steps=2)
    generator = np.random.default_rng(0)
    for number, case in enumerate(CASES):
        pixels = generator.integers(1, 255, (33, 29, 3), np.uint8)
        image = raw / "imagesTr" / f"{case}_0000.png"
        Image.fromarray(pixels).save(image)
        # Cases of fold 0 have what its network finds as truth, those of fold 1 chance.
        labels = segment_file([image], fold(model, "0"), mirror=False, seeds=(0, 1))
        if number > 2:
            labels = generator.integers(0, 3, labels.shape)
        Image.fromarray(labels.astype(np.uint8)).save(raw / "labelsTr" / f"{case}.png")
    write_json(raw / "dataset.json", read_json(model / "dataset.json", ""))
    splits = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
    write_json(preprocessed / "splits_final.json", splits)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))

    def run(*flags):
        command = ["calibrate", "-m", str(model), "--quality", "2", "--disable_tta"]
        code = main([*command, "-device", "cpu", *flags])
        return code, capsys.readouterr()

    run.folder, run.raw, run.model = tmp_path, raw, model
    return run


def test_what_is_written(calibrate):
    code, printed = calibrate("--limit", "0.8", "-o", str(calibrate.folder / "report"))
    assert code == 0
    made = read_calibration(calibrate.model)
    assert (made.cases, made.folds, made.seeds, made.mirror) == (6, ["0", "1"], 2, False)
    with (calibrate.folder / "report" / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["fold"] for row in rows] == ["0"] * 3 + ["1"] * 3
    assert made.bad == sum(float(row["dice"]) < 0.8 for row in rows) == 3
    assert [float(row["dice"]) for row in rows[:3]] == [1, 1, 1]
    labels = segment_file(
        [calibrate.raw / "imagesTr" / "case_4_0000.png"],
        model=fold(calibrate.model, "1"), seeds=(0, 1), mirror=False,
    )  # fmt: skip
    truth = np.asarray(Image.open(calibrate.raw / "labelsTr" / "case_4.png"))
    found = np.array([dice(truth == k, labels == k) for k in (1, 2)])
    assert float(rows[4]["dice"]) == pytest.approx(np.nanmean(found), abs=1e-5)
    page = (calibrate.folder / "report" / "calibration.html").read_text()
    assert page.count("<svg") == 4
    assert f"Dice below {made.limit:g}" in page
    assert "case_5" in page
    assert set(re.findall(r"https?://([\w.]+)", page)) <= {"www.w3.org"}
    assert len(made.temperatures) == 3
    assert made.temperatures[0] == 1
    assert "orders the cases best" in printed.out
    # What predict makes of it.
    for name, number in (("case_0", "0"), ("case_5", "1")):
        out = calibrate.folder / number
        image = calibrate.raw / "imagesTr" / f"{name}_0000.png"
        given = ["predict", "-m", str(calibrate.model), "-i", str(image), "-o", str(out)]
        assert main([*given, "--quality", "2", "--disable_tta", "-f", number]) == 0
        case = json.loads((out / "quality" / f"{name}.json").read_text())
        scores = {"nqm": case["nqm"], "resilience": case["resilience"]}
        assert case["look"] is made.doubtful(scores) is not None
        assert case["nqm"] == pytest.approx(float(rows[int(name[-1])]["nqm"]), rel=1e-4)


def fold(folder, name):
    from nnunet_octreenca.integration.model import load_model

    return load_model(folder, folds=[name])


def test_regions(calibrate):
    """The same labels as regions: the whole, and a core within it."""
    model = model_folder(
        calibrate.folder / "model", folds=("0", "1"), steps=2, regions=(1, 2),
        labels={"background": 0, "whole": [1, 2], "core": [2]},
    )  # fmt: skip
    write_json(calibrate.raw / "dataset.json", read_json(model / "dataset.json", ""))
    code, _ = calibrate("--limit", "0.5")
    assert code == 0
    made = read_calibration(model)
    assert len(made.temperatures) == 2
    assert (model / "calibration.html").exists()


def test_no_threshold_is_said(calibrate):
    for case in CASES:  # no case is good
        path = calibrate.raw / "labelsTr" / f"{case}.png"
        chance = np.random.default_rng(1).integers(0, 3, (33, 29)).astype(np.uint8)
        Image.fromarray(chance).save(path)
    code, printed = calibrate("--limit", "0.95")
    assert code == 0
    made = read_calibration(calibrate.model)
    assert (made.bad, made.threshold) == (6, None)
    assert "choose another --limit" in printed.out


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda run: (run.raw / "labelsTr" / "case_4.png").unlink(), "case_4 lacks"),
        (lambda run: (run.raw / "imagesTr" / "case_0_0000.png").unlink(), "case_0 lacks"),
        (
            lambda run: (run.folder / "preprocessed" / NAME / "splits_final.json").write_text("[]"),
            "says nothing of fold 0",
        ),
        (lambda run: (run.model / FILE).write_text("{}"), "exists already"),
    ],
)
def test_refused_before_anything_is_computed(calibrate, break_it, sentence):
    break_it(calibrate)
    code, printed = calibrate()
    assert code == 1
    assert sentence in printed.err
    assert "[1/6]" not in printed.out


def test_refused_arguments(calibrate, monkeypatch):
    for flags, sentence in ((("--limit", "1"), "--limit 1"), (("--quality", "1"), "at least 2")):
        code, printed = calibrate(*flags)
        assert code == 1
        assert sentence in printed.err
    code, printed = calibrate("-f", "0")
    assert code == 1
    assert "3 validation cases are too few" in printed.err
    assert not (calibrate.model / FILE).exists()
    monkeypatch.delenv("nnUNet_raw")
    code, printed = calibrate()
    assert code == 1
    assert "nnUNet_raw is not set" in printed.err
