"""Workers that are SLURM jobs, with stand-ins for SLURM's commands that run the jobs here."""

import _thread
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import yaml
from helpers.clusters import running, wait_until

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.cluster.address import connected
from nnunet_octreenca.cluster.journal import run_path
from nnunet_octreenca.cluster.slurm import import_jobqueue
from nnunet_octreenca.errors import EnvironmentMismatchError

NAMES = ("a", "b")
SBATCH = """#!/bin/sh
n=1
while ! mkdir "$STAND_IN/job$n" 2>/dev/null; do n=$((n + 1)); done
job="$STAND_IN/job$n"
cp "$1" "$job/script"
if [ -f "$STAND_IN/most" ] && [ "$n" -gt "$(cat "$STAND_IN/most")" ]; then
    cat "$STAND_IN/refusal" >&2
    exit 1
fi
if [ ! -f "$STAND_IN/busy" ]; then
    setsid sh "$job/script" > "$job/output" 2>&1 < /dev/null &
    echo $! > "$job/process"
fi
echo "Submitted batch job $n"
"""
SCANCEL = """#!/bin/sh
touch "$STAND_IN/job$1/cancelled"
if [ -f "$STAND_IN/job$1/process" ]; then kill -TERM -- "-$(cat "$STAND_IN/job$1/process")"; fi
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """SLURM's folder of jobs, and a description of small jobs."""
    programs, jobs, config = tmp_path / "bin", tmp_path / "jobs", tmp_path / "jobs.yml"
    programs.mkdir()
    jobs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN", str(jobs))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    description = {"cores": 1, "job_cpu": 4, "processes": 1, "memory": "3GB", "queue": "normal",
                   "walltime": "00:10:00", "death_timeout": 300, "nanny": False,
                   "scheduler_options": {"host": "127.0.0.1"}}  # fmt: skip
    config.write_text(yaml.safe_dump(description))
    yield SimpleNamespace(jobs=jobs, config=config, programs=programs)
    for process in processes(jobs):
        wait_until(lambda process=process: not running(process))


def processes(jobs):
    return [int(path.read_text()) for path in jobs.glob("job*/process")]


def cancelled(jobs):
    return sorted(path.parent.name for path in jobs.glob("job*/cancelled"))


def arguments(model_path, source, out, slurm):
    given = ["-m", model_path, "-i", source, "-o", out, "--disable_tta", "-device", "cpu"]
    return ["predict", *map(str, given), "--dask", "slurm:2", "--dask-config", str(slurm.config)]


@pytest.mark.slow
def test_two_jobs_segment_an_archive_and_are_cancelled(
    slurm, pictures, model_path, same_as_one_process, tmp_path, capsys
):
    source = pictures(*NAMES)
    given = arguments(model_path, source, tmp_path / "out", slurm)
    assert main(given) == 0, capsys.readouterr().err
    assert "2 done" in capsys.readouterr().out
    assert same_as_one_process(source) == len(NAMES)
    assert cancelled(slurm.jobs) == ["job1", "job2"]
    for name in ("job1", "job2"):
        script = (slurm.jobs / name / "script").read_text()
        for line in ("-p normal", "--cpus-per-task=4", "--mem=3G", "-t 00:10:00"):
            assert f"#SBATCH {line}\n" in script
        assert "--nthreads 1 " in script
    for process in processes(slurm.jobs):
        wait_until(lambda process=process: not running(process))


def test_ctrl_c_takes_jobs_from_the_queue(slurm, pictures, model_path, tmp_path, capsys):
    (slurm.jobs / "busy").touch()

    def interrupt():
        wait_until(lambda: len(list(slurm.jobs.glob("job*/script"))) == 2)
        wait_until(run_path(tmp_path / "out").exists)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    given = arguments(model_path, pictures(*NAMES), tmp_path / "out", slurm)
    assert main(given) == 130
    thread.join()
    assert "interrupted" in capsys.readouterr().err
    assert cancelled(slurm.jobs) == ["job1", "job2"]
    assert not run_path(tmp_path / "out").exists(), "nothing was begun"


def test_a_refused_job_ends_all_with_a_sentence(slurm):
    refusal = "sbatch: error: invalid partition specified: normal\nsbatch: error: Batch job failed"
    (slurm.jobs / "refusal").write_text(refusal)
    (slurm.jobs / "busy").touch()
    (slurm.jobs / "most").write_text("1")
    said = (
        r"SLURM took 1 of 2 jobs \(sbatch: error: invalid partition specified: normal; .*jobs\.yml"
    )
    with pytest.raises(EnvironmentMismatchError, match=said), connected("slurm:2", slurm.config):
        pass
    assert cancelled(slurm.jobs) == ["job1"]


def test_ctrl_c_and_sigterm_stay_what_they_are(monkeypatch):
    """The import of dask-jobqueue makes Ctrl-C end the process with exit code 0."""
    for name in [name for name in sys.modules if name.split(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    import_jobqueue()
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_machine_without_slurm(slurm, pictures, model_path, tmp_path, capsys):
    (slurm.programs / "sbatch").unlink()
    given = arguments(model_path, pictures(*NAMES), tmp_path / "out", slurm)
    assert main(given) == 1
    said = capsys.readouterr().err
    assert (
        "ERROR: jobs cannot be submitted, for there is no `sbatch`; run this on a machine" in said
    )
    assert "Traceback" not in said
