"""A run on one worker: its model, its checks, and what the worker announces it has."""

import asyncio
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from threading import Event, Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from distributed import Status, WorkerPlugin

from nnunet_octreenca.cluster.attempts import blaming, excuse, read_attempts
from nnunet_octreenca.cluster.ending import before_the_end, forget
from nnunet_octreenca.cluster.journal import Ended, Journal
from nnunet_octreenca.cluster.room import Room
from nnunet_octreenca.cluster.sampler import Sampler
from nnunet_octreenca.cluster.settings import Settings, compared_versions, package_folder
from nnunet_octreenca.cluster.shared_files import NO_SHARE, DiskFiles, shared_files
from nnunet_octreenca.cluster.split import BandTask, Split, Submit, compute_band
from nnunet_octreenca.cluster.worker_files import WorkerFiles
from nnunet_octreenca.cluster.worker_run import WorkerRun
from nnunet_octreenca.errors import EnvironmentMismatchError, OctreeNCAError, first_line
from nnunet_octreenca.hashes import stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.prediction.earlier import Identity
from nnunet_octreenca.prediction.folder import Failure, Outcome
from nnunet_octreenca.prediction.forecast import Forecast, forecast
from nnunet_octreenca.prediction.identity import differences, environment
from nnunet_octreenca.prediction.identity import settings as identity_settings
from nnunet_octreenca.prediction.identity import versions as identity_versions
from nnunet_octreenca.resources import processors, resident_memory, total_memory
from nnunet_octreenca.stores.urls import redact

if TYPE_CHECKING:
    from distributed import Worker

MEMORY, GPU, PLACES = "MEMORY", "GPU", "PLACES"
"""Names of what workers announce and tasks ask for: bytes, 1 of a GPU, and places."""

ALL_PLACES = 1000
"""Of a worker: a task takes one, or all of them to have the worker to itself."""

TASKS = 1_000_000
"""That a worker takes of one run at a time: no limit, but 0 while it takes none of that run."""

# Of a worker's limit: dask pauses a worker at 0.8 and its nanny ends it at 0.95.
_PLANNED, _USED = 0.8, 0.9
_MOST_LINES = 20  # about one case
_ANNOUNCE = 60.0  # seconds for the scheduler to hear of it


class Stopped(KeyboardInterrupt):
    """The worker was asked to stop; cases clean up as they do for Ctrl-C."""


@dataclass(frozen=True)
class About:
    """What the client learns of a worker.

    Attributes:
        host: of it.
        problem: why it gets no case, or no more; empty where it does.
        budget: bytes that its tasks may take together.
        busy: tasks of the run that it is at.
    """

    host: str
    problem: str
    budget: int
    busy: int


def plugin_name(run: str) -> str:
    """Of the session of a run, on every worker; and of what those announce that take its tasks.

    Memory and places alone do not tell: an earlier run may have had them announced.
    """
    return f"octreenca-{run}"


def wanted(run: str, memory: int, places: int = 1, *, on_gpu: bool = False) -> dict[str, int]:
    """What a task asks of a worker.

    Args:
        run: the name of the run.
        memory: bytes.
        places: see `ALL_PLACES`.
        on_gpu: it takes a GPU.
    """
    gpu = {GPU: 1} if on_gpu else {}
    return {plugin_name(run): 1, MEMORY: memory, PLACES: places, **gpu}


class Session(WorkerPlugin):
    """Set up once on every worker, those included that join later.

    A worker that fails a check announces nothing and so gets no task: it says why, and the others
    go on.

    Args:
        settings: of the run.
    """

    idempotent = True  # a client that comes back finds it

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = plugin_name(settings.run)

    async def setup(self, worker: "Worker") -> None:
        """Check the worker, load the model, announce memory and GPU."""
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._stop, self._lock = Event(), Lock()
        self._at_hand: list[Case] = []
        self.problem, self.budget = "", 0
        self._sampler = Sampler(worker)
        try:
            await asyncio.to_thread(self._prepare)
        except Exception as error:  # whatever is wrong with one worker costs that worker only
            said = redact(str(error).strip() or type(error).__name__)
            self.problem = f"worker {worker.address} on {platform.node()} gets no case: {said}"
            worker.log_event(self.name, self.problem)
            self._close()
            return
        gpus = {GPU: worker.state.total_resources.get(GPU, 1)} if self._on_gpu else {}
        has = {self.name: TASKS, MEMORY: self.budget, PLACES: ALL_PLACES, **gpus}
        before_the_end(self._excuse)
        self._sampler.pause()
        await worker.set_resources(**has)
        # For cases that no worker could take, the scheduler looks at workers that begin to run, not
        # at what they announce later.
        if worker.status == Status.running:
            worker.status = Status.paused
            worker.status = Status.running

    async def teardown(self, worker: "Worker") -> None:
        """The run is over, or the worker is; dask waits half a minute for the bands at hand."""
        self._stop.set()
        self._sampler.resume()
        forget(self._excuse)
        await asyncio.to_thread(self._excuse)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if hasattr(self, "_files"):  # it came so far
            self._files.close()

    def _excuse(self) -> None:
        """This process is to end: that is no fault of the cases at hand.

        Unless it holds too much memory, for which dask ends workers too.
        """
        if self._at_hand and resident_memory() > self._limit:
            return
        for case in [*self._at_hand]:
            with suppress(*NO_SHARE):
                excuse(self._shared, case.name)

    @property
    def _on_gpu(self) -> bool:
        return self.settings.device == "cuda"

    def about(self) -> About:
        """What the client asks."""
        return About(platform.node(), self.problem, self.budget, len(self._at_hand))

    def stop(self) -> None:
        """End the cases at hand at the end of a band."""
        self._stop.set()

    def _prepare(self) -> None:
        settings = self.settings
        torch.set_num_threads(
            settings.threads or max(1, processors() // self._worker.state.nthreads)
        )
        if self._on_gpu and not torch.cuda.is_available():
            raise EnvironmentMismatchError("it has no GPU, and the run asks for -device cuda")
        self._shared = shared_files(settings.output)
        self._files = WorkerFiles(settings, Path(self._worker.local_directory))
        self._room = Room(*self._files.disks)
        with tempfile.TemporaryDirectory(prefix="octreenca_model_") as folder:
            self._model = settings.model.load(Path(folder), settings.device)
            self._base = self._worker_run(self._model)
            self._require_same()
        limit = self._worker.memory_manager.memory_limit or total_memory()
        limit = min(limit, total_memory(), settings.options.memory or limit)
        self.budget = int(_PLANNED * limit) - resident_memory()
        self._limit = int(_USED * limit)
        if self.budget <= 0:
            raise EnvironmentMismatchError(
                f"its {limit / 1e6:.0f} MB of memory are taken before the first case; give "
                f"workers more (--memory-limit)"
            )

    def _worker_run(self, model: Model) -> WorkerRun:
        settings = self.settings
        run = WorkerRun(
            model,
            replace(settings.destination, folder=self._files.folder),
            replace(settings.options, memory=None),
            began=datetime.fromisoformat(settings.began),
            hash_inputs=settings.hash_inputs,
            last_round=False,
            tell_once=lambda line: None,  # the client says it
            remote=self._files.remote,
            name=settings.run,
            shared=self._shared,
        )
        # Once, while the model's files are there.
        versions = identity_versions(model)
        now = identity_settings(model, settings.options)
        run.__dict__["identity"] = Identity(settings.identity.model, now, versions)
        run.calibration  # noqa: B018 - read now, for the same reason
        return run

    def _require_same(self) -> None:
        """Refuse a worker that would not give the client's labels."""
        settings, identity = self.settings, self._base.identity
        versions = compared_versions(identity.versions)
        versions = {name: versions[name] for name in settings.versions}
        changed = differences(dict(settings.versions), versions)
        changed += differences(dict(settings.environment), environment())
        changed += differences(settings.identity.settings, identity.settings)
        if changed:
            package = package_folder()
            elsewhere = (
                f"; it has imported {package}, and the client {settings.package}"
                if package != settings.package
                else ""
            )
            raise EnvironmentMismatchError(
                f"it is not the client's installation ({'; '.join(dict.fromkeys(changed))}: first "
                f"the client's, then its own{elsewhere}); install the same versions on both"
            )

    def plan(self, case: Case, shares: list[int]) -> Forecast | Failure | None:
        """The memory that a case takes; None where only reading it will tell what is wrong."""
        try:
            with self._files.in_use(), self._files.header(case) as here:
                return forecast(here, self._model, self.settings.options, shares)
        except OctreeNCAError as error:
            failure = Failure.of(case, error)
            return failure if failure.error == "OutOfMemoryError" else None
        except Exception:  # of a library, on a damaged file: the case itself will say it
            return None

    def wanted(self, expected: Forecast | None) -> dict[str, int]:
        """What a task asks of a worker."""
        memory = expected.bytes if expected else 1
        return wanted(self.settings.run, memory, on_gpu=self._on_gpu)

    def band(self, task: BandTask, expected: Forecast | None) -> None:
        """Some rows of a case that another worker has; they are left in its folder."""
        if self.problem or task.taken:  # the worker that has the case computes it then
            return
        try:
            with (
                self._files.in_use(),
                self._files.image(task.case) as here,
                suppress(Stopped, FileNotFoundError),  # the case may be finished
            ):
                options = self._options(expected)
                compute_band(task, here, self._model, options, self._progress)
        except Exception as error:
            self._withdraw_after(error, str(error))
            raise

    def segment(
        self,
        case: Case,
        expected: Forecast | None,
        alone: bool,
        helpers: int = 0,
        submit: Submit | None = None,
    ) -> Ended:
        """One case, from its files to the files of its result.

        Args:
            case: its files.
            expected: what is reserved for it.
            alone: nothing else runs on this worker meanwhile.
            helpers: workers that take bands of it; 0 for a case that is not split.
            submit: gives them a band.
        """
        journal = Journal(self._shared, self.settings.run)
        about = replace(
            Ended(case.name),
            host=platform.node(),
            process=os.getpid(),
            worker=self._worker.address,
            job=os.environ.get("SLURM_JOB_ID", ""),
            began=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            reserved=expected.bytes if expected else 0,
            versions=dict(self._base.identity.versions),
        )
        try:
            known = journal.read(case.name)
            if known is not None:  # a worker that was cut off had finished it
                return known
            if self._stop.is_set() or journal.stops():
                return replace(about, stopped=True)
            if self.problem:
                return replace(about, withdrawn=self.problem)
            before = read_attempts(self._shared, case.name, lambda: self._stamp(case))
        except OctreeNCAError as fault:  # of a store
            failed = replace(about, outcome=Outcome(failed=Failure.of(case, fault)))
            return self._withdrawn(about, fault, failed.outcome.failed) or failed
        if blaming(before) and not alone:
            return replace(about, suspect=True)
        with self._lock:
            self._at_hand.append(case)
        told: list[str] = []
        began = perf_counter()
        try:
            run = self._base.again(case, before, self._options(expected))
            if helpers and submit is not None and isinstance(self._shared, DiskFiles):
                folder = self._shared.path(journal.folder)
                run.share = partial(Split, case, folder, helpers, submit)
            with self._files.in_use():
                outcome, error = run.attempt(case, tell=told.append, progress=self._progress)
        except Stopped:
            return replace(about, stopped=True)
        finally:
            with self._lock:
                self._at_hand.remove(case)
        withdrawn = self._withdrawn(about, error, outcome.failed)
        if withdrawn is not None:
            return withdrawn
        ended = replace(
            about,
            outcome=outcome,
            told=tuple(told[:_MOST_LINES]),
            seconds=round(perf_counter() - began, 3),
        )
        if ended.state:
            with suppress(*NO_SHARE):  # a full disk: the client hears it anyway
                journal.write(ended)
        return ended

    def _withdrawn(
        self, about: Ended, error: BaseException | None, failed: Failure | None
    ) -> Ended | None:
        """What to answer of a case that another worker must do; None where it has ended."""
        if self._withdraw_after(error, failed.sentence if failed else str(error)):
            return replace(about, withdrawn=self.problem)
        return None

    def _withdraw_after(self, error: BaseException | None, said: str) -> bool:
        """Withdraw where case after case would fail as one did; whether they would.

        Args:
            error: that the case ended with; None if it was done.
            said: of it, for people.
        """
        why = self._files.cut_off(error)
        if self._room.is_over(error):
            why = f"its disk is full: {first_line(said)}"
        if why:
            self._withdraw(why)
        return bool(why)

    def _stamp(self, case: Case) -> str:
        with self._files.image(case) as here:
            return stamp(all_files(here.files))

    def _withdraw(self, why: str) -> None:
        """Take no more cases."""
        worker = self._worker
        with self._lock:
            if self.problem:
                return
            self.problem = (
                f"worker {worker.address} on {platform.node()} takes no more cases, for "
                f"{redact(why)}"
            )
        worker.log_event(self.name, self.problem)
        # Only the scheduler hears it: what waits on this worker already is handed back in its turn.
        call = worker.scheduler.set_resources(
            resources={self.name: 0}, worker=worker.contact_address
        )
        heard = asyncio.run_coroutine_threadsafe(call, self._loop)
        with suppress(Exception):  # of a scheduler that has gone
            heard.result(_ANNOUNCE)

    def _options(self, expected: Forecast | None) -> Any:
        options = replace(self.settings.options, memory=self._limit)
        if options.band_rows is None and expected is not None:
            options = replace(options, band_rows=expected.band_rows)
        return options

    def _progress(self, stage: str, rows: int) -> None:
        if self._stop.is_set():
            raise Stopped
