"""Cases of one worker: done once, even where a task comes twice."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime

from nnunet_octreenca.cluster.attempts import Attempt, attempt
from nnunet_octreenca.cluster.shared_files import SharedFiles
from nnunet_octreenca.hashes import stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.prediction.case import CaseResult, Spread
from nnunet_octreenca.prediction.folder import Outcome, Run
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.quality_files import possible_files
from nnunet_octreenca.result_record import (
    FINISHED,
    WRITING,
    CaseRecord,
    read_case_record,
    record_path,
    write_case_record,
)


@dataclass
class WorkerRun(Run):
    """A `Run` whose cases may have been begun, or even finished, by another worker of it.

    Attributes:
        name: of the run on the cluster.
        shared: files that all workers of it see.
        share: gives a case, by its files' stamp, to several workers; None for one.
    """

    name: str = ""
    shared: SharedFiles | None = None
    share: Callable[[str], Spread] | None = None

    def again(self, case: Case, before: Sequence[Attempt], options: Options) -> "WorkerRun":
        """The run for one case.

        Args:
            case: its files.
            before: attempts at it that ended with their process.
            options: with the memory that this worker has for it.
        """
        run = copy(self)
        run.options = options
        if before:
            run.forget_leftovers()
        if any(each.run == self.name for each in before) and not self.destination.overwrite:
            # What is half written is this run's own.
            run.destination = replace(self.destination, resume=True)
        return run

    def segment_held(
        self,
        case: Case,
        lock: FolderLock,
        tell: Callable[[str], object],
        progress: Progress | None,
        publish: Callable[[CaseResult], CaseResult],
    ) -> Outcome:
        """As `Run` does, unless a worker that was lost has finished the case meanwhile."""
        assert self.shared is not None
        stamp_now = stamp(all_files(case.files))
        record = self._finished_meanwhile(case, stamp_now)
        if record is not None:
            return Outcome(before=record)
        before = self._record(case)
        if self.share is not None:
            self.spread = self.share(stamp_now)
        with attempt(self.shared, case.name, stamp_now, self.name) as half_there:

            def published(done: CaseResult) -> CaseResult:
                if self.remote is not None and self.remote.results is not None:
                    half_there()
                return publish(done)

            try:
                return super().segment_held(case, lock, tell, progress, published)
            except Exception:
                self._take_back(case, before)
                raise

    def _take_back(self, case: Case, before: CaseRecord | None) -> None:
        """Remove what a case has written before it failed: another worker may have to do it.

        Where results may be replaced, or gone on with, they may stay.
        """
        if self.destination.resume or self.destination.overwrite:
            return
        folder, record = self.destination.folder, self._record(case)
        if record is None or record == before or record.state != WRITING:
            return  # it had not begun to write, so that whatever is there is another's
        quality = possible_files(folder, case.name) if self.options.quality is not None else []
        for path in (*(folder / name for name in record.outputs), *quality):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
        with suppress(OSError):
            if before is None:
                record_path(folder, case.name).unlink()
            else:
                write_case_record(folder, before)

    def _record(self, case: Case) -> CaseRecord | None:
        return read_case_record(record_path(self.destination.folder, case.name))

    def _finished_meanwhile(self, case: Case, stamp_now: str) -> CaseRecord | None:
        record = self._record(case)
        if record is None or record.state != FINISHED:
            return None
        same = (record.model, record.settings) == (self.identity.model, self.identity.settings)
        since = datetime.fromisoformat(record.ended) >= self.began
        unchanged = record.stamp == stamp_now
        return record if same and since and unchanged else None
