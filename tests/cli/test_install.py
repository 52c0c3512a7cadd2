"""`nnunet_octreenca install`: an exported model, whole or not at all."""

import os
import signal
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from helpers.bombs import bomb
from helpers.exported import DATASET, MODEL, exported_files, write_zip
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.integration import model_install
from nnunet_octreenca.integration.model import load_model


@pytest.fixture
def results(tmp_path, monkeypatch):
    """nnU-Net's folders, with another model in the results."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    other = tmp_path / "results/Dataset001_Other/T__P__C"
    other.mkdir(parents=True)
    (other / "plans.json").write_text("other")
    return tmp_path / "results"


@pytest.fixture
def files(tmp_path):
    return exported_files(tmp_path / "made")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def install(archive, *flags, code=0):
    assert main(["install", str(archive), *flags]) == code


def refused(archive, results, capsys, sentence, *flags):
    before = tree(results)
    folders = sorted(results.rglob("*"))
    install(archive, *flags, code=1)
    printed = capsys.readouterr()
    assert printed.err.startswith("ERROR: ")
    assert sentence in printed.err, printed.err
    assert tree(results) == before
    assert sorted(results.rglob("*")) == folders, "something was left behind"


def test_an_exported_model(files, results, tmp_path, capsys):
    archive = write_zip(tmp_path / "model.zip", files)
    install(archive)
    assert {**tree(results)} == {**files, "Dataset001_Other/T__P__C/plans.json": b"other"}
    assert load_model(results / MODEL).folds == ("0", "1")
    printed = capsys.readouterr().out
    assert f"installed {results / MODEL}" in printed
    assert f"predict -m {results / MODEL}" in printed


def test_results_that_do_not_exist_yet(files, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "new/results"))
    install(write_zip(tmp_path / "model.zip", files))
    assert tree(tmp_path / "new/results") == files


def test_results_that_are_not_set(files, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results", raising=False)
    install(write_zip(tmp_path / "model.zip", files), code=1)
    assert "nnUNet_results is not set" in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(files, results, tmp_path, capsys):
    archive = write_zip(tmp_path / "model.zip", files)
    install(archive)
    (results / MODEL / "fold_4").mkdir()
    (results / MODEL / "fold_4/mine.txt").write_text("mine")
    capsys.readouterr()
    refused(archive, results, capsys, "exists already, and 1 more of the model's parts; --force")
    changed = {**files, f"{MODEL}/fold_0/progress.png": b"another"}
    install(write_zip(archive, changed), "--force")
    assert tree(results) == {**changed, "Dataset001_Other/T__P__C/plans.json": b"other"}


def test_a_second_configuration_joins_the_first(files, results, tmp_path):
    install(write_zip(tmp_path / "model.zip", files))
    second = {
        name.replace("OctreeNCATrainer__", "OctreeNCATrainer_5epochs__"): content
        for name, content in files.items()
        if name.startswith(MODEL)
    }
    install(write_zip(tmp_path / "second.zip", second))
    assert tree(results) == {**files, **second, "Dataset001_Other/T__P__C/plans.json": b"other"}


def member(name: str, mode: int = 0, **changes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    for key, value in changes.items():
        setattr(info, key, value)
    return info


BAD_NAMES = [
    (f"{DATASET}/../../outside.txt", "a path that leaves its folder"),
    (f"{MODEL}/fold_0/validation/..", "a path that leaves its folder"),
    ("/etc/cron.d/x", "an absolute path"),
    ("C:/Windows/x", "a name with a drive letter"),
    ("C:x", "a name with a drive letter"),
    ("\\\\server\\share\\x", "a name with backslashes"),
    (f"{DATASET}\\..\\x", "a name with backslashes"),
    (f"{MODEL}/fold_0/validation/NUL", "the name of a device"),
    (f"{MODEL}/fold_0/validation/com1.json", "the name of a device"),
    (f"{MODEL}/fold_0/validation/a ", "ends in a dot or space"),
    (f"{MODEL}/fold_0//plans.json", "a name that is empty"),
    (f"{MODEL}/./plans.json", "a name that is empty, or ends in a dot"),
    (f"{MODEL}/fold_0/validation/a\x1b[2J", "characters that no file may have"),
    (f"{MODEL}/fold_0/validation/{'a' * 300}", "more than 255 bytes"),
    (f"{MODEL}/PLANS.json", "the same file on some systems"),
    (f"{MODEL}/run.py", "does not write"),
    (f"{MODEL}/fold_0/validation/deeper/x.json", "does not write"),
    (f"{MODEL}/fold_0/libtorch.so", "does not write"),
    ("Dataset904_Other/plans.json", "at the top, but an exported model holds one folder"),
    ("sitecustomize.py", "at the top, but an exported model holds one folder"),
]


@pytest.mark.parametrize(("name", "sentence"), BAD_NAMES, ids=[repr(n) for n, _ in BAD_NAMES])
def test_names_that_no_exported_model_has(name, sentence, files, results, tmp_path, capsys):
    archive = write_zip(tmp_path / "model.zip", {**files, member(name): b"x"})
    refused(archive, results, capsys, sentence)
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_special_files(kind, files, results, tmp_path, capsys):
    link = member(f"{MODEL}/fold_0/validation/link", kind | 0o777)
    archive = write_zip(tmp_path / "model.zip", {**files, link: b"/etc/passwd"})
    refused(archive, results, capsys, "a link or a special file")


def test_the_same_name_twice(files, results, tmp_path, capsys):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = write_zip(
            tmp_path / "model.zip", {**files, member(f"{MODEL}/plans.json"): b"other"}
        )
    refused(archive, results, capsys, "the same file")


def test_encrypted_members(files, results, tmp_path, capsys):
    archive = write_zip(tmp_path / "model.zip", files)
    data = bytearray(archive.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    archive.write_bytes(data)
    refused(archive, results, capsys, "which is encrypted")


def test_bombs(files, results, tmp_path, capsys, monkeypatch):
    """A file that packs 1,000 times, and sizes that are not true."""
    zeros = {**files, f"{MODEL}/fold_0/validation/zeros.nii": bytes(120 << 20)}
    archive = write_zip(tmp_path / "model.zip", zeros)
    refused(archive, results, capsys, "times as many, as no model does")
    refused(archive, results, capsys, "more than the 1,048,576 allowed", "--max_size", "1M")
    install(archive, "--max_size", "1G")
    assert tree(results / MODEL)["fold_0/validation/zeros.nii"] == bytes(120 << 20)


def test_sizes_that_are_not_true(files, results, tmp_path, capsys):
    archive = write_zip(
        tmp_path / "model.zip", {**files, f"{MODEL}/fold_0/validation/z.nii": bytes(1 << 20)}
    )
    data = archive.read_bytes()
    true, said = struct.pack("<I", 1 << 20), struct.pack("<I", 10)
    assert data.count(true) >= 2
    archive.write_bytes(data.replace(true, said))
    refused(archive, results, capsys, "is damaged")


@pytest.mark.parametrize("place", ["half", "middle"])
def test_damaged_archives(place, files, results, tmp_path, capsys):
    archive = write_zip(tmp_path / "model.zip", files)
    data = bytearray(archive.read_bytes())
    if place == "half":
        del data[len(data) // 2 :]
    else:
        name = f"{MODEL}/fold_0/checkpoint_final.pth".encode()
        start = data.index(name) + len(name)
        data[start + 1000 : start + 1010] = bytes(10)
    archive.write_bytes(data)
    refused(archive, results, capsys, "cannot be read as a zip" if place == "half" else "damaged")


def test_contents_are_checked_first(files, results, tmp_path, capsys):
    marker = tmp_path / "marker"
    bombed = {**files, f"{MODEL}/fold_1/checkpoint_final.pth": bomb("a call of exec", marker)}
    refused(write_zip(tmp_path / "a.zip", bombed), results, capsys, "could run any code")
    plans = files[f"{MODEL}/plans.json"].replace(b'"RGBTo01Normalization"', b'"Mine"')
    refused(
        write_zip(tmp_path / "b.zip", {**files, f"{MODEL}/plans.json": plans}),
        results, capsys, "normalization_schemes is ['Mine'",
    )  # fmt: skip
    assert not marker.exists()


def test_two_data_sets_of_one_number(files, results, tmp_path, capsys):
    (tmp_path / "raw/Dataset903_Foot").mkdir()
    refused(write_zip(tmp_path / "model.zip", files), results, capsys, "has the number of Dataset9")


def test_a_full_disk(files, results, tmp_path, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(model_install.shutil, "disk_usage", lambda path: usage)
    refused(write_zip(tmp_path / "model.zip", files), results, capsys, "has 1,000 left")


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_failure_at_any_rename_leaves_what_was(
    renames, files, results, tmp_path, capsys, monkeypatch
):
    """Of two parts, each replacing another: four renames."""
    install(write_zip(tmp_path / "model.zip", files))
    changed = dict(files)
    changed[f"{DATASET}/inference_information.json"] = b"[1]"
    changed[f"{MODEL}/fold_0/progress.png"] = b"another"
    archive = write_zip(tmp_path / "changed.zip", changed)
    capsys.readouterr()
    stock, count = Path.rename, [0]

    def rename(self, target):
        count[0] += 1
        if count[0] == renames + 1:
            raise OSError(5, "Input/output error", str(self))
        return stock(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    before = tree(results)
    assert main(["install", str(archive), "--force"]) == 1
    assert "Input/output error" in capsys.readouterr().err
    assert tree(results) == before
    assert list(results.glob(".*")) == []


def test_an_end_by_kill_leaves_nothing(files, results, tmp_path, monkeypatch):
    before = sorted(results.rglob("*"))

    def unpack(archive, folder):
        (folder / "half").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(model_install, "_unpack", unpack)
    with pytest.raises(SystemExit) as ended:
        main(["install", str(write_zip(tmp_path / "m.zip", files))])
    assert ended.value.code == 143
    assert sorted(results.rglob("*")) == before


def test_a_failure_of_the_first_install_leaves_no_folder(
    files, results, tmp_path, capsys, monkeypatch
):
    def rename(self, target):
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(Path, "rename", rename)
    refused(write_zip(tmp_path / "m.zip", files), results, capsys, "Input/output error")


def test_a_model_whose_levels_differ_in_channels(results, tmp_path):
    made = model_folder(tmp_path / "made" / MODEL, cells=(16, 24, 20))
    files = {
        f"{MODEL}/{path.relative_to(made).as_posix()}": path.read_bytes()
        for path in made.rglob("*")
        if path.is_file()
    }
    install(write_zip(tmp_path / "model.zip", files))
    assert load_model(results / MODEL).networks[0].level_channels == (16, 24, 20)
