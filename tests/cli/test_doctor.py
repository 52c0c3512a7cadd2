"""What `nnunet_octreenca doctor` says of the CPU engine."""

import json

import pytest

from nnunet_octreenca.cli import doctor
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.ops import native


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv(native.ENGINE_VARIABLE, raising=False)
    monkeypatch.delenv(native.KERNELS_VARIABLE, raising=False)


def cpu_row():
    return next(row for row in doctor.examine() if row["what"] == "CPU engine")


needs_native = pytest.mark.skipif(native.cpu_module() is None, reason="the C++ module is not there")


@needs_native
def test_the_kernels_and_the_reason_are_named(monkeypatch):
    row = cpu_row()
    assert row["state"] == "ok"
    assert f"{native.cpu_module().kernels()[0]} kernels (the fastest" in row["detail"]
    assert "bfloat16 products" in row["detail"]
    monkeypatch.setenv(native.KERNELS_VARIABLE, "plain")
    assert "plain kernels (OCTREENCA_CPU_KERNELS=plain" in cpu_row()["detail"]


@needs_native
def test_an_engine_that_is_turned_off_is_a_note(monkeypatch):
    monkeypatch.setenv(native.ENGINE_VARIABLE, "torch")
    assert cpu_row()["state"] == "note"
    assert "off: OCTREENCA_ENGINE=torch" in cpu_row()["detail"]


@needs_native
def test_a_variable_that_names_nothing_is_an_error(monkeypatch):
    monkeypatch.setenv(native.ENGINE_VARIABLE, "fast")
    assert cpu_row()["state"] == "missing"
    assert "OCTREENCA_ENGINE is 'fast'" in cpu_row()["detail"]


def test_a_missing_module_is_explained(monkeypatch):
    monkeypatch.setattr(native, "cpu_module", lambda: None)
    monkeypatch.setattr(native, "cpu_module_problem", lambda: "no such file")
    assert cpu_row()["state"] == "note"
    assert "no such file" in cpu_row()["detail"]
    assert "install a compiler" in cpu_row()["detail"]


def test_json_holds_every_row(capsys):
    main(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "CPU engine", "CUDA"} <= {row["what"] for row in rows}
