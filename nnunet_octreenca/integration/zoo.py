"""Trained models that come with the package, by names such as zoo:phantoms.

Each is a folder as training writes one, with a card; index.json lists them with the SHA-256 of
every file. `benchmarks/zoo.py` trains and writes them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nnunet_octreenca.errors import CheckpointError, InputError
from nnunet_octreenca.files import read_json
from nnunet_octreenca.hashes import file_hash

PREFIX = "zoo:"
FOLDER = Path(__file__).parents[1] / "zoo"
INDEX = "index.json"
CARD = "card.md"
_AGAIN = "install nnunet_octreenca again"


@dataclass(frozen=True)
class Dice:
    """On held-out cases: the mean of the classes' means, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class ZooModel:
    """A row of the index.

    Attributes:
        name: without "zoo:".
        folder: that holds it.
        task: what it segments, and in which images.
        dice: on held-out cases.
        licence: of the model, an SPDX identifier.
        hashes: SHA-256 of each file, by its path in the folder.
    """

    name: str
    folder: Path
    task: str
    dice: Dice
    licence: str
    hashes: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum((self.folder / name).stat().st_size for name in self.hashes)

    @property
    def card(self) -> str:
        """Markdown: data, licence, training, Dice, failures, intended use."""
        return (self.folder / CARD).read_text(encoding="utf-8")


def zoo_models() -> dict[str, ZooModel]:
    """The models of the index, by name; their files are not looked at.

    Raises:
        InputError: the index is missing or damaged.
    """
    index = read_json(FOLDER / INDEX, _AGAIN)
    try:
        return {name: _model(name, row) for name, row in index["models"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{FOLDER / INDEX} is damaged ({type(error).__name__}: {error}); {_AGAIN}"
        ) from error


def _model(name: str, row: Mapping[str, Any]) -> ZooModel:
    dice = row["dice"]
    return ZooModel(
        name=name,
        folder=FOLDER / name,
        task=str(row["task"]),
        dice=Dice(float(dice["mean"]), float(dice["low"]), float(dice["high"]), int(dice["cases"])),
        licence=str(row["licence"]),
        hashes=MappingProxyType({str(file): str(value) for file, value in row["sha256"].items()}),
    )


def zoo_model(name: str) -> ZooModel:
    """A model by its name, with or without "zoo:"; its files are those of the index.

    Raises:
        InputError: no model has that name.
        CheckpointError: a file is missing, changed, or not of the model.
    """
    name = name.removeprefix(PREFIX)
    models = zoo_models()
    if name not in models:
        raise InputError(f"the zoo has no model {name!r}; choose from {', '.join(sorted(models))}")
    for fault in _faults(models[name]):
        raise CheckpointError(f"the model {PREFIX}{name} was changed: {fault}; {_AGAIN}")
    return models[name]


def model_place(given: Path | str) -> Path:
    """The folder of a model that is named zoo:NAME, or a path as it is.

    Every command and function that opens a model comes through here.

    Raises:
        InputError: the zoo has no model of that name.
        CheckpointError: the model's files are not those of the index.

    >>> model_place("zoo:phantoms").name, model_place("results/model").name
    ('phantoms', 'model')
    """
    if str(given).startswith(PREFIX):
        return zoo_model(str(given)).folder
    return Path(given)


def _faults(model: ZooModel) -> Iterator[str]:
    found = {path.relative_to(model.folder).as_posix() for path in model.folder.rglob("*.pth")}
    for name in sorted(found - set(model.hashes)):
        yield f"{model.folder / name} is none of its files"
    for name, expected in model.hashes.items():
        path = model.folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif (now := file_hash(path)) != expected:
            yield f"{path} has the SHA-256 {now} instead of {expected}"
