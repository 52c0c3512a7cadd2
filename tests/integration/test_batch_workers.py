"""Processes that prepare batches: the same from one seed, and a sentence where one fails."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers.faults import kill_oneself, sleep_forever, stop_oneself

from nnunet_octreenca.errors import InputError, WorkerError
from nnunet_octreenca.integration.batch_workers import BatchWorkers, InlineBatches, Stream
from nnunet_octreenca.integration.batches import run_loaders
from nnunet_octreenca.waiting import LIMIT_VARIABLE


class Draws:
    """A loader: one number of every generator, which process it is, and what is asked for."""

    def __init__(self, fault=None, after=2):
        self.fault, self.after, self.thread = fault, after, None

    def set_thread_id(self, number):
        self.thread = number

    def __next__(self):
        self.after -= 1
        if self.fault is not None and self.thread == 0 and self.after < 0:
            self.fault()
        drawn = [np.random.random(), float(torch.rand(1, dtype=torch.float64)), random.random()]
        return {"data": torch.tensor(drawn), "target": [torch.zeros(2, dtype=torch.int16)],
                "keys": ["a"], "process": os.getpid()}  # fmt: skip


def refuse():
    raise InputError("slide.tif is gone")


def fail():
    raise ZeroDivisionError("of a transform")


def drawn(batches, count):
    try:
        return [batch["data"].tolist() for batch in islice(batches, count)]
    finally:
        batches.close()


def workers(loader, processes=2, **options):
    return BatchWorkers(loader, what="training", processes=processes, **options)


STREAM = Stream(7, 0, "training")


@pytest.mark.parametrize("processes", [0, 2])
def test_a_batch_is_used_so_many_times(processes, monkeypatch):
    """Also where a training goes on in the middle of a batch."""
    monkeypatch.setenv("nnUNet_n_proc_DA", str(processes))

    def batches(epoch, steps_per_context):
        training, validation = run_loaders(
            Draws(), Draws(), iterations=(5, 1), epoch=epoch, seed=3, rank=0, pin_memory=False,
            steps_per_context=steps_per_context,
        )  # fmt: skip
        validation.close()
        return drawn(training, 7)

    once = batches(0, 1)
    assert len({str(each) for each in once}) == 7
    assert batches(0, 3) == [once[0]] * 3 + [once[1]] * 3 + [once[2]]
    # Epoch 1 begins with iteration 5, the last use of batch 1.
    assert batches(1, 3) == [once[1]] + [once[2]] * 3 + [once[3]] * 3


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_depend_on_the_seed_and_their_number_alone(processes):
    expected = drawn(InlineBatches(Draws(), STREAM), 9)
    assert len({tuple(batch) for batch in expected}) == 9
    assert drawn(workers(Draws(), processes, stream=STREAM), 9) == expected
    # A continued training begins in the middle.
    assert drawn(workers(Draws(), processes, stream=STREAM, first=4), 5) == expected[4:]


@pytest.mark.parametrize(
    "other", [Stream(8, 0, "training"), Stream(7, 1, "training"), Stream(7, 0, "validation")]
)
def test_other_streams_are_other_batches(other):
    first, second = (drawn(InlineBatches(Draws(), stream), 3) for stream in (STREAM, other))
    assert not {number for batch in first for number in batch} & {
        number for batch in second for number in batch
    }


def test_batches_in_this_process_leave_its_generators_alone():
    def state():
        return np.random.random(), float(torch.rand(1)), random.random()

    np.random.seed(1), torch.manual_seed(1), random.seed(1)
    expected = state()
    np.random.seed(1), torch.manual_seed(1), random.seed(1)
    next(InlineBatches(Draws(), STREAM))
    assert state() == expected


def test_without_a_seed_processes_draw_differently():
    batches = drawn(workers(Draws(), 3), 12)
    assert len({number for batch in batches for number in batch}) == 36
    assert drawn(workers(Draws(), 3), 12) != batches


def test_batches_come_whole():
    batches = workers(Draws(), 1)
    batch = next(batches)
    batches.close()
    assert batch["target"][0].dtype == torch.int16
    batch["target"][0][0] = 3  # nnU-Net writes into them
    assert batch["process"] != os.getpid()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("stream", [STREAM, None], ids=["seeded", "unseeded"])
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (kill_oneself, WorkerError, "prepared training batches, ended .* .signal 9, most"),
        (refuse, InputError, "slide.tif is gone"),
        (fail, WorkerError, "could not be prepared: ZeroDivisionError: of a transform"),
    ],
)  # fmt: skip
def test_a_process_that_fails_ends_the_training(stream, fault, error, message):
    batches = workers(Draws(fault), stream=stream)
    with pytest.raises(error, match=message):
        drawn(batches, 3000)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("fault", [sleep_forever, stop_oneself])
def test_a_process_that_hangs_ends_the_training(monkeypatch, fault):
    """A stopped process does not end on SIGTERM either."""
    monkeypatch.setenv(LIMIT_VARIABLE, "0.5")
    batches = workers(Draws(fault), stream=STREAM)
    begun = time.monotonic()
    with pytest.raises(WorkerError, match=r"no training batch for .* s: .* hangs .*wait_limit"):
        drawn(batches, 3000)
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()


def test_a_slow_process_is_waited_for(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    batches = workers(Draws(lambda: time.sleep(0.7)), 1, stream=STREAM)
    assert len(drawn(batches, 4)) == 4


ABANDONED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from test_batch_workers import Draws, STREAM, stop_oneself, workers
first, second = (workers(Draws(), 2, stream=STREAM) for _ in range(2))
for batches in (first, second):
    for _ in range(3):
        next(batches)
print(*(process.pid for batches in (first, second) for process, _ in batches._workers), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "with a stopped process":
    os.kill(first._workers[0][0].pid, signal.SIGSTOP)
"""


@pytest.mark.parametrize("how", ["killed", "with a stopped process"])
def test_nothing_is_left_behind(how):
    """Neither after SIGKILL, nor where a training ends without closing its batches."""
    own = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", ABANDONED, how, own, own.parent / "lib"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == (-9 if how == "killed" else 0), run.stderr
    left = [psutil.Process(int(pid)) for pid in run.stdout.split() if psutil.pid_exists(int(pid))]
    assert not psutil.wait_procs(left, timeout=60)[1]
