"""The files of `--quality`: a map and a record of each case, one table of all, by doubt."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from nnunet_octreenca.calibration_record import Calibration, badness
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import load_json, write_json
from nnunet_octreenca.hashes import content_hash
from nnunet_octreenca.labels.formats import LabelInfo
from nnunet_octreenca.labels.output import atomic_output
from nnunet_octreenca.labels.values import check_values, values_ending, write_values
from nnunet_octreenca.prediction.doubt import Doubt
from nnunet_octreenca.result_record import QUALITY, QUALITY_TABLE

_FORM = 1
_PROBABILITIES = "_probabilities.npz"
MAPS = tuple(f"_deviation{ending}" for ending in (".nii.gz", ".nii", ".nrrd", ".mha", ".tif"))


@dataclass(frozen=True)
class QualityRecord:
    """How sure the model was of a case, `quality/CASE.json`.

    Attributes:
        case: its name.
        labels_sha256: of the labels that this was said of.
        model: SHA-256 of the model's files.
        seeds: that were compared.
        nqm: sum of the standard deviation over sum of the mean of the foreground's probability.
        nqm_of_classes: the same of each class or region, by name.
        resilience: Dice of the labels before and after a disturbance; None where it was not
            measured, or there was no foreground.
        look: the model's calibration says that somebody should look at the case; None where it
            has none or cannot tell.
        temperatures: of the heads, that the probabilities were computed with; empty without them.
        outputs: file in `quality` to SHA-256.
    """

    case: str
    labels_sha256: str
    model: str
    seeds: list[int]
    nqm: float
    nqm_of_classes: dict[str, float]
    resilience: float | None
    look: bool | None
    temperatures: list[float]
    outputs: dict[str, str]


def possible_files(folder: Path, case: str) -> list[Path]:
    """All that may be written for a case."""
    endings = (*MAPS, _PROBABILITIES, ".json")
    return [folder / QUALITY / f"{case}{ending}" for ending in endings]


def read_quality(folder: Path, case: str) -> QualityRecord | None:
    """A case's record; None where it is missing, damaged, or a file of it is gone."""
    path = folder / QUALITY / f"{case}.json"
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        if content.pop("form") != _FORM:
            return None
        record = QualityRecord(**content)
        numbers = (record.nqm, record.resilience or 0.0)
        if not all(isfinite(number) for number in numbers) or record.case != case:
            return None
        there = all((folder / QUALITY / name).is_file() for name in record.outputs)
        return record if there else None
    except Exception:  # it may hold anything
        return None


def is_done(folder: Path, case: str, labels_sha256: str, probabilities: bool) -> bool:
    """Whether a finished case's quality is there, and was said of these labels."""
    record = read_quality(folder, case)
    if record is None or record.labels_sha256 != labels_sha256:
        return False
    return not probabilities or f"{case}{_PROBABILITIES}" in record.outputs


def remove_outdated(folder: Path, case: str, labels_sha256: str) -> bool:
    """Remove the files of a case that were said of other labels than it has now.

    Returns:
        Whether there were any.
    """
    record = read_quality(folder, case)
    if record is None or record.labels_sha256 == labels_sha256:
        return False
    for name in (f"{case}.json", *record.outputs):
        (folder / QUALITY / name).unlink(missing_ok=True)
    return True


class QualityFiles:
    """Writes the files of one case.

    Args:
        folder: of the results.
        case: its name.
        info: of the image.
        probabilities: they are to be written.
    """

    def __init__(self, folder: Path, case: str, info: LabelInfo, probabilities: bool) -> None:
        self._folder, self._case, self._info = folder / QUALITY, case, info
        self._map = self._folder / f"{case}_deviation{values_ending(info)}"
        self._npz = self._folder / f"{case}{_PROBABILITIES}" if probabilities else None

    def check(self, shape: tuple[int, ...], *, overwrite: bool, resume: bool) -> None:
        """Refuse, before anything is computed, what could not or must not be written.

        Raises:
            OutputError: a file exists and may not be replaced, or the format cannot hold the map.
            InputError: the path is not UTF-8, and the format's library needs it to be.
        """
        check_values(shape, self._map, self._info)
        earlier = read_quality(self._folder.parent, self._case) if resume else None
        for path in filter(None, (self._map, self._npz)):
            if overwrite or not path.exists():
                continue
            if not resume:
                raise OutputError(
                    f"{path} exists already; --overwrite replaces it, --continue leaves finished "
                    f"cases"
                )
            known = {} if earlier is None else earlier.outputs
            if path.name in known and content_hash([path]) != known[path.name]:
                raise OutputError(
                    f"{path} was changed since an earlier run wrote it, and would be replaced "
                    f"because the case is not finished; move it away, or give --overwrite"
                )

    def write(
        self,
        doubt: Doubt,
        *,
        labels_sha256: str,
        model: str,
        seeds: Sequence[int],
        classes: Sequence[str],
        calibration: Calibration | None,
        temperatures: Sequence[float],
    ) -> QualityRecord:
        """Write the map, the probabilities if there are any, and the record last.

        Args:
            doubt: of the case.
            labels_sha256, model, seeds: see `QualityRecord`.
            classes: name of every head.
            calibration: of the model, if it has one that holds.
            temperatures: that the probabilities were computed with.

        Raises:
            OutputError: the disk is full.
        """
        record_path = self._folder / f"{self._case}.json"
        self._folder.mkdir(exist_ok=True)
        record_path.unlink(missing_ok=True)  # it told of the files that are replaced now
        write_values(doubt.deviation, self._map, self._info)
        if self._npz is not None and doubt.probabilities is not None:
            values = doubt.probabilities
            with atomic_output(self._npz) as temporary, temporary.open("wb") as file:
                # nnU-Net's axes: a picture has one plane.
                whole = values if values.ndim == 4 else values[:, None]
                np.savez_compressed(file, probabilities=whole)
        scores = {"nqm": doubt.nqm, "resilience": doubt.resilience}
        written = [path for path in (self._map, self._npz) if path is not None]
        pairs = zip(classes, doubt.nqm_of_heads, strict=True)
        record = QualityRecord(
            case=self._case,
            labels_sha256=labels_sha256,
            model=model,
            seeds=list(seeds),
            nqm=doubt.nqm,
            nqm_of_classes={name: value for name, value in pairs if isfinite(value)},
            resilience=doubt.resilience,
            look=None if calibration is None else calibration.doubtful(scores),
            temperatures=list(temperatures) if self._npz is not None else [],
            outputs={path.name: content_hash([path]) for path in written},
        )
        write_json(record_path, {"form": _FORM, **asdict(record)})
        return record


def by_doubt(records: Sequence[QualityRecord], score: str = "nqm") -> list[QualityRecord]:
    """The cases, the most doubtful first; those without the score last, by their nqm."""

    def key(record: QualityRecord) -> tuple[bool, float, float, str]:
        value = record.resilience if score == "resilience" else record.nqm
        missing = value is None
        return missing, 0.0 if value is None else -badness(score, value), -record.nqm, record.case

    return sorted(records, key=key)


def doubt_line(record: QualityRecord, calibration: Calibration | None) -> str:
    """What is said of a case on the terminal."""
    shown = "not measured" if record.resilience is None else f"{record.resilience:.3f}"
    line = f"nqm {record.nqm:.4f}, resilience {shown}"
    if not record.look or calibration is None or calibration.threshold is None:
        return line
    side = "at most" if calibration.score == "resilience" else "at least"
    return (
        f"WARNING: look at it: {line}; {calibration.score} {side} {calibration.threshold:.4f} "
        f"goes with a Dice below {calibration.limit:g} ({calibration.found} of "
        f"{calibration.named} such validation cases)"
    )


def write_table(folder: Path, score: str = "nqm") -> Path | None:
    """Write `quality.csv` of all cases with a record, the most doubtful first.

    Args:
        folder: of the results.
        score: that orders them.

    Returns:
        The file; None where no case has a record.

    Raises:
        OutputError: the disk is full.
    """
    paths = sorted((folder / QUALITY).glob("*.json"))
    found = (read_quality(folder, path.stem) for path in paths)
    records = by_doubt([record for record in found if record is not None], score)
    path = folder / QUALITY_TABLE
    if not records:
        path.unlink(missing_ok=True)
        return None
    names = list(dict.fromkeys(name for record in records for name in record.nqm_of_classes))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["case", "look", "nqm", "resilience", *(f"nqm {name}" for name in names)])
    for record in records:
        rows.writerow(
            [
                record.case,
                {None: "", True: "yes", False: "no"}[record.look],
                _number(record.nqm),
                _number(record.resilience),
                *(_number(record.nqm_of_classes.get(name)) for name in names),
            ]
        )
    with atomic_output(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
