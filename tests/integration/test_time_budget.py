"""Trainings that end by the clock."""

import random
import time
from itertools import pairwise

import numpy as np
import pytest

from nnunet_octreenca.errors import EnvironmentMismatchError, TrainingError
from nnunet_octreenca.integration import time_budget
from nnunet_octreenca.integration.time_budget import (
    MINUTES_VARIABLE,
    budget_seconds,
    with_budget,
)


@pytest.fixture(params=["set back", "set forward", "jumping"])
def clock(request, monkeypatch):
    """The machine's clock is wrong by days, and by others at every look."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

    own, days = time.time, random.Random(0)

    def wrong():
        day = {"set back": -1, "set forward": 1}.get(request.param, days.uniform(-9, 9))
        return own() + 86_400 * day * days.random()

    monkeypatch.setattr(time, "time", wrong)
    monkeypatch.setattr(stock, "time", wrong)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * wrong()))


def test_clocks_that_jump_change_no_budget(make_trainer, on_noise, monkeypatch, clock):
    """Neither the end of the training nor its learning rates follow the machine's clock.

    A step takes a quarter of a second, by a clock of the test's own: a busy machine changes
    nothing.
    """
    now = [0.0]
    monkeypatch.setattr(time_budget, "monotonic", lambda: now[0])
    monkeypatch.setenv(MINUTES_VARIABLE, str(1.5 / 60))
    trainer = on_noise(make_trainer(trainer="OctreeNCATrainerTimeBudget", warm_up=0.0))
    rates, step = [], trainer.train_step

    def watched(batch):
        result = step(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        now[0] += 0.25
        return result

    trainer.train_step = watched
    trainer.run_training()
    parts = np.arange(6) / 6
    assert rates == pytest.approx(list(4e-3 * (1 - parts) ** 0.9))
    assert now[0] == 1.5


@pytest.mark.parametrize("name", ["OctreeNCATrainerTimeBudget", "TinyUNetTrainer"])
def test_no_iteration_is_in_vain(make_trainer, stock_plans, on_noise, monkeypatch, name):
    """An iteration that begins after the time was over, on a busy machine, still teaches."""
    from nnunet_octreenca.baselines.tiny_unet import TinyUNetTrainer

    monkeypatch.setitem(time_budget.TRAINERS, "TinyUNetTrainer", with_budget(TinyUNetTrainer))
    now, rates = [0.0], []
    monkeypatch.setattr(time_budget, "monotonic", lambda: now[0])
    monkeypatch.setenv(MINUTES_VARIABLE, "1")
    plans = stock_plans((8, 12, 10)) if name == "TinyUNetTrainer" else None
    trainer = on_noise(make_trainer(trainer=name, plans=plans))
    trainer.print_plans = lambda: None
    follow = trainer.follow_the_clock

    def late():
        now[0] += 35
        follow()

    trainer.follow_the_clock = late
    step, trainer.validation_step = trainer.train_step, validated

    def watched(batch):
        result = step(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return result

    trainer.train_step = watched
    trainer.run_training()
    assert now[0] == 70, "the last iteration began after the end"
    assert min(rates) > 0


def validated(batch):
    """Of a validation step."""
    counts = {name: np.ones(2) for name in ("tp_hard", "fp_hard", "fn_hard")}
    return {"loss": np.float32(1), **counts}


def epoch_ends(trainer, step, now):
    """Train with a step of the test's own; what its clock said at the end of every epoch."""
    ends, end = [], trainer.on_epoch_end
    trainer.train_step, trainer.validation_step = step, validated
    trainer.on_epoch_end = lambda: (ends.append(now[0]), end())
    trainer.run_training()
    return ends


def test_fast_epochs_last_a_fiftieth_of_the_budget(make_trainer, on_noise, monkeypatch):
    """A step of a second, a budget of 400: an epoch ends after 8 s, not after its five steps."""
    now, iterations = [0.0], []
    monkeypatch.setattr(time_budget, "monotonic", lambda: now[0])
    monkeypatch.setenv(MINUTES_VARIABLE, str(400 / 60))
    trainer = on_noise(make_trainer(trainer="OctreeNCATrainerTimeBudget"))

    def step(batch):
        now[0] += 1
        iterations.append(trainer.iteration)
        trainer.iteration += 1
        return {"loss": np.float32(1)}

    ends = epoch_ends(trainer, step, now)
    assert {after - before for before, after in pairwise([0.0, *ends[:-1]])} <= {8, 9}
    assert ends[-1] == 400
    # No seed of the fire draws is used twice.
    assert iterations == list(range(400))


def test_slow_epochs_have_their_iterations(make_trainer, on_noise, monkeypatch):
    """A step of 100 s, a budget of 1,100: one epoch of five steps, another, and the rest."""
    now = [0.0]
    monkeypatch.setattr(time_budget, "monotonic", lambda: now[0])
    monkeypatch.setenv(MINUTES_VARIABLE, str(1100 / 60))
    trainer = on_noise(make_trainer(trainer="OctreeNCATrainerTimeBudget"))

    def step(batch):
        now[0] += 100
        return {"loss": np.float32(1)}

    ends = epoch_ends(trainer, step, now)
    assert ends == [500.0, 1000.0, 1100.0]


@pytest.mark.parametrize("minutes", ["", "0", "-1", "ten", "nan", "inf"])
def test_budgets_that_are_none(monkeypatch, minutes):
    monkeypatch.setenv(MINUTES_VARIABLE, minutes)
    with pytest.raises(EnvironmentMismatchError, match=MINUTES_VARIABLE):
        budget_seconds()


@pytest.mark.parametrize("name", ["OctreeNCATrainerTimeBudget", "TinyUNetTrainer"])
def test_a_killed_training_goes_on_with_what_is_left(
    make_trainer, stock_plans, on_noise, monkeypatch, name
):
    """Killed after half of 16 minutes: the second process trains for the other half, not for 16."""
    from nnunet_octreenca.baselines.tiny_unet import TinyUNetTrainer

    own = with_budget(TinyUNetTrainer)
    monkeypatch.setitem(time_budget.TRAINERS, "TinyUNetTrainer", own)
    plans = stock_plans((8, 12, 10)) if name == "TinyUNetTrainer" else None
    now = [0.0]
    monkeypatch.setattr(time_budget, "monotonic", lambda: now[0])
    monkeypatch.setenv(MINUTES_VARIABLE, "16")

    def prepared(steps):
        trainer = on_noise(make_trainer(trainer=name, plans=plans))
        trainer.print_plans = lambda: None

        def step(batch):
            if len(steps) == 6 and trainer.current_epoch == 1:
                raise KeyboardInterrupt
            now[0] += 96
            steps.append(trainer.progress)
            return {"loss": np.float32(1)}

        trainer.train_step, trainer.validation_step = step, validated
        trainer.num_iterations_per_epoch = 5
        return trainer

    first, second = [], []
    trainer = prepared(first)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    latest = f"{trainer.output_folder}/checkpoint_latest.pth"
    now[0] = 50_000.0
    trainer = prepared(second)
    trainer.load_checkpoint(latest)
    trainer.run_training()
    assert first == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert second == pytest.approx([0.6, 0.7, 0.8, 0.9, time_budget.LAST_PROGRESS])
    assert trainer.iterations_done == 10
    assert trainer.__class__.__name__ == name


def test_a_checkpoint_without_a_budget_is_not_continued(make_trainer, monkeypatch):
    monkeypatch.setenv(MINUTES_VARIABLE, "1")
    trainer = make_trainer(trainer="OctreeNCATrainerTimeBudget")
    trainer.current_epoch = 3
    with pytest.raises(TrainingError, match=r"what it has spent of a time budget \(None\)"):
        trainer.run_training()
