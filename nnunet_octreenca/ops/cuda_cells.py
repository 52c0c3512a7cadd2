"""Lists of the cells that fire, or every cell with a mask: the fast mode's kernels in 2-D.

Both give the same bits. Which is faster depends on the GPU's tensor cores, so both are timed where
a network is first used; the choice is kept in the cache of compiled kernels.
"""

import statistics
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from nnunet_octreenca.errors import CudaError, OutOfMemoryError
from nnunet_octreenca.ops.cuda_compiler import (
    alone,
    cache_folder,
    cache_key,
    device_sources,
    read_entry,
    write_entry,
)
from nnunet_octreenca.ops.cuda_device import Clock, Device
from nnunet_octreenca.ops.cuda_level import LevelLaunches, configuration_of
from nnunet_octreenca.ops.cuda_program import (
    Configuration,
    DoesNotFitError,
    Schedule,
    dense_schedule,
    program,
)
from nnunet_octreenca.ops.fire import FireDraws
from nnunet_octreenca.ops.native import wanted_cells
from nnunet_octreenca.ops.weights import StepWeights

# Cells of the level that is timed: some waves of tiles on the largest GPUs; a state takes 64 MiB.
SHAPE = (1024, 2048)
ROUNDS = 5  # of which the median counts, after one to warm up
# Lists stay unless the other kernel takes at most this part of their time.
GAIN = 0.97
_LISTS, _DENSE = b"lists", b"dense"

_chosen: dict[tuple[str, Configuration, float], bool] = {}
_lock = threading.Lock()


class Timed(NamedTuple):
    """Milliseconds of two steps, medians, and whether both kernels gave the same bits."""

    lists: float
    dense: float
    same_bits: bool


def schedule_for(
    device: Device, weights: StepWeights, precision: str, rate: float
) -> Schedule | None:
    """The forward kernels' schedule for a level in inference; None: the engine's, with lists.

    Args:
        weights: of the level; levels of the same sizes have one choice.
        rate: of the cells that fire.

    Raises:
        EnvironmentMismatchError: `OCTREENCA_CUDA_CELLS` names no choice.
    """
    wanted = wanted_cells()
    configuration = configuration_of(weights, precision)
    dense = dense_schedule(configuration)
    if dense is None or wanted == "lists":
        return None
    if wanted == "dense" or _is_faster(device, weights, configuration, dense, rate):
        return dense
    return None


def _is_faster(
    device: Device,
    weights: StepWeights,
    configuration: Configuration,
    dense: Schedule,
    rate: float,
) -> bool:
    """Whether to do without lists; measured once, then from memory or disk."""
    clock = device.clock
    if clock is None:
        return False
    key = (clock.identity, configuration, rate)
    with _lock:
        if key not in _chosen:
            if not clock.is_free():
                return False
            _chosen[key] = _kept_or_measured(device, clock, weights, configuration, dense, rate)
        return _chosen[key]


def _kept_or_measured(
    device: Device,
    clock: Clock,
    weights: StepWeights,
    configuration: Configuration,
    dense: Schedule,
    rate: float,
) -> bool:
    """Lists where timing fails or the choice cannot be kept: else every process would measure."""
    try:
        sources = [
            program(configuration, device.architecture, False, schedule).source
            for schedule in (None, dense)
        ]
        key = cache_key("".join(sources), device_sources(), [clock.identity, repr(rate)], "cells")
        entry = cache_folder() / f"{key}.cells"
        kept = read_entry(entry)
        if kept in (_LISTS, _DENSE):
            return kept == _DENSE
        if not _can_keep(entry.parent):
            return False
        with alone(entry.with_suffix(".lock")):
            kept = read_entry(entry)  # another process may have measured meanwhile
            if kept in (_LISTS, _DENSE):
                return kept == _DENSE
            timed = measure(device, clock, weights, configuration, dense, rate)
            wins = timed.same_bits and timed.dense <= GAIN * timed.lists
            write_entry(entry, _DENSE if wins else _LISTS)
            return wins and read_entry(entry) == _DENSE
    except (CudaError, OutOfMemoryError, DoesNotFitError, RuntimeError):
        return False


def _can_keep(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def measure(
    device: Device,
    clock: Clock,
    weights: StepWeights,
    configuration: Configuration,
    dense: Schedule,
    rate: float,
) -> Timed:
    """Time both kernels on one level, one after the other: 2 (ROUNDS + 1) launches of two steps.

    Raises:
        CudaError, OutOfMemoryError, RuntimeError: the GPU refuses.
    """
    where = weights.hidden_weight.device
    # A generator of its own: the caller's random numbers stay what they would be.
    draws = torch.Generator(device=where).manual_seed(0)
    size = (1, *SHAPE, configuration.padded)
    state = torch.empty(size, dtype=torch.float16, device=where).normal_(generator=draws)
    outs, times = [], []
    for schedule in (None, dense):
        run = LevelLaunches(
            device,
            weights,
            "half",
            False,
            shape=SHAPE,
            batch=1,
            draws=FireDraws(rate, 0, 0, (0,) * len(SHAPE)),
            schedule=schedule,
        )
        steps = max(run.program.forward)
        out = torch.empty_like(state)
        own = [
            clock.milliseconds(out.zero_, lambda: run.forward(state, out, 0, steps))  # noqa: B023
            for _ in range(ROUNDS + 1)
        ]
        times.append(statistics.median(own[1:]))
        outs.append(out.view(torch.int16))
    return Timed(times[0], times[1], torch.equal(outs[0], outs[1]))
