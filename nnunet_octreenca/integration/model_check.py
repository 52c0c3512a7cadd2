"""What a model holds and what is wrong with it, without running any of it."""

import io
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypedDict

import torch
from torch import Tensor

from nnunet_octreenca.errors import InputError, OctreeNCAError
from nnunet_octreenca.files import MAX_JSON, JsonObject, parse_json
from nnunet_octreenca.integration.model_files import (
    FolderFiles,
    ModelFiles,
    ZipFiles,
    blocks,
    layout_faults,
    sha256,
)
from nnunet_octreenca.integration.zoo import model_place
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning.dataset_description import DatasetDescription, description_faults
from nnunet_octreenca.planning.level_sizes import MAX_CHANNELS
from nnunet_octreenca.planning.plans_faults import plans_faults
from nnunet_octreenca.planning.plans_model import Configuration, Plans, read_plans
from nnunet_octreenca.planning.rules import brief
from nnunet_octreenca.planning.value_rules import identifier, short
from nnunet_octreenca.training.checkpoints import STAND_INS, VERSIONS, Checkpoint, read_checkpoint

_UNKNOWN = "not recorded"
# Folders of results, next to which nnU-Net puts copies of the plans.
_RESULTS = re.compile(r"(crossval_results_folds_.*|ensembles|fold_.*|validation|predicted_.*)$")
# What nnU-Net's postprocessing.pkl names.
_POSTPROCESSING = {
    ("nnunetv2.postprocessing.remove_connected_components", name)
    for name in ("remove_all_but_largest_component_from_segmentation",)
}


@dataclass
class CheckpointReport:
    """What a checkpoint holds; versions and names as it says them."""

    file: str
    fold: str
    trainer: str = _UNKNOWN
    configuration: str = _UNKNOWN
    epochs: int | None = None
    parameters: int = 0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class ModelReport:
    """What one model folder holds; numbers of the network are None for others than OctreeNCA."""

    folder: str
    dataset: str = _UNKNOWN
    plans: str = _UNKNOWN
    configuration: str = _UNKNOWN
    network: str = _UNKNOWN
    image_channels: list[str] = field(default_factory=list)
    classes: dict[str, list[int]] = field(default_factory=dict)
    patch_size: list[int] | None = None
    spacing: list[float] | None = None
    levels: int | None = None
    steps: list[int] | None = None
    channels: int | list[int] | None = None
    hidden: int | list[int] | None = None
    parameters: int | None = None
    folds: list[str] = field(default_factory=list)
    checkpoints: list[CheckpointReport] = field(default_factory=list)


class FileFacts(TypedDict):
    """A file's size in bytes and its checksum in hexadecimal."""

    bytes: int
    sha256: str


@dataclass
class Report:
    """All models below one place, its files with size and SHA-256, and its faults."""

    models: list[ModelReport] = field(default_factory=list)
    files: dict[str, FileFacts] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def check_files(path: Path | str, max_size: int | None = None) -> Report:
    """`inspect_model` of a folder or a zip file.

    Args:
        path: of it, or a name such as "zoo:phantoms".
        max_size: bytes that the files of a zip file may take; None allows what models usually take.

    Raises:
        InputError: there is no such file, or it is no zip file that can be read safely.
    """
    path = model_place(path)
    if path.is_dir():
        return inspect_model(FolderFiles(path))
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a model's folder or zip file")
    with ZipFiles(path, max_size) as files:
        report = inspect_model(files)
        if any(name.startswith("Dataset") for name in files.names):  # exported by nnU-Net
            report.faults.extend(layout_faults(files.names))
    return report


def inspect_model(files: ModelFiles) -> Report:
    """Read every model in some files; what cannot be read becomes a fault.

    Args:
        files: of a model folder, a data set's results, or an exported zip file.
    """
    report = Report()
    names = files.names
    for name in names:
        try:
            report.files[name] = {"bytes": files.size(name), "sha256": sha256(files, name)}
        except (InputError, OSError) as error:
            report.faults.append(f"{name}: {error}")
    folders = [
        str(path.parent)
        for path in map(PurePosixPath, names)
        if path.name == "plans.json" and not any(map(_RESULTS.match, path.parts))
    ]
    if not folders:
        report.faults.append(
            "there is no plans.json, so that it is no model of nnU-Net's; give a folder "
            "TRAINER__PLANS__CONFIGURATION, or a zip file of nnUNetv2_export_model_to_zip"
        )
    for folder in folders:
        report.models.append(_model(files, folder, report.faults))
    for name in names:
        if name.endswith((".pkl", ".pickle")):
            report.faults.extend(_pickle_faults(files, name))
    return report


def _model(files: ModelFiles, folder: str, faults: list[str]) -> ModelReport:
    report = ModelReport(folder)
    found: list[str] = []
    plans, dataset = _plans_and_dataset(files, folder, found)
    if dataset is not None:
        report.image_channels = list(dataset.channels)
        report.classes = {name: list(values) for name, values in dataset.labels.items()}
    for name in files.names:
        if _is_checkpoint(name, folder):  # one at a time: a stock model's fold may be a gigabyte
            saved = _checkpoint(files, name, folder, report, found)
            if saved is not None and plans is not None and dataset is not None:
                found.extend(_network_faults(report.checkpoints[-1], saved, plans, dataset))
            del saved
    report.folds = sorted({each.fold for each in report.checkpoints})
    if not report.checkpoints:
        found.append("it has no fold_X/checkpoint_*.pth; has it been trained?")
    if plans is not None:
        report.dataset, report.plans = plans.dataset_name, plans.plans_name
        _describe(report, plans, dataset, found)
    faults.extend(fault if folder == "." else f"{folder}: {fault}" for fault in found)
    return report


def _plans_and_dataset(
    files: ModelFiles, folder: str, faults: list[str]
) -> tuple[Plans | None, DatasetDescription | None]:
    """The models of both files, None where they have faults."""
    contents: list[JsonObject | None] = []
    for name in ("dataset.json", "plans.json"):
        try:
            contents.append(_json(files, str(PurePosixPath(folder) / name)))
        except (InputError, OSError) as error:
            faults.append(str(error))
            contents.append(None)
    described, content = contents
    dataset, plans = None, None
    if described is not None:
        wrong = list(description_faults(described, "dataset.json"))
        faults.extend(wrong)
        if not wrong:
            dataset = DatasetDescription.from_json(described, "dataset.json")
    if content is not None:
        wrong = [fault for _, fault in plans_faults(content, dataset)]
        faults.extend(f"plans.json: {fault}" for fault in wrong)
        if not wrong:
            plans = read_plans(content)
    return plans, dataset


def _json(files: ModelFiles, name: str) -> JsonObject:
    if name not in files.names:
        raise InputError(f"{name} is missing; copy or export the whole model")
    if files.size(name) > MAX_JSON:
        raise InputError(f"{name} is larger than {MAX_JSON >> 20} MiB, as none is")
    return parse_json(b"".join(blocks(files, name)), name, "copy or export the model again")


def _is_checkpoint(name: str, folder: str) -> bool:
    relative = PurePosixPath(name).relative_to(folder) if _within(name, folder) else None
    return relative is not None and bool(re.fullmatch(r"fold_[^/]+/[^/]+\.pth", str(relative)))


def _within(name: str, folder: str) -> bool:
    return folder == "." or name.startswith(f"{folder}/")


def _checkpoint(
    files: ModelFiles, name: str, folder: str, model: ModelReport, faults: list[str]
) -> Checkpoint | None:
    """The content of a checkpoint, None where it has been refused; describes it in `model`."""
    relative = name if folder == "." else name.removeprefix(f"{folder}/")
    report = CheckpointReport(name, PurePosixPath(relative).parent.name.removeprefix("fold_"))
    model.checkpoints.append(report)
    try:
        if isinstance(files, FolderFiles):
            saved = read_checkpoint(files.folder / name, name=relative)
        else:
            saved = read_checkpoint(io.BytesIO(b"".join(blocks(files, name))), name=relative)
        weights = saved["network_weights"]
        # nnU-Net's U-Net holds its encoder twice, under two names for the same memory.
        counted = {weight.data_ptr(): weight.numel() for weight in weights.values()}
        report.parameters = sum(counted.values())
        report.configuration = str(saved["init_args"]["configuration"])
        report.trainer = str(saved["trainer_name"])
    except OctreeNCAError as error:
        faults.append(str(error))
        return None
    except (KeyError, TypeError, AttributeError) as error:
        faults.append(f"{relative} is not a checkpoint of nnU-Net's: it lacks {error}")
        return None
    if not identifier().accepts(report.trainer):
        faults.append(
            f"{relative} names the trainer {short(report.trainer)}, which is not a class name"
        )
    if type(saved.get("current_epoch")) is int:
        report.epochs = saved["current_epoch"]
    versions = saved.get(VERSIONS)
    if isinstance(versions, dict):
        report.versions = {str(key): str(value) for key, value in versions.items()}
    return saved


def _describe(
    report: ModelReport, plans: Plans, dataset: DatasetDescription | None, faults: list[str]
) -> None:
    """Fill in what the plans say of the configuration that was trained."""
    names = {each.configuration for each in report.checkpoints} - {_UNKNOWN}
    by_folder = PurePosixPath(report.folder).name.split("__")
    if not names and len(by_folder) == 3:
        names = {by_folder[2]}
    if len(names) > 1:
        faults.append(f"its folds are of different configurations: {', '.join(sorted(names))}")
    for name in sorted(names):
        if name not in plans.configurations:
            faults.append(f"plans.json has no configuration {short(name)}, which was trained")
    known = [plans.configurations[name] for name in sorted(names) if name in plans.configurations]
    if len(plans.configurations) == 1 and not names:
        known = list(plans.configurations.values())
    if not known:
        return
    configuration = known[0]
    report.configuration = configuration.name
    report.network = configuration.network_class
    report.patch_size = list(configuration.patch_size)
    report.spacing = list(configuration.spacing)
    network = configuration.network
    if network is not None:
        report.levels = len(network.steps)
        report.steps = list(network.steps)
        report.channels, report.hidden = brief(network.channels), brief(network.hidden)
        if dataset is not None:
            report.parameters = network.parameters(configuration.input_channels(dataset))


def _network_faults(
    report: CheckpointReport, saved: Checkpoint, plans: Plans, dataset: DatasetDescription
) -> Iterator[str]:
    """Weights of another shape than the plans', or that are no numbers; another data set's."""
    place = PurePosixPath(report.file).parent.name + "/" + PurePosixPath(report.file).name
    weights: dict[str, Tensor] = saved["network_weights"]
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            yield f"{place} has weights that are not finite, the first in {short(name)}"
            break
    trained = saved["init_args"].get("dataset_json")
    if isinstance(trained, Mapping):
        try:
            before = DatasetDescription.from_json(trained, place, custom_names=True).heads
        except InputError as error:
            yield str(error)
        else:
            if before != dataset.heads:
                yield (
                    f"dataset.json has {dataset.heads} labels or regions, and {place} was trained "
                    f"with {before}; give back the dataset.json of the training"
                )
    configuration = plans.configurations.get(report.configuration)
    if configuration is None or configuration.network is None:
        return
    expected = _shapes(configuration, dataset)
    found = {_bare(name): tuple(weight.shape) for name, weight in weights.items()}
    if found != expected:
        differ = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        yield (
            f"{place} holds another network than plans.json describes: {short(differ[0])} is "
            f"{found.get(differ[0], 'missing')} instead of {expected.get(differ[0], 'nothing')}"
        )


def _bare(name: str) -> str:
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def _shapes(
    configuration: Configuration, dataset: DatasetDescription
) -> dict[str, tuple[int, ...]]:
    """Of an OctreeNCA's weights, without their memory."""
    network = configuration.network
    assert network is not None
    assert max(network.channels) <= MAX_CHANNELS
    with torch.device("meta"):
        module = OctreeNCA(
            configuration.input_channels(dataset),
            dataset.heads,
            dimension=network.dimension,
            factors=network.factors,
            steps=network.steps,
            channels=network.channels,
            hidden=network.hidden,
            fire_rate=network.fire_rate,
            constant_background=network.constant_background,
        )
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


class _Named:
    """Stands for a function that a pickle names; it cannot be called."""


class _NamesOnly(pickle.Unpickler):
    """Reads what nnU-Net's postprocessing.pkl holds, and calls nothing but stand-ins of ours."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _POSTPROCESSING:
            return _Named()
        if f"{module}.{name}" in STAND_INS:  # labels may be NumPy's scalars
            return STAND_INS[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"{module}.{name}")


def _pickle_faults(files: ModelFiles, name: str) -> Iterator[str]:
    """nnU-Net's apply_postprocessing loads pickles; what they name must be its own."""
    try:
        _NamesOnly(io.BytesIO(b"".join(blocks(files, name)))).load()
    except Exception as error:  # a damaged pickle can raise anything
        yield (
            f"{name} is a pickle that asks for more than nnU-Net's postprocessing "
            f"({str(error)[:200]}), or is damaged; loading it could run any code. Remove it"
        )
