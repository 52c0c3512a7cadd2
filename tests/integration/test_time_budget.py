"""Trainings that end by the clock."""

import random
import time

import pytest

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.integration.time_budget import MINUTES_VARIABLE, budget_seconds


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
    """Neither the end of the training nor its learning rates follow the machine's clock."""
    monkeypatch.setenv(MINUTES_VARIABLE, str(1.5 / 60))
    trainer = on_noise(make_trainer(trainer="OctreeNCATrainerTimeBudget"))
    rates, step = [], trainer.train_step

    def watched(batch):
        result = step(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return result

    trainer.train_step = watched
    begun = time.monotonic()
    trainer.run_training()
    assert 1.5 <= time.monotonic() - begun < 30
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < rates[0] <= 1.6e-3


@pytest.mark.parametrize("minutes", ["", "0", "-1", "ten", "nan", "inf"])
def test_budgets_that_are_none(monkeypatch, minutes):
    monkeypatch.setenv(MINUTES_VARIABLE, minutes)
    with pytest.raises(EnvironmentMismatchError, match=MINUTES_VARIABLE):
        budget_seconds()
