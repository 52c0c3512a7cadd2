"""Workers that are SLURM jobs, with stand-ins for SLURM's commands that run the jobs here."""

import _thread
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import yaml
from helpers.clusters import running, shared, wait_until

import nnunet_octreenca
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.cluster import jobs, slurm
from nnunet_octreenca.cluster.address import connected
from nnunet_octreenca.cluster.attempts import attempts_name
from nnunet_octreenca.cluster.journal import RUN
from nnunet_octreenca.cluster.slurm import import_jobqueue
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError

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
    SLURM_JOB_ID=$n setsid sh "$job/script" > "$job/output" 2>&1 < /dev/null &
    echo $! > "$job/process"
fi
echo "Submitted batch job $n"
"""
SCANCEL = """#!/bin/sh
touch "$STAND_IN/job$1/cancelled"
if [ -f "$STAND_IN/job$1/process" ]; then kill -TERM -- "-$(cat "$STAND_IN/job$1/process")"; fi
"""
SQUEUE = """#!/bin/sh
for job in "$STAND_IN"/job*; do
    state="RUNNING|None"
    if [ -f "$STAND_IN/busy" ]; then state="PENDING|Resources"; fi
    if [ -f "$job/state" ]; then state="$(cat "$job/state")|None"; fi
    if [ -f "$job/cancelled" ]; then state="CANCELLED|None"; fi
    echo "${job##*/job}|$state"
done
"""
HELD = Path(helpers.__file__).with_name("held.py")


@pytest.fixture(name="stand_in")
def slurms_commands(tmp_path, monkeypatch):
    """SLURM's folder of jobs, and a description of small jobs."""
    programs, folder, config = tmp_path / "bin", tmp_path / "jobs", tmp_path / "jobs.yml"
    programs.mkdir()
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL), ("squeue", SQUEUE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setattr(jobs, "INTERVAL", 0.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    description = {"cores": 1, "job_cpu": 4, "processes": 1, "memory": "3GB", "queue": "normal",
                   "walltime": "00:10:00", "death_timeout": 300, "nanny": False,
                   "scheduler_options": {"host": "127.0.0.1"}}  # fmt: skip

    def describe(**more):
        config.write_text(yaml.safe_dump({**description, **more}))

    describe()
    yield SimpleNamespace(jobs=folder, config=config, programs=programs, describe=describe)
    for process in processes(folder):
        wait_until(lambda process=process: not running(process))


def processes(folder):
    return [int(path.read_text()) for path in folder.glob("job*/process")]


def cancelled(folder):
    return sorted(path.parent.name for path in folder.glob("job*/cancelled"))


def arguments(model_path, source, out, stand_in, number=2):
    given = ["-m", model_path, "-i", source, "-o", out, "--disable_tta", "-device", "cpu"]
    where = [f"slurm:{number}", "--dask-config", str(stand_in.config)]
    return ["predict", *map(str, given), "--dask", *where]


@pytest.mark.slow
def test_two_jobs_segment_an_archive_and_are_cancelled(
    stand_in, pictures, model_path, same_as_one_process, tmp_path, capsys
):
    source = pictures(*NAMES)
    given = arguments(model_path, source, tmp_path / "out", stand_in)
    assert main(given) == 0, capsys.readouterr().err
    assert "2 done" in capsys.readouterr().out
    assert same_as_one_process(source) == len(NAMES)
    assert cancelled(stand_in.jobs) == ["job1", "job2"]
    for name in ("job1", "job2"):
        script = (stand_in.jobs / name / "script").read_text()
        for line in ("-p normal", "--cpus-per-task=4", "--mem=3G", "-t 00:10:00"):
            assert f"#SBATCH {line}\n" in script
        assert "--nthreads 1 " in script
    for process in processes(stand_in.jobs):
        wait_until(lambda process=process: not running(process))


def test_ctrl_c_takes_jobs_from_the_queue(stand_in, pictures, model_path, tmp_path, capsys):
    (stand_in.jobs / "busy").touch()

    def interrupt():
        wait_until(lambda: len(list(stand_in.jobs.glob("job*/script"))) == 2)
        wait_until(shared(tmp_path / "out", RUN).exists)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    given = arguments(model_path, pictures(*NAMES), tmp_path / "out", stand_in)
    assert main(given) == 130
    thread.join()
    assert "interrupted" in capsys.readouterr().err
    assert cancelled(stand_in.jobs) == ["job1", "job2"]
    assert not shared(tmp_path / "out", RUN).exists(), "nothing was begun"


def test_a_refused_job_ends_all_with_a_sentence(stand_in):
    refusal = "sbatch: error: invalid partition specified: normal\nsbatch: error: Batch job failed"
    (stand_in.jobs / "refusal").write_text(refusal)
    (stand_in.jobs / "busy").touch()
    (stand_in.jobs / "most").write_text("1")
    said = (
        r"SLURM took 1 of 2 jobs \(sbatch: error: invalid partition specified: normal; .*jobs\.yml"
    )
    with pytest.raises(EnvironmentMismatchError, match=said), connected("slurm:2", stand_in.config):
        pass
    assert cancelled(stand_in.jobs) == ["job1"]


def test_ctrl_c_and_sigterm_stay_what_they_are(monkeypatch):
    """The import of dask-jobqueue makes Ctrl-C end the process with exit code 0."""
    for name in [name for name in sys.modules if name.split(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    import_jobqueue()
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_machine_without_slurm(stand_in, pictures, model_path, tmp_path, monkeypatch, capsys):
    (stand_in.programs / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(stand_in.programs))
    given = arguments(model_path, pictures(*NAMES), tmp_path / "out", stand_in)
    assert main(given) == 1
    said = capsys.readouterr().err
    assert (
        "ERROR: jobs cannot be submitted, for there is no `sbatch`; run this on a machine" in said
    )
    assert "Traceback" not in said


def wrong_package(folder, text):
    """A folder to give the command in, with a package of the name of ours."""
    (folder / "nnunet_octreenca").mkdir(parents=True)
    (folder / "nnunet_octreenca" / "__init__.py").write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("python", ["this one", "one that knows no PYTHONSAFEPATH"])
def test_jobs_import_nothing_from_where_the_command_was_given(
    python, stand_in, pictures, model_path, same_as_one_process, tmp_path, monkeypatch, capsys
):
    """As in a clone of this repository, whose package lacks its compiled modules."""
    own = ["echo my own line"]
    if python != "this one":
        monkeypatch.setattr(slurm, "_SAFE_PATH", (99,))
        own += ["export PYTHONSAFEPATH="]
    elif sys.version_info < slurm._SAFE_PATH:
        pytest.skip("the other case is this Python's")
    stand_in.describe(job_script_prologue=own, python=f"env MARK=1 {sys.executable}")
    source = pictures("a")
    text = "raise ImportError('this is not what was installed')"
    monkeypatch.chdir(wrong_package(tmp_path / "clone", text))
    given = arguments(model_path, source, tmp_path / "out", stand_in, 1)
    assert main(given) == 0, capsys.readouterr().err
    assert same_as_one_process(source) == 1
    script = (stand_in.jobs / "job1" / "script").read_text()
    assert f"env MARK=1 {sys.executable}" in script, "what the file says is kept"
    assert "my own line" in (stand_in.jobs / "job1" / "output").read_text()


@pytest.mark.slow
def test_a_refused_worker_says_where_its_package_lies(
    stand_in, pictures, model_path, tmp_path, monkeypatch, capsys
):
    installed = Path(nnunet_octreenca.__file__).parent
    text = f"__path__, __version__ = [{str(installed)!r}], '0.0.1'"
    clone = wrong_package(tmp_path / "clone", text)
    monkeypatch.chdir(clone)
    path = os.pathsep.join(filter(None, [str(clone), os.environ.get("PYTHONPATH")]))
    stand_in.describe(python=f"env PYTHONPATH={path} {sys.executable}")
    given = arguments(model_path, pictures("a"), tmp_path / "out", stand_in, 1)
    assert main(given) == 1
    said = f"it has imported {clone / 'nnunet_octreenca'}, and the client {installed}); install"
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_submitted_again(
    stand_in, pictures, model_path, same_as_one_process, tmp_path, monkeypatch, capsys
):
    hold, source = tmp_path / "hold", pictures("held_a")
    hold.touch()
    monkeypatch.setenv("HOLD", str(hold))
    stand_in.describe(worker_extra_args=["--preload", str(HELD)])

    def end():
        wait_until(shared(tmp_path / "out", attempts_name("held_a")).exists)
        (process,) = processes(stand_in.jobs)
        os.killpg(process, signal.SIGTERM)
        wait_until(lambda: not running(process))
        (stand_in.jobs / "job1" / "state").write_text("TIMEOUT")
        hold.unlink()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    given = arguments(model_path, source, tmp_path / "out", stand_in, 1)
    assert main(given) == 0, capsys.readouterr().err
    thread.join()
    said = capsys.readouterr()
    assert "SLURM job 1 has ended (TIMEOUT); job 2 takes its place" in said.err
    assert "1 done" in said.out
    assert same_as_one_process(source) == 1


def test_jobs_that_end_at_once(stand_in, pictures, model_path, tmp_path, capsys):
    (stand_in.programs / "squeue").write_text(
        SQUEUE.replace("RUNNING|None", "FAILED|NonZeroExitCode")
    )
    stand_in.describe(python="false")
    given = arguments(model_path, pictures(*NAMES), tmp_path / "out", stand_in)
    assert main(given) == 1
    said = capsys.readouterr().err
    assert said.count("takes its place") == 2 * (jobs.FRUITLESS - 1)
    assert "ERROR: no job is left: look at what job" in said
    assert "Traceback" not in said
    assert not shared(tmp_path / "out", RUN).exists(), "nothing was begun"


def test_jobs_that_wait_are_named_at_the_limit(
    stand_in, pictures, model_path, tmp_path, monkeypatch, capsys
):
    (stand_in.jobs / "busy").touch()
    monkeypatch.setenv("nnUNet_octreenca_wait_limit", "4")
    given = arguments(model_path, pictures(*NAMES), tmp_path / "out", stand_in)
    assert main(given) == 1
    said = capsys.readouterr().err
    waiting = "2 of 2 jobs wait in SLURM's queue (Resources)"
    assert said.startswith(waiting)
    assert f"ERROR: no worker has come to the scheduler in 4 s; {waiting}: look at" in said
    assert cancelled(stand_in.jobs) == ["job1", "job2"]


def test_a_prologue_that_is_no_list(stand_in):
    stand_in.describe(job_script_prologue="module load python")
    with (
        pytest.raises(InputError, match="'module load python', and must be a list of lines"),
        connected("slurm:2", stand_in.config),
    ):
        pass
