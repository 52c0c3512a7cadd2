"""Exported models into nnUNet_results: checked, atomically, over existing ones only if asked."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, OutputError
from nnunet_octreenca.integration.model_check import inspect_model
from nnunet_octreenca.integration.model_files import FolderFiles, ZipFiles, blocks, layout_faults

_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def results_folder() -> Path:
    """nnU-Net's folder of trained models.

    Raises:
        EnvironmentMismatchError: nnUNet_results is not set.
    """
    folder = os.environ.get("nnUNet_results")
    if not folder:
        raise EnvironmentMismatchError(
            "the environment variable nnUNet_results is not set; it is the folder that nnU-Net "
            "looks for trained models in"
        )
    return Path(folder)


def install_model(
    archive: Path | str,
    results: Path | str,
    *,
    force: bool = False,
    max_size: int | None = None,
    tell: Callable[[str], object] = print,
) -> list[Path]:
    """Install an exported model.

    Its files are unpacked into a temporary folder within `results`, checked there, and renamed.
    Nothing else in `results` changes if anything is wrong.

    Args:
        archive: written by nnUNetv2_export_model_to_zip.
        results: nnU-Net's folder of trained models; it is made if it is not there.
        force: replace models of the same names, with all of their folds.
        max_size: bytes that the files may take; None allows what models usually take.
        tell: is given sentences on what is done.

    Returns:
        What is new in `results`: model folders, and files of the data set.

    Raises:
        InputError: the zip file or the model in it cannot be trusted or used.
        OutputError: a model of the same name is there, or the disk is full.
    """
    results = Path(results)
    with ZipFiles(Path(archive), max_size) as files:
        names = files.names
        for fault in layout_faults(names):
            raise InputError(f"{archive}: {fault}")
        dataset = names[0].split("/")[0]
        _refuse_same_number(dataset, results)
        _refuse_existing(_parts(names), results, force)
        results.mkdir(parents=True, exist_ok=True)
        _require_space(sum(map(files.size, names)), results)
        temporary = Path(tempfile.mkdtemp(prefix=".octreenca_install_", dir=results))
        try:
            _unpack(files, temporary)
            report = inspect_model(FolderFiles(temporary))
            if report.faults:
                more = len(report.faults) - 1
                raise InputError(
                    f"{archive}: {report.faults[0]}"
                    + (f" (and {more} more; `nnunet_octreenca check` lists them)" if more else "")
                )
            parts = _parts(names)
            _refuse_existing(parts, results, force)
            _move(parts, temporary, results, tell)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return [results / part for part in parts]


def _parts(names: Sequence[str]) -> list[str]:
    """What is renamed in one go each: models, ensembles, and files of the data set."""
    parts = set()
    for name in names:
        steps = name.split("/")
        parts.add("/".join(steps[:3] if steps[1] == "ensembles" else steps[:2]))
    return sorted(parts)


def _refuse_existing(parts: Sequence[str], results: Path, force: bool) -> None:
    there = [results / part for part in parts if os.path.lexists(results / part)]
    if there and not force:
        raise OutputError(
            f"{there[0]} exists already"
            + (f", and {len(there) - 1} more of the model's parts" if len(there) > 1 else "")
            + "; --force replaces it, with all of its folds"
        )


def _refuse_same_number(dataset: str, results: Path) -> None:
    """nnU-Net refuses to work with two data sets of the same number, and so with either."""
    folders = {Path(folder) for folder in map(os.environ.get, _FOLDERS) if folder} | {results}
    for folder in folders:
        for other in folder.glob(f"{dataset[:10]}_*") if folder.is_dir() else ():
            if other.name != dataset:
                raise OutputError(
                    f"{other} has the number of {dataset}, and nnU-Net cannot tell data sets "
                    f"with the same number apart; rename it, or move it away"
                )


def _require_space(needed: int, results: Path) -> None:
    free = shutil.disk_usage(results).free
    if needed > free:
        raise OutputError(
            f"the model takes {needed:,} bytes, and {results} has {free:,} left; free some, or set "
            f"nnUNet_results to another disk"
        )


def _unpack(files: ZipFiles, folder: Path) -> None:
    for name in files.names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for block in blocks(files, name):
                file.write(block)


def _move(
    parts: Sequence[str], temporary: Path, results: Path, tell: Callable[[str], object]
) -> None:
    """Rename each part into its place; all of them, or none."""
    undo: list[tuple[Path, Path]] = []
    made: list[Path] = []
    try:
        for number, part in enumerate(parts):
            target = results / part
            for folder in reversed([p for p in target.parents if not p.exists()]):
                folder.mkdir()
                made.append(folder)
            if os.path.lexists(target):
                aside = temporary / f"replaced_{number}"
                target.rename(aside)
                undo.append((aside, target))
                tell(f"replacing {target}")
            (temporary / part).rename(target)
            undo.append((target, temporary / part))
    except BaseException:
        for now, before in reversed(undo):
            now.rename(before)
        for folder in reversed(made):
            folder.rmdir()
        raise
