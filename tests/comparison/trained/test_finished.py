"""Predictions that were there before, beside methods that are trained."""

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.compared_methods import DATASET, SHAPE, FakeModel, finish, jobs_of, save_cuboid
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.comparison.trained import measuring, running
from nnunet_octreenca.files import read_json

WORDS = ["compare", "-d", "907", "-c", "3d_fullres", "--methods", "TinyUNet", "--memory", "0"]


@pytest.fixture
def reader(prepared):
    """Label maps of a second reader, of more cases than are held out."""
    folder = prepared / "reader"
    for number, case in enumerate("abc"):
        save_cuboid(folder / f"{case}.nii.gz", 3 + number)
    return folder


def test_a_second_reader_is_a_method_of_the_report(prepared, reader, monkeypatch):
    monkeypatch.setattr(measuring, "Model", FakeModel)
    _, (job,) = jobs_of("TinyUNet")
    finish(job, size=7)
    out = prepared / "report"
    words = ["--predictions", f"second reader={reader}", "--collect", "-o", str(out)]
    assert main([*WORDS, *words]) == 0
    content = read_json(out / "comparison.json", "")
    assert [case["case"] for case in content["cases"]] == ["a", "b"]
    for case in content["cases"]:
        assert case["metrics"]["second reader"]["organ"]["dice"] == 1
        assert case["metrics"]["TinyUNet"]["organ"]["dice"] < 1
    assert "second reader" not in read_json(out / "records.json", "")["methods"]
    assert f"second reader: not trained here; label maps of {reader}." in content["caveats"]
    assert len(list(reader.iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("name", "--predictions TinyUNet=...: TinyUNet is trained, too; give it another name"),
        ("folder", "of --predictions second is no folder of label maps"),
        ("case", "of --predictions second lacks b.nii.gz, a held-out case; label maps have"),
        ("labels", "label 5"),
        ("shape", "b has 7 x 12 x 10 pixels and its truth 8 x 12 x 10"),
    ],
)
def test_what_is_refused_before_training(prepared, reader, monkeypatch, capsys, change, sentence):
    monkeypatch.setattr(running, "run_child", lambda *_, **__: pytest.fail("trained"))
    labels = np.zeros(SHAPE, np.uint8)
    if change == "folder":
        reader = prepared / "none"
    elif change == "case":
        (reader / "b.nii.gz").unlink()
    elif change == "labels":
        labels[2, 2, 2] = 5
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(reader / "b.nii.gz"))
    elif change == "shape":
        sitk.WriteImage(sitk.GetImageFromArray(labels[1:]), str(reader / "b.nii.gz"))
    name = "TinyUNet" if change == "name" else "second"
    assert main([*WORDS, "--predictions", f"{name}={reader}", "-o", str(prepared / "report")]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (prepared / "report").exists()


def test_label_maps_of_an_earlier_report_are_not_lost(prepared, reader, monkeypatch, capsys):
    """The report's own folders are made anew, and these would be gone before they are linked."""
    monkeypatch.setattr(running, "run_child", lambda *_, **__: pytest.fail("trained"))
    out = prepared / "report"
    earlier = out / "predictions" / "finished_0"
    earlier.parent.mkdir(parents=True)
    reader.rename(earlier)
    assert main([*WORDS, "--predictions", f"second={earlier}", "-o", str(out)]) == 1
    assert "whose label maps are written anew; give another folder" in capsys.readouterr().err
    assert len(list(earlier.iterdir())) == 3


def test_cases_of_a_split_that_nnunet_has_yet_to_make(prepared, reader, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_child", lambda *_, **__: pytest.fail("trained"))
    folder = prepared / "preprocessed" / DATASET
    (folder / "splits_final.json").unlink()
    for number in range(5):
        save_cuboid(folder / "gt_segmentations" / f"{number}.nii.gz", 3)
    held_out = generate_crossval_split([*"01234abc"])[0]["val"]
    missing = next(case for case in held_out if case.isdigit())
    words = ["--predictions", f"second={reader}", "-o", str(prepared / "report")]
    assert main([*WORDS, *words]) == 1
    assert f"lacks {missing}.nii.gz, a held-out case" in capsys.readouterr().err
