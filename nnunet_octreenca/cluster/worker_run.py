"""Cases of one worker: done once, even where a task comes twice."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime

from nnunet_octreenca.cluster.attempts import Attempt, attempt
from nnunet_octreenca.hashes import stamp
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.companions import all_files
from nnunet_octreenca.inference.ensemble import Progress
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.prediction.folder import Outcome, Run
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.result_record import FINISHED, CaseRecord, read_case_record, record_path


@dataclass
class WorkerRun(Run):
    """A `Run` whose cases may have been begun, or even finished, by another worker of it.

    Attributes:
        name: of the run on the cluster.
    """

    name: str = ""

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
    ) -> Outcome:
        """As `Run` does, unless a worker that was lost has finished the case meanwhile."""
        record = self._finished_meanwhile(case)
        if record is not None:
            return Outcome(before=record)
        with attempt(self.destination.folder, case, self.name):
            return super().segment_held(case, lock, tell, progress)

    def _finished_meanwhile(self, case: Case) -> CaseRecord | None:
        record = read_case_record(record_path(self.destination.folder, case.name))
        if record is None or record.state != FINISHED:
            return None
        same = (record.model, record.settings) == (self.identity.model, self.identity.settings)
        since = datetime.fromisoformat(record.ended) >= self.began
        unchanged = record.stamp == stamp(all_files(case.files))
        return record if same and since and unchanged else None
