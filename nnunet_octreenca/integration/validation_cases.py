"""The cases that a fold was validated on, with their images and their truth."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.files import load_json, read_json
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.integration.raw_cases import CaseFiles, training_cases

_ADVICE = "give the folder that training made"


@dataclass(frozen=True)
class ValidationCase:
    """A case that a fold's network never saw in training.

    Attributes:
        name: of the case.
        files: of its image, one a channel.
        truth: its label map.
    """

    name: str
    files: tuple[Path, ...]
    truth: Path


def validation_cases(model: Model) -> list[ValidationCase]:
    """The validation cases of a model's only fold, as nnU-Net split them.

    Args:
        model: of one fold.

    Raises:
        EnvironmentMismatchError: nnUNet_raw or nnUNet_preprocessed is not set.
        InputError: the split or a file of a case is missing, or the fold was trained on all cases.
    """
    (fold,) = model.folds
    plans = read_json(model.folder / "plans.json", _ADVICE)
    ending = read_json(model.folder / "dataset.json", _ADVICE).get("file_ending")
    name = plans.get("dataset_name")
    if not fold.isdigit():
        raise InputError(
            f"fold {fold} was trained on all cases and has none to calibrate with; give folds of "
            f"the cross-validation with -f"
        )
    if not isinstance(name, str) or not isinstance(ending, str) or ending == ".json":
        raise InputError(
            f"{model.folder} is of data set {name!r} with files {ending!r}; label maps in files "
            f"are needed, which slides annotated in regions have not"
        )
    raw = _folder("nnUNet_raw") / name
    split = validation_names(_folder("nnUNet_preprocessed") / name / "splits_final.json", int(fold))
    cases = training_cases(raw)
    return [_case(case, raw, cases) for case in split]


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise EnvironmentMismatchError(
            f"{variable} is not set; calibrate finds the validation cases there, as training did"
        )
    return Path(value)


def held_out_names(preprocessed: Path, fold: int, ending: str) -> list[str]:
    """Names of the validation cases of a fold, also where nnU-Net has yet to draw them.

    Args:
        preprocessed: nnU-Net's folder of the data set.
        fold: of the cross-validation.
        ending: of label maps.

    Raises:
        InputError: the file of splits is damaged, or says nothing of the fold.
    """
    path = preprocessed / "splits_final.json"
    if path.is_file():
        return validation_names(path, fold)
    # The file that nnU-Net writes when it begins to train, which is always the same.
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    truth = preprocessed / "gt_segmentations"
    names = sorted(path.name[: -len(ending)] for path in truth.glob(f"*{ending}"))
    return [str(name) for name in generate_crossval_split(names)[fold]["val"]]


def validation_names(path: Path, fold: int) -> list[str]:
    """Names of the validation cases of a fold.

    Args:
        path: nnU-Net's splits_final.json.
        fold: of the cross-validation.

    Raises:
        InputError: the file is missing or damaged, or says nothing of the fold.
    """
    advice = "nnU-Net writes it when training begins"
    try:
        splits = load_json(path.read_text(encoding="utf-8"))
        names = splits[fold]["val"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} says nothing of fold {fold} ({type(error).__name__}: {error}); {advice}"
        ) from error
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path} names no validation cases of fold {fold}; {advice}")
    return names


def _case(name: str, raw: Path, cases: Mapping[str, CaseFiles]) -> ValidationCase:
    own = cases.get(name, CaseFiles((), raw))
    missing = [path for path in (*own.images, own.truth) if not path.is_file()]
    if not own.images or missing:
        raise InputError(
            f"validation case {name} lacks {missing[0] if own.images else 'its images'} in {raw}; "
            f"put the data set of the training there"
        )
    return ValidationCase(name, own.images, own.truth)
