"""Predictions that were there before, beside what is trained: a second reader, another program."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_octreenca.comparison.inputs import find_inputs
from nnunet_octreenca.comparison.trained.collecting import fill_folder
from nnunet_octreenca.comparison.trained.jobs import Request
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.integration.validation_cases import held_out_names


def check_finished(
    predictions: Mapping[str, Path],
    methods: Sequence[str],
    request: Request,
    ending: str,
    report: Path,
) -> None:
    """Check them against the truth of the held-out cases, before anything is trained.

    Args:
        predictions: name to folder of label maps; it may hold more cases than the held-out ones.
        methods: names that the report has already.
        request: of the comparison.
        ending: of label maps.
        report: its folder.

    Raises:
        InputError: a name is taken, a folder or a case is missing, a folder lies in the report's,
            or a label map has other labels, another shape or geometry than its truth.
    """
    for name, given in predictions.items():
        if given.resolve().is_relative_to(report.resolve()):
            raise InputError(
                f"{given} of --predictions {name} lies in {report}, whose label maps are written "
                f"anew; give another folder with -o"
            )
        if name in methods:
            raise InputError(
                f"--predictions {name}=...: {name} is trained, too; give it another name"
            )
    folder = request.preprocessed
    source = folder / "gt_segmentations"
    names = [case for fold in request.folds for case in held_out_names(folder, fold, ending)]
    files = [f"{case}{ending}" for case in names]
    with tempfile.TemporaryDirectory(prefix="octreenca_compare_") as made:
        truth = Path(made) / "truth"
        fill_folder(truth, {file: source / file for file in files})
        links = link_finished(predictions, files, Path(made) / "predictions")
        find_inputs(truth, links, labels=folder / "dataset.json")


def link_finished(
    predictions: Mapping[str, Path], files: Collection[str], place: Path
) -> dict[str, Path]:
    """Name to a folder of just these files.

    Args:
        predictions: name to folder.
        files: names of label maps.
        place: folder for the folders.

    Raises:
        InputError: one of them is missing.
        OutputError: the folders cannot be written.
    """
    found = {}
    for number, (name, folder) in enumerate(predictions.items()):
        if not folder.is_dir():
            raise InputError(f"{folder} of --predictions {name} is no folder of label maps")
        missing = sorted(file for file in files if not (folder / file).is_file())
        if missing:
            raise InputError(
                f"{folder} of --predictions {name} lacks {missing[0]}, a held-out case; label "
                f"maps have the names of those in labelsTr"
            )
        found[name] = place / f"finished_{number}"
        fill_folder(found[name], {file: folder / file for file in files})
    return found
