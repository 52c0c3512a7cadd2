"""A run on a cluster, from its client's side: begun or come back to, and brought to its end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING
from uuid import uuid4

from nnunet_octreenca.cluster import tasks
from nnunet_octreenca.cluster.jobs import Jobs, NoJobsError
from nnunet_octreenca.cluster.journal import FOLDER, RUN, Ended, Journal, read_run
from nnunet_octreenca.cluster.limits import CALL, within
from nnunet_octreenca.cluster.scheduling import ALL_HERE, SEE, WINDOW, Scheduling, WithdrawnError
from nnunet_octreenca.cluster.session import About, Session, plugin_name
from nnunet_octreenca.cluster.settings import Settings
from nnunet_octreenca.cluster.shared_files import NO_SHARE, DiskFiles, SharedFiles, shared_files
from nnunet_octreenca.cluster.workers import Workers
from nnunet_octreenca.errors import InputError, OctreeNCAError, OutputError, WorkerError, first_line
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.prediction.folder import Run
from nnunet_octreenca.prediction.identity import differences
from nnunet_octreenca.stores.listing import StoredCase
from nnunet_octreenca.stores.urls import absolute
from nnunet_octreenca.waiting import Patience, advice

if TYPE_CHECKING:
    from distributed import Client

_STOPPING = 300.0  # seconds in which the bands at hand should end
_LOCK = f"{FOLDER}/client.lock"


@dataclass(frozen=True)
class Request:
    """How a run uses a cluster.

    Attributes:
        address: of the scheduler, for the record.
        attach: go on with the run that is at the output folder.
        lasting: the scheduler outlives this process.
        device: "cpu" or "cuda".
        threads: of a task; None for a worker's processors.
        window: cases at the scheduler at a time.
        split_above: cells of a case from which several workers share it; None for never.
        scratch: folder of each worker for what it fetches from URLs; None for its own.
        scratch_limit: bytes that may lie there at a time; None for what is free.
    """

    address: str
    attach: bool = False
    lasting: bool = True
    device: str = "cpu"
    threads: int | None = None
    window: int = WINDOW
    split_above: int | None = None
    scratch: str | None = None
    scratch_limit: int | None = None


@dataclass
class ClusterRun:
    """Cases that a cluster segments into one folder.

    Attributes:
        run: takes what became of each case.
        request: how.
        source: file, folder or URL of the images.
        client: of the scheduler.
        jobs: of SLURM that the workers run in, where the command has submitted them.
        tell: takes a line about the workers.
        records: of all cases that ended.
    """

    run: Run
    request: Request
    source: Path | str
    client: "Client"
    jobs: Jobs | None = None
    tell: Callable[[str], object] = print
    records: list[Ended] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)
    _total: int = 0

    def segment(
        self,
        cases: Sequence[Case],
        *,
        show: Callable[[Ended], object] = lambda ended: None,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        """Segment all cases; Ctrl-C stops workers at the end of a band.

        Args:
            cases: of the run.
            show: takes each case as it ends.
            tick: called several times a second.

        Raises:
            InputError: there is no run to come back to, or it was another one.
            OutputError: the output folder cannot be written to.
            LockedError: another client is at it.
            WorkerError: no worker can be used or is left, or the scheduler has gone.
            KeyboardInterrupt: it was stopped.
        """
        shared = shared_files(self._output())
        with self._held(shared):
            settings, journal = self._begin(shared, _samples(cases))
            for ended in journal.all():
                self._take(ended, show)
            known = {ended.case for ended in self.records}
            left = [_absolute(case) for case in cases if case.name not in known]
            self._total = len(self.records) + len(left)
            try:
                workers = self._set_up(settings)
            except (InputError, NoJobsError, KeyboardInterrupt, SystemExit):  # nothing was begun
                if not self.request.attach:
                    self._end(settings.run, journal)
                raise
            scheduling = Scheduling(
                self.client,
                settings.run,
                workers,
                on_gpu=settings.device == "cuda",
                lasting=self.request.lasting,
                window=self.request.window,
                split_above=self.request.split_above,
                all_here=ALL_HERE,
                see=self._what_to_see,
            )

            def tick_and_look() -> None:
                tick()
                self._look_at_jobs()

            try:
                for ended in scheduling.outcomes(left, tick_and_look):
                    self._take(ended, show)
            except KeyboardInterrupt:
                self._stop(settings.run, journal, scheduling)
                self._end(settings.run, journal)
                raise
            except (WithdrawnError, NoJobsError):
                scheduling.cancel()
                self._take_the_rest(journal, show)
                self._end(settings.run, journal)
                raise
            self._end(settings.run, journal)

    def _output(self) -> str:
        """The folder or the URL of the results."""
        remote = self.run.remote
        if remote is not None and remote.results is not None:
            return remote.results.url
        return str(self.run.destination.folder.absolute())

    @contextmanager
    def _held(self, shared: SharedFiles) -> Iterator[None]:
        with shared.lock(_LOCK):
            yield
        if isinstance(shared, DiskFiles):
            with suppress(OSError):  # unless the run is not over
                shared.path(FOLDER).rmdir()
                shared.path(FOLDER).parent.rmdir()

    def _begin(self, shared: SharedFiles, samples: Sequence[Case]) -> tuple[Settings, Journal]:
        """The settings of a new run, or of the one that is at the folder."""
        before, attach, folder = read_run(shared), self.request.attach, shared.shown
        if attach and before is None:
            raise InputError(
                f"no run on a cluster is at {folder}: it was finished or stopped, or never begun; "
                f"leave out --attach (with --continue finished cases are left out)"
            )
        if before is not None and not attach and not self.run.destination.resume:
            raise InputError(
                f"a run on a cluster was begun in {folder} at {before.get('began')} and not "
                f"finished; give --attach to go on with it, or --continue to begin another one"
            )
        name = str(before["run"]) if attach and before is not None else uuid4().hex[:12]
        if attach and before is not None:
            self.run.began = datetime.fromisoformat(str(before["began"]))
        settings = Settings.of(
            name,
            self.run,
            absolute(self.source),
            self._output(),
            samples=samples,
            scratch=self.request.scratch,
            scratch_limit=self.request.scratch_limit,
            device=self.request.device,
            threads=self.request.threads,
        )
        now = settings.identity_record()
        if attach and before is not None:
            changed = differences(before.get("identity", {}), now)
            if changed:
                raise InputError(
                    f"the run at {folder} is another one ({'; '.join(changed)}); give the same "
                    f"arguments with --attach, or another folder with -o"
                )
        about = {
            "run": name,
            "address": self.request.address,
            "began": settings.began,
            "identity": now,
        }
        try:
            shared.write(RUN, about)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be written to ({error}); give another folder with -o"
            ) from error
        return settings, Journal(shared, name)

    def _set_up(self, settings: Settings) -> Workers:
        """Check all workers and let them announce what they have.

        Raises:
            WorkerError: none can be used, and the limit of `waiting` is over.
            InputError: every worker has a reason why not, and no other one comes.
        """
        session = Session(settings)
        self.client.subscribe_topic(session.name, lambda event: self._problem(str(event[1])))
        with suppress(Exception):  # of one worker; those that have none of it are named below
            within(CALL, lambda: self.client.register_plugin(session), "a worker")
        workers = Workers(self.client, settings.run)
        patience, others = Patience(), Patience(limit=ALL_HERE)
        known = 0
        while True:
            self._look_at_jobs()
            abouts = self._abouts(settings.run)
            for about in abouts:
                if about.problem:
                    self._problem(about.problem)
            workers.refresh()
            if workers.count:
                return workers
            if len(abouts) != known or not all(about.problem for about in abouts):
                known = len(abouts)
                others.restart()
            if abouts and others.over():
                raise InputError(f"no worker can be used; {abouts[0].problem}")
            if patience.over():
                raise WorkerError(
                    f"no worker has come to the scheduler in {patience.limit:.0f} s; "
                    f"{self._how_workers_come()}. {advice()}"
                )
            sleep(0.5)

    def _how_workers_come(self) -> str:
        if self.request.address.startswith("slurm:"):
            waiting = f"{self.jobs.waiting}: " if self.jobs and self.jobs.waiting else ""
            return f"{waiting}look at the jobs with `squeue`, and at what they wrote (slurm-*.out)"
        return f"start some with `dask worker {self.request.address}`"

    def _what_to_see(self) -> str:
        """Where no worker does anything."""
        if self.jobs is not None and self.jobs.waiting:
            return self.jobs.waiting
        return SEE

    def _look_at_jobs(self) -> None:
        """Tell what has become of jobs.

        Raises:
            NoJobsError: none is left.
        """
        if self.jobs is None:
            return
        self.jobs.left = self._total - len(self.records)
        for line in self.jobs.news():
            self.tell(line)
        self.jobs.require()

    def _abouts(self, run: str) -> list[About]:
        """What the workers say; of one that cannot, that; nothing while one does not answer."""
        try:
            found = within(
                CALL, lambda: self.client.run(tasks.about, run, on_error="return"), "a worker"
            )
        except WorkerError:  # it may be importing PyTorch
            return []
        return [
            about
            if isinstance(about, About)
            else About("", f"worker {address} gets no case: {_why(about)}", 0, 0)
            for address, about in found.items()
            if not isinstance(about, OSError)  # it has just gone
        ]

    def _problem(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.tell(line)

    def _take(self, ended: Ended, show: Callable[[Ended], object]) -> None:
        if self.jobs is not None and ended.job:
            self.jobs.note(ended.job)
        self.records.append(ended)
        self.run.take(Case(ended.case, ()), ended.outcome)
        show(ended)

    def _stop(self, run: str, journal: Journal, scheduling: Scheduling) -> None:
        """End what is at hand at the end of a band, and wait for that."""
        self.tell("stopping at the end of the bands at hand; Ctrl-C again leaves them to end alone")
        with suppress(*NO_SHARE):
            journal.ask_to_stop()
        scheduling.cancel()
        with suppress(WorkerError):  # the file in the run's folder says the same
            within(CALL, lambda: self.client.run(tasks.stop, run, on_error="ignore"), "a worker")
        end = monotonic() + _STOPPING
        while monotonic() < end and any(about.busy for about in self._abouts(run)):
            sleep(0.2)
        self._take_the_rest(journal, lambda ended: None)

    def _take_the_rest(self, journal: Journal, show: Callable[[Ended], object]) -> None:
        """What has ended meanwhile."""
        known = {ended.case for ended in self.records}
        with suppress(OctreeNCAError):  # of a store that has gone, which the run ends for
            for ended in journal.all():
                if ended.case not in known:
                    self._take(ended, show)

    def _end(self, run: str, journal: Journal) -> None:
        try:
            journal.remove()
        except OctreeNCAError as error:  # a store that has gone, of which others say more
            self.tell(f"what this run kept beside the results stays there: {error}")
        with suppress(Exception):  # the work is done; the scheduler may have gone
            within(
                CALL,
                lambda: self.client.unregister_worker_plugin(plugin_name(run)),
                "a worker",
            )


def _samples(cases: Sequence[Case]) -> list[Case]:
    """Some of the cases, from all over."""
    places = sorted({0, len(cases) // 2, len(cases) - 1})
    return [_absolute(cases[place]) for place in places if cases]


def _absolute(case: Case) -> Case:
    if isinstance(case, StoredCase):  # which has names for files
        return case
    return replace(case, files=tuple(path.absolute() for path in case.files))


def _why(error: object) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"it cannot import {error.name}; install nnunet-octreenca[cluster] there, in the "
            f"version that the client has"
        )
    return first_line(error)
