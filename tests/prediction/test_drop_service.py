"""`predict --watch` as a service: what is done, noted, tried again, and what a restart repeats."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import watch_endurance
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import LockedError, OutputError
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.prediction import case as case_module
from nnunet_octreenca.prediction import drop_service
from nnunet_octreenca.prediction.drop_folder import DropFolder
from nnunet_octreenca.prediction.drop_service import RETRIES, DropService
from nnunet_octreenca.prediction.earlier import Destination
from nnunet_octreenca.prediction.folder import Run, predict
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.service_files import EventLog
from nnunet_octreenca.result_record import RECORDS

POLL = 5.0


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "rgb", steps=2)


@pytest.fixture(scope="module")
def model(model_path):
    return load_model(model_path)


@pytest.fixture
def place(tmp_path):
    """The folders, two pictures and a damaged one in the first."""
    place = SimpleNamespace(
        inputs=tmp_path / "in", out=tmp_path / "out", log=tmp_path / "events.jsonl"
    )
    place.inputs.mkdir()
    for seed, name in enumerate("ab"):
        picture(place.inputs / f"{name}.png", seed)
    (place.inputs / "bad.png").write_bytes(b"\x89PNG")
    return place


def picture(path, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 44, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def serve(place, model, *, during=None, seconds=60.0, options=None, formats=None):
    """Let the service run for some seconds of its own clock.

    Args:
        during: {second: what happens then}.

    Returns:
        the events of this run.
    """
    stop, now, due = threading.Event(), [0.0], sorted((during or {}).items())
    before = len(events(place))

    def pause(step):
        now[0] += step
        while due and due[0][0] <= now[0]:
            due.pop(0)[1]()
        if now[0] >= seconds:
            stop.set()

    run = Run(model, Destination(place.out, formats, resume=True), options or Options(mirror=False))
    clock = {"clock": lambda: now[0]}
    folder = DropFolder(
        place.inputs, channels=3, output=place.out, settle=10, close_after=30, **clock
    )
    DropService(
        run, folder, EventLog(place.log), stop=stop, poll=POLL, pause=pause, **clock
    ).serve()
    return events(place)[before:]


def events(place):
    if not place.log.exists():
        return []
    return [json.loads(line) for line in place.log.read_text().splitlines()]


def said(found, *kinds):
    return [(event["event"], event.get("case")) for event in found if event["event"] in kinds]


def outcomes(found):
    return said(found, "done", "failed", "retry", "busy", "gone")


def note(place, name="bad.png"):
    return json.loads((place.out / "failed" / f"{name}.json").read_text())


def health(place):
    return json.loads((place.out / "health.json").read_text())


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_arrives_is_segmented_as_predict_does(place, model, tmp_path):
    before = {path.name: path.read_bytes() for path in place.inputs.iterdir()}
    found = serve(place, model)
    assert outcomes(found) == [("done", "a"), ("done", "b"), ("failed", "bad")]
    assert (found[0]["event"], found[-1]["event"]) == ("started", "stopped")
    assert all(event["time"].endswith("+00:00") for event in found)
    assert note(place)["sentence"].startswith(f"{place.inputs / 'bad.png'} ")
    assert "Traceback" in note(place)["traceback"]
    assert {path.name: path.read_bytes() for path in place.inputs.iterdir()} == before
    expected = predict(place.inputs, tmp_path / "plain", model, mirror=False)
    labels = {event["case"]: event["labels_sha256"] for event in found if event["event"] == "done"}
    assert labels == {case.case: case.labels_sha256 for case in expected.done}
    own = {"health.json", "failed/bad.png.json"}
    assert files_of(place.out) == files_of(tmp_path / "plain") | own


def test_the_health_file(place, model, monkeypatch):
    states = []
    monkeypatch.setattr(
        drop_service.HealthFile, "update",
        lambda self, _stock=drop_service.HealthFile.update, **values: (
            _stock(self, **values), states.append(health(place)["state"]),
        ),
    )  # fmt: skip
    serve(place, model)
    assert states[:2] == ["idle", "segmenting"]
    assert set(states) == {"idle", "segmenting", "stopped"}
    found = health(place)
    assert found["state"] == "stopped"
    assert found["counts"] == {"done": 2, "failed": 1, "finished_before": 0, "failed_before": 0}
    assert found["last"]["case"] == "bad"
    assert found["last"]["outcome"] == "failed"
    assert found["current"] is None
    assert found["memory_bytes"] > 1e7
    assert found["open_handles"] >= 3
    assert found["pid"] == os.getpid()


def test_a_service_without_work_is_idle(place, model):
    states = []
    shutil.rmtree(place.inputs)
    place.inputs.mkdir()
    serve(place, model, during={20: lambda: states.append(health(place)["state"])})
    assert states == ["idle"]
    assert outcomes(events(place)) == []


def test_notes_of_images_that_went_are_not_looked_at(place, model, monkeypatch):
    """They stay in `failed`, where they may become many; each look would ask for all."""
    looks = []
    stock = drop_service.note_path
    monkeypatch.setattr(
        drop_service, "note_path", lambda out, name: (looks.append(name), stock(out, name))[1]
    )
    serve(place, model, during={20: (place.inputs / "bad.png").unlink, 30: looks.clear})
    assert looks == []
    assert note(place)["case"] == "bad"


def test_the_health_file_is_renewed_while_a_case_takes_long(tmp_path):
    with drop_service.HealthFile(tmp_path / "health.json", {}, every=0.02):
        first = (tmp_path / "health.json").stat().st_mtime_ns
        until = time.monotonic() + 20
        while (tmp_path / "health.json").stat().st_mtime_ns == first:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]


def test_a_restart_repeats_nothing_not_even_what_was_fetched(place, model):
    serve(place, model)
    (place.out / "a.png").unlink()
    found = serve(place, model)
    assert outcomes(found) == []
    assert health(place)["counts"] == {
        "done": 0, "failed": 0, "finished_before": 2, "failed_before": 1,
    }  # fmt: skip
    assert not (place.out / "a.png").exists()


def test_a_half_case_is_done_again_after_a_restart(place, model, monkeypatch):
    (place.inputs / "bad.png").unlink()
    stock = case_module.write_overlay

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(case_module, "write_overlay", dies)
    with pytest.raises(KeyboardInterrupt):
        serve(place, model)
    assert not (place.out / "overlays").exists()
    monkeypatch.setattr(case_module, "write_overlay", stock)
    assert outcomes(serve(place, model)) == [("done", "a"), ("done", "b")]


def test_a_failed_case_is_tried_again_when_its_file_changes(place, model):
    (place.inputs / "a.png").unlink()
    (place.inputs / "b.png").unlink()
    repair = {20: lambda: picture(place.inputs / "bad.png")}
    assert outcomes(serve(place, model, during=repair)) == [("failed", "bad"), ("done", "bad")]
    assert list((place.out / "failed").iterdir()) == []


def test_a_failed_case_is_tried_again_when_its_note_is_removed(place, model):
    path = place.out / "failed" / "bad.png.json"
    found = serve(place, model, during={30: path.unlink})
    assert said(found, "failed") == [("failed", "bad")] * 2
    assert outcomes(serve(place, model)) == []
    path.unlink()
    assert outcomes(serve(place, model)) == [("failed", "bad")]


def test_what_may_pass_is_tried_again(place, model, monkeypatch):
    (place.inputs / "bad.png").unlink()
    stock, calls = case_module.open_channels, []

    def away(files, **kwargs):
        if files[0].name == "a.png":
            calls.append(1)
            if len(calls) < 3 or len(calls) > 4:
                raise TimeoutError(110, "Connection timed out")
        return stock(files, **kwargs)

    monkeypatch.setattr(case_module, "open_channels", away)
    found = serve(place, model, seconds=sum(RETRIES) + 100)
    assert outcomes(found) == [("retry", "a"), ("done", "b"), ("retry", "a"), ("done", "a")]
    picture(place.inputs / "a.png", 9)
    calls += [1] * 3
    found = serve(place, model, seconds=sum(RETRIES) + 100)
    assert outcomes(found) == [("retry", "a")] * 3 + [("failed", "a")]
    assert "Connection timed out" in note(place, "a.png")["sentence"]


def test_another_run_at_a_case_is_waited_for(place, model):
    lock = FolderLock(place.out / RECORDS, "a prediction", name="a.lock").acquire()
    found = serve(place, model, during={20: lock.release}, seconds=100)
    assert outcomes(found)[:2] == [("busy", "a"), ("done", "b")]
    assert outcomes(found)[-1] == ("done", "a")


def test_two_images_of_one_name_are_not_mixed(place, model):
    Image.open(place.inputs / "b.png").save(place.inputs / "a.tif")
    found = serve(place, model)
    assert ("done", "a") in outcomes(found)
    assert "would replace the results of a.png" in note(place, "a.tif")["sentence"]
    assert said(serve(place, model), "done", "failed") == []


def test_an_image_that_went_is_no_failure(place, model):
    found = serve(
        place, model, during={10: lambda: [(place.inputs / f"{n}.png").unlink() for n in "ab"]}
    )
    assert outcomes(found) == [("failed", "bad")]


def test_a_drop_folder_that_is_away_for_a_while(place, model):
    away = place.inputs.with_name("away")
    found = serve(
        place,
        model,
        during={5: lambda: place.inputs.rename(away), 25: lambda: away.rename(place.inputs)},
    )
    (blocked,) = (event for event in found if event["event"] == "blocked")
    assert blocked["state"] == "input unreachable"
    assert said(found, "unblocked", "done") == [("unblocked", None), ("done", "a"), ("done", "b")]


def test_a_full_disk_fails_no_case(place, model, monkeypatch):
    free = [1 << 20]
    monkeypatch.setattr(drop_service, "free_disk", lambda folder: free[0])
    found = serve(place, model, during={40: lambda: free.__setitem__(0, 1 << 40)}, seconds=90)
    (blocked,) = (event for event in found if event["event"] == "blocked")
    assert "has 1 MB left; free disk space" in blocked["problem"]
    assert outcomes(found) == [("done", "a"), ("done", "b"), ("failed", "bad")]


def test_a_case_that_kills_the_program_is_given_up(place, model):
    """As a crash leaves it: the case is in the file, and no record of it."""
    from nnunet_octreenca.hashes import stamp

    taken = place.out / RECORDS / ".taken.json"
    taken.parent.mkdir(parents=True)
    path = place.inputs / "a.png"
    taken.write_text(json.dumps({"a.png": [stamp([path]), 2], "b.png": ["of other files", 2]}))
    found = serve(place, model)
    assert outcomes(found) == [("failed", "a"), ("done", "b"), ("failed", "bad")]
    assert "the program died 2 times while it segmented a.png" in note(place, "a.png")["sentence"]
    assert not taken.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_killed_service_knows_what_it_was_at(place, model, monkeypatch):
    def dies(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(case_module, "open_channels", dies)
        serve(place, model)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    taken = json.loads((place.out / RECORDS / ".taken.json").read_text())
    assert {name: times for name, (_, times) in taken.items()} == {"a.png": 1}
    assert outcomes(serve(place, model)) == [("done", "a"), ("done", "b"), ("failed", "bad")]


def test_one_service_a_folder(place, model):
    with (
        FolderLock(place.out / RECORDS, "`predict --watch`", name=".watch.lock"),
        pytest.raises(LockedError, match="is in use by `predict --watch`"),
    ):
        serve(place, model)


def test_results_of_another_model_are_not_mixed(place, model, tmp_path):
    serve(place, model)
    with pytest.raises(OutputError, match=r"another model or other options \(seeds was \[0\]"):
        serve(place, model, options=Options(mirror=False, seeds=[3]))
    other = load_model(model_folder(tmp_path / "other", folds=("1",), steps=3))
    with pytest.raises(OutputError, match="another model"):
        serve(place, other)


def test_nothing_is_held_of_the_cases(place, model, monkeypatch):
    runs = []
    monkeypatch.setattr(
        Run, "forget", lambda run, _stock=Run.forget: (_stock(run), runs.append(run))
    )
    serve(place, model)
    assert len(runs) == 3
    assert not any(run.done or run.failed or run.before or run.left_out for run in runs)


def test_a_day_of_traffic(tmp_path):
    """24 hours on the service's own clock; `benchmarks/watch_endurance.py` sends more cases."""
    with watch_endurance.endured(60, 24, tmp_path) as (day, found):
        measured = watch_endurance.result(day, found, 60)
    assert measured["faults"] == []
    assert (measured["done"], measured["failed"]) == (60, 2)
    assert measured["handles_growth"] <= 0
    assert measured["memory_growth_bytes"] < 20e6
    threads = {sample["threads"] for sample in measured["samples"]}
    assert len(threads) == 1
    assert said(found, "started", "stopped") == [("started", None), ("stopped", None)] * 2


# ---------------------------------------------------------------------- the command


def command(place, model_path, *flags):
    given = ["-m", model_path, "-i", place.inputs, "-o", place.out, "-device", "cpu", "--watch"]
    return main(["predict", *map(str, given), "--disable_tta", *flags])


def in_the_main_thread(number, when):
    """Send this process a signal as soon as something is so."""

    def wait():
        until = time.monotonic() + 500
        while not when() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command(place, model_path, capsys, number):
    in_the_main_thread(number, lambda: (place.out / "failed" / "bad.png.json").exists())
    assert command(place, model_path, "--settle", "0.05", "--close-after", "0.1") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert outcomes(found) == [("done", "a"), ("done", "b"), ("failed", "bad")]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_folders_by_url(place, model_path, capsys):
    in_the_main_thread(signal.SIGTERM, lambda: (place.out / "failed" / "bad.png.json").exists())
    places = SimpleNamespace(inputs=place.inputs.as_uri(), out=place.out.as_uri())
    assert command(places, model_path, "--settle", "0.05", "--log", str(place.log)) == 0
    assert outcomes(events(place)) == [("done", "a"), ("done", "b"), ("failed", "bad")]
    assert (place.out / "a.png").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_during_a_case_ends_it_between_two_bands(place, model_path, monkeypatch):
    stock, bands = case_module.Segmentation.run, []

    def run(self, progress=None):
        def watched(stage, units):
            if stage == "segment":
                bands.append(units)
                os.kill(os.getpid(), signal.SIGTERM)
            progress(stage, units)

        return stock(self, watched)

    monkeypatch.setattr(case_module.Segmentation, "run", run)
    assert command(place, model_path, "--settle", "0.05", "--band", "8",
                   "--log", str(place.log)) == 0  # fmt: skip
    assert len(bands) == 1
    assert said(events(place), "done", "failed", "stopped") == [("stopped", "a"), ("stopped", None)]
    assert files_of(place.out) == {"health.json"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_with_a_child_process(place, model_path):
    in_the_main_thread(signal.SIGTERM, lambda: (place.out / "failed" / "bad.png.json").exists())
    log = ("--settle", "0.05", "--isolate", "--log", str(place.log))
    assert command(place, model_path, *log) == 0
    assert outcomes(events(place)) == [("done", "a"), ("done", "b"), ("failed", "bad")]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--overwrite"], "--overwrite is for runs that end"),
        (["--report", "run.json"], "--report is for runs that end"),
        (["--settle", "0"], "settle (0.0) must be a number of seconds above 0"),
        (["--close-after", "nan"], "close_after (nan) must be a number of seconds above 0"),
        (["--log", "."], ". cannot be written to"),
    ],
)
def test_flags_that_do_not_fit(place, model_path, capsys, flags, sentence):
    assert command(place, model_path, *flags) == 1
    assert f"ERROR: {sentence}" in capsys.readouterr().err
    assert not place.out.exists()


@pytest.mark.parametrize("flag", ["--settle", "--close-after", "--log"])
def test_flags_of_the_service_need_it(place, model_path, capsys, flag):
    given = ["-m", str(model_path), "-i", str(place.inputs), "-o", str(place.out), flag, "3"]
    assert main(["predict", *given]) == 1
    assert f"ERROR: {flag} needs --watch" in capsys.readouterr().err


def test_a_file_is_no_drop_folder(place, model_path, capsys):
    place.inputs /= "a.png"
    assert command(place, model_path) == 1
    assert "is no folder; give the one that files are dropped into" in capsys.readouterr().err


def test_an_output_that_is_a_file(place, model_path, capsys):
    place.out.write_text("")
    assert command(place, model_path) == 1
    assert "cannot be locked" in capsys.readouterr().err


def test_the_log_is_not_needed_to_go_on(tmp_path):
    log = EventLog(tmp_path / "logs" / "events.jsonl")
    log("one", case="ä")
    (tmp_path / "logs" / "events.jsonl").rename(tmp_path / "logs" / "events.jsonl.1")  # rotated
    log("two")
    (line,) = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "two"
    shutil.rmtree(tmp_path / "logs")
    log("three")  # the disk is away
    with pytest.raises(OutputError, match="give another --log"):
        EventLog(tmp_path)
