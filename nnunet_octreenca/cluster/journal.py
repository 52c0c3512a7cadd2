"""What a run on a cluster keeps in its output folder, so that a client can come back to it."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nnunet_octreenca.files import JsonObject, load_json, write_json
from nnunet_octreenca.prediction.case import CaseResult
from nnunet_octreenca.prediction.folder import Failure, Outcome
from nnunet_octreenca.prediction.quality_files import QualityRecord
from nnunet_octreenca.result_record import RECORDS, CaseRecord

FOLDER, RUN = "cluster", "run.json"
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


def run_path(folder: Path) -> Path:
    """Where an output folder says which run is at it."""
    return folder / RECORDS / FOLDER / RUN


def read_run(folder: Path) -> JsonObject | None:
    """What the client of a run wrote of it; None where there is no run, or it was finished."""
    try:
        content = load_json(run_path(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("run"), str) else None


def write_run(folder: Path, content: JsonObject) -> None:
    """Say which run is at a folder.

    Raises:
        OSError: it cannot be written to.
    """
    path = run_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


class Journal:
    """The cases of one run that have come to an end, one file each.

    Args:
        folder: of the results.
        run: its name.

    Attributes:
        folder: of the run, which all workers see.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._output, self.folder = folder, folder / RECORDS / FOLDER / run

    def write(self, ended: Ended) -> None:
        """Keep what became of a case."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{ended.case}.json", asdict(ended))

    def read(self, case_name: str) -> Ended | None:
        """What became of a case; None if it has not come to an end, or its file is damaged."""
        try:
            content = load_json((self.folder / f"{case_name}.json").read_text(encoding="utf-8"))
            return _ended(content)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def all(self) -> list[Ended]:
        """All cases that have come to an end."""
        if not self.folder.is_dir():
            return []
        names = [path.stem for path in self.folder.glob("*.json")]
        return [ended for name in sorted(names) if (ended := self.read(name)) is not None]

    def ask_to_stop(self) -> None:
        """Tell workers, those too that cannot be reached now, to begin no more cases."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STOP).touch()

    def stops(self) -> bool:
        """Whether workers are asked to begin no more cases."""
        return (self.folder / STOP).exists()

    def remove(self) -> None:
        """Forget the run: all of it is in its report, and in the cases' own records.

        A stop stays asked for: a worker that was cut off may come back.
        """
        run_path(self._output).unlink(missing_ok=True)
        stops = self.stops()
        shutil.rmtree(self.folder, ignore_errors=True)
        if stops:
            self.ask_to_stop()


def _ended(content: JsonObject) -> Ended:
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
