"""Workers that are jobs of a real SLURM, with one node on this machine."""

import _thread
import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import helpers
import psutil
import pyarrow.parquet
import pytest
import yaml
from helpers.clusters import running, shared, wait_until
from helpers.slurm import no_slurm

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.cluster import jobs
from nnunet_octreenca.cluster.attempts import attempts_name

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(bool(no_slurm()), reason=no_slurm()),
]
HELD = Path(helpers.__file__).with_name("held.py")
CLIENT = "import sys; from nnunet_octreenca.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def slurm(controller, tmp_path, monkeypatch):
    """SLURM, a description of small jobs, and what keeps cases from ending."""
    hold, config = tmp_path / "hold", tmp_path / "jobs.yml"
    hold.touch()
    monkeypatch.setenv(*controller.environment)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOLD", str(hold))
    monkeypatch.setattr(jobs, "INTERVAL", 1.0)
    monkeypatch.chdir(tmp_path)

    def describe(**more):
        description = {"cores": 1, "processes": 1, "memory": "3GB", "walltime": "00:10:00",
                       "scheduler_options": {"host": "127.0.0.1"},
                       "worker_extra_args": ["--preload", str(HELD)]}  # fmt: skip
        config.write_text(yaml.safe_dump({**description, **more}))

    describe()
    yield SimpleNamespace(
        controller=controller, hold=hold, config=config, describe=describe, out=tmp_path / "out"
    )
    controller.run("scontrol", "update", f"nodename={node(controller)}", "state=resume")
    controller.empty()


def node(controller):
    return controller.run("sinfo", "--noheader", "--format=%n")


@pytest.fixture
def arguments(slurm, model_path):
    """What `nnunet_octreenca` is given for a folder and a number of jobs."""

    def of(source, number, *more):
        given = ["-m", model_path, "-i", source, "-o", slurm.out, "--disable_tta", "-device", "cpu"]
        dask = ["--dask", f"slurm:{number}", "--dask-config", slurm.config]
        return ["predict", *map(str, given), *map(str, dask), *more]

    return of


@contextmanager
def meanwhile(slurm, action):
    """Something is done beside the client; afterwards, or if it fails, no case is held."""
    failures = []

    def act():
        try:
            action()
        except BaseException as error:
            failures.append(error)
        finally:
            slurm.hold.unlink(missing_ok=True)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    yield
    thread.join()
    assert not failures, failures


def attempts(slurm, case):
    """Those at a case, as they are noted."""
    try:
        return json.loads(shared(slurm.out, attempts_name(case)).read_text())
    except (OSError, ValueError):  # none, or just being written
        return []


def job_of(slurm, case):
    """The job that is at a case."""
    wait_until(lambda: attempts(slurm, case))
    return psutil.Process(attempts(slurm, case)[-1]["process"]).environ()["SLURM_JOB_ID"]


def gone(slurm):
    wait_until(lambda: not slurm.controller.jobs())
    return True


def test_two_jobs_segment_a_folder(
    slurm, arguments, pictures, same_as_one_process, tmp_path, capsys
):
    source = pictures("a", "b", "c", "d")
    assert main(arguments(source, 2, "--report", "run.json")) == 0, capsys.readouterr().err
    assert "4 done" in capsys.readouterr().out
    assert gone(slurm)
    assert same_as_one_process(source) == 4
    table = pyarrow.parquet.read_table(tmp_path / "run.parquet").to_pylist()
    assert len(table) == 4
    assert {slurm.controller.state(row["job"]) for row in table} == {"CANCELLED"}


def test_ctrl_c_ends_the_jobs(slurm, arguments, pictures, capsys):
    def interrupt():
        for case in ("held_a", "held_b"):
            job_of(slurm, case)
        _thread.interrupt_main()
        wait_until(lambda: not slurm.controller.jobs("R"))  # still held

    with meanwhile(slurm, interrupt):
        assert main(arguments(pictures("held_a", "held_b"), 2)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert gone(slurm)
    assert not list(slurm.out.glob("*.png"))


def test_jobs_end_when_their_client_was_killed(
    slurm, arguments, pictures, same_as_one_process, capsys
):
    source = pictures("held_a", "held_b")
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *arguments(source, 2)])
    try:
        numbers = {job_of(slurm, case) for case in ("held_a", "held_b")}
    finally:
        client.kill()
        client.wait()
    assert gone(slurm)
    assert {slurm.controller.state(number) for number in numbers} <= {"COMPLETED", "FAILED"}
    slurm.hold.unlink()
    assert main(arguments(source, 1, "--continue")) == 0, capsys.readouterr().err
    assert same_as_one_process(source) == 2


def test_a_job_that_starts_when_its_client_has_gone_ends(slurm, arguments, pictures):
    slurm.describe(death_timeout=5)
    drain(slurm.controller)
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *arguments(pictures("a"), 1)])
    try:
        wait_until(lambda: slurm.controller.jobs("PD"))
    finally:
        client.kill()
        client.wait()
    (number,) = slurm.controller.jobs()
    slurm.controller.run("scontrol", "update", f"nodename={node(slurm.controller)}", "state=resume")
    assert gone(slurm)
    assert slurm.controller.state(number) == "FAILED"


def drain(controller):
    command = ("scontrol", "update", f"nodename={node(controller)}", "state=drain", "reason=test")
    controller.run(*command)


def cancel(controller, job):
    controller.run("scancel", job)


def terminate(controller, job):
    controller.run("scancel", "--signal=TERM", "--full", job)


def requeue(controller, job):
    controller.run("scontrol", "requeue", job)
    wait_until(lambda: controller.state(job) == "PENDING")
    controller.run("scontrol", "update", f"jobid={job}", "StartTime=now")


@pytest.mark.parametrize(
    ("end", "interval", "said"),
    [
        (cancel, 1, r"SLURM job {job} has ended \(CANCELLED\), and is not submitted again"),
        (
            terminate,
            1,
            r"SLURM job {job} has ended \((FAILED|COMPLETED)\); job \d+ takes its place",
        ),
        # SLURM calls a job that it puts back FAILED for some seconds; two looks must not fall into
        # them, nor do they with the 20 s of users.
        (
            requeue,
            8,
            r"(?s)^(?!.*takes its place)(.*1 of 2 jobs wait in SLURM's queue \(BeginTime\)|$)",
        ),
    ],
)
def test_a_case_whose_job_is_ended_is_done_elsewhere(
    end, interval, said, slurm, arguments, pictures, same_as_one_process, monkeypatch, capsys
):
    monkeypatch.setattr(jobs, "INTERVAL", interval)
    found = {}

    def act():
        found["job"] = job = job_of(slurm, "held_a")
        (attempt,) = attempts(slurm, "held_a")
        end(slurm.controller, job)
        wait_until(lambda: not running(attempt["process"]))
        noted = [
            each for each in attempts(slurm, "held_a") if each["process"] == attempt["process"]
        ]
        assert [each["excused"] for each in noted] == [True]
        if end is terminate:
            # With one job and two cases left, another one is submitted.
            wait_until(lambda: len(slurm.controller.jobs()) == 2)
        sleep(3 * interval + 1)  # two looks, each of which may take a second

    source = pictures("held_a", "held_b", "c")
    with meanwhile(slurm, act):
        assert main(arguments(source, 2)) == 0, capsys.readouterr().err
    assert re.search(said.format(**found), capsys.readouterr().err)
    assert gone(slurm)
    assert same_as_one_process(source) == 3


def test_a_job_at_its_time_limit_is_submitted_again(
    slurm, arguments, pictures, same_as_one_process, capsys
):
    found = {}

    def act():
        found["job"] = job_of(slurm, "held_a")
        # Not from the beginning: a busy machine may take a minute to start a worker.
        slurm.controller.run("scontrol", "update", f"jobid={found['job']}", "TimeLimit=1")
        wait_until(lambda: slurm.controller.state(found["job"]) == "TIMEOUT")
        assert attempts(slurm, "held_a")[0]["excused"]

    source = pictures("held_a")
    with meanwhile(slurm, act):
        assert main(arguments(source, 1)) == 0, capsys.readouterr().err
    said = rf"SLURM job {found['job']} has ended \(TIMEOUT\); job \d+ takes its place"
    assert re.search(said, capsys.readouterr().err)
    assert gone(slurm)
    assert same_as_one_process(source) == 1


def test_jobs_that_never_start(slurm, arguments, pictures, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_octreenca_wait_limit", "15")
    drain(slurm.controller)
    assert main(arguments(pictures("a"), 2)) == 1
    said = capsys.readouterr().err
    assert "2 of 2 jobs wait in SLURM's queue (" in said
    assert "ERROR: no worker has come to the scheduler in 15 s; 2 of 2 jobs wait in SLURM" in said
    assert gone(slurm)


def test_jobs_that_end_at_once(slurm, arguments, pictures, capsys):
    slurm.describe(python="/bin/false")
    assert main(arguments(pictures("a"), 1)) == 1
    said = capsys.readouterr().err
    assert said.count("takes its place") == jobs.FRUITLESS - 1
    assert re.search(r"ERROR: no job is left: look at what job \d+ wrote \(slurm-\d+\.out\)", said)
    assert gone(slurm)


def test_a_queue_that_a_user_may_not_use(slurm, arguments, pictures, capsys):
    slurm.describe(queue="gold")
    assert main(arguments(pictures("a"), 2)) == 1
    assert re.search("SLURM took 0 of 2 jobs .*invalid partition", capsys.readouterr().err)


def test_signals_are_as_they_were():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
