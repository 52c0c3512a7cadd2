"""The service behind `predict --watch`: cases of a drop folder, for months and over restarts."""

import builtins
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, perf_counter
from typing import Any

from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.hashes import stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.prediction.drop_folder import Arrival, DropFolder
from nnunet_octreenca.prediction.earlier import require_same
from nnunet_octreenca.prediction.failure_notes import (
    FailureNote,
    note_path,
    read_note,
    write_note,
)
from nnunet_octreenca.prediction.folder import Failure, Run
from nnunet_octreenca.prediction.service_files import EventLog, HealthFile, utc_now
from nnunet_octreenca.prediction.taken_cases import TakenCases
from nnunet_octreenca.resources import free_disk
from nnunet_octreenca.result_record import (
    FINISHED,
    RECORDS,
    CaseRecord,
    read_case_record,
    record_path,
)

HEALTH = "health.json"
RETRIES = (30.0, 120.0, 600.0)
"""Seconds before a case is tried again that failed for a reason that may pass: a full disk, a
network drive that is away, no memory."""
_BUSY = 30.0  # seconds before a case is tried again that another run is at
_DEATHS = 2  # of this program during a case, after which the case is not tried again
_LEAST_DISK = 64 << 20  # bytes; below, no case is begun
_PASSING = {"OutputError", "NoRoomError", "OutOfMemoryError", "MemoryError"}


class DropService:
    """Segments what arrives in a drop folder until it is stopped.

    Args:
        run: model, destination and options; its destination must have `resume`.
        folder: where cases arrive.
        log: of the events.
        stop: set from elsewhere; the service then ends after the band it is at.
        segment: stands in for `run.segment`.
        poll: seconds between two looks.
        clock, pause: seconds on a scale that nobody can set, and what waits for some of them.
    """

    def __init__(
        self,
        run: Run,
        folder: DropFolder,
        log: EventLog,
        *,
        stop: threading.Event,
        segment: Callable[..., object] | None = None,
        poll: float,
        clock: Callable[[], float] = monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._run, self._folder, self._log, self._stop = run, folder, log, stop
        self._segment = segment or run.segment
        run.last_round = False  # a case that another run is at may be done later
        self._poll, self._clock, self._pause = poll, clock, pause or stop.wait
        self._out = run.destination.folder
        self._queue: dict[str, Arrival] = {}
        self._later: dict[str, tuple[float, Arrival]] = {}
        self._attempts: dict[str, int] = {}
        self._noted: set[str] = set()
        self._state = "starting"
        self._quality_is_old = False
        self.counts = {"done": 0, "failed": 0, "finished_before": 0, "failed_before": 0}

    def serve(self) -> None:
        """Take cases until `stop` is set.

        Raises:
            OutputError: the output folder holds results of another model or other options, or
                cannot be written to.
            LockedError: another service writes to it.
        """
        lock = FolderLock(
            self._out / RECORDS,
            "`predict --watch`",
            name=".watch.lock",
            subject=f"the results folder {self._out}",
        )
        with lock:
            self._require_same_model()
            self._taken = TakenCases(self._out / RECORDS / ".taken.json", self._folder.path)
            about = {"input": str(self._folder.path), "output": str(self._out)}
            about["model"] = str(self._run.model.folder)
            values = {**about, "problem": "", "counts": self.counts, "waiting": 0}
            values |= {"current": None, "last": None}
            with HealthFile(self._out / HEALTH, values) as self._health:
                self._log("started", **about)
                try:
                    while not self._stop.is_set():
                        self._step()
                finally:
                    self._write_quality()
                    self._log("stopped", **self.counts)

    def _step(self) -> None:
        """Look once, and take one case, or wait."""
        problem = self._look() or self._output_problem()
        name = None if problem else next(iter(self._queue), None)
        if name is not None:
            self._take(self._queue.pop(name))
            return
        if not problem:
            self._write_quality()
            self._enter("idle")
        self._pause(self._poll)

    def _look(self) -> str:
        """Queue what has arrived or is to be tried again; why the folder cannot be read."""
        self._noted = {name for name in self._noted if self._folder.knows(name)}
        for name in [name for name in self._noted if not note_path(self._out, name).exists()]:
            self._noted.discard(name)  # somebody wants another attempt
            self._folder.again(name)
        try:
            arrivals = self._folder.look()
        except OSError as error:
            problem = f"{self._folder.path} cannot be read ({error}); the service goes on trying"
            self._enter("input unreachable", problem)
            return problem
        for arrival in arrivals:
            self._later.pop(arrival.name, None)
            self._attempts.pop(arrival.name, None)
            self._queue[arrival.name] = arrival
        now = self._clock()
        for name in [name for name, (when, _) in self._later.items() if when <= now]:
            self._queue[name] = self._later.pop(name)[1]
        return ""

    def _output_problem(self) -> str:
        """Why no result can be written now; empty if there is no reason."""
        try:
            free = free_disk(self._out)
        except OSError as error:
            problem = f"{self._out} cannot be reached ({error}); the service goes on trying"
            self._enter("output unreachable", problem)
            return problem
        if free >= _LEAST_DISK:
            return ""
        problem = f"{self._out} has {free / 1e6:.0f} MB left; free disk space, and cases are taken"
        self._enter("output full", problem)
        return problem

    def _enter(self, state: str, problem: str = "", **values: Any) -> None:
        """Change the state; the log hears of those that hold the service up."""
        waiting = self._folder.waiting + len(self._queue) + len(self._later)
        self._health.values.update(waiting=waiting)  # written with the next renewal
        if state == self._state and not values:
            return
        if problem:
            self._log("blocked", state=state, problem=problem)
        elif self._state not in ("starting", "idle", "segmenting"):
            self._log("unblocked", after=self._state)
        self._state = state
        self._health.update(state=state, problem=problem, **values)

    # ------------------------------------------------------------------ one case

    def _take(self, arrival: Arrival) -> None:
        case, name = arrival.case, arrival.name
        try:
            now = stamp(file for file in all_files(case.files) if file.exists())
        except OSError:
            now = ""
        if not any(file.exists() for file in case.files):
            self._log("gone", case=case.name, file=name)
            return
        record = read_case_record(record_path(self._out, case.name))
        if record is not None and not arrival.problem and self._is_finished(record, now):
            self.counts["finished_before"] += 1
            return
        note = self._note(case, now, arrival.problem)
        earlier = read_note(note_path(self._out, name))
        if earlier is not None and earlier.holds(note):
            self.counts["failed_before"] += 1
            self._noted.add(name)
            return
        problem = arrival.problem
        if not problem and record is not None and record.files != [f.name for f in case.files]:
            problem = (
                f"{name} would replace the results of {', '.join(record.files)}, which is called "
                f"{case.name} too; rename it, or remove {record_path(self._out, case.name)}"
            )
        elif not problem and self._taken.deaths(name, now) >= _DEATHS:
            problem = (
                f"the program died {_DEATHS} times while it segmented {name}, which is probably "
                f"damaged or too large for this machine's memory; give less with --memory"
            )
        if problem:
            self._taken.drop(name)
            self._fail(arrival, self._note(case, now, problem))
            return
        self._segment_now(arrival, now)

    def _is_finished(self, record: CaseRecord, now: str) -> bool:
        """Whether it is with these files and this model; its results may have been fetched."""
        formats = set(self._run.destination.formats or ())
        return (
            record.state == FINISHED
            and (record.stamp, record.model) == (now, self._run.identity.model)
            and formats <= set(record.formats)
        )

    def _segment_now(self, arrival: Arrival, now: str) -> None:
        case, name, run = arrival.case, arrival.name, self._run
        self._log("taken", case=case.name, files=[str(file) for file in case.files])
        self._enter("segmenting", current={"case": case.name, "began": utc_now()})
        began, ended = perf_counter(), "stopped"
        with self._taken.while_taken(name, now), _forgotten(run):
            try:
                with suppress(Exception):  # `run.failed` has it
                    self._segment(
                        case,
                        tell=lambda line: self._log("note", case=case.name, text=line),
                        progress=self._progress,
                    )
            except SystemExit:
                if not self._stop.is_set():
                    raise
            seconds = round(perf_counter() - began, 3)
            if run.done:
                ended = "done"
                self._finish(name, seconds)
            elif run.failed and not self._stop.is_set():
                ended = self._failed(arrival, run.failed[-1], now)
            elif not self._stop.is_set():
                ended = "busy"
                self._later[name] = (self._clock() + _BUSY, arrival)
        if ended in ("stopped", "busy"):
            self._log(ended, case=case.name)
        last = {"case": case.name, "outcome": ended, "seconds": seconds, "ended": utc_now()}
        self._health.update(last=last, current=None)

    def _progress(self, stage: str, units: int) -> None:
        """Ends the case between two bands where the service is to stop."""
        if self._stop.is_set():
            raise SystemExit(0)

    def _finish(self, name: str, seconds: float) -> None:
        result = self._run.done[-1]
        self.counts["done"] += 1
        self._quality_is_old = True
        self._attempts.pop(name, None)
        self._noted.discard(name)
        with suppress(OSError):
            note_path(self._out, name).unlink(missing_ok=True)
        self._log(
            "done",
            case=result.case,
            kind=result.kind,
            shape=result.shape,
            seconds=seconds,
            outputs=result.outputs,
            labels_sha256=result.labels_sha256,
        )

    def _failed(self, arrival: Arrival, failure: Failure, now: str) -> str:
        """Note a failure, or have the case tried again; what became of it."""
        name, attempt = arrival.name, self._attempts.get(arrival.name, 0)
        if not arrival.case.files[0].exists():
            self._attempts.pop(name, None)
            self._log("gone", case=failure.case, file=name)
            return "gone"
        if _may_pass(failure.error) and attempt < len(RETRIES):
            self._attempts[name] = attempt + 1
            self._later[name] = (self._clock() + RETRIES[attempt], arrival)
            self._log(
                "retry", case=failure.case, problem=failure.sentence, in_seconds=RETRIES[attempt]
            )
            return "retry"
        self._attempts.pop(name, None)
        note = self._note(
            arrival.case, now, failure.sentence, failure.error, traceback=failure.traceback
        )
        self._fail(arrival, note)
        return "failed"

    def _fail(self, arrival: Arrival, note: FailureNote) -> None:
        self.counts["failed"] += 1
        path = note_path(self._out, arrival.name)
        self._log("failed", case=note.case, problem=note.sentence, error=note.error, note=str(path))
        try:
            write_note(path, note)
            self._noted.add(arrival.name)
        except (OSError, OctreeNCAError) as error:
            self._log("note not written", case=note.case, problem=str(error))

    def _note(
        self, case: Case, now: str, sentence: str, error: str = "InputError", traceback: str = ""
    ) -> FailureNote:
        identity = self._run.identity
        return FailureNote(
            sentence,
            case.name,
            [str(file) for file in case.files],
            error,
            utc_now(),
            now,
            identity.model,
            dict(identity.settings),
            traceback,
        )

    def _require_same_model(self) -> None:
        """Refuse to begin where every finished case would be refused for its model or options."""
        newest = max(
            (self._out / RECORDS).glob("[!.]*.json"),
            key=lambda path: path.stat().st_mtime,
            default=None,
        )
        record = None if newest is None else read_case_record(newest)
        if record is not None and record.state == FINISHED:
            require_same(record, self._run.identity, self._out)

    def _write_quality(self) -> None:
        if self._quality_is_old:
            with suppress(OSError, OctreeNCAError):
                self._run.write_quality()
            self._quality_is_old = False


@contextmanager
def _forgotten(run: Run) -> Iterator[None]:
    """Context after which a run holds nothing of its cases: it never ends, and would grow."""
    try:
        yield
    finally:
        run.forget()


def _may_pass(error: str) -> bool:
    """Whether an error of this type can be another time's, not the file's."""
    kind = getattr(builtins, error, None)
    return error in _PASSING or (isinstance(kind, type) and issubclass(kind, OSError))
