"""`nnunet_octreenca convert`: what it writes, says, and refuses."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.tiny_slides import halved, picture, write_pyramid
from PIL import Image

from nnunet_octreenca.cli import convert
from nnunet_octreenca.datasets.raw_dataset import Converted
from nnunet_octreenca.errors import InputError, OutputError


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args([str(word) for word in words]))


def frames(source: Path, folder: str = "", count: int = 3) -> None:
    for number in range(count):
        generator = np.random.default_rng(number)
        for part, shape in (("images", (8, 10, 3)), ("masks", (8, 10))):
            path = source / part / folder / f"t{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 2, shape).astype(np.uint8) * 255).save(path)


def slides(source: Path) -> None:
    for number, name in enumerate("abc"):
        image = picture(120, 150, seed=number)
        mask = np.zeros((120, 150), np.uint8)
        mask[30:90, 40:100] = 7
        write_pyramid(source / f"images/{name}.tif", [image, halved(image)], mpp=0.25)
        write_pyramid(source / f"masks/{name}.tif", [mask])


def test_frames(folders, capsys):
    frames(folders / "source", "video")
    words = ("frames", "-i", folders / "source", "-d", 109, "--class", "v=255", "--dimension", 2)
    assert run(*words) == 0
    target = folders / "raw" / "Dataset109_Frames"
    assert len(list((target / "labelsTr").iterdir())) == 3
    said = capsys.readouterr().out
    assert f"{target}: 3 training and 0 test case(s)." in said
    assert "nnUNetv2_plan_and_preprocess -d 109 -c 2d --verify_dataset_integrity" in said
    assert "nnUNetv2_train 109 2d 0 -tr OctreeNCATrainer -p nnUNetOctreeNCAPlans" in said
    assert (folders / "preprocessed/Dataset109_Frames/splits_final.json").is_file()
    with pytest.raises(OutputError, match="--overwrite"):
        run(*words)
    assert run(*words, "--overwrite") == 0


def test_frames_of_another_size_with_other_values(folders):
    frames(folders / "source")
    words = ("frames", "-i", folders / "source", "-o", folders / "out", "--class", "v=9")
    more = ("--ignore", 255, "--size", "5x4", "--clip-length", 2)
    with pytest.raises(InputError, match="255 is declared twice"):
        run(*words, "--background", "0,255", *more)
    assert run(*words, *more) == 0
    volume = sitk.ReadImage(str(folders / "out/labelsTr/source_00002.nii.gz"))
    assert volume.GetSize() == (5, 4, 1)
    assert set(np.unique(sitk.GetArrayFromImage(volume))) == {0, 2}
    assert json.loads((folders / "out/dataset.json").read_text())["labels"] == {
        "background": 0,
        "v": 1,
        "ignore": 2,
    }


def test_slides_as_patches_and_in_place(folders, capsys):
    slides(folders / "source")
    words = ("slides", "-i", folders / "source", "--class", "t=7", "--mpp", 0.5, "--seed", 3)
    assert run(*words, "-d", 108, "--patch-size", 32, "--patches", 2, "--test", 0.3) == 0
    target = folders / "raw" / "Dataset108_Slides"
    assert len(list((target / "imagesTr").glob("*.png"))) == 4
    assert len(list((target / "labelsTs").glob("*.tif"))) == 1
    capsys.readouterr()
    assert run(*words, "-d", 110, "--patch-size", 48, "--in-place", "--set", "num_epochs=3") == 0
    said = capsys.readouterr().out
    assert "nnUNetv2_train 110 2d 0 -tr OctreeNCASlideTrainer -p nnUNetOctreeNCAPlans" in said
    assert "plan_and_preprocess" not in said
    plans = folders / "preprocessed/Dataset110_Slides/nnUNetOctreeNCAPlans.json"
    assert json.loads(plans.read_text())["configurations"]["2d"]["octreenca"]["num_epochs"] == 3
    with pytest.raises(InputError, match="are for --in-place"):
        run(*words, "-d", 111, "--set", "num_epochs=3")


def test_peso_and_cholecseg8k_and_prostate_are_reached(folders):
    for kind in ("peso", "cholecseg8k", "prostate"):
        (folders / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="holds"):
            run(kind, "-i", folders / "empty", "-d", 1)
        with pytest.raises(InputError, match="does not exist"):
            run(kind, "-i", folders / "none", "-d", 1)
    assert not list((folders / "raw").iterdir())


def test_cholecseg8k_with_own_classes(folders):
    for number in range(3):
        stem = folders / f"clip/frame_{number}_endo"
        stem.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(48, 86)).save(f"{stem}.png")
        mask = np.full((48, 86), 50, np.uint8)
        mask[:24], mask[:, -2:] = 31, 255
        Image.fromarray(mask).save(f"{stem}_watershed_mask.png")
    words = ("cholecseg8k", "-i", folders / "clip", "-d", 107, "--class", "tool=31,32")
    assert run(*words, "--temporal-split", "0-1/2-2") == 0
    folder = folders / "raw/Dataset107_CholecSeg8k"
    volume = sitk.ReadImage(str(folder / "labelsTr/clip_00000.nii.gz"))
    assert volume.GetSize() == (432, 240, 2)
    labels = sitk.GetArrayFromImage(volume)
    assert (labels[:, :120, :420] == 1).all()
    assert (labels[:, 121:, :420] == 0).all()
    assert (labels[:, :, -5:] == 2).all()


def test_what_to_type_next():
    done = Converted(Path("raw/Dataset005_Name"), 1, 0, "3d_fullres", fold="all")
    commands = convert.next_commands(done, "radiology")
    assert "nnunet_octreenca extend_plans -d 5 --preset radiology" in commands
    assert commands[-1].startswith("nnUNetv2_train 5 3d_fullres all -tr OctreeNCATrainer")
    assert "nnunet_octreenca extend_plans -d 5" in convert.next_commands(done, None)
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    for words, wanted in (
        ("prostate", "radiology"),
        ("peso", "pathology"),
        ("peso --patch-size 100", None),
        ("cholecseg8k", "surgery"),
        ("cholecseg8k --size 100x50", None),
        ("cholecseg8k --dimension 2", None),
        ("cholecseg8k --temporal-split 1-2/3-4", None),
        ("frames --class a=1", None),
    ):
        given = parser.parse_args([*words.split(), "-i", "x", "-d", "5"])
        assert convert.preset(given) == wanted


def test_wrong_words(folders, capsys):
    assert convert.parse_size("original") is None
    for size in ("432", "x240", "432x-1", "axb"):
        with pytest.raises(InputError, match=f"--size {size}"):
            convert.parse_size(size)
    for words in (("prostate", "-d", 1), ("frames", "-i", folders, "-d", 1), ("what",)):
        with pytest.raises(SystemExit):
            run(*words)
    with pytest.raises(SystemExit):
        run("prostate", "-i", folders, "-d", 1, "-o", folders)
    assert "not allowed with argument" in capsys.readouterr().err
