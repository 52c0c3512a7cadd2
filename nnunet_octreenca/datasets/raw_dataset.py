"""Writes nnU-Net raw data sets: every file atomically, and a re-run resumes."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, OutputError
from nnunet_octreenca.files import JsonMapping, JsonObject, read_json, remove_leftovers, write_json

_NAME = re.compile(r"Dataset\d{3}_.+")
# Lies in an incomplete data set, and says which request began it.
BEGUN = "conversion.json"
SPLITS = "splits_final.json"

Item = TypeVar("Item")
Track = Callable[[Iterable[Item], str], Iterable[Item]]


def untracked(items: Iterable[Item], description: str) -> Iterator[Item]:
    """The default of `track`: no progress is shown."""
    yield from items


class Converted(NamedTuple):
    """What a converter wrote.

    Attributes:
        folder: of the data set.
        training, test: number of cases.
        configuration, fold: what to train first.
        notes: sentences on what its user should know.
        in_place: the data set is trained on as it is, without preprocessing.
    """

    folder: Path
    training: int
    test: int
    configuration: str
    notes: tuple[str, ...] = ()
    in_place: bool = False
    fold: str = "0"


def environment_folder(variable: str) -> Path | None:
    """One of nnU-Net's three folders, None where its variable is not set."""
    text = os.environ.get(variable)
    return Path(text) if text else None


def preprocessed_folder(folder: Path) -> Path | None:
    """Where nnU-Net keeps the preprocessed data of a raw data set, None if it cannot be said."""
    base = environment_folder("nnUNet_preprocessed")
    return base / folder.name if base is not None and _NAME.fullmatch(folder.name) else None


def target_folder(dataset: str, name: str) -> Path:
    """The folder in nnUNet_raw of a data set's number, or of its full name.

    Args:
        dataset: "105" or "Dataset105_Prostate".
        name: what follows the number where only that is given.

    Raises:
        EnvironmentMismatchError: nnUNet_raw is not set.
        InputError: no number or name, or the number is another data set's.
    """
    raw = environment_folder("nnUNet_raw")
    if raw is None:
        raise EnvironmentMismatchError(
            "the environment variable nnUNet_raw is not set, so -d does not say where to write. "
            "Set it, or give a folder with -o"
        )
    if dataset.isdigit() and 0 < int(dataset) < 1000:
        dataset = f"Dataset{int(dataset):03d}_{name}"
    if not _NAME.fullmatch(dataset):
        raise InputError(
            f"{dataset!r} is not a data set; give a number from 1 to 999, or DatasetXXX_Name"
        )
    number = dataset.split("_")[0]
    others = [f for f in raw.glob(f"{number}_*") if f.is_dir() and f.name != dataset]
    if others:
        raise InputError(
            f"the number of {dataset} is taken by {others[0]}; nnU-Net requires unique numbers"
        )
    return raw / dataset


def describe(
    *,
    channel_names: Iterable[str],
    labels: Mapping[str, int],
    training: int,
    file_ending: str,
    description: str,
    **more: Any,
) -> JsonObject:
    """The content of nnU-Net's dataset.json; `more` are further keys."""
    return {
        "channel_names": {str(n): name for n, name in enumerate(channel_names)},
        "labels": dict(labels),
        "numTraining": training,
        "file_ending": file_ending,
        "description": description,
        **more,
    }


class RawDataset:
    """A data set's folder while it is written.

    Every file is written under a temporary name and renamed, `dataset.json` last. Re-running an
    interrupted command resumes where it stopped.

    Args:
        folder: of the data set.
        source: what is converted; never removed.
        request: what was asked for; JSON. Only the same request resumes an incomplete data set.
        overwrite: remove a data set that is there already.

    Raises:
        OutputError: there is something already, or the source would be written over.
    """

    def __init__(
        self, folder: Path, source: Path, request: JsonMapping, overwrite: bool = False
    ) -> None:
        self.folder = Path(folder)
        here, there = self.folder.resolve(), Path(source).resolve()
        if here == there or here in there.parents:
            raise OutputError(f"{folder} holds what is converted ({source}); choose another folder")
        request = json.loads(json.dumps({"source": there, **request}, default=str))
        preprocessed = preprocessed_folder(self.folder)
        self._splits = [self.folder / SPLITS]
        if preprocessed is not None:
            self._splits.append(preprocessed / SPLITS)
        for path in (self.folder / BEGUN, *self._splits):  # a kill may come before the first file
            remove_leftovers(path.parent, path.name)
        if overwrite:
            self._remove()
        elif (self.folder / BEGUN).is_file():
            begun = read_json(self.folder / BEGUN, f"remove {self.folder}")
            if begun != request and len(list(self.folder.iterdir())) > 1:
                raise OutputError(
                    f"{self.folder} was started with other arguments and is incomplete; re-run "
                    f"with the same arguments to resume, or use --overwrite to start again"
                )
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise OutputError(
                f"{self.folder} already exists; use --overwrite to replace it, or -d or -o to "
                f"choose another"
            )
        elif preprocessed is not None and (preprocessed / SPLITS).exists():
            raise OutputError(
                f"{preprocessed / SPLITS} already exists, from an earlier data set of this name; "
                f"--overwrite replaces it"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".writing.*"):
            _discard(left)
        remove_leftovers(self.folder)
        write_json(self.folder / BEGUN, request)

    def _remove(self) -> None:
        if not self.folder.exists():
            return
        ours = (self.folder / BEGUN).is_file()
        if (self.folder / "dataset.json").is_file():
            # The Medical Segmentation Decathlon's, which are sources, have no such key.
            ours |= "file_ending" in read_json(self.folder / "dataset.json", "name another folder")
        if any(self.folder.iterdir()) and not ours:
            raise OutputError(
                f"{self.folder} will not be removed: it has no nnU-Net dataset.json. Choose "
                f"another folder"
            )
        shutil.rmtree(self.folder)

    def has(self, name: str) -> bool:
        """Whether an interrupted run wrote this file."""
        return (self.folder / name).exists()

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file unless an interrupted run has.

        Args:
            name: relative to the folder, such as "imagesTr/case_0000.png".
            write: called with the file to write, whose name has the same ending.
        """
        if self.has(name):
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".writing.{os.getpid()}.{path.name}"
        try:
            write(temporary)
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # the latter is SimpleITK's
            raise OutputError(
                f"{path} cannot be written ({error}); free some space and re-run the command to "
                f"resume"
            ) from error
        finally:
            _discard(temporary)

    def finish(
        self, content: JsonMapping, splits: list[dict[str, list[str]]] | None = None
    ) -> None:
        """Write the splits, where nnU-Net looks for them too, and dataset.json.

        Args:
            content: `describe`'s.
            splits: `group_folds`'; None leaves them to nnU-Net.
        """
        for path in self._splits:
            if splits is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, splits)
        write_json(self.folder / "dataset.json", dict(content))
        (self.folder / BEGUN).unlink()

    @property
    def splits_note(self) -> str:
        """Where the splits were written, and what to do with them."""
        if len(self._splits) > 1:
            return f"The folds are in {self._splits[1]}, where nnU-Net looks for them."
        return (
            f"The folds are in {self._splits[0]}; nnU-Net looks for them in "
            f"nnUNet_preprocessed/{self.folder.name}: copy the file there before training."
        )


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
