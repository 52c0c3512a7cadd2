"""From nnU-Net's data loaders to batches: in which processes, and from which seed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_octreenca.integration.batch_workers import BatchWorkers, InlineBatches, Stream
from nnunet_octreenca.resources import processors


def batch_processes() -> int:
    """How many processes prepare batches: nnU-Net's number, but no more than may run at once."""
    asked: int = get_allowed_n_proc_DA()
    return asked if "nnUNet_n_proc_DA" in os.environ else min(asked, processors())


class RepeatedBatches:
    """Every batch so many times, for crops of it that are drawn in the training step.

    Args:
        batches: what is repeated.
        times: of each batch.
        used: of the first batch, so many were seen before.
    """

    def __init__(self, batches: InlineBatches | BatchWorkers, times: int, used: int = 0) -> None:
        self.batches, self.times = batches, times
        self._left, self._used = 0, used
        self._batch: Any = None

    @property
    def generator(self) -> Any:
        """The data loader."""
        return self.batches.generator

    def __iter__(self) -> "RepeatedBatches":
        return self

    def __next__(self) -> Any:
        """A batch, perhaps the last one again."""
        if self._left == 0:
            self._batch = next(self.batches)
            self._left, self._used = self.times - self._used, 0
        self._left -= 1
        return self._batch

    def close(self) -> None:
        """End the processes."""
        self._batch = None
        self.batches.close()


def run_loaders(
    training: Any,
    validation: Any,
    *,
    iterations: tuple[int, int],
    steps_per_context: int,
    epoch: int,
    seed: int | None,
    rank: int,
    pin_memory: bool,
) -> tuple[RepeatedBatches, InlineBatches | BatchWorkers]:
    """Start making batches, of validation in half as many processes.

    Args:
        training, validation: nnU-Net's data loaders, or others like them.
        iterations: of an epoch, of each.
        steps_per_context: how often a batch of training is used.
        epoch: to begin with.
        seed: of the training; None to draw batches afresh.
        rank: of this process in distributed training.
        pin_memory: put tensors where a GPU can fetch them.
    """

    def run(loader: Any, what: str, share: int, first: int) -> InlineBatches | BatchWorkers:
        stream = None if seed is None else Stream(seed, rank, what)
        processes = batch_processes()
        if processes == 0:
            return InlineBatches(loader, stream, first)
        return BatchWorkers(
            loader,
            what=what,
            processes=max(1, processes // share),
            stream=stream,
            first=first,
            pin_memory=pin_memory,
        )

    first, used = divmod(epoch * iterations[0], steps_per_context)
    return (
        RepeatedBatches(run(training, "training", 1, first), steps_per_context, used),
        run(validation, "validation", 2, epoch * iterations[1]),
    )


class _Loader:
    """Stands in for nnU-Net's augmenters; nnU-Net draws a first batch to start their processes."""

    def __init__(self, data_loader: Any, transform: None) -> None:
        self.data_loader = data_loader

    def __next__(self) -> None:
        pass


@contextmanager
def loaders_only() -> Iterator[None]:
    """Within, nnU-Net's `get_dataloaders` builds its loaders and starts no processes."""
    before = stock.get_allowed_n_proc_DA, stock.SingleThreadedAugmenter
    stock.get_allowed_n_proc_DA, stock.SingleThreadedAugmenter = (lambda: 0), _Loader
    try:
        yield
    finally:
        stock.get_allowed_n_proc_DA, stock.SingleThreadedAugmenter = before
