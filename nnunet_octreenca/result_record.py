"""What an output folder says about the results in it: which files they are and what made them.

`.octreenca/CASE.json` says all about a case. The pictures in `overlays` name its files too: they
are taken along where a hidden folder is not.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_octreenca.files import JsonObject, load_json, write_json

RECORDS = ".octreenca"
WRITING, FINISHED = "writing", "finished"
_FORM = 1  # raised where a record can no longer be read by older code

FOLDER = "overlays"
QUALITY, QUALITY_TABLE = "quality", "quality.csv"
ENDING = "_overlay.png"
_KEY = "nnunet_octreenca"


@dataclass(frozen=True)
class ResultRecord:
    """The results of one case, in a text of its overlay picture, which is written last.

    Attributes:
        kind: of the image: "slide", "picture", "video" or "volume".
        outputs: names of the files and folders that were written, without the picture.
    """

    kind: str
    outputs: tuple[str, ...]

    def png_text(self) -> Any:
        """What Pillow's `save(pnginfo=...)` takes."""
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_text(_KEY, json.dumps({"kind": self.kind, "outputs": self.outputs}))
        return text


@dataclass(frozen=True)
class CaseRecord:
    """One case: written before its first result as `WRITING`, after its last as `FINISHED`.

    Attributes:
        case: its name.
        state: `WRITING` or `FINISHED`.
        kind: of the image, as in `ResultRecord`.
        formats: that were written.
        outputs: name below the output folder, with "/", to the SHA-256 of a file or folder; None
            while it is being written.
        others: names of results in other formats, of an earlier run.
        files: names of the image's files.
        stamp: of their names, sizes and times (`hashes.stamp`).
        model: SHA-256 of the model's files (`hashes.content_hash`).
        settings: name to value of all options that change the labels.
        versions: of the programs, and which engine computed on what.
        shape, labels: of the label map, and its SHA-256 (`hashes.labels_hash`).
        ended: when, in UTC.
    """

    case: str
    state: str
    kind: str
    formats: list[str]
    outputs: dict[str, str | None]
    others: list[str]
    files: list[str]
    stamp: str
    model: str
    settings: JsonObject
    versions: dict[str, str]
    shape: list[int]
    labels: str
    ended: str


def record_path(folder: Path, case_name: str) -> Path:
    """Where a case's record lies."""
    return folder / RECORDS / f"{case_name}.json"


def lock_name(case_name: str) -> str:
    """Of the file in `RECORDS` that keeps other runs from a case."""
    return f"{case_name}.lock"


def write_case_record(folder: Path, record: CaseRecord) -> None:
    """Write a record, whole or not at all."""
    path = record_path(folder, record.case)
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"form": _FORM, **asdict(record)})


def read_case_record(path: Path) -> CaseRecord | None:
    """A record; None where it is missing, damaged or of another form."""
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        if content.pop("form") != _FORM:
            return None
        record = CaseRecord(**content)
        lists = (record.formats, record.others, record.files)
        if all(isinstance(part, list) for part in lists) and isinstance(record.outputs, dict):
            return record
    except Exception:  # it may hold anything
        pass
    return None


def overlay_path(folder: Path, case_name: str) -> Path:
    """Where a case's picture lies. Not beside the results: nnU-Net evaluates every `.png` there."""
    return folder / FOLDER / f"{case_name}{ENDING}"


def read_record(overlay: Path) -> ResultRecord | None:
    """What a picture says; None where it is missing, damaged or not ours."""
    from PIL import Image

    try:
        with Image.open(overlay, formats=("PNG",)) as image:
            content = load_json(image.info[_KEY])
        return ResultRecord(content["kind"], tuple(content["outputs"]))
    except Exception:  # a damaged picture can raise anything
        return None


def recorded_results(folder: Path) -> set[str]:
    """Names of the results in a folder that its records and overlay pictures tell of."""
    overlays, records = folder / FOLDER, folder / RECORDS
    found: set[str] = set()
    recorded: set[str] = set()
    if records.is_dir():
        for path in records.iterdir():
            about = read_case_record(path) if path.suffix == ".json" else None
            if about is not None:
                recorded.add(f"{about.case}{ENDING}")
                found.update(name.split("/")[0] for name in about.outputs)
                found.update(about.others)
        found.discard(FOLDER)
    if overlays.is_dir():
        for overlay in overlays.iterdir():
            if overlay.name in recorded or not overlay.name.endswith(ENDING):
                continue
            record = read_record(overlay)
            found.update(record.outputs if record else ())
    return found


def is_own_folder(folder: Path) -> bool:
    """Whether a folder is the one of overlay pictures, or of maps of doubt, of some results."""
    return is_overlay_folder(folder) or (
        folder.name == QUALITY
        and folder.is_dir()
        and any(
            (folder / f"{file.name.rpartition('_deviation.')[0]}.json").is_file()
            for file in folder.glob("*_deviation.*")
        )
    )


def is_overlay_folder(folder: Path) -> bool:
    """Whether a folder holds overlay pictures and nothing else."""
    if folder.name != FOLDER or not folder.is_dir():
        return False
    return all(file.name.endswith(ENDING) or file.name[0] == "." for file in folder.iterdir())
