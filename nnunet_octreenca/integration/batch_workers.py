"""Processes that draw and augment training batches: reproducible, and never waited for in vain.

They take the place of nnU-Net's `NonDetMultiThreadedAugmenter`. With a seed, a batch is a function
of the seed and its number alone: batch n comes out the same in whichever process it is made, and
however many there are. Each process writes to a pipe of its own, so that none can hold a lock that
the others need when it is killed.
"""

import io
import os
import pickle
import queue
import random
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing import Pipe, Process, connection, get_start_method, parent_process, util
from typing import Any, NamedTuple

import numpy as np
import torch

from nnunet_octreenca.errors import OctreeNCAError, WorkerError
from nnunet_octreenca.waiting import Patience, advice

_POLL = 0.5  # seconds between looks at a clock or at a process
_PATIENCE_AT_THE_END = 5.0  # seconds for killed processes and the reading thread to be gone


class Stream(NamedTuple):
    """What seeds batches, with their number.

    Attributes:
        seed: of the training.
        rank: of the process in distributed training.
        what: "training" or "validation".
    """

    seed: int
    rank: int
    what: str


def seed_batch(stream: Stream, number: int) -> None:
    """Seed all generators that nnU-Net's loader and transforms draw from."""
    key = [stream.seed % (1 << 64), stream.rank, *stream.what.encode(), number]
    words = np.random.SeedSequence(key).generate_state(8)
    np.random.seed(words[:4])
    torch.manual_seed(int(words[4]) << 32 | int(words[5]))
    random.seed(int(words[6]) << 32 | int(words[7]))


class InlineBatches:
    """Batches that are made in this process, when they are asked for.

    Args:
        loader: nnU-Net's data loader, or one like it.
        stream: what seeds the batches.
        first: number of the first batch.
    """

    def __init__(self, loader: Any, stream: Stream | None, first: int = 0) -> None:
        self.generator = loader
        self._stream = stream
        self._numbers = count(first)

    def __iter__(self) -> "InlineBatches":
        return self

    def __next__(self) -> Any:
        """One batch."""
        if self._stream is None:
            return next(self.generator)
        with _generators_kept():
            seed_batch(self._stream, next(self._numbers))
            return next(self.generator)

    def close(self) -> None:
        """There is nothing to end."""


@contextmanager
def _generators_kept() -> Iterator[None]:
    state, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(state)
            random.setstate(python)


class BatchWorkers:
    """Batches from several processes, in the order of their numbers if they are seeded.

    Args:
        loader: nnU-Net's data loader, or one like it: `next` draws a batch, `set_thread_id` is
            called once in each process.
        what: names the batches in messages: "training" or "validation".
        processes: how many.
        cached: batches that wait in this process.
        stream: what seeds the batches.
        first: number of the first batch.
        pin_memory: put tensors where a GPU can fetch them.
    """

    def __init__(
        self,
        loader: Any,
        *,
        what: str,
        processes: int,
        cached: int = 3,
        stream: Stream | None = None,
        first: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.generator = loader
        self.num_processes = processes
        self._what = what
        pins = pin_memory and torch.cuda.is_available()
        device = torch.cuda.current_device() if pins else None
        self._ready: queue.Queue[Any] = queue.Queue(cached)
        self._closed = threading.Event()
        self._workers: list[tuple[Process, connection.Connection]] = []
        for number in range(processes):
            own, theirs = Pipe(duplex=False)
            process = Process(
                target=_work,
                args=(loader, theirs, os.getpid(), number, first + number, processes, stream),
                name=f"{what} batches {number}",
                daemon=True,
            )
            process.start()
            theirs.close()  # before the next is forked: an end in nobody's hands ends the pipe
            self._workers.append((process, own))
        # Before multiprocessing waits for its processes, one of which may never end by itself.
        self._finalizer = util.Finalize(
            self, _end, (self._closed, self._workers, self._ready), exitpriority=100
        )
        self._thread = threading.Thread(
            target=_read,
            args=(self._workers, stream is not None, self._ready, self._closed, device, what),
            name=f"{what} batches",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> "BatchWorkers":
        return self

    def __next__(self) -> Any:
        """One batch.

        Raises:
            WorkerError: a process died, failed, or delivered nothing for too long.
            OctreeNCAError: what a process raised.
        """
        patience = Patience(process.pid for process, _ in self._workers)
        while True:
            try:
                item = self._ready.get(timeout=min(_POLL, patience.limit))
            except queue.Empty:
                if self._closed.is_set():
                    raise WorkerError(
                        f"the processes that prepare {self._what} batches have ended"
                    ) from None
                if not patience.over():
                    continue
                processes = ", ".join(str(process.pid) for process, _ in self._workers)
                self.close()
                raise WorkerError(
                    f"no {self._what} batch for {patience.waited:.0f} s: a process that prepares "
                    f"them hangs (process ids {processes}). {advice()}; `--c` continues from the "
                    f"last checkpoint"
                ) from None
            if isinstance(item, OctreeNCAError):
                self.close()
                raise item
            return item

    def close(self) -> None:
        """End the processes."""
        self._finalizer()
        self._thread.join(_PATIENCE_AT_THE_END)


def _end(
    closed: threading.Event,
    workers: list[tuple[Process, connection.Connection]],
    ready: queue.Queue[Any],
) -> None:
    """Kill the processes: they have nothing to save, and one that hangs ends no other way."""
    closed.set()
    for process, _ in workers:
        process.kill()
    for process, _ in workers:
        process.join(_PATIENCE_AT_THE_END)
    while True:  # room for the reading thread
        try:
            ready.get_nowait()
        except queue.Empty:
            break


# ---------------------------------------------------------------- in the training process


def _read(
    workers: list[tuple[Process, connection.Connection]],
    ordered: bool,
    ready: "queue.Queue[Any]",
    closed: threading.Event,
    device: int | None,
    what: str,
) -> None:
    """Move batches from the pipes to the queue; the last item is an error, if there is one."""
    if device is not None:
        torch.cuda.set_device(device)
    for turn in count():
        waited = [workers[turn % len(workers)]] if ordered else workers
        found: list[Any] = []
        while not found:
            if closed.is_set():
                return
            found = connection.wait([pipe for _, pipe in waited], timeout=_POLL)
        for process, pipe in waited:
            if pipe not in found:
                continue
            item = _received(process, pipe, what)
            _hand_over(item if device is None else _pinned(item), ready, closed)
            if isinstance(item, OctreeNCAError):
                return


def _hand_over(item: Any, ready: "queue.Queue[Any]", closed: threading.Event) -> None:
    while not closed.is_set():
        try:
            return ready.put(item, timeout=_POLL)
        except queue.Full:
            continue


def _received(process: Process, pipe: connection.Connection, what: str) -> Any:
    """A batch, or the error that ends the training."""
    try:
        item = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        process.join(_PATIENCE_AT_THE_END)
        how = f"exit code {process.exitcode}"
        if process.exitcode is not None and process.exitcode < 0:
            how = f"signal {-process.exitcode}"
        if process.exitcode == -9:
            how += ", most likely because the memory was full; try fewer with nnUNet_n_proc_DA"
        return WorkerError(
            f"process {process.pid}, which prepared {what} batches, ended unexpectedly ({how}). "
            f"`--c` continues from the last checkpoint"
        )
    if isinstance(item, _Failure):
        if item.error is not None:
            return item.error
        print(item.traceback, file=sys.stderr)
        return WorkerError(
            f"a {what} batch could not be prepared: {item.summary}. The traceback is above; "
            f"`--c` continues from the last checkpoint"
        )
    return item


def _pinned(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return item.pin_memory()
    if isinstance(item, dict):
        return {key: _pinned(value) for key, value in item.items()}
    return item


# ---------------------------------------------------------------- in the worker processes


class _Failure(NamedTuple):
    error: OctreeNCAError | None
    summary: str
    traceback: str


def _work(
    loader: Any,
    pipe: connection.Connection,
    parent: int,
    thread: int,
    first: int,
    step: int,
    stream: Stream | None,
) -> None:
    """Send batches `first`, `first + step`, ... without end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to answer
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    if stream is None:  # after a fork all processes have the same generators
        np.random.seed()
        torch.seed()
        random.seed()
    try:
        loader.set_thread_id(thread)
        for number in count(first, step):
            if stream is not None:
                seed_batch(stream, number)
            pipe.send_bytes(_pickled(next(loader)))
    except BrokenPipeError:  # the training process is gone
        return
    except OctreeNCAError as error:
        failure = _Failure(error, str(error), "")
    except Exception as error:  # whatever a third party's transform raises
        failure = _Failure(None, f"{type(error).__name__}: {error}", traceback.format_exc())
    with suppress(BrokenPipeError):
        pipe.send_bytes(pickle.dumps(failure))


def _end_with(parent: int) -> None:
    """End this process when the training process is gone, killed perhaps."""
    process = parent_process()
    assert process is not None
    while not connection.wait([process.sentinel], timeout=_POLL):
        # Processes forked later hold the sentinel's other end open.
        if get_start_method() == "fork" and os.getppid() != parent:
            break
    os._exit(1)


class _Pickler(pickle.Pickler):
    """Tensors as arrays: PyTorch would pass handles, and a process that hangs never gives them."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _pickled(item: Any) -> bytes | memoryview:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(item)
    return buffer.getbuffer()
