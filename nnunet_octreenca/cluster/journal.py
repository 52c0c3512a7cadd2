"""What a run on a cluster keeps beside its results, so that a client can come back to it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_octreenca.cluster.shared_files import SharedFiles
from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.prediction.case import CaseResult
from nnunet_octreenca.prediction.folder import Failure, Outcome
from nnunet_octreenca.prediction.quality_files import QualityRecord
from nnunet_octreenca.result_record import CaseRecord

FOLDER = "cluster"
RUN = f"{FOLDER}/run.json"
"""Of the file that says which run is at some results."""
STOP = "stop"
"""Of the file in a run's folder that asks workers to begin no more cases."""


@dataclass(frozen=True)
class Ended:
    """A case that came to an end on a worker.

    Attributes:
        case: its name.
        outcome: what became of it; empty if another process was at it.
        told: lines about it.
        host, process: where.
        worker: its address.
        job: of SLURM that the worker runs in, its number; empty where it does not.
        seconds: from the task's begin to its end.
        began: when, in UTC.
        reserved: bytes of memory that were kept free for it.
        versions: of the programs there.
        stopped: the worker was asked to stop.
        suspect: it ended a process before, and wants a worker for itself.
        withdrawn: why the worker takes no more cases; another one is to do this one.
    """

    case: str
    outcome: Outcome = field(default_factory=Outcome)
    told: tuple[str, ...] = ()
    host: str = ""
    process: int = 0
    worker: str = ""
    job: str = ""
    seconds: float = 0.0
    began: str = ""
    reserved: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    stopped: bool = False
    suspect: bool = False
    withdrawn: str = ""

    @property
    def state(self) -> str:
        """ "done", "failed", "finished before", or "" for what is not settled."""
        outcome = self.outcome
        if outcome.done is not None:
            return "done"
        if outcome.failed is not None:
            return "failed"
        return "finished before" if outcome.before is not None else ""


def read_run(shared: SharedFiles) -> JsonObject | None:
    """What the client of a run wrote of it; None where there is no run, or it was finished."""
    content = shared.read(RUN)
    return content if isinstance(content, dict) and isinstance(content.get("run"), str) else None


class Journal:
    """The cases of one run that have come to an end, one file each.

    Args:
        shared: where they are kept.
        run: its name.

    Attributes:
        folder: of the run, among the shared files.
    """

    def __init__(self, shared: SharedFiles, run: str) -> None:
        self._shared, self.folder = shared, f"{FOLDER}/{run}"

    def write(self, ended: Ended) -> None:
        """Keep what became of a case.

        Raises:
            OSError, OctreeNCAError: it cannot be written.
        """
        self._shared.write(f"{self.folder}/{ended.case}.json", asdict(ended))

    def read(self, case_name: str) -> Ended | None:
        """What became of a case; None if it has not come to an end, or its file is damaged."""
        return _ended(self._shared.read(f"{self.folder}/{case_name}.json"))

    def all(self) -> list[Ended]:
        """All cases that have come to an end."""
        found = self._shared.read_all(self.folder).values()
        return [ended for content in found if (ended := _ended(content)) is not None]

    def ask_to_stop(self) -> None:
        """Tell workers, those too that cannot be reached now, to begin no more cases."""
        self._shared.write(f"{self.folder}/{STOP}", {})

    def stops(self) -> bool:
        """Whether workers are asked to begin no more cases."""
        return self._shared.exists(f"{self.folder}/{STOP}")

    def remove(self) -> None:
        """Forget the run: all of it is in its report, and in the cases' own records.

        A stop stays asked for: a worker that was cut off may come back.
        """
        self._shared.remove(RUN)
        stops = self.stops()
        self._shared.clear(self.folder)
        if stops:
            self.ask_to_stop()


def _ended(content: Any) -> Ended | None:
    """A case as it was written; None of what is no such thing."""
    try:
        return _parsed(content)
    except (AttributeError, TypeError, ValueError, KeyError):
        return None


def _parsed(content: JsonObject) -> Ended:
    outcome = content.pop("outcome")
    done, failed, before = (outcome[name] for name in ("done", "failed", "before"))
    if done is not None and done["quality"] is not None:
        done["quality"] = QualityRecord(**done["quality"])
    return Ended(
        outcome=Outcome(
            None if done is None else CaseResult(**done),
            None if failed is None else Failure(**failed),
            None if before is None else CaseRecord(**before),
            outcome["peak_bytes"],
        ),
        **{**content, "told": tuple(content["told"])},
    )
