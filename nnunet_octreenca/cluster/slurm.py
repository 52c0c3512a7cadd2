"""Workers that are SLURM jobs, submitted by dask-jobqueue for as long as a command runs."""

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from nnunet_octreenca.cluster.jobs import Jobs
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, first_line
from nnunet_octreenca.libraries import import_optional

_SUBMITTED = 600.0  # seconds in which `sbatch` answers for all jobs
_POLL = 0.1
# Seconds until a worker that has not reached its scheduler ends. Its start counts, with the import
# of PyTorch from a shared disk; dask-jobqueue's 60 s have ended jobs on a busy machine.
_START = 300
_SAFE_PATH = (3, 11)  # the first Python that heeds PYTHONSAFEPATH
# Does what `-m` does with the arguments that follow, where an older one would take the folder.
_AS_MODULE = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; del sys.argv[:2]; "
    'runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)'
)


def import_jobqueue() -> Any:
    """dask-jobqueue, without what its import does to Ctrl-C: the process would just end.

    Raises:
        EnvironmentMismatchError: it is not installed.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        return import_optional("dask_jobqueue", "cluster")
    finally:
        with suppress(ValueError):  # not the main thread, whose signals they are
            for number, handler in before:
                if handler is not None:  # one that was not set from Python
                    signal.signal(number, handler)


@contextmanager
def slurm_workers(number: int, config: Path) -> Iterator[tuple[Any, Jobs]]:
    """A scheduler in this process, and jobs with its workers; they are cancelled at the end.

    Args:
        number: of jobs; their workers come when SLURM starts them.
        config: YAML or JSON with the arguments of `dask_jobqueue.SLURMCluster`.

    Yields:
        The `SLURMCluster`, which a client can be made of, and its jobs.

    Raises:
        InputError: the file cannot be read, or does not describe a job.
        EnvironmentMismatchError: there is no `sbatch`, or it refuses a job.
    """
    jobqueue = import_jobqueue()
    from dask import config as settings

    arguments = _arguments(config, _known_arguments(jobqueue))
    for program in ("sbatch", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise EnvironmentMismatchError(
                f"jobs cannot be submitted, for there is no `{program}`; run this on a machine of "
                f"the cluster with SLURM's commands on PATH"
            )
    answers: list[Exception | None] = []
    try:
        # A dashboard would ask for the same port of a machine that many users share.
        scheduler = {"dashboard": False, "dashboard_address": ":0"}
        arguments["scheduler_options"] = {**scheduler, **arguments.get("scheduler_options", {})}
        # The scheduler calls it an error when a task's fourth worker has gone; it comes again.
        arguments.setdefault("silence_logs", "critical")
        arguments.setdefault("death_timeout", _START)
        _import_what_is_installed(arguments)
        cluster = jobqueue.SLURMCluster(job_cls=_job_class(jobqueue, answers), **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{config} does not describe a job ({first_line(error)}); it holds the arguments of "
            f"dask_jobqueue.SLURMCluster, such as `cores: 16`, `memory: 64GB`, `queue: normal`"
        ) from error
    # Otherwise dask cancels a job whose worker has been away for 15 s: one that SLURM has put back
    # into its queue, or whose nanny is starting a worker anew.
    with settings.set({"distributed.deploy.lost-worker-timeout": "1000 days"}), cluster:
        cluster.scale(jobs=number)
        _require_jobs(number, answers, config)
        jobs = Jobs(cluster)
        with jobs.watched():
            yield cluster, jobs


def _import_what_is_installed(arguments: dict[str, Any]) -> None:
    """Let jobs import nothing from the folder in which the command was given.

    `python -m` puts it first on `sys.path`; in a clone of this repository workers would import
    that, without its compiled modules, and not what is installed.
    """
    from dask import config

    section = f"jobqueue.{arguments.get('config_name') or 'slurm'}"

    def given(name: str, old: str = "") -> Any:
        for each in filter(None, (name, old)):
            found = arguments.get(each) or config.get(f"{section}.{each.replace('_', '-')}", None)
            if found:
                return found
        return None

    prologue = given("job_script_prologue", "env_extra") or []
    if not isinstance(prologue, list):
        raise TypeError(f"job_script_prologue is {prologue!r}, and must be a list of lines")
    # Last, so that the user's own lines run as they always do, and may set it to nothing.
    arguments["job_script_prologue"] = [
        *prologue,
        'export PYTHONSAFEPATH="${PYTHONSAFEPATH-1}"',
    ]
    if sys.version_info < _SAFE_PATH:  # workers have the client's version
        arguments["python"] = f"{given('python') or sys.executable} -c '{_AS_MODULE}'"


def _job_class(jobqueue: Any, answers: list[Exception | None]) -> Any:
    """Jobs that note what `sbatch` answered, which the cluster would only log; and their end.

    Their `refusal` is what it said, empty where it took the job.
    """
    from distributed.deploy.spec import ProcessInterface

    class Job(jobqueue.slurm.SLURMJob):  # type: ignore[misc]
        refusal = ""

        async def start(self) -> None:
            try:
                await super().start()
                answers.append(None)
            except Exception as error:  # the cluster must be able to cancel the others
                await ProcessInterface.start(self)
                self.refusal = _said(error)
                answers.append(error)

        async def close(self) -> None:
            await super().close()
            await ProcessInterface.close(self)  # otherwise the cluster may fail at closing

    return Job


def _require_jobs(jobs: int, answers: list[Exception | None], config: Path) -> None:
    end = monotonic() + _SUBMITTED
    while len(answers) < jobs:
        if monotonic() > end:
            raise EnvironmentMismatchError(
                f"`sbatch` has not answered for {_SUBMITTED:.0f} s; see that SLURM works, for "
                f"example with `sinfo`"
            )
        sleep(_POLL)
    refused = [error for error in answers if error is not None]
    if refused:
        raise EnvironmentMismatchError(
            f"SLURM took {jobs - len(refused)} of {jobs} jobs ({_said(refused[0])}); correct "
            f"{config}, or ask for fewer jobs"
        )


def _said(error: Exception) -> str:
    """What a command wrote to its standard error, of what dask-jobqueue makes of it."""
    _, found, written = str(error).partition("stderr:\n")
    lines = [line.strip() for line in written.splitlines() if line.strip()] if found else []
    return "; ".join(lines) or first_line(error)


def _known_arguments(jobqueue: Any) -> set[str]:
    """What `SLURMCluster` takes, itself or for a job; it would fail half-made on anything else."""
    takers = (
        jobqueue.SLURMCluster,
        jobqueue.core.JobQueueCluster,
        jobqueue.core.Job,
        jobqueue.slurm.SLURMJob,
    )
    return {name for taker in takers for name in signature(taker.__init__).parameters} - {"job_cls"}


def _arguments(config: Path, known: set[str]) -> dict[str, Any]:
    yaml = import_optional("yaml", "cluster")
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{config} cannot be read ({first_line(error)}); write YAML or JSON"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{config} holds no names with values; write `cores: 16` and so on")
    unknown = sorted(set(content) - known)
    if unknown:
        raise InputError(
            f"{config} has {', '.join(unknown)}, which dask_jobqueue.SLURMCluster does not take; "
            f"take it out, or correct its name"
        )
    return content
