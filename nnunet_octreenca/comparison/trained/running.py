"""Runs trainings one after another, each in a process of its own, and estimates what they take."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from nnunet_octreenca.child_process import CommandError, ends_like_ctrl_c, run_child
from nnunet_octreenca.comparison.trained.jobs import Job, Request
from nnunet_octreenca.errors import InputError, TrainingError
from nnunet_octreenca.files import JsonObject, read_json, write_json
from nnunet_octreenca.integration.register import TRAINER_SHIMS

TRAINING = "nnunet_octreenca.integration.training_job"

Say = Callable[[str], object]


def environment() -> dict[str, str]:
    """Of the processes: trainers known without registration, threads that do not spin."""
    shims = [str(TRAINER_SHIMS), *filter(None, [os.environ.get("nnUNet_extTrainer")])]
    return {
        "OMP_WAIT_POLICY": "passive",  # spinning threads take the cores from the data loader
        **os.environ,
        "nnUNet_extTrainer": os.pathsep.join(shims),
        "nnUNet_wandb_enabled": "0",
        "PYTHONUNBUFFERED": "1",
    }


def require_finished(jobs: Sequence[Job]) -> None:
    """For --collect, which trains nothing.

    Raises:
        InputError: a training is missing, half done, or not validated.
    """
    for job in jobs:
        if job.state == "finished":
            continue
        what = {
            "missing": "has not been trained",
            "half": "is half trained",
            "trained": "has not been validated by compare",
        }[job.state]
        raise InputError(
            f"fold {job.fold} of {_name(job)} {what} ({job.folder}); run without --collect to "
            f"finish it, or leave the method out"
        )


def _name(job: Job) -> str:
    return job.name if job.seed is None else f"{job.name} (seed {job.seed})"


def run_jobs(jobs: Sequence[Job], request: Request, report: Path, device: str, say: Say) -> None:
    """Train and validate what is not finished, in turn; what is finished stays as it is.

    Raises:
        TrainingError: a training failed; the message holds the end of what it printed.
    """
    logs = report / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for number, job in enumerate(jobs, 1):
        title = f"[{number}/{len(jobs)}] {_name(job)}, fold {job.fold}"
        if job.state == "finished":
            say(f"{title}: finished")
            continue
        verb = {"missing": "training", "half": "continuing", "trained": "validating"}[job.state]
        say(f"{title}: {verb}")
        log = logs / f"{job.model.name}_fold_{job.fold}.log"
        try:
            _run(_specification(job, request, device), log)
        except CommandError as error:
            raise TrainingError(
                f"a training ended with: {_last_line(error)} (all that it printed is in {log}); "
                f"mend it and run the same command again, which continues"
            ) from error


def _specification(job: Job, request: Request, device: str) -> JsonObject:
    return {
        "trainer": job.method.trainer,
        "plans": job.plans,
        "dataset": str(request.preprocessed / "dataset.json"),
        "configuration": request.configuration,
        "fold": job.fold,
        "device": device,
        "minutes": None if job.budget is None else job.budget / 60,
        "seed": job.seed,
    }


def _run(specification: JsonObject, log: Path, results: str | None = None) -> None:
    with ExitStack() as kept:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory()))
        write_json(folder / "plans.json", specification["plans"])
        write_json(folder / "job.json", {**specification, "plans": str(folder / "plans.json")})
        kept.enter_context(ends_like_ctrl_c())
        own = environment() | ({} if results is None else {"nnUNet_results": results})
        command = [sys.executable, "-m", TRAINING, str(folder / "job.json")]
        run_child(command, log=log, environment=own)


def _last_line(error: CommandError) -> str:
    lines = error.last_lines.strip().splitlines()
    return lines[-1].removeprefix("ERROR: ") if lines else "it printed nothing"


def estimate(jobs: Sequence[Job], request: Request, device: str) -> dict[str, float]:
    """Hours of the trainings that are not finished, of each method.

    Without a budget a training step of each is timed on noise; loading, augmentation and
    validation come on top of it.

    Raises:
        TrainingError: a method cannot take a step.
    """
    hours: dict[str, float] = {}
    for job in jobs:
        if job.state in ("finished", "trained"):
            hours.setdefault(job.name, 0.0)
        elif job.budget is not None:
            hours[job.name] = hours.get(job.name, 0.0) + job.budget / 3600
    if request.budget is not None:
        return hours
    steps: dict[str, float] = {}
    for job in jobs:
        if job.state in ("finished", "trained"):
            continue
        if job.name not in steps:
            steps[job.name] = _probed_hours(job, request, device)
        hours[job.name] = hours.get(job.name, 0.0) + steps[job.name]
    return hours


def _probed_hours(job: Job, request: Request, device: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "probe.json")
        specification = {**_specification(job, request, device), "probe": str(answer)}
        try:
            _run(specification, Path(folder, "log"), results=folder)
        except CommandError as error:
            raise TrainingError(
                f"{job.name} cannot take a training step: {_last_line(error)}; leave it out of "
                f"--methods, or give a --budget to see the plan without timing"
            ) from error
        found = read_json(answer, "run it again")
    return float(found["step_seconds"] * found["steps"] / 3600)
