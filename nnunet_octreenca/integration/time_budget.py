"""Training for a given number of minutes, for OctreeNCA and stock nnU-Net.

For comparisons on one machine: the learning rate follows the clock instead of the epochs, so
that both schedules are complete when the time is over. The minutes are given in the
environment variable `nnUNet_octreenca_minutes`. Validation at the end is not counted. A training
that was killed continues (`--c`) with what its last checkpoint had left of the budget.
"""

import os
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_octreenca.errors import EnvironmentMismatchError, TrainingError
from nnunet_octreenca.files import JsonObject, atomic_write
from nnunet_octreenca.integration.fold_folder import FoldFolder
from nnunet_octreenca.integration.trainer import OctreeNCATrainer
from nnunet_octreenca.training.checkpoints import data_only

MINUTES_VARIABLE = "nnUNet_octreenca_minutes"
EPOCH_ITERATIONS = 25
EPOCH_VAL_ITERATIONS = 2
# An epoch ends in validation, checkpoints and a picture, which cost as much as many iterations of
# a small network: no more than so many epochs a training.
MOST_EPOCHS = 50
# Of the schedule: at its very end the rate is 0, and an iteration that begins as the time ends, or
# the first of an epoch that began before, would change nothing.
LAST_PROGRESS = 0.999
# What a checkpoint's init_args also hold: nnU-Net reads only what it knows of them.
SPENT = "octreenca_time_budget"


def budget_seconds() -> float:
    """The budget in seconds.

    Raises:
        EnvironmentMismatchError: the variable is unset or no finite positive number.
    """
    text = os.environ.get(MINUTES_VARIABLE, "")
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < inf:
        raise EnvironmentMismatchError(
            f"a TimeBudget trainer needs {MINUTES_VARIABLE}, the minutes to train for, above 0; "
            f"it is {text!r}"
        )
    return 60 * minutes


class TimeBudget:
    """Mixin, listed before the trainer, that ends a training by the clock instead of by epochs.

    The trainer's `initialize` and data loaders count towards the budget, as the user waits for
    them too.
    """

    # What the mixin uses of the trainer.
    current_epoch: int
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    dataloader_train: Any
    dataloader_val: Any
    my_init_kwargs: JsonObject

    started: float | None = None
    spent_before = 0.0  # seconds, by processes that were killed
    iterations_done = 0

    @property
    def seconds_spent(self) -> float:
        """Of the budget, in this process and those before it."""
        return self.spent_before + (0.0 if self.started is None else monotonic() - self.started)

    @property
    def progress(self) -> float:
        """Fraction of the budget spent, 0 to `LAST_PROGRESS`, for the learning rate."""
        return min(self.seconds_spent / budget_seconds(), LAST_PROGRESS)

    def run_training(self) -> None:
        """nnU-Net's training loop, ended by the clock instead of by epochs.

        Raises:
            TrainingError: a training is to be continued that had no budget.
        """
        budget = budget_seconds()
        self._resume_clock()
        # The fewest of an epoch: nnU-Net's 250 may not end within the budget of a slow machine.
        self.num_iterations_per_epoch = min(self.num_iterations_per_epoch, EPOCH_ITERATIONS)
        self.num_val_iterations_per_epoch = min(
            self.num_val_iterations_per_epoch, EPOCH_VAL_ITERATIONS
        )
        self.started = monotonic()
        trainer: Any = self
        trainer.save_every = 1  # what a kill costs: an epoch, a fiftieth of the budget or more
        trainer.on_train_start()
        while self.seconds_spent < budget:
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            outputs: list[dict] = []
            ends_at = min(self.seconds_spent + budget / MOST_EPOCHS, budget)
            while (
                not outputs
                or self.seconds_spent < ends_at
                or (len(outputs) < self.num_iterations_per_epoch and self.seconds_spent < budget)
            ):
                self.follow_the_clock()
                outputs.append(trainer.train_step(next(self.dataloader_train)))
                self.iterations_done += 1
            trainer.on_train_epoch_end(outputs)
            with torch.no_grad():
                trainer.on_validation_epoch_start()
                validated = [
                    trainer.validation_step(next(self.dataloader_val))
                    for _ in range(self.num_val_iterations_per_epoch)
                ]
                trainer.on_validation_epoch_end(validated)
            trainer.on_epoch_end()
        trainer.on_train_end()
        trainer.print_to_log_file(
            f"time budget over: {self.iterations_done} iterations in {self.seconds_spent:.0f} s"
        )

    def _resume_clock(self) -> None:
        if self.current_epoch == 0:
            return
        spent: Any = self.my_init_kwargs.get(SPENT)
        try:
            seconds, iterations = float(spent["seconds"]), int(spent["iterations"])
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint to be continued does not say what it has spent of a time budget "
                f"({spent!r}); restart the training without --c"
            ) from error
        self.spent_before, self.iterations_done = seconds, iterations

    def save_checkpoint(self, filename: str) -> None:
        """The trainer's checkpoint, which also says what has been spent."""
        spent = {"seconds": self.seconds_spent, "iterations": self.iterations_done}
        self.my_init_kwargs[SPENT] = spent
        trainer: Any = super()
        trainer.save_checkpoint(filename)

    def follow_the_clock(self) -> None:
        """Set the current learning rate."""
        raise NotImplementedError


class _OctreeNCATimeBudget(TimeBudget):
    """For OctreeNCATrainer and its subclasses, which read `progress` at every iteration."""

    fold_folder: FoldFolder
    iteration: int

    def run_training(self) -> None:
        """Train by the clock, with the fold's folder for this process alone."""
        with self.fold_folder.held("training"):
            super().run_training()

    def on_train_epoch_start(self) -> None:
        """Go on counting iterations: epochs are not of equal length."""
        trainer: Any = super()
        trainer.on_train_epoch_start()
        self.iteration = self.iterations_done

    def follow_the_clock(self) -> None:
        """Do nothing."""


class WholeCheckpoints:
    """Mixin, listed before nnUNetTrainer: checkpoints are whole or not there, and read as data."""

    disable_checkpointing: bool

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's, written beside and renamed: a kill never leaves half a checkpoint."""
        if self.disable_checkpointing:
            return
        trainer: Any = super()
        with atomic_write(Path(filename)) as temporary:
            trainer.save_checkpoint(str(temporary))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """nnU-Net's, which reads the file as data.

        Raises:
            CheckpointError: it holds more than data.
        """
        trainer: Any = super()
        with data_only(str(filename_or_checkpoint)):
            trainer.load_checkpoint(filename_or_checkpoint)


class _StockTimeBudget(TimeBudget, WholeCheckpoints):
    """For nnUNetTrainer and its subclasses."""

    initial_lr: float
    optimizer: Any

    def follow_the_clock(self) -> None:
        """nnU-Net's polynomial decay over the budget."""
        rate = self.initial_lr * (1 - self.progress) ** 0.9
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def on_train_epoch_start(self) -> None:
        """Let nnU-Net step its scheduler, then set the rate by the clock."""
        self.num_epochs = max(self.num_epochs, self.current_epoch + 1)
        trainer: Any = super()
        trainer.on_train_epoch_start()
        self.follow_the_clock()


def with_budget(trainer: type[nnUNetTrainer], name: str | None = None) -> type[nnUNetTrainer]:
    """A trainer that trains for `nnUNet_octreenca_minutes` minutes.

    Args:
        trainer: any that trains as nnUNetTrainer or OctreeNCATrainer do.
        name: of the class, which checkpoints name and nnU-Net predicts with; the trainer's own if
            left out.
    """
    mixin = _OctreeNCATimeBudget if issubclass(trainer, OctreeNCATrainer) else _StockTimeBudget
    return type(
        name or trainer.__name__,
        (mixin, trainer),
        {
            "__doc__": f"{trainer.__name__} for `{MINUTES_VARIABLE}` minutes.",
            "__module__": __name__,
        },
    )


OctreeNCATrainerTimeBudget = with_budget(OctreeNCATrainer, "OctreeNCATrainerTimeBudget")
nnUNetTrainerTimeBudget = with_budget(nnUNetTrainer, "nnUNetTrainerTimeBudget")

TRAINERS = {
    trainer.__name__: trainer for trainer in (OctreeNCATrainerTimeBudget, nnUNetTrainerTimeBudget)
}
