"""A case that fails, with whatever, ends neither the folder nor the process."""

import functools
import json
import sys

import numpy as np
import pytest
from helpers.crashing_run import crashing_run
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cli import isolation
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction import case as case_module
from nnunet_octreenca.prediction.earlier import Destination
from nnunet_octreenca.prediction.folder import Run, predict
from nnunet_octreenca.prediction.options import Options


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "rgb")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 44, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""


ERRORS = [
    KeyError("codec"),
    IndexError("list index out of range"),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    RuntimeError("first line\nsecond line"),
    RecursionError(),
    AssertionError(),
    MemoryError("Unable to allocate 9.9 TiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    OSError(5, "Input/output error"),
    Panic("called `Option::unwrap()` on a `None` value"),
]


@pytest.mark.parametrize("where", ["open_channels", "labels_hash", "write", "write_overlay"])
@pytest.mark.parametrize("error", ERRORS[:1] + ERRORS[-1:], ids=repr)
def test_wherever_it_fails_the_others_are_done(
    model_path, images, tmp_path, monkeypatch, capsys, where, error
):
    fail_once(monkeypatch, where, error, at=2)
    check_b_failed(model_path, images, tmp_path, capsys, error)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_whatever_it_fails_with_the_others_are_done(
    model_path, images, tmp_path, monkeypatch, capsys, error
):
    fail_once(monkeypatch, "open_channels", error, at=2)
    sentence = check_b_failed(model_path, images, tmp_path, capsys, error)
    memory = isinstance(error, MemoryError) or "can't allocate" in str(error)
    if memory:
        assert sentence.startswith("memory ran out (")
        assert "--memory" in sentence
    elif not isinstance(error, OSError):
        assert sentence.startswith(type(error).__name__)
        assert "nobody foresaw" in sentence
    assert "\n" not in sentence


def fail_once(monkeypatch, where, error, at):
    stock, calls = getattr(case_module, where), []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise error
        return stock(*args, **kwargs)

    monkeypatch.setattr(case_module, where, fails)


def check_b_failed(model_path, images, tmp_path, capsys, error):
    report, out = tmp_path / "run.json", tmp_path / "out"
    given = ["-m", model_path, "-i", images, "-o", out, "--report", report, "-device", "cpu"]
    code = main(["predict", *map(str, given), "--disable_tta", "--quiet"])
    assert code == 3
    content = json.loads(report.read_text())
    assert [case["case"] for case in content["cases"]] == ["a", "c"]
    (failed,) = content["failed"]
    assert (failed["case"], failed["error"]) == ("b", type(error).__name__)
    assert "in fails\n" in failed["traceback"]
    said = capsys.readouterr()
    assert f"ERROR: b: {failed['sentence']}" in said.err
    assert "2 done, 1 failed" in said.err
    assert not [path for path in out.rglob("*") if path.suffix in (".tmp", ".lock")]
    # The repaired case is all that is left to do.
    assert main(["predict", *map(str, given), "--disable_tta", "--quiet", "--continue"]) == 0
    assert json.loads(report.read_text())["left_out"] == ["a", "c"]
    return failed["sentence"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_end_of_the_run_is_no_failure_of_a_case(model_path, images, tmp_path, monkeypatch, stop):
    fail_once(monkeypatch, "write", stop(), at=2)
    model = load_model(model_path)
    run = Run(model, Destination(tmp_path / "out"), Options(mirror=False))
    cases = run.cases(images)
    run.segment(cases[0], tell=lambda line: None)
    with pytest.raises(stop):
        run.segment(cases[1], tell=lambda line: None)
    assert not run.failed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".octreenca", "a.png", "overlays"}


def test_a_single_case_raises_its_own_error(model_path, images, tmp_path, monkeypatch):
    fail_once(monkeypatch, "write", KeyError("codec"), at=1)
    with pytest.raises(KeyError):
        predict(images / "a.png", tmp_path / "out", model_path, mirror=False)


def test_debug_shows_the_traceback(model_path, images, tmp_path, monkeypatch, capsys):
    fail_once(monkeypatch, "write", KeyError("codec"), at=1)
    given = ["-m", model_path, "-i", images / "a.png", "-o", tmp_path / "out", "-device", "cpu"]
    assert main(["predict", *map(str, given), "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_said_first(model_path, images, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = ["-m", model_path, "-i", images, "-o", tmp_path / "out", "-device", "cpu"]
    code = main(["predict", *map(str, given), "--report", str(tmp_path / "file" / "run.json")])
    assert code == 1
    assert f"ERROR: {tmp_path / 'file' / 'run.json'} cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was computed in vain"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_crash_costs_one_case(model_path, images, tmp_path):
    (tmp_path / "model").symlink_to(model_path)
    for name in "de":
        (images / f"{name}.png").write_bytes((images / "a.png").read_bytes())
    run, told, errors, steps = (
        Run(load_model(model_path), Destination(tmp_path / "out")),
        [],
        [],
        [],
    )
    with isolation.isolated(run, functools.partial(crashing_run, tmp_path)) as segment:
        for case in run.rounds(run.cases(images)):
            try:
                segment(case, tell=told.append, progress=lambda stage, rows: steps.append(stage))
            except OctreeNCAError as error:
                errors.append(str(error))
    assert [case.case for case in run.done] == ["a", "d"]
    failed = {failure.case: failure for failure in run.failed}
    assert list(failed) == ["b", "c", "e"]
    assert "ended by SIGSEGV: a library crashed on this image" in failed["b"].sentence
    assert "Segmentation fault" in failed["b"].traceback
    assert "write_overlay" in failed["b"].traceback
    assert (failed["c"].error, "KeyError: 'codec'" in failed["c"].sentence) == ("KeyError", True)
    assert "ended by SIGKILL, most likely because memory ran out" in failed["e"].sentence
    assert errors == [failure.sentence for failure in run.failed]
    assert [line.split(":")[0] for line in told] == ["a", "b", "c", "d", "e"]
    assert {"total", "read", "segment"} <= set(steps)
    out = tmp_path / "out"
    assert not [path for path in out.rglob("*") if path.suffix in (".tmp", ".lock")]
    whole = predict(images, tmp_path / "undisturbed", model_path, mirror=False)
    hashes = {case.case: case.labels_sha256 for case in whole.done}
    assert {case.case: case.labels_sha256 for case in run.done} == {n: hashes[n] for n in "ad"}


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (-11, "was ended by SIGSEGV: a library crashed"),
        (-9, "was ended by SIGKILL, most likely because memory ran out; give less with --memory"),
        (-6, "was ended by SIGABRT: a library crashed"),
        (7, "ended with exit code 7"),
        (-250, "ended with exit code -250"),
        (None, "ended with exit code None"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_how_a_process_ended(code, sentence):
    assert sentence in isolation._how_it_ended(code)


@pytest.mark.slow
def test_isolated_from_the_command_line(model_path, images, tmp_path):
    (images / "b.png").write_bytes(b"\x89PNG")
    report = tmp_path / "run.json"
    given = ["-m", model_path, "-i", images, "-o", tmp_path / "out", "-device", "cpu"]
    flags = ["--disable_tta", "--isolate", "--report", str(report)]
    assert main(["predict", *map(str, given), *flags]) == 3
    content = json.loads(report.read_text())
    assert [case["case"] for case in content["cases"]] == ["a", "c"]
    assert content["failed"][0]["error"] == "InputError"
    assert "Traceback" in content["failed"][0]["traceback"]
    assert content["cases"][0]["input_sha256"]
