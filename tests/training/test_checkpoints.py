"""Checkpoints are data: what nnU-Net puts in is read, what could run is refused."""

import io
import os
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from helpers.bombs import NAMES, Calls, bomb, saved

from nnunet_octreenca.errors import CheckpointError
from nnunet_octreenca.training.checkpoints import FORCE_VARIABLE, data_only, plain, read_checkpoint


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", NAMES)
def test_bombs_go_off_in_stock_loading_and_not_here(name, tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "checkpoint.pth"
    file.write_bytes(bomb(name, marker))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth .*(refused|damaged)") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()
    with suppress(RuntimeError):  # after the bare pickle's call
        torch.load(file, weights_only=False)
    assert marker.exists(), "the bomb is a dud, and the test shows nothing"


def test_the_sentence_names_what_was_asked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"asks for posix\.system, .* nothing of it was run"):
        read_checkpoint(io.BytesIO(bomb("a call of os.system", tmp_path)), name="model.pth")


NUMPY = {
    "best": np.float64(0.25),
    "single": np.float32(1.5),
    "half": np.float16(0.5),
    "fold": np.int64(-3),
    "large": np.uint8(200),
    "done": np.bool_(True),
    "loss": np.array(0.125),
    "matrix": np.arange(6, dtype=">i2").reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}
PLAIN = {
    "best": 0.25,
    "single": 1.5,
    "half": 0.5,
    "fold": -3,
    "large": 200,
    "done": True,
    "loss": 0.125,
    "matrix": [[0, 1, 2], [3, 4, 5]],
    "columns": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
}


@pytest.mark.parametrize("modules", ["numpy 1", "numpy 2"])
def test_numpy_scalars_of_either_version(modules, monkeypatch):
    data = saved(NUMPY)
    if modules == "numpy 1":  # zip records are stored: their bytes can be changed in place
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, content.replace(b"numpy._core", b"numpy.core"))
        data = buffer.getvalue()
        assert b"numpy.core.multiarray" in data
    read = read_checkpoint(io.BytesIO(data), name="x")
    assert read == PLAIN
    assert {key: type(value) for key, value in read.items()} == {
        key: type(value) for key, value in PLAIN.items()
    }


def test_paths_devices_and_ordered_dictionaries():
    content = {
        "folder": Path("/results/a"),
        "posix": PurePosixPath("b/c"),
        "windows": PureWindowsPath("C:/d"),
        "device": torch.device("cpu"),
        "weights": OrderedDict(a=torch.ones(2)),
        "axes": (0, 1),
    }
    read = read_checkpoint(io.BytesIO(saved(content)), name="x")
    assert type(read["weights"]) is dict
    assert torch.equal(read.pop("weights")["a"], torch.ones(2))
    assert read == {
        "folder": "/results/a", "posix": "b/c", "windows": "C:/d", "device": "cpu", "axes": (0, 1),
    }  # fmt: skip


def test_what_is_plain_loads_with_weights_only():
    content = plain({**NUMPY, "weights": OrderedDict(a=torch.ones(2)), "path": Path("a")}, "x")
    loaded = torch.load(io.BytesIO(saved(content)), weights_only=True)
    assert torch.equal(loaded.pop("weights")["a"], torch.ones(2))
    assert loaded == {**PLAIN, "path": "a"}


def nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"an object of builtins\.set"),
        (1j, r"an object of builtins\.complex"),
        (torch.zeros(1).expand(10**6), r"shape \(1000000,\) that is not stored whole"),
        (torch.zeros(2, 2).to_sparse(), "not stored whole"),
        (torch.zeros(3, device="meta"), "not stored whole"),
    ],
)
def test_what_no_training_saves_is_refused(value, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(io.BytesIO(saved({"value": value})), name="x")


def test_nesting_cycles_and_sharing():
    with pytest.raises(CheckpointError, match="nested too deeply"):
        plain(nested(100_000), "x")
    cycle: list = []
    cycle.append(cycle)
    with pytest.raises(CheckpointError, match="contains itself"):
        plain({"a": cycle}, "x")
    shared: list = [1]
    for _ in range(200):  # 2^200 numbers, were they copied
        shared = [shared, shared]
    converted = plain(shared, "x")
    assert converted[0] is converted[1]


def test_a_compressed_checkpoint_is_refused():
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(10**6)}))) as archive,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert len(buffer.getvalue()) < 10**5
    with pytest.raises(CheckpointError, match="compressed inside"):
        read_checkpoint(buffer, name="x")


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    ("make", "name"), [(bytearray, "bytearray"), (torch.FloatTensor, "FloatTensor")]
)
def test_buffers_of_a_size_that_the_file_chooses(make, name, new_format):
    data = saved({"a": Calls(make, 1 << 20)}, _use_new_zipfile_serialization=new_format)
    assert len(torch.load(io.BytesIO(data), weights_only=True)["a"]) == 1 << 20
    with pytest.raises(CheckpointError, match=f"asks for {name}, .* any amount of memory"):
        read_checkpoint(io.BytesIO(data), name="x")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 100, saved({"a": 1})[:-50]])
def test_damaged_files(content, tmp_path):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"c\.pth .*damaged"):
        read_checkpoint(tmp_path / "c.pth")


def test_objects_of_numpy_are_no_numbers():
    for array in (np.array([1, 2], "datetime64[s]"), np.array(["a"]), np.array([1j])):
        with pytest.raises(CheckpointError):
            read_checkpoint(io.BytesIO(saved({"a": array})), name="x")


def test_all_loading_in_the_context_reads_data_only(tmp_path, monkeypatch):
    monkeypatch.delenv(FORCE_VARIABLE, raising=False)
    marker = tmp_path / "marker"
    data = bomb("a call of os.system", marker)
    with (
        pytest.raises(CheckpointError, match=r"the model asks for posix\.system"),
        data_only("the model"),
    ):
        torch.load(io.BytesIO(data), weights_only=False)
    assert not marker.exists()
    assert FORCE_VARIABLE not in os.environ
    with data_only("the model"):
        assert torch.load(io.BytesIO(saved(NUMPY)), weights_only=False)["best"] == 0.25
    with pytest.raises(ZeroDivisionError), data_only("the model"):
        raise ZeroDivisionError


def test_a_call_that_returns_what_is_allowed_is_refused_all_the_same(tmp_path):
    with pytest.raises(CheckpointError, match=r"asks for .*getcwd"):
        read_checkpoint(io.BytesIO(saved({"a": Calls(os.getcwd)})), name="x")
