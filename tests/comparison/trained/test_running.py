"""Trainings one after another, continued after a kill; they are stood in for."""

from pathlib import Path

import pytest
from helpers.compared_methods import DATASET, METHODS_USED, finish, jobs_of

from nnunet_octreenca.comparison.trained import running
from nnunet_octreenca.errors import TrainingError
from nnunet_octreenca.files import read_json


def stand_in(monkeypatch, started, fails=None):
    """Trainings that only leave their files; `fails` is raised by the trainer of that name."""

    def run_child(command, *, log, environment):
        job = read_json(command[-1], "")
        plans = read_json(job["plans"], "")
        started.append((job["trainer"], job["fold"], job["minutes"], job["seed"]))
        name = f"{job['trainer']}__{plans['plans_name']}__{job['configuration']}"
        folder = Path(environment["nnUNet_results"]) / DATASET / name / f"fold_{job['fold']}"
        folder.mkdir(parents=True, exist_ok=True)
        if fails is not None and fails[0] == job["trainer"]:
            (folder / "checkpoint_latest.pth").touch()
            raise fails[1]
        _, jobs = jobs_of(*METHODS_USED, folds=("0", "1"), budget=90.0)
        finish(next(one for one in jobs if one.folder == folder))

    monkeypatch.setattr(running, "run_child", run_child)


def test_killed_and_run_again(prepared, monkeypatch):
    """What was finished is not trained again, what was half trained is continued."""
    request, jobs = jobs_of(*METHODS_USED, folds=("0", "1"), budget=90.0)
    started, said = [], []
    stand_in(monkeypatch, started, fails=("TinyUNetTrainer", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        running.run_jobs(jobs, request, prepared / "report", "cpu", said.append)
    assert [job.state for job in jobs] == ["finished", "finished", "half", "missing"]
    started.clear(), said.clear()
    stand_in(monkeypatch, started)
    running.run_jobs(jobs, request, prepared / "report", "cpu", said.append)
    assert started == [("TinyUNetTrainer", 0, 1.5, None), ("TinyUNetTrainer", 1, 1.5, None)]
    assert said[0] == "[1/4] OctreeNCA, fold 0: finished"
    assert said[2] == "[3/4] TinyUNet, fold 0: continuing"
    assert {job.state for job in jobs} == {"finished"}


def test_a_training_that_fails_says_why(prepared, monkeypatch):
    from nnunet_octreenca.child_process import CommandError

    request, jobs = jobs_of("TinyUNet", budget=90.0)
    error = CommandError("failed", "Epoch 3\nERROR: the disk is full\n")
    stand_in(monkeypatch, [], fails=("TinyUNetTrainer", error))
    with pytest.raises(TrainingError, match=r"ended with: the disk is full \(all .*fold_0\.log"):
        running.run_jobs(jobs, request, prepared / "report", "cpu", print)
