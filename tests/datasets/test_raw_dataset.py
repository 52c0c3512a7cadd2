"""A data set being written: resumed, replaced, never half."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.killed_runs import killed_runs
from PIL import Image

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.datasets.raw_dataset import BEGUN, RawDataset, describe, target_folder
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, OutputError

SPLITS = [{"train": ["a"], "val": ["b"]}]


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    for name in ("raw", "preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def finish(dataset: RawDataset, splits=SPLITS) -> None:
    content = describe(
        channel_names=["T2", "ADC"],
        labels={"background": 0, "x": 1},
        training=2,
        file_ending=".png",
        description="d",
    )
    dataset.finish(content, splits)


def test_what_is_written(folders):
    folder = target_folder("7", "Name")
    assert folder == folders / "raw" / "Dataset007_Name"
    dataset = RawDataset(folder, folders / "source", {})
    dataset.put("imagesTr/a_0000.png", lambda file: file.write_text(file.suffix))
    assert not (folder / "dataset.json").exists()
    finish(dataset)
    assert (folder / "imagesTr/a_0000.png").read_text() == ".png"
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"background": 0, "x": 1},
        "numTraining": 2,
        "file_ending": ".png",
        "description": "d",
    }
    there = folders / "preprocessed" / "Dataset007_Name" / "splits_final.json"
    for path in (folder / "splits_final.json", there):
        assert json.loads(path.read_text()) == SPLITS
    assert str(there) in dataset.splits_note
    assert {p.name for p in folder.iterdir()} == {"imagesTr", "dataset.json", "splits_final.json"}


def test_an_interrupted_run_goes_on(folders):
    folder = folders / "raw" / "Dataset001_A"
    written = []

    def write(file: Path) -> None:
        file.write_text("half")
        if len(written) == 1:
            written.append("failed")
            raise KeyboardInterrupt
        written.append(file.name)

    def run() -> None:
        dataset = RawDataset(folder, folders / "source", {"seed": 1})
        for name in ("imagesTr/a.png", "imagesTr/b.png"):
            dataset.put(name, write)
        finish(dataset)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert [path.name for path in (folder / "imagesTr").iterdir()] == ["a.png"]
    assert not list(folder.glob(".writing*"))
    with pytest.raises(OutputError, match=r"started with other arguments.*--overwrite"):
        RawDataset(folder, folders / "source", {"seed": 2})
    (folder / ".writing.1.c.png").write_text("left by a kill")
    run()
    assert len(written) == 3  # a once, b twice
    assert {p.name for p in folder.iterdir()} == {"imagesTr", "dataset.json", "splits_final.json"}


KILLS = 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_conversion_killed_again_and_again(folders):
    """Re-run with the same words, it ends with the files of an undisturbed one and no other."""
    for kind in ("images", "masks"):
        (folders / "source" / kind / "video").mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 3, (90, 80), np.uint8)
            Image.fromarray(pixels).save(folders / "source" / kind / "video" / f"f{number:02}.png")

    def words(folder: Path) -> list[str]:
        classes = ["--class", "one=1", "--class", "two=2", "--dimension", "2"]
        return ["convert", "frames", "-i", str(folders / "source"), "-o", str(folder), *classes]

    begun = time.monotonic()
    assert main(words(folders / "Dataset001_Undisturbed")) == 0
    whole = time.monotonic() - begun
    moments = random.Random(0)
    out = folders / "Dataset002_Killed"
    codes: list[int] = []
    imports = "from nnunet_octreenca.cli.main import main"
    with killed_runs(imports, "return main(sys.argv[1:])", words(out)) as runs:
        while codes[-1:] != [0] and len(codes) < KILLS:
            codes.append(runs.run(moments.uniform(0, whole / 4)))
        if codes[-1] != 0:
            codes.append(runs.run(60))
    assert codes.count(-9) >= 2, f"the runs ended before they were killed: {codes}"
    assert codes[-1] == 0
    found, expected = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (out, folders / "Dataset001_Undisturbed")
    )
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in expected if name.suffix == ".png")


def test_killed_before_the_first_file(folders):
    """What was being written then is no data set: it must not refuse the next run."""
    folder = folders / "raw" / "Dataset001_A"
    folder.mkdir()
    (folder / f".{BEGUN}.12345.tmp").write_text("{")
    finish(RawDataset(folder, folders / "source", {}))
    assert {p.name for p in folder.iterdir()} == {"dataset.json", "splits_final.json"}


def test_a_full_disk_is_named_and_nothing_half_is_left(folders):
    folder = folders / "raw" / "Dataset001_A"
    dataset = RawDataset(folder, folders / "source", {})

    def full(file: Path) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.png cannot be written.*No space left"):
        dataset.put("imagesTr/a.png", full)
    assert not list((folder / "imagesTr").iterdir())
    assert not list(folder.glob(".writing*"))


def test_what_exists_is_kept_unless_told(folders):
    folder = folders / "raw" / "Dataset001_A"
    finish(RawDataset(folder, folders / "source", {}))
    (folder / "old").write_text("old")
    with pytest.raises(OutputError, match=r"Dataset001_A already exists; use --overwrite"):
        RawDataset(folder, folders / "source", {})
    finish(RawDataset(folder, folders / "source", {}, overwrite=True), splits=None)
    assert {p.name for p in folder.iterdir()} == {"dataset.json"}
    # Folds of an earlier data set would be applied to this one.
    assert not (folders / "preprocessed" / "Dataset001_A" / "splits_final.json").exists()


def test_splits_of_an_earlier_data_set(folders):
    there = folders / "preprocessed" / "Dataset001_A"
    there.mkdir()
    (there / "splits_final.json").write_text("[]")
    with pytest.raises(OutputError, match=r"splits_final\.json already exists.*--overwrite"):
        RawDataset(folders / "raw" / "Dataset001_A", folders / "source", {})


def test_only_data_sets_are_removed(folders):
    home = folders / "home"
    (home / "letters").mkdir(parents=True)
    with pytest.raises(OutputError, match="will not be removed"):
        RawDataset(home, folders / "source", {}, overwrite=True)
    decathlon = folders / "Task05_Prostate"
    decathlon.mkdir()
    (decathlon / "dataset.json").write_text('{"modality": {"0": "T2"}}')
    with pytest.raises(OutputError, match="will not be removed"):
        RawDataset(decathlon, folders / "source", {}, overwrite=True)
    for inside in (decathlon, decathlon / "imagesTr"):
        with pytest.raises(OutputError, match="holds what is converted"):
            RawDataset(decathlon, inside, {}, overwrite=True)
    assert (home / "letters").is_dir()
    assert (decathlon / "dataset.json").is_file()


def test_folders_by_number_and_name(folders, monkeypatch):
    assert target_folder("Dataset012_X", "Y") == folders / "raw" / "Dataset012_X"
    (folders / "raw" / "Dataset012_X").mkdir()
    assert target_folder("12", "X") == folders / "raw" / "Dataset012_X"
    with pytest.raises(InputError, match=r"taken by .*Dataset012_X"):
        target_folder("12", "Y")
    for wrong in ("0", "1000", "twelve", "Dataset1_X"):
        with pytest.raises(InputError, match="is not a data set"):
            target_folder(wrong, "X")
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(EnvironmentMismatchError, match="nnUNet_raw is not set"):
        target_folder("12", "X")


def test_without_nnunets_folders_the_note_says_where_to_copy(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    dataset = RawDataset(tmp_path / "Dataset003_C", tmp_path / "source", {})
    finish(dataset)
    assert "nnUNet_preprocessed/Dataset003_C: copy the file there" in dataset.splits_note


def test_other_arguments_after_nothing_was_written(folders):
    folder = folders / "raw" / "Dataset001_A"
    RawDataset(folder, folders / "source", {"level": 9})
    finish(RawDataset(folder, folders / "source", {"level": 1}))
    assert (folder / "dataset.json").is_file()
