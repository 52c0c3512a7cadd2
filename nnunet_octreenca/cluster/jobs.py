"""SLURM's jobs while a run lasts: what becomes of them, and which are submitted again."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import Any

from nnunet_octreenca.errors import WorkerError

FRUITLESS = 3
"""Jobs in a row that may end without a case of theirs; then their place stays empty."""
INTERVAL = 20.0
"""Seconds between two looks at SLURM's queue."""
_RETRY = 60.0  # seconds after which `sbatch` is asked again for a job that it refused
_ANSWER = 60.0  # seconds for `squeue`
_LOOKS = 2  # in a row that find a job ended: one that is requeued has ended for a moment
_ENDING = 10.0  # seconds for a look at the queue that is going on at the end
# The states of `man squeue` in which a job will not go on.
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
          "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}  # fmt: skip


class NoJobsError(WorkerError):
    """All jobs have ended, and none is submitted again."""


@dataclass(frozen=True)
class State:
    """What `squeue` says of a job.

    Attributes:
        name: such as "RUNNING".
        reason: why it waits; "None" where there is none.
    """

    name: str
    reason: str


@dataclass
class _Place:
    """Of one of the jobs that were asked for.

    Attributes:
        name: of its job, for dask.
        listed: `squeue` has told of its job, which therefore is missed when it does not.
        looks: in a row that found it ended.
        fruitless: jobs in a row that ended without a case of theirs.
        ended: what became of its job, while no other one has taken its place.
        again: when that may be tried, by a clock that nobody sets.
        closed: no other one will.
    """

    name: str
    listed: bool = False
    looks: int = 0
    fruitless: int = 0
    ended: str = ""
    again: float = 0.0
    closed: bool = False


def queue() -> dict[str, State] | None:
    """All of the user's jobs that SLURM knows, by number; None where it does not answer."""
    command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}"]
    try:
        said = subprocess.run(
            [*command, "--format=%i|%T|%r"],
            capture_output=True,
            text=True,
            timeout=_ANSWER,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.strip().split("|", 2) for line in said.stdout.splitlines()]
    return {row[0]: State(row[1], row[2]) for row in rows if len(row) == 3}


class Jobs:
    """The jobs of one command. A thread looks at the queue; the client asks what it saw.

    A job that ends, at its time limit for example, is submitted again for as long as there are
    more cases than jobs. One that was cancelled is not, nor where `FRUITLESS` in a row ended
    without a case of theirs.

    Args:
        cluster: the `SLURMCluster`, whose jobs have a `refusal`, see `slurm`.
        ask: what `queue` does.

    Attributes:
        left: cases that have not ended.
        waiting: how many jobs wait, and why; empty if none does.
    """

    def __init__(self, cluster: Any, ask: Callable[[], dict[str, State] | None] = queue) -> None:
        self._cluster, self._ask = cluster, ask
        self._places = [_Place(name) for name in cluster.worker_spec]
        self._fruitful: set[str] = set()
        self._news: SimpleQueue[str] = SimpleQueue()
        self._told: set[tuple[str, ...]] = set()
        self._numbers = count(1)
        self._stop = Event()
        self._failure: Exception | None = None
        self._advice = ""
        self.left = 0
        self.waiting = ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the queue now and then in this context."""
        thread = Thread(target=self._watch, name="jobs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(_ENDING)

    def note(self, job: str) -> None:
        """A case has come to an end in the job of this number."""
        self._fruitful.add(job)

    def news(self) -> Iterator[str]:
        """Lines on what has happened since this was last asked."""
        while True:
            try:
                yield self._news.get_nowait()
            except Empty:
                return

    def require(self) -> None:
        """Refuse to go on where there will be no job any more.

        Raises:
            NoJobsError: all have ended, and none is submitted again.
        """
        if self._failure is not None:
            raise self._failure
        if all(place.closed for place in self._places):
            raise NoJobsError(
                f"no job is left: {self._advice}; run this again with --continue for the cases "
                f"that are not done"
            )

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self.look()
            except Exception as error:
                self._failure = error
                return

    def look(self) -> None:
        """Look at the queue, and submit what is to be submitted again."""
        states = self._ask()
        if states is None:
            return
        for place in self._places:
            job = self._job(place)
            if not job or place.ended:
                continue
            state = states.get(job)
            place.listed = place.listed or state is not None
            if not place.listed or (state is not None and state.name not in _ENDED):
                place.looks = 0
                continue
            place.looks += 1
            if place.looks >= _LOOKS:
                self._take_end(place, job, "" if state is None else state.name)
        self._submit_again()
        self._tell_what_waits(states)

    def _job(self, place: _Place) -> str:
        """The number of the job at a place; empty while there is none."""
        job = self._cluster.workers.get(place.name)
        return "" if job is None or job.job_id is None else str(job.job_id)

    def _take_end(self, place: _Place, job: str, state: str) -> None:
        place.ended = f"SLURM job {job} has ended ({state or 'it is no longer in the queue'})"
        place.fruitless = 0 if job in self._fruitful else place.fruitless + 1
        if state == "CANCELLED":
            self._close(place, "and is not submitted again", "they were cancelled")
        elif place.fruitless >= FRUITLESS:
            self._close(
                place,
                f"without finishing a case, as did {FRUITLESS - 1} before it, and is not submitted "
                f"again",
                f"look at what job {job} wrote (slurm-{job}.out), and give jobs more time "
                f"(walltime) if a case takes longer than they have",
            )

    def _close(self, place: _Place, why: str, advice: str) -> None:
        place.closed = True
        self._advice = advice
        self._news.put(f"{place.ended}, {why}")

    def _submit_again(self) -> None:
        open_places = [place for place in self._places if not place.closed]
        empty = [place for place in open_places if place.ended]
        needed = max(0, self.left - (len(open_places) - len(empty)))
        now = monotonic()
        places = [place for place in empty if place.again <= now][:needed]
        if not places or self._stop.is_set():
            return
        for place in places:
            self._cluster.worker_spec.pop(place.name, None)
            # A new name: the scheduler may not know yet that the worker of the old one has gone.
            place.name = f"{self._cluster.name}-again-{next(self._numbers)}"
            self._cluster.worker_spec[place.name] = self._cluster.new_spec
        self._cluster.sync(self._settle)
        for place in places:
            refusal = self._cluster.workers[place.name].refusal
            if refusal:
                place.again = now + _RETRY
                self._news.put(f"{place.ended}; `sbatch` takes no other one for now ({refusal})")
                continue
            self._news.put(f"{place.ended}; job {self._job(place)} takes its place")
            place.ended, place.looks, place.listed = "", 0, False

    async def _settle(self) -> None:
        await self._cluster  # cancels jobs without a specification, submits those without a job

    def _tell_what_waits(self, states: Mapping[str, State]) -> None:
        """Once for each reason: on a busy cluster the number changes all the time."""
        jobs = [self._job(place) for place in self._places if not place.ended]
        waiting = [states[job] for job in jobs if job in states and states[job].name == "PENDING"]
        reasons = tuple(sorted({state.reason for state in waiting} - {"", "None"}))
        why = f" ({'; '.join(reasons)})" if reasons else ""
        self.waiting = f"{len(waiting)} of {len(jobs)} jobs wait in SLURM's queue{why}"
        if not waiting:
            self.waiting = ""
        elif reasons and reasons not in self._told:
            self._told.add(reasons)
            self._news.put(self.waiting)
