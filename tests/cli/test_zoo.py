"""`nnunet_octreenca zoo`, and zoo:NAME in the commands that take a model folder."""

import json
import shutil

import pytest

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.datasets.phantoms import make_phantoms
from nnunet_octreenca.hashes import file_hash
from nnunet_octreenca.integration import zoo


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    make_phantoms(folder / "made", training=1, test=1, seed=99)
    return folder / "made/imagesTs/phantom_001_0000.nii.gz"


def test_the_list(capsys):
    assert main(["zoo"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "size", "Dice", "(95", "%", "interval)", "licence", "task"]
    assert [row.split()[0] for row in rows] == list(zoo.zoo_models())
    (row,) = (row for row in rows if row.startswith("phantoms "))
    model = zoo.zoo_model("phantoms")
    size = sum(path.stat().st_size for path in model.folder.rglob("*") if path.is_file())
    assert f" {size / 1000:.0f} kB " in row
    dice = json.loads((zoo.FOLDER / "index.json").read_text())["models"]["phantoms"]["dice"]
    assert f" {dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f}) of 12 cases " in row
    assert " Apache-2.0 " in row
    assert row.endswith(f"  {model.task}")
    assert "zoo:NAME" in last


@pytest.mark.parametrize("name", ["phantoms", "zoo:phantoms"])
def test_a_card(capsys, name):
    assert main(["zoo", name]) == 0
    printed = capsys.readouterr().out
    assert printed == (zoo.FOLDER / "phantoms/card.md").read_text()


def test_predict_check_and_verify_take_the_name_as_they_take_the_folder(scan, tmp_path, capsys):
    folder = shutil.copytree(zoo.FOLDER / "phantoms", tmp_path / "unpacked")
    common = ["-i", str(scan), "-device", "cpu", "--quiet"]
    report = str(tmp_path / "run.json")
    assert main(["predict", "-m", "zoo:phantoms", "-o", str(tmp_path / "a"), *common,
                 "--report", report]) == 0  # fmt: skip
    assert main(["predict", "-m", str(folder), "-o", str(tmp_path / "b"), *common]) == 0
    (one,), (other,) = ((tmp_path / out).glob("*.nii.gz") for out in "ab")
    assert one.name == other.name
    assert file_hash(one) == file_hash(other)
    assert main(["verify", report]) == 0
    assert main(["verify", report, "-m", "zoo:phantoms"]) == 0
    capsys.readouterr()
    files = []
    for model in ("zoo:phantoms", str(folder)):
        assert main(["check", "--json", model]) == 0
        files.append(json.loads(capsys.readouterr().out)["files"])
    assert files[0] == files[1]


def test_an_unknown_name_is_one_sentence_and_writes_nothing(scan, tmp_path, capsys):
    output = tmp_path / "out"
    for command in (
        ["zoo", "liver"],
        ["check", "zoo:liver"],
        ["predict", "-m", "zoo:liver", "-i", str(scan), "-o", str(output)],
    ):
        assert main(command) == 1
        assert "ERROR: the zoo has no model 'liver'; choose from " in capsys.readouterr().err
    assert not output.exists()


def test_calibrate_writes_nothing_into_the_package(capsys):
    before = sorted(zoo.FOLDER.rglob("*"))
    assert main(["calibrate", "-m", "zoo:phantoms"]) == 1
    sentence = f"zoo:phantoms belongs to the package and stays as it is; copy {zoo.FOLDER}"
    assert sentence in capsys.readouterr().err
    assert sorted(zoo.FOLDER.rglob("*")) == before


def test_a_changed_model_is_not_predicted_with(scan, tmp_path, capsys, monkeypatch):
    shutil.copytree(zoo.FOLDER, tmp_path / "zoo")
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    plans = tmp_path / "zoo/phantoms/plans.json"
    plans.write_text(plans.read_text() + "\n")
    output = tmp_path / "out"
    assert main(["predict", "-m", "zoo:phantoms", "-i", str(scan), "-o", str(output)]) == 1
    assert f"{plans} has the SHA-256 " in capsys.readouterr().err
    assert main(["zoo"]) == 1
    assert not output.exists()
