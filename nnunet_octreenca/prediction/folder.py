"""All cases of a file or a folder, one after the other, and what became of each."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from time import perf_counter

import torch

from nnunet_octreenca.calibration_record import Calibration
from nnunet_octreenca.errors import LockedError, OctreeNCAError
from nnunet_octreenca.images.cases import Case, list_cases
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.prediction import identity
from nnunet_octreenca.prediction.calibrated import usable_calibration
from nnunet_octreenca.prediction.case import CaseResult, Spread, segment_case
from nnunet_octreenca.prediction.earlier import (
    Destination,
    Identity,
    finished_record,
    possible_outputs,
)
from nnunet_octreenca.prediction.leftovers import Leftovers
from nnunet_octreenca.prediction.options import Options, loaded
from nnunet_octreenca.prediction.quality_files import is_done, write_table
from nnunet_octreenca.prediction.remote import Remote, remote_of, results_folder
from nnunet_octreenca.resources import peak_memory
from nnunet_octreenca.result_record import QUALITY_TABLE, RECORDS, CaseRecord, lock_name
from nnunet_octreenca.stores.urls import local_path, redact


@dataclass(frozen=True)
class Failure:
    """A case that could not be segmented.

    Attributes:
        case: its name.
        files: that it should have been read from.
        error: the type of the error.
        sentence: what was wrong and what to do.
        traceback: where in the program, for whoever mends it.
    """

    case: str
    files: list[str]
    error: str
    sentence: str
    traceback: str = ""

    @classmethod
    def of(cls, case: Case, error: BaseException) -> "Failure":
        """What an error has to say; those that are not ours are explained."""
        kind = type(error).__name__
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate" in said:
            said = f"memory ran out{f' ({said})' * bool(said)}; give less with --memory"
        elif not isinstance(error, (OctreeNCAError, OSError)):
            said = (
                f"{kind}{f': {said}' * bool(said)} (an error that nobody foresaw: the file may be "
                f"damaged, or this program at fault; --report FILE keeps its traceback)"
            )
        elif isinstance(error, OctreeNCAError):
            said = str(error)
        where = "".join(traceback.format_exception(error))
        return cls(case.name, case.file_names(), kind, redact(said or kind), redact(where))


@dataclass(frozen=True)
class Outcome:
    """What became of a case: one of these, or none if another run is at it.

    Attributes:
        done: it was segmented.
        failed: it could not be.
        before: it was finished before.
        peak_bytes: of the process so far.
    """

    done: CaseResult | None = None
    failed: Failure | None = None
    before: CaseRecord | None = None
    peak_bytes: int = 0


@dataclass
class Run:
    """Cases that one model segments into one folder.

    Attributes:
        model: the networks.
        destination: of the results.
        options: how they are segmented.
        done: the cases that were segmented.
        failed: those that could not be.
        left_out: names of those that were finished before.
        before: what the records say of those.
        began: when, in UTC.
        seconds: that the run took, where it was measured.
        hash_inputs: read every image once more for its SHA-256.
        peak_bytes: of memory of the child process, where cases are segmented in one.
        last_round: a case that another run is at is a failure; otherwise it is tried again.
        tell_once: takes a line about the model, before the first case.
        remote: what reaches images and results that are given as URLs; None where none is.
        spread: computes a case's labels, where other processes help.
    """

    model: Model
    destination: Destination
    options: Options = field(default_factory=Options)
    done: list[CaseResult] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    before: list[CaseRecord] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: float = 0.0
    hash_inputs: bool = False
    peak_bytes: int = 0
    last_round: bool = True
    tell_once: Callable[[str], object] = print
    remote: Remote | None = None
    spread: Spread | None = None
    _busy: list[Case] = field(default_factory=list)

    @cached_property
    def identity(self) -> Identity:
        """What makes results of the same image the same."""
        return Identity(
            identity.model_hash(self.model),
            identity.settings(self.model, self.options),
            identity.versions(self.model),
        )

    @cached_property
    def calibration(self) -> Calibration | None:
        """Of the model, where quality is asked and it has one of these weights."""
        if self.options.quality is None:
            return None
        return usable_calibration(self.model, self.options, self.tell_once)

    def write_quality(self) -> Path | str | None:
        """Write the table of all cases' doubt, where there is any.

        Returns:
            The file, or its URL; None where quality was neither asked now nor earlier.

        Raises:
            OutputError: the disk is full.
        """
        folder = self.destination.folder
        stored = None if self.remote is None else self.remote.results
        there = (folder / QUALITY_TABLE).exists() if stored is None else stored.has_table()
        if self.options.quality is None and not there:
            return None
        score = self.calibration.score if self.calibration else "nqm"
        if stored is None:
            return write_table(folder, score)
        with stored.quality():
            table = write_table(folder, score)
        return None if table is None else f"{stored.shown}/{QUALITY_TABLE}"

    def close(self) -> None:
        """Remove what was fetched from stores."""
        if self.remote is not None:
            self.remote.close()

    @cached_property
    def _leftovers(self) -> Leftovers:
        return Leftovers(self.destination.folder)

    def rounds(self, cases: Sequence[Case]) -> Iterator[Case]:
        """The cases; after them once more those that another run was at (`resume` only)."""
        self.last_round = not self.destination.resume
        yield from cases
        busy, self._busy, self.last_round = self._busy, [], True
        yield from busy

    def cases(self, source: Path | str, tell: Callable[[str], object] | None = None) -> list[Case]:
        """The cases of a file, a folder or a URL.

        Args:
            source: the file, the folder or the URL; with `remote` for the latter.
            tell: takes a line about what a folder holds and what is left out.

        Raises:
            InputError: nothing readable is there, or what `images.cases.list_cases` refuses.
        """
        model = self.model
        frames = model.preprocessing.dimension == 3
        path = local_path(source)
        if path is None:
            assert self.remote is not None
            found = self.remote.cases(str(source), model.channels, frames=frames, tell=tell)
            return list(found)
        return list_cases(
            path,
            model.channels,
            frames=frames,
            output=self.destination.folder,
            tell=tell,
        )

    def segment(
        self,
        case: Case,
        *,
        tell: Callable[[str], object] = print,
        progress: Progress | None = None,
    ) -> CaseResult | None:
        """Segment a case, or leave it out if it is finished and the destination's
        `resume` says so.

        Args:
            case: its files.
            tell: takes lines about it.
            progress: told of every band.

        Returns:
            What was done; None if it was left out, or is left for `rounds` to try again.

        Raises:
            Exception: whatever the case failed with; `failed` has it too. Ctrl-C and SIGTERM are
                no failure of the case and pass.
        """
        outcome, error = self.attempt(case, tell=tell, progress=progress)
        self.take(case, outcome, tell)
        if error is not None:
            if not isinstance(error, Exception):
                raise OctreeNCAError(self.failed[-1].sentence) from error
            raise error
        return outcome.done

    def attempt(
        self, case: Case, *, tell: Callable[[str], object], progress: Progress | None = None
    ) -> tuple[Outcome, BaseException | None]:
        """As `segment`, without counting: returns what became of the case, and its error.

        Raises:
            KeyboardInterrupt, SystemExit: the run is to end.
        """
        try:
            outcome = self._reached(case, tell, progress)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except LockedError as error:
            if not self.last_round:
                return Outcome(), None
            return Outcome(failed=Failure.of(case, error)), error
        except BaseException as error:  # of libraries in Rust, panics are no Exception
            return Outcome(failed=Failure.of(case, error)), error
        return outcome, None

    def take(
        self, case: Case, outcome: Outcome, tell: Callable[[str], object] = lambda line: None
    ) -> None:
        """Count what became of a case."""
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)
        if outcome.done is not None:
            self.done.append(outcome.done)
        elif outcome.failed is not None:
            self.failed.append(outcome.failed)
        elif outcome.before is not None:
            self.left_out.append(case.name)
            self.before.append(outcome.before)
            tell(f"{case.name}: finished before, left out")
        else:
            self._busy.append(case)
            tell(f"{case.name}: another run is at it; tried again at the end")

    def forget(self) -> None:
        """Drop what was counted, which a run without end must not gather."""
        for counted in (self.done, self.failed, self.left_out, self.before, self._busy):
            counted.clear()

    def _reached(
        self, case: Case, tell: Callable[[str], object], progress: Progress | None
    ) -> Outcome:
        """As `attempt`, with files and results in stores, if there are any."""
        if self.remote is None:
            with self.hold(case) as lock:
                return self.segment_held(case, lock, tell, progress, lambda done: done)
        with self.remote.case(case, tell) as remote, self.hold(remote.here) as lock:
            return self.segment_held(remote.here, lock, remote.tell, progress, remote.publish)

    def segment_held(
        self,
        case: Case,
        lock: FolderLock,
        tell: Callable[[str], object],
        progress: Progress | None,
        publish: Callable[[CaseResult], CaseResult],
    ) -> Outcome:
        """What becomes of a case whose lock this process holds.

        Args:
            case: its files on this machine.
            lock: of it.
            tell: takes lines about it.
            progress: told of every band.
            publish: puts results that were written on this machine where they go.

        Raises:
            Exception: whatever the case fails with.
        """
        if self.destination.resume:
            record = finished_record(case, self.destination, self.identity)
            if record is not None and self._has_quality(record):
                return Outcome(before=record)
        done = segment_case(
            case,
            self.model,
            self.destination,
            self.options,
            identity=self.identity,
            require_lock=lock.require_held,
            hash_inputs=self.hash_inputs,
            calibration=self.calibration,
            spread=self.spread,
            tell=tell,
            progress=progress,
        )
        return Outcome(done=publish(done), peak_bytes=peak_memory())

    def _has_quality(self, record: CaseRecord) -> bool:
        """Whether what is asked of a finished case's quality is there."""
        options, folder = self.options, self.destination.folder
        if options.quality is None:
            return True
        return is_done(folder, record.case, record.labels, options.probabilities)

    def clean(self, case: Case) -> None:
        """Remove what a process that has just died was writing for a case.

        Raises:
            LockedError: another run is at it.
        """
        self.forget_leftovers()
        with self.hold(case):
            pass

    def forget_leftovers(self) -> None:
        """List what is half written again: a process has died since the last look."""
        self.__dict__.pop("_leftovers", None)

    @contextmanager
    def hold(self, case: Case) -> Iterator[FolderLock]:
        """Keep other runs from a case, and remove what a killed one left of it.

        Raises:
            LockedError: another run is at it.
        """
        folder = self.destination.folder
        lock = FolderLock(
            folder / RECORDS,
            "a prediction",
            name=lock_name(case.name),
            subject=f"case {case.name} of {folder}",
        )
        try:
            with lock:
                self._leftovers.remove(possible_outputs(folder, case.name))
                yield lock
        finally:
            with suppress(OSError):  # unless it holds something
                (folder / RECORDS).rmdir()


def predict(
    source: Path | str,
    output: Path | str,
    model: Model | Path | str,
    *,
    formats: Sequence[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    mirror: bool = True,
    seeds: Sequence[int] | None = None,
    mpp: float | None = None,
    series: str | None = None,
    tissue: bool = False,
    float16: bool = False,
    memory: int | None = None,
    band_rows: int | None = None,
    quality: int | None = None,
    probabilities: bool = False,
    scratch: Path | str | None = None,
    scratch_limit: int | None = None,
    device: torch.device | str = "cpu",
    tell: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Segment one case or a folder of cases and write the results.

    What `nnunet_octreenca predict` does. Images of any size fit: they are streamed in bands, and
    only the labels are held, one byte a cell.

    Args:
        source: a file, or a folder of cases as `nnunet_octreenca predict -i` takes it; or the URL
            of one.
        output: folder for the results, or its URL.
        model: from `load_model`, the folder TRAINER__PLANS__CONFIGURATION of a training, or a name
            such as "zoo:phantoms".
        formats: of the results, such as ("ome.tif", "geojson"); None for what is usual for the
            kind of image. A picture
            overlays/CASE_overlay.png is always written.
        overwrite: replace results; otherwise a case whose results exist fails.
        resume: leave out cases that are finished with the same model, options and image, and write
            only results that are missing.
        mirror: average mirrored copies along the axes that the training allows.
        seeds: of the fire draws; the logits are averaged over them. None for the model's one.
        mpp: microns per pixel to read slides at; None for their finest level.
        series: SeriesInstanceUID to read, where a folder holds several DICOM series.
        tissue: leave out bands of a slide without tissue; their label is 0.
        float16: keep states in float16, which halves them and changes some labels.
        memory: bytes that the process may use in all; None for what is free.
        band_rows: rows (2-D) or planes (3-D) of a band; None for the planner's choice. It does
            not change the labels of a single pass.
        quality: seeds to compare, for maps of doubt and scores in `output`/quality and a table
            quality.csv; the labels are those of the mean of the seeds, or the usual ones where
            all cells fire. None for neither.
        probabilities: with `quality`, write the probabilities of all classes too.
        scratch: folder for what must be fetched from URLs; the system's folder for temporary files
            if left out.
        scratch_limit: bytes that may lie there at a time; what is free if left out.
        device: where the networks go, if `model` is a folder.
        tell: takes a line about the folder and about every case; None for silence.
        progress: called with a stage and a number of rows: "total" once a case, then "read" and
            "segment".

    Returns:
        The run: `done` holds for each case its kind, shape, files written, shares of the classes
        and seconds. A folder goes on after a bad case: `failed` holds those.

    Raises:
        InputError: the source holds no case, an option cannot be used, or the folder is no model's.
        CheckpointError, PlansError: the model is damaged, or another network's.
        Exception: what a single case failed with; no result is half written.

    Examples:
        >>> run = predict("image.png", "results", "model", mirror=False, overwrite=True)
        >>> run.done[0].kind, run.done[0].shape
        ('picture', [48, 40])
        >>> from pathlib import Path
        >>> [Path(path).name for path in run.done[0].outputs]
        ['image.png', 'image_overlay.png']
    """
    options = Options(
        mirror, seeds, mpp, series, tissue, float16, memory, band_rows, quality, probabilities
    )
    model = loaded(model, device)
    remote = remote_of(source, output, scratch=scratch, scratch_limit=scratch_limit)
    destination = Destination(
        results_folder(output, remote), tuple(formats) if formats else None, overwrite, resume
    )
    run = Run(model, destination, options, tell_once=tell or _silent, remote=remote)
    try:
        _segment_all(run, run.cases(source, tell), tell, progress)
    finally:
        run.close()
    return run


def _segment_all(
    run: Run,
    cases: Sequence[Case],
    tell: Callable[[str], object] | None,
    progress: Progress | None,
) -> None:
    began = perf_counter()
    try:
        for case in run.rounds(cases):
            try:
                run.segment(case, tell=tell or _silent, progress=progress)
            except Exception:
                if len(cases) == 1:
                    raise
            finally:
                run.seconds = perf_counter() - began
    finally:
        run.write_quality()


def _silent(line: str) -> None:
    pass
