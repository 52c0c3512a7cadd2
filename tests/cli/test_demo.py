"""`nnunet_octreenca demo`: the whole pipeline once, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nnunet_octreenca.child_process import CommandError, find_script, run_child
from nnunet_octreenca.cli import demo_report
from nnunet_octreenca.cli.demo import child_environment
from nnunet_octreenca.cli.demo_progress import TrainingProgress
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.integration.register import TRAINER_SHIMS, shims

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    before = [(shim.target, shim.state) for shim in shims()]
    folder = tmp_path / "the demo"
    done = subprocess.run(
        [find_script("nnunet_octreenca"), "demo", "-o", folder, "--minutes", "0.1"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(folder / "overlay.png") in done.stdout
    assert "nnunet_octreenca register" in done.stdout
    assert [(shim.target, shim.state) for shim in shims()] == before

    report = json.loads((folder / "report.json").read_text())
    assert report["minutes"] == 0.1
    cases = {file.name for file in (folder / "nnUNet_raw").glob("*/labelsTs/*.nii.gz")}
    assert len(cases) == 6
    ours, stock = report["networks"]["OctreeNCA"], report["networks"]["nnU-Net"]
    assert ours["parameters"] == 14_080
    assert stock["parameters"] > 10 * ours["parameters"]
    for name, network in report["networks"].items():
        predictions = folder / "predictions" / name
        assert {file.name for file in predictions.glob("*.nii.gz")} == cases
        assert len(network["cases"]) == len(cases)
        assert network["iterations"] > 0
        # A whole validation epoch may pass before the clock is looked at again.
        assert 6 <= network["training_seconds"] < 60
        for label in ("organ", "lesion"):
            per_case = [case[label] for case in network["cases"].values()]
            assert network["dice"][label] == pytest.approx(np.mean(per_case))
        if hasattr(os, "wait4"):
            assert 1e8 < network["training_peak_bytes"] < 1e10
    # The picture is as large as it should be, and not of one colour.
    content = (folder / "overlay.png").read_bytes()
    assert content.startswith(PNG)
    size = [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)]
    inches, dpi = demo_report.PICTURE_INCHES, demo_report.PICTURE_DPI
    assert size == [round(length * dpi) for length in inches]
    assert len(content) > 50_000
    logs = sorted(file.name for file in (folder / "logs").iterdir())
    assert logs == [
        "02_plan_and_preprocess.log",
        "03_extend_plans.log",
        "04_train_OctreeNCA.log",
        "05_train_nnU-Net.log",
        "06_predict_OctreeNCA.log",
        "07_predict_nnU-Net.log",
    ]
    assert not list(folder.glob(".*"))


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "-o", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ERROR: {tmp_path} exists and is not an empty folder")
    assert "-o FOLDER" in error
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "-o", str(tmp_path / "file" / "demo")]) == 1
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert "-o FOLDER" in error


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_must_be_above_zero(
    minutes: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["demo", "-o", str(tmp_path / "demo"), f"--minutes={minutes}"]) == 1
    assert f"--minutes ({float(minutes):g})" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_environment_leaves_the_users_nnunet_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", "/the/users/own")
    monkeypatch.setenv("nnUNet_def_n_proc", "7")
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    before = dict(os.environ)
    environment = child_environment(tmp_path, 2.0)
    assert dict(os.environ) == before
    for name in ("raw", "preprocessed", "results"):
        assert environment[f"nnUNet_{name}"] == str(tmp_path / f"nnUNet_{name}")
    assert environment["nnUNet_extTrainer"] == str(TRAINER_SHIMS)
    assert environment["nnUNet_def_n_proc"] == "7"
    assert environment["nnUNet_n_proc_DA"] in ("1", "2")
    assert environment["nnUNet_octreenca_minutes"] == "2.0"


def test_child_tells_lines_seconds_and_memory(tmp_path: Path) -> None:
    code = "x = bytearray(200_000_000); print('grün'); print('no newline', end='')"
    lines: list[str] = []
    log = tmp_path / "child.log"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = run_child(
        [sys.executable, "-c", code], log=log, environment=environment, on_line=lines.append
    )
    assert lines == ["grün"]
    assert log.read_text(encoding="utf-8") == "grün\nno newline"
    assert 0 < done.seconds < 30
    if hasattr(os, "wait4"):
        assert done.peak_bytes is not None
        assert 2e8 < done.peak_bytes < 1e9


def test_child_that_fails_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    code = "import sys; print('why it failed'); sys.exit(3)"
    with pytest.raises(CommandError, match=r"exit code 3.*child\.log") as caught:
        run_child([sys.executable, "-c", code], log=log, environment=os.environ)
    assert caught.value.last_lines == "why it failed"


def test_scripts_are_found_or_named() -> None:
    assert Path(find_script("nnUNetv2_train")).is_file()
    with pytest.raises(EnvironmentMismatchError, match="nnUNetv2_no_such_thing"):
        find_script("nnUNetv2_no_such_thing")


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_all_processes(number: signal.Signals, tmp_path: Path) -> None:
    # A child with a grandchild that ignores SIGTERM, and the demo's way to run them.
    grandchild = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    )
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}]); "
        "print('ended')"
    )
    parent = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from nnunet_octreenca import child_process as child\n"
        "child.GRACE_SECONDS = 0.5\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with child.ends_like_ctrl_c():\n"
        f"    child.run_child([sys.executable, '-c', {child!r}],\n"
        f"        log=Path({str(tmp_path / 'log')!r}), environment=os.environ)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE)
    pid_file, patience = tmp_path / "pid", time.monotonic() + 30
    while not (pid_file.is_file() and pid_file.read_text()):
        assert time.monotonic() < patience
        time.sleep(0.05)
    running.send_signal(number)
    _, error = running.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(int(pid_file.read_text()))


def _wait_until_gone(pid: int) -> None:
    for _ in range(100):  # an orphan's new parent may take a moment to reap it
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").is_file() and ") Z " in Path(f"/proc/{pid}/stat").read_text():
            raise ProcessLookupError
        time.sleep(0.05)


def test_training_is_followed_by_its_output() -> None:
    progress = TrainingProgress(minutes=1)
    assert progress.state() == (None, "starting")
    progress.read("Using device: cpu")
    share, said = progress.state()
    assert share == pytest.approx(0, abs=0.05)
    assert said == ""
    for line in (
        "2026-01-01 10:00:00.000001: Epoch 0 ",
        "2026-01-01 10:00:00.000001: Pseudo dice [np.float32(0.1234), np.float32(0.0)] ",
        "2026-01-01 10:00:00.000001: Epoch 1 ",
        "2026-01-01 10:00:00.000001: Epoch time: 5.1 s ",
    ):
        progress.read(line)
    assert progress.state()[1] == "epoch 0, pseudo Dice 0.12 0.00"
    progress.read("2026-01-01 10:00:00.000001: Pseudo dice [np.float32(0.5), nan] ")
    assert progress.state()[1] == "epoch 1, pseudo Dice 0.50 nan"
    progress.read("2026-01-01 10:00:00.000001: time budget over: 321 iterations in 61 s ")
    assert progress.state() == (1.0, "validating; epoch 1, pseudo Dice 0.50 nan")
    assert (progress.iterations, progress.seconds) == (321, 61)


def test_dice_by_hand() -> None:
    truth = np.array([[1, 1, 2], [0, 0, 2]], np.uint8)
    prediction = np.array([[1, 0, 2], [1, 0, 0]], np.uint8)
    assert demo_report.dice(truth, prediction, 1) == pytest.approx(2 * 1 / (2 + 2))
    assert demo_report.dice(truth, prediction, 2) == pytest.approx(2 * 1 / (2 + 1))
    assert demo_report.dice(truth, prediction, 3) is None


def test_parameters_are_counted_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.zeros(3, 4)
    saved = {
        "network_weights": {"encoder.w": weight, "decoder.encoder.w": weight, "b": weight[0] + 0}
    }
    torch.save(saved, tmp_path / "checkpoint.pth")
    assert demo_report.count_parameters(tmp_path / "checkpoint.pth") == 12 + 4
