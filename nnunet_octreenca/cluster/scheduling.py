"""Cases given to a cluster in windows, and what comes back of them.

The scheduler holds a window of tasks however large the archive is, and the client holds a line
for each case. A case goes out twice: its header is read for a plan of its memory, then it is
segmented with that much of a worker's memory reserved.
"""

import heapq
import os
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from nnunet_octreenca.cluster import tasks
from nnunet_octreenca.cluster.journal import Ended
from nnunet_octreenca.cluster.limits import within
from nnunet_octreenca.cluster.session import ALL_PLACES, wanted
from nnunet_octreenca.cluster.workers import Workers
from nnunet_octreenca.errors import LockedError, WorkerError, first_line
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.prediction.folder import Failure, Outcome
from nnunet_octreenca.prediction.forecast import Forecast
from nnunet_octreenca.stores.listing import StoredCase
from nnunet_octreenca.waiting import Patience, advice, wait_limit

if TYPE_CHECKING:
    from distributed import Client, Future

WINDOW = 2000
"""Cases at the scheduler at a time: hours of work for most clusters, some 20 MB there."""
_BATCH = 16  # cases of a task that reads headers
_TRIES = 10  # tasks of a case that come back without an answer, mostly for others' faults
_POLL = 0.2  # seconds
_BUSY_FIRST, _BUSY_LONGEST = 2.0, 30.0  # seconds until a case that another process is at
_RECONNECT = 60.0  # seconds until a scheduler that is not reached has gone
_RESULT = 60.0  # seconds for a result of some KB to come from its worker
ALL_HERE = 20.0
"""Seconds without a new worker after which those that cannot be used are all there are: a job
system starts workers one after the other."""

SEE = "see that workers run and have memory for the cases"
"""What to look at where no worker does anything."""


class WithdrawnError(WorkerError):
    """Every worker has withdrawn."""


@dataclass
class Entry:
    """A case on its way.

    Attributes:
        case: its files.
        expected: memory that it takes; None where its header says nothing.
        tries: tasks that were submitted for it.
        lost: of these, how many gave no answer.
        alone: it gets a worker for itself.
        waits: seconds until it is tried again, after another process was at it.
        since: when that was first, on a clock that nobody sets.
    """

    case: Case
    expected: Forecast | None = None
    tries: int = 0
    lost: int = 0
    alone: bool = False
    waits: float = _BUSY_FIRST
    since: float | None = None


@dataclass
class Scheduling:
    """All cases of a run, as they go to a cluster.

    Attributes:
        client: of the scheduler.
        run: the name of the run.
        workers: what they have.
        on_gpu: tasks ask for a GPU.
        lasting: the scheduler outlives this process, and so do the cases that it was given.
        window: see `WINDOW`.
        split_above: cells of a case from which other workers take bands of it; None for never.
        all_here: see `ALL_HERE`.
        see: what to look at where no worker does anything.
    """

    client: "Client"
    run: str
    workers: Workers
    on_gpu: bool = False
    lasting: bool = True
    window: int = WINDOW
    split_above: int | None = None
    all_here: float = ALL_HERE
    see: Callable[[], str] = lambda: SEE
    _waiting: deque[Entry] = field(default_factory=deque)
    _planned: deque[Entry] = field(default_factory=deque)
    _delayed: list[tuple[float, int, Entry]] = field(default_factory=list)
    _planning: dict[str, tuple["Future[Any]", list[Entry]]] = field(default_factory=dict)
    _running: dict[str, tuple["Future[Any]", Entry]] = field(default_factory=dict)
    _answers: "SimpleQueue[str]" = field(default_factory=SimpleQueue)
    _numbers: Iterator[int] = field(default_factory=count)
    _lost: float = inf  # when the scheduler was found gone
    _withdrawn: str = ""  # why the last worker that did takes no more cases

    def outcomes(
        self, cases: Sequence[Case], tick: Callable[[], object] = lambda: None
    ) -> Iterator[Ended]:
        """What becomes of each case, in the order in which they end.

        Args:
            cases: to segment.
            tick: called several times a second.

        Raises:
            WorkerError: the scheduler has gone, or no worker does anything for the limit of
                `waiting`.
            WithdrawnError: no worker is left that takes cases.
        """
        self._waiting.extend(Entry(case) for case in cases)
        patience, others = Patience(), Patience(limit=self.all_here)
        while self._left():
            ended = []
            if self._connected():
                self._fill()
                ended = list(self._answered())
                yield from ended
                self.workers.keep_fresh()
            tick()
            busy = self.workers.at_work(self._running.keys() | self._planning.keys())
            if busy or self.workers.count or not self._withdrawn:
                others.restart()
            elif others.over():
                raise WithdrawnError(
                    f"no worker is left that takes cases; {self._withdrawn}; then run this again "
                    f"with --continue"
                )
            if ended or busy:
                patience.restart()
            elif patience.over():
                raise WorkerError(
                    f"no worker has done anything for {patience.limit:.0f} s; {self.see()}. "
                    f"{advice()}"
                )

    def cancel(self) -> None:
        """Take back what no worker has begun, and forget the rest."""
        futures = [future for future, _ in (*self._planning.values(), *self._running.values())]
        self._planning.clear()
        self._running.clear()
        with suppress(WorkerError):  # workers hear of it another way too
            within(
                _RESULT,
                lambda: self.client.cancel(futures, force=True, reason="stopped"),
                "the scheduler",
            )

    def _connected(self) -> bool:
        """Whether the scheduler is there; the client itself tries again for a while.

        Raises:
            WorkerError: it has given up.
        """
        if self.client.status == "running":
            self._lost = inf
            return True
        self._lost = min(self._lost, monotonic())
        # It may also fail at trying, and stay as it is.
        if self.client.status == "connecting" and monotonic() - self._lost < _RECONNECT:
            sleep(_POLL)
            return False
        raise WorkerError(
            "the scheduler has gone, or was started again; cases that are finished stay so, and "
            "those that were begun may still end: see that a scheduler and workers run, and run "
            f"this again with {'--attach' if self.lasting else '--continue'}"
        )

    def _left(self) -> bool:
        return bool(
            self._waiting or self._planned or self._delayed or self._planning or self._running
        )

    def _fill(self) -> None:
        """Submit as much as the window takes, planned cases first."""
        now = monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            self._planned.append(heapq.heappop(self._delayed)[2])
        out = len(self._running) + sum(len(entries) for _, entries in self._planning.values())
        while self._planned and out < self.window:
            self._submit(self._planned.popleft())
            out += 1
        while self._waiting and out < self.window and self.workers.shares:
            entries = [
                self._waiting.popleft()
                for _ in range(min(_BATCH, len(self._waiting), self.window - out))
            ]
            self._plan(entries)
            out += len(entries)

    def _plan(self, entries: list[Entry]) -> None:
        key = f"octreenca-plan-{self.run}-{os.getpid()}-{next(self._numbers)}"
        future = tasks.submitted(
            self.client,
            tasks.plan,
            self.run,
            [entry.case for entry in entries],
            self.workers.shares,
            key=key,
            priority=10,
            resources=wanted(self.run, 1),
        )
        self._planning[key] = (future, entries)
        future.add_done_callback(lambda future: self._answers.put(future.key))

    def _submit(self, entry: Entry) -> None:
        from distributed import fire_and_forget

        # A client that comes back asks for the same keys, and finds what still runs.
        key = f"octreenca-{self.run}-{entry.case.name}-{entry.tries}"
        memory = entry.expected.bytes if entry.expected else 1
        places = ALL_PLACES if entry.alone else 1
        future = tasks.submitted(
            self.client,
            tasks.segment,
            self.run,
            entry.case,
            entry.expected,
            entry.alone,
            self._helpers(entry),
            key=key,
            resources=wanted(self.run, memory, places, on_gpu=self.on_gpu),
        )
        entry.tries += 1
        if self.lasting:
            fire_and_forget(future)
        self._running[key] = (future, entry)
        future.add_done_callback(lambda future: self._answers.put(future.key))

    def _helpers(self, entry: Entry) -> int:
        """Workers that take bands of a case."""
        if self.split_above is None or entry.expected is None:
            return 0
        return self.workers.count if entry.expected.cells > self.split_above else 0

    def _answered(self) -> Iterator[Ended]:
        """Take what has come back, waiting a moment for it."""
        keys = []
        with suppress(Empty):
            keys.append(self._answers.get(timeout=_POLL))
            while True:
                keys.append(self._answers.get_nowait())
        futures = {}
        for key in keys:
            task = self._planning.get(key) or self._running.get(key)
            if task is not None:
                futures[key] = task[0]
        results = self._results(futures)
        for key in futures:
            if key in self._planning:
                future, entries = self._planning.pop(key)
                future.release()
                yield from self._take_plans(results[key], entries)
            else:
                future, entry = self._running.pop(key)
                future.release()
                yield from self._take(results[key], entry)

    def _take_plans(self, found: object, entries: list[Entry]) -> Iterator[Ended]:
        if not isinstance(found, list):  # its worker died: each case will tell for itself
            found = [None] * len(entries)
        for entry, expected in zip(entries, found, strict=True):
            if isinstance(expected, Failure):
                yield Ended(entry.case.name, Outcome(failed=expected))
                continue
            entry.expected = expected
            # What must be fetched to be planned, no worker has planned: it is alone, and may have
            # all memory.
            entry.alone |= expected is None and isinstance(entry.case, StoredCase)
            self._planned.append(entry)

    def _take(self, ended: object, entry: Entry) -> Iterator[Ended]:
        if isinstance(ended, Ended) and ended.state:
            yield ended
        elif isinstance(ended, Ended) and ended.withdrawn:
            self._withdrawn = ended.withdrawn
            yield from self._again(entry, ended.withdrawn)
        elif isinstance(ended, Ended) and ended.suspect:
            entry.alone = True
            self._planned.append(entry)
        elif isinstance(ended, Ended) and not ended.stopped:
            yield from self._busy(entry)
        else:
            yield from self._again(entry, ended)

    def _busy(self, entry: Entry) -> Iterator[Ended]:
        """Another process is at a case: another run, or a worker that was lost and goes on."""
        now = monotonic()
        if entry.since is None:
            entry.since = now
        if now - entry.since > wait_limit():
            error = LockedError(
                f"another process has been at it for {now - entry.since:.0f} s; run this again "
                f"with --continue when that has ended"
            )
            yield _failed(entry.case, error)
            return
        heapq.heappush(self._delayed, (now + entry.waits, next(self._numbers), entry))
        entry.waits = min(2 * entry.waits, _BUSY_LONGEST)

    def _again(self, entry: Entry, why: object) -> Iterator[Ended]:
        """A task came back without an answer: its worker died, or somebody cancelled it."""
        entry.lost += 1
        if entry.lost < _TRIES:
            self._planned.append(entry)
            return
        error = WorkerError(f"no worker could come to an end with it ({first_line(why)})")
        yield _failed(entry.case, error)

    def _results(self, futures: Mapping[str, "Future[Any]"]) -> dict[str, Any]:
        """What tasks gave, or the errors that they ended with.

        Fetched together: one by one they take the client some 4 ms each, in which it submits
        nothing.
        """
        finished = {key: future for key, future in futures.items() if future.status == "finished"}
        found: dict[str, Any] = {}
        with suppress(Exception, CancelledError):  # then each tells for itself
            if len(finished) > 1:
                found = within(_RESULT, lambda: self.client.gather(finished), "a worker")
        return {
            key: found[key] if key in found else self._result(future)
            for key, future in futures.items()
        }

    def _result(self, future: "Future[Any]") -> Any:
        """What a task gave, or the error that it ended with."""
        try:
            return future.result(timeout=_RESULT)
        except (Exception, CancelledError) as error:  # of the task, its worker, or the way to it
            return error


def _failed(case: Case, error: WorkerError | LockedError) -> Ended:
    return Ended(case.name, Outcome(failed=Failure.of(case, error)))
