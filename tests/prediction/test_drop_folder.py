"""Which cases of a drop folder are complete: files that grow, series, channels, companions."""

import math
import os

import numpy as np
import pytest
from helpers.dicom_slices import write_series
from PIL import Image

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.prediction.drop_folder import DropFolder

SETTLE, CLOSE_AFTER = 10, 60


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def drops(clock, inputs, tmp_path):
    def make(channels=1, **options):
        options = {"output": tmp_path / "out", "settle": SETTLE, "close_after": CLOSE_AFTER,
                   **options}  # fmt: skip
        return DropFolder(inputs, channels=channels, clock=clock, **options)

    return make


def after(clock, seconds, folder):
    """The cases after some more seconds."""
    clock.now += seconds
    return {arrival.case.name: arrival.problem for arrival in folder.look()}


def append(path, text="more"):
    with path.open("a") as file:
        file.write(text)


def test_a_file_is_taken_when_it_no_longer_changes(clock, inputs, drops):
    folder = drops()
    append(inputs / "a.nii.gz")
    for _ in range(5):
        assert after(clock, 6, folder) == {}
        append(inputs / "a.nii.gz")
    assert after(clock, 6, folder) == {}
    assert folder.waiting == 1
    assert after(clock, SETTLE, folder) == {"a": ""}
    assert after(clock, 1000, folder) == {}
    assert folder.waiting == 0
    os.utime(inputs / "a.nii.gz", (1, 1))
    assert after(clock, 1, folder) == {}
    assert after(clock, SETTLE, folder) == {"a": ""}, "changed: once more"


def test_what_goes_and_comes_again_is_new(clock, inputs, drops):
    folder = drops()
    append(inputs / "a.nii.gz")
    folder.look()
    assert after(clock, SETTLE, folder) == {"a": ""}
    (inputs / "a.nii.gz").rename(inputs.parent / "a.nii.gz")
    assert after(clock, 1, folder) == {}
    (inputs.parent / "a.nii.gz").rename(inputs / "a.nii.gz")
    assert after(clock, 1, folder) == {}
    assert after(clock, SETTLE, folder) == {"a": ""}


def test_hidden_files_and_other_files_are_left_alone(clock, inputs, drops, tmp_path):
    folder = drops(output=inputs / "out")
    for name in (".a.nii.gz.x7", "a.nii.gz.part", "notes.txt", "out/b.nii.gz"):
        (inputs / name).parent.mkdir(exist_ok=True)
        append(inputs / name)
    (inputs / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(inputs / "pipe")  # which would be waited for
    folder.look()
    assert after(clock, 1000, folder) == {}
    append(inputs / "b.nii.gz")
    assert after(clock, 1, folder) == {}
    assert after(clock, SETTLE, folder) == {"b": ""}


def test_a_case_waits_for_its_channels(clock, inputs, drops):
    folder = drops(channels=2)
    append(inputs / "a_0001.nii.gz")
    folder.look()
    assert after(clock, SETTLE, folder) == {}
    append(inputs / "a_0000.nii.gz")
    assert after(clock, 5, folder) == {}
    assert folder.waiting
    clock.now += SETTLE
    (arrival,) = folder.look()
    assert [file.name for file in arrival.case.files] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert (arrival.name, arrival.problem) == ("a_0000.nii.gz", "")


def test_a_case_does_not_wait_for_ever(clock, inputs, drops):
    folder = drops(channels=2)
    append(inputs / "a_0000.nii.gz")
    folder.look()
    (problem,) = after(clock, CLOSE_AFTER, folder).values()
    assert problem.startswith("a_0001.nii.gz did not come within 60 s")
    assert after(clock, 1000, folder) == {}, "said once"
    append(inputs / "a_0001.nii.gz")
    folder.look()
    assert after(clock, SETTLE, folder) == {"a": ""}


def test_colours_are_no_channels_to_wait_for(clock, inputs, drops):
    folder = drops(channels=3)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(inputs / "a_0001.png")
    folder.look()
    assert after(clock, SETTLE, folder) == {"a_0001": ""}


def test_a_header_waits_for_its_voxels(clock, inputs, drops):
    folder = drops()
    append(inputs / "a.mhd", "ObjectType = Image\nNDims = 3\nElementDataFile = a.raw\n")
    folder.look()
    assert after(clock, SETTLE, folder) == {}
    for _ in range(3):
        append(inputs / "a.raw")
        assert after(clock, 6, folder) == {}
    assert after(clock, SETTLE, folder) == {"a": ""}
    append(inputs / "a.raw")
    assert after(clock, 1, folder) == {}
    assert after(clock, SETTLE, folder) == {"a": ""}


def test_a_slide_waits_for_its_folder(clock, inputs, drops):
    folder = drops(channels=3)
    append(inputs / "a.mrxs")
    folder.look()
    assert after(clock, CLOSE_AFTER - 1, folder) == {}
    (inputs / "a").mkdir()
    append(inputs / "a" / "Data0000.dat")
    assert after(clock, 1, folder) == {}
    assert after(clock, SETTLE, folder) == {}
    assert after(clock, CLOSE_AFTER, folder) == {"a": ""}
    assert after(clock, 1000, folder) == {}


def test_a_series_is_closed_by_a_time_without_slices(clock, inputs, drops, tmp_path):
    folder = drops(volumes=True)
    write_series(tmp_path / "series", np.zeros((5, 8, 9), np.int16))
    (inputs / "liver").mkdir()
    for file in sorted((tmp_path / "series").iterdir()):
        file.rename(inputs / "liver" / file.name)
        assert after(clock, CLOSE_AFTER - 1, folder) == {}
    clock.now += CLOSE_AFTER
    (arrival,) = folder.look()
    assert arrival.case.files == (inputs / "liver",)
    assert (arrival.case.name, arrival.problem) == ("liver", "")
    assert after(clock, 1000, folder) == {}
    (inputs / "liver" / "late.dcm").write_bytes(b"x")
    assert after(clock, 1, folder) == {}
    assert list(after(clock, CLOSE_AFTER, folder)) == ["liver"], "a slice more: once more"


def test_a_loose_slice_is_no_volume(clock, inputs, drops, tmp_path):
    write_series(tmp_path / "series", np.zeros((2, 8, 9), np.int16))
    slices = [file.rename(inputs / file.name) for file in (tmp_path / "series").iterdir()]
    folder = drops(volumes=True)
    folder.look()
    problems = after(clock, SETTLE, folder)
    assert len(problems) == len(slices) == 2
    assert all("is one slice, and the model segments volumes" in p for p in problems.values())
    flat = drops()
    flat.look()
    assert set(after(clock, SETTLE, flat).values()) == {""}


def test_folders_that_are_no_case_say_so(clock, inputs, drops):
    folder = drops()
    (inputs / "empty").mkdir()
    for name in "ab":
        (inputs / "study").mkdir(exist_ok=True)
        append(inputs / "study" / f"{name}.nii.gz")
    folder.look()
    problems = after(clock, CLOSE_AFTER, folder)
    assert "holds no image" in problems["empty"]
    assert "holds 2 cases (a.nii.gz) and is none itself" in problems["study"]


def test_a_folder_that_is_away_is_an_error_and_forgets_nothing(clock, inputs, drops):
    folder = drops()
    append(inputs / "a.nii.gz")
    folder.look()
    assert after(clock, SETTLE, folder) == {"a": ""}
    inputs.rename(inputs.parent / "away")
    with pytest.raises(OSError, match="No such file"):
        folder.look()
    (inputs.parent / "away").rename(inputs)
    assert after(clock, 1000, folder) == {}


def test_what_lies_there_is_not_opened_again(clock, inputs, drops, monkeypatch):
    """Thousands of requests a second to a network drive are no way to wait."""
    folder = drops()
    for number in range(20):
        append(inputs / f"{number}.nii.gz")
    folder.look()
    assert len(after(clock, SETTLE, folder)) == 20
    from nnunet_octreenca.prediction import drop_folder

    def opened(*arguments):
        raise AssertionError(f"{arguments} was looked at again")

    monkeypatch.setattr(drop_folder, "arriving_case", opened)
    assert after(clock, 1000, folder) == {}
    append(inputs / "notes.txt")
    assert after(clock, 1, folder) == {}
    assert after(clock, SETTLE, folder) == {}


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize("name", ["settle", "close_after"])
def test_seconds_that_are_none(drops, name, seconds):
    with pytest.raises(InputError, match=rf"{name} \({seconds}\) must be a number of seconds"):
        drops(**{name: seconds})


def test_folders_that_cannot_be_watched(inputs, drops):
    with pytest.raises(InputError, match="cannot be the folder of the results too"):
        drops(output=inputs)
    inputs.rmdir()
    with pytest.raises(InputError, match="is no folder; give the one that files are dropped into"):
        drops()
