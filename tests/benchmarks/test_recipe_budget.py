"""The budget of a recipe's training, also of one that was killed."""

import json
from itertools import repeat

from recipe_run import EPOCH, SPENT, Budgeted


class Training(Budgeted):
    """Counts its steps; everything else of a trainer does nothing."""

    unit, amount = "iterations", 4.0 * EPOCH

    def __init__(self, folder):
        self.output_folder, self.current_epoch, self.steps = str(folder), 0, 0
        self.dataloader_train, self.dataloader_val = repeat({}), repeat({})

    def on_train_start(self):
        pass

    def on_train_epoch_start(self):
        pass

    def load_checkpoint(self, path):
        self.current_epoch = 3

    def train_step(self, batch):
        self.steps += 1
        return {"loss": 0.0}


def test_a_training_takes_its_iterations(tmp_path):
    training = Training(tmp_path)
    training.run_training()
    assert training.steps == training.done == training.used == 4 * EPOCH
    assert training.part_used == 1
    assert training.progress < 1


def test_a_killed_training_takes_the_iterations_that_are_left(tmp_path):
    (tmp_path / "checkpoint_latest.pth").touch()
    (tmp_path / SPENT).write_text(json.dumps({"3": 3.0 * EPOCH}))
    training = Training(tmp_path)
    training.run_training()
    assert training.steps == EPOCH
    assert training.done == training.used == 4 * EPOCH


def test_a_killed_training_by_the_clock_has_spent_its_minutes(tmp_path):
    (tmp_path / "checkpoint_latest.pth").touch()
    (tmp_path / SPENT).write_text(json.dumps({"3": 59.9}))
    training = Training(tmp_path)
    training.unit, training.amount = "minutes", 1.0
    training.train_step = lambda batch: {"loss": 0.0}
    training.run_training()
    assert 60 <= training.used < 70
