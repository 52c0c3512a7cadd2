import errno
import os
import threading

import numpy as np
import pytest

from nnunet_octreenca.errors import EnvironmentMismatchError, OutputError
from nnunet_octreenca.labels.output import (
    atomic_folder,
    atomic_output,
    check_absent,
    check_axes,
    greatest_label,
    in_order,
)
from nnunet_octreenca.libraries import import_optional


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_exists_needs_overwrite(tmp_path):
    check_absent(tmp_path / "a.png")
    (tmp_path / "a.png").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("a.png", "dangling", "."):
        with pytest.raises(OutputError, match=r"already exists; use --overwrite"):
            check_absent(tmp_path / name)


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "file").write_text("new")
        assert not (tmp_path / "out").exists()
    assert listing(tmp_path) == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "new"


@pytest.mark.parametrize("before", ["folder", "file"])
def test_a_folder_replaces_what_was_there(tmp_path, before):
    path = tmp_path / "out"
    if before == "folder":
        path.mkdir()
        (path / "old").touch()
    else:
        path.touch()
    with atomic_folder(path) as temporary:
        (temporary / "new").touch()
        assert path.exists()
    assert listing(tmp_path) == ["out"]
    assert listing(path) == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_old_folder_stays_when_writing_fails(tmp_path, error):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()

    def write():
        with atomic_folder(path) as temporary:
            (temporary / "half").touch()
            raise error

    with pytest.raises(error):
        write()
    assert listing(tmp_path) == ["out"]
    assert listing(path) == ["old"]


def test_the_old_folder_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    rename = type(path).rename

    def failing(self, target):
        if target == path and self.suffix == ".tmp":
            raise OSError(errno.EIO, "the disk is gone")
        return rename(self, target)

    def write():
        with atomic_folder(path):
            pass

    monkeypatch.setattr(type(path), "rename", failing)
    with pytest.raises(OutputError, match="the disk is gone"):
        write()
    assert listing(tmp_path) == ["out"]
    assert listing(path) == ["old"]


@pytest.mark.parametrize("writing", [atomic_output, atomic_folder])
def test_a_full_disk_is_named(tmp_path, writing):
    def write():
        with writing(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"out cannot be written: the disk is full .*; free some"):
        write()
    assert not listing(tmp_path)


def test_a_full_disk_is_known_within_a_librarys_error(tmp_path):
    def write():
        with atomic_output(tmp_path / "out"):
            try:
                raise OSError(errno.EDQUOT, "quota")
            except OSError as error:
                raise OSError("while writing a tag") from error

    with pytest.raises(OutputError, match="the disk is full"):
        write()


@pytest.mark.parametrize("writing", [atomic_output, atomic_folder])
def test_a_missing_folder_is_named(tmp_path, writing):
    def write():
        with writing(tmp_path / "nowhere" / "out") as temporary:
            temporary.write_text("")

    with pytest.raises(OutputError, match=r"cannot be written .*; check that its folder exists"):
        write()


def test_a_missing_library_names_what_installs_it():
    with pytest.raises(EnvironmentMismatchError, match=r'pip install "nnunet-octreenca\[dicom\]"'):
        import_optional("no_such_library", "dicom")


def test_labels_that_no_format_holds():
    with pytest.raises(OutputError, match=r"a\.png .* shape \(2, 3\): it takes 3 axes"):
        check_axes(np.zeros((2, 3), np.uint8), "a.png", (3,))
    with pytest.raises(OutputError, match=r"shape \(0, 3\)"):
        check_axes(np.zeros((0, 3), np.uint8), "a.png", (2, 3))
    with pytest.raises(OutputError, match="float32"):
        check_axes(np.zeros((2, 3), np.float32), "a.png", (2,))
    with pytest.raises(OutputError, match="labels from -2 to 5"):
        greatest_label(np.array([[5, -2]], np.int16), "a.png")
    with pytest.raises(OutputError, match="labels from 0 to 70000"):
        greatest_label(np.array([[0, 70000]], np.int32), "a.png")
    assert greatest_label(np.array([[300, 2]], np.int16), "a.png") == 300


def test_results_come_in_order_and_items_are_not_taken_far_ahead():
    taken = []
    first_may_end = threading.Event()

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    def square(number):
        if number == 0:
            assert first_may_end.wait(10)
        else:
            first_may_end.set()
        return number**2

    results = in_order(square, items(), workers=2)
    assert next(results) == 0
    assert len(taken) <= 5
    assert list(results) == [number**2 for number in range(1, 50)]


def test_an_error_in_a_thread_ends_the_work():
    done = []

    def work(number):
        if number == 3:
            raise KeyboardInterrupt
        done.append(number)
        return number

    with pytest.raises(KeyboardInterrupt):
        list(in_order(work, range(1000), workers=2))
    assert len(done) < 20
