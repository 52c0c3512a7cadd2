"""What `calibrate` learnt of a model on its validation cases: a file in the model's folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject, read_json, write_json

FILE = "calibration.json"
_FORM = 2  # 1 was of mirrored copies whose logits had no bound
_ADVICE = "run `nnunet_octreenca calibrate` again, or remove the file"
SCORES = ("nqm", "resilience")
"""Scores of doubt. A case is the more doubtful the higher its nqm, the lower its resilience."""


@dataclass(frozen=True)
class Calibration:
    """Of a model: which score tells bad results, from what value on, and temperatures.

    Attributes:
        files: of the model that was calibrated, name below its folder to SHA-256.
        folds: that were validated.
        cases: how many validation cases.
        seeds: that were compared in each case.
        mirror: mirrored copies were averaged.
        limit: of the Dice below which a result counts as bad.
        bad: how many cases were.
        score: of `SCORES`, the one that orders the cases best.
        threshold: a case is to be looked at from this value on (nqm) or up to it (resilience);
            None where no case, or every case, was bad.
        found: bad cases among those that the threshold names, each judged by a threshold of all
            other cases.
        named: cases that it names in this way.
        temperatures: of every head, which divide its logits.
        ended: when, in UTC.
    """

    files: dict[str, str]
    folds: list[str]
    cases: int
    seeds: int
    mirror: bool
    limit: float
    bad: int
    score: str
    threshold: float | None
    found: int
    named: int
    temperatures: list[float]
    ended: str

    def doubtful(self, scores: Mapping[str, float | None]) -> bool | None:
        """Whether a case is to be looked at; None where the file or the case does not tell."""
        value = scores.get(self.score)
        if self.threshold is None or value is None:
            return None
        return badness(self.score, value) >= badness(self.score, self.threshold)


def badness(score: str, value: float) -> float:
    """A score turned so that more is worse.

    >>> badness("resilience", 0.75), badness("nqm", 0.75)
    (-0.75, 0.75)
    """
    return -value if score == "resilience" else value


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write it into a model's folder, whole or not at all."""
    path = folder / FILE
    write_json(path, {"form": _FORM, **asdict(calibration)})
    return path


def read_calibration(folder: Path) -> Calibration | None:
    """A model's calibration; None where it has none.

    Raises:
        InputError: the file is damaged, or of another form.
    """
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path, _ADVICE)
    try:
        if content.pop("form") != _FORM:
            raise InputError(f"{path} is of another version of this program; {_ADVICE}")
        calibration = Calibration(**content)
        _check(calibration)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); {_ADVICE}") from error
    return calibration


def _check(calibration: Calibration) -> None:
    threshold, temperatures = calibration.threshold, calibration.temperatures
    if calibration.score not in SCORES:
        raise ValueError(f"unknown score {calibration.score!r}")
    numbers = [calibration.limit, *temperatures, *([] if threshold is None else [threshold])]
    if not all(type(number) in (int, float) and isfinite(number) for number in numbers):
        raise ValueError("a number is missing or not finite")
    if not all(number > 0 for number in temperatures):
        raise ValueError("a temperature is not above 0")
    files: JsonObject = calibration.files
    if not isinstance(files, dict) or not all(isinstance(each, str) for each in files.values()):
        raise ValueError("hashes of the model's files are missing")
