"""Files in OUT/failed that say why cases of a drop folder could not be segmented."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_octreenca.files import JsonObject, load_json, write_json

FAILED = "failed"


@dataclass(frozen=True)
class FailureNote:
    """Why a case failed, and for which state of its files that holds.

    Attributes:
        sentence: what was wrong and what to do.
        case: its name.
        files: that it is read from.
        error: the type of the error.
        failed: when, in UTC.
        stamp: of the files' names, sizes and times (`hashes.stamp`).
        model: SHA-256 of the model's files.
        settings: of `prediction.identity.settings`.
        traceback: where in the program; empty where the files alone were the reason.
    """

    sentence: str
    case: str
    files: Sequence[str]
    error: str
    failed: str
    stamp: str
    model: str
    settings: JsonObject
    traceback: str = ""

    def holds(self, other: "FailureNote") -> bool:
        """Whether another attempt would be the same: files, model and options are."""
        return (self.stamp, self.model, self.settings) == (other.stamp, other.model, other.settings)


def note_path(folder: Path, name: str) -> Path:
    """Where the note of a file or folder of the drop folder lies.

    >>> note_path(Path("OUT"), "scan_0000.nii.gz").as_posix()
    'OUT/failed/scan_0000.nii.gz.json'
    """
    return folder / FAILED / f"{name}.json"


def write_note(path: Path, note: FailureNote) -> None:
    """Write a note, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(note))


def read_note(path: Path) -> FailureNote | None:
    """A note; None where there is none or it is damaged."""
    try:
        return FailureNote(**load_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
