"""A trained model as nnU-Net saved it: networks of its folds and what its plans say."""

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import torch
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunet_octreenca.errors import CheckpointError, InputError
from nnunet_octreenca.files import JsonMapping, JsonObject, read_json
from nnunet_octreenca.integration.predictor import inference_seed
from nnunet_octreenca.integration.trainer import OctreeNCATrainer
from nnunet_octreenca.integration.zoo import model_place
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning import octreenca_settings
from nnunet_octreenca.planning.dataset_description import read_description
from nnunet_octreenca.planning.plans_model import check_model
from nnunet_octreenca.planning.value_rules import short
from nnunet_octreenca.preprocessing.plan import PreprocessingPlan
from nnunet_octreenca.training.checkpoints import Checkpoint, read_checkpoint

CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class Model:
    """What a prediction needs of a trained model.

    Attributes:
        folder: of the model.
        folds: that `networks` are of.
        networks: one a fold, in evaluation mode, on the device.
        preprocessing: of images.
        mirror_axes: that test-time augmentation may mirror; None for none.
        seed: of the fire draws, as plans or environment say.
        names: label to class name, the background among them.
        channels: files or colours of an image.
        natural: the data set's images are pictures, whose spacing is counted in pixels.
        trainer, plans, configuration: names, for reports.
        files: that it was read from.
        taught_levels: training looked at the logits of all levels, not of the finest alone.
    """

    folder: Path
    folds: tuple[str, ...]
    networks: tuple[OctreeNCA, ...]
    preprocessing: PreprocessingPlan
    mirror_axes: tuple[int, ...] | None
    seed: int
    names: dict[int, str]
    channels: int
    natural: bool
    trainer: str
    plans: str
    configuration: str
    files: tuple[Path, ...] = ()
    taught_levels: bool = False

    @property
    def title(self) -> str:
        """Data set and configuration, for people."""
        return f"{self.folder.parent.name}: {self.configuration}"

    @property
    def device(self) -> torch.device:
        """That the networks are on."""
        return next(self.networks[0].parameters()).device


def model_folder(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """Where nnU-Net trained a model, below `nnUNet_results`.

    Raises:
        InputError: no such data set, or the model has not been trained.
    """
    try:
        folder = Path(get_output_folder(dataset, trainer, plans, configuration))
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(
            f"data set {dataset!r} cannot be found ({error}); are nnUNet_raw, nnUNet_preprocessed "
            f"and nnUNet_results set?"
        ) from error
    if not folder.is_dir():
        raise InputError(
            f"{folder} does not exist: train with `nnUNetv2_train {dataset} {configuration} FOLD "
            f"-tr {trainer} -p {plans}`, or give another -tr, -p or -c"
        )
    return folder


def load_model(
    folder: Path | str,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    device: torch.device | str = "cpu",
) -> Model:
    """Load the networks of a model folder.

    Nothing in the folder is run: checkpoints are read as data, and what the plans name and number
    is checked first.

    Args:
        folder: TRAINER__PLANS__CONFIGURATION of a training; holds dataset.json, plans.json and
            fold_X folders. Or a name such as "zoo:phantoms", a model of the package.
        folds: "0", "1", ... or "all"; None for all that have the checkpoint.
        checkpoint: its file name.
        device: where the networks go.

    Returns:
        The model: `networks` in evaluation mode, one a fold; `names` of the labels; `channels` of
        an image; what the plans say of preprocessing.

    Raises:
        InputError: the folder is no model's, or a fold is missing.
        CheckpointError: a checkpoint is damaged, or another network's.
        PlansError: the plans are another network's, or cannot be followed.

    >>> model = load_model("model")
    >>> model.folds, model.channels, model.names
    (('0',), 3, {0: 'background', 1: 'first', 2: 'second'})
    """
    folder = model_place(folder)
    advice = "give the folder TRAINER__PLANS__CONFIGURATION that training made"
    paths = (folder / "plans.json", folder / "dataset.json")
    described, plans = (read_json(path, advice) for path in reversed(paths))
    check_model(plans, described, *paths)
    dataset_json = read_description(described, paths[1])
    folds = tuple(folds) if folds is not None else _folds(folder, checkpoint)
    checkpoints = [_load(folder / f"fold_{fold}" / checkpoint) for fold in folds]
    first = checkpoints[0]
    manager = PlansManager(plans)
    name = first["init_args"]["configuration"]
    if not isinstance(name, str) or name not in manager.available_configurations:
        raise InputError(
            f"{folder / 'plans.json'} has no configuration {name!r}, which the checkpoint was "
            f"trained with; {advice}"
        )
    check_model(plans, described, *paths, configuration=name)
    configuration = manager.get_configuration(name)
    settings = octreenca_settings(
        configuration.configuration, configuration_name=name, plans_name=manager.plans_name
    )
    for fold, saved in zip(folds, checkpoints, strict=True):
        _require_same_labels(saved, manager, dataset_json, fold, folder)
    networks = tuple(
        _network(manager, configuration, dataset_json, saved["network_weights"], fold, folder)
        .to(device)
        .eval()
        .requires_grad_(False)
        for saved, fold in zip(checkpoints, folds, strict=True)
    )
    axes = _mirror_axes(first, len(configuration.patch_size), folder)
    natural = dataset_json["file_ending"] in (
        ".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".json",
    )  # fmt: skip
    return Model(
        folder=folder,
        folds=folds,
        networks=networks,
        preprocessing=PreprocessingPlan.from_plans(
            plans, configuration.configuration, dataset_json
        ),
        mirror_axes=axes,
        seed=inference_seed(settings),
        names=_names(dataset_json),
        channels=len(dataset_json["channel_names"]),
        natural=natural,
        trainer=str(first.get("trainer_name", "unknown")),
        plans=manager.plans_name,
        configuration=name,
        files=(
            folder / "plans.json",
            folder / "dataset.json",
            *(folder / f"fold_{fold}" / checkpoint for fold in folds),
        ),
        taught_levels=settings.loss_on_levels > 0,
    )


def _mirror_axes(checkpoint: Checkpoint, dimension: int, folder: Path) -> tuple[int, ...] | None:
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    if not axes:
        return None
    allowed = range(dimension)
    if not isinstance(axes, (list, tuple)) or not all(
        type(axis) is int and axis in allowed for axis in axes
    ):
        raise CheckpointError(
            f"a checkpoint in {folder} mirrors the axes {short(axes)}, but the network has the "
            f"axes {list(allowed)}; get the model again"
        )
    return tuple(axes)


def _folds(folder: Path, checkpoint: str) -> tuple[str, ...]:
    found = sorted(path.parent.name[5:] for path in folder.glob(f"fold_*/{escape(checkpoint)}"))
    # "all" is a separate training, not part of a cross-validation.
    numbered = tuple(fold for fold in found if fold.isdigit())
    if not found:
        raise InputError(
            f"{folder} holds no fold_X/{checkpoint}: is the training finished? `-chk "
            f"checkpoint_best.pth` takes another checkpoint"
        )
    return numbered or tuple(found)


def _load(path: Path) -> Checkpoint:
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the folds that were trained with -f")
    checkpoint = read_checkpoint(path)
    try:
        weights = checkpoint["network_weights"]
        checkpoint["init_args"]["configuration"]
        checkpoint["network_weights"] = {_bare(name): w for name, w in weights.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as nnU-Net's checkpoint ({error}); it may be damaged: copy it "
            f"again or predict with another fold"
        ) from error
    return checkpoint


def _bare(name: str) -> str:
    """A weight's name without what torch.compile and wrappers for several devices put before it."""
    prefixes = ("module.", "_orig_mod.")
    while name.startswith(prefixes):
        name = name.partition(".")[2]
    return name


def _require_same_labels(
    saved: Checkpoint,
    manager: PlansManager,
    dataset_json: JsonObject,
    fold: str,
    folder: Path,
) -> None:
    """Refuse a dataset.json with more or fewer labels than the training had.

    The weights cannot tell: logits are channels of the state, and where there are fewer of them
    there are more hidden ones.
    """
    trained = saved["init_args"].get("dataset_json")
    if not isinstance(trained, dict):
        return
    path = folder / f"fold_{fold}"
    before, now = (
        manager.get_label_manager(description).num_segmentation_heads
        for description in (read_description(trained, path), dataset_json)
    )
    if before != now:
        raise CheckpointError(
            f"{folder / 'dataset.json'} has {now} labels or regions, and fold {fold} was trained "
            f"with {before}; give back the dataset.json of the training"
        )


def _network(
    manager: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: JsonObject,
    weights: dict[str, Tensor],
    fold: str,
    folder: Path,
) -> OctreeNCA:
    network = OctreeNCATrainer.build_network_architecture(
        manager,
        configuration,
        determine_num_input_channels(manager, configuration, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        False,
    )
    assert isinstance(network, OctreeNCA)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"fold {fold} of {folder} holds another network than its plans.json describes ({error})"
        ) from error
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise CheckpointError(
            f"fold {fold} of {folder} has weights that are not finite; predict with another fold "
            f"or checkpoint"
        )
    return network


def _names(dataset_json: JsonMapping) -> dict[int, str]:
    """What label maps hold; of regions the labels that they write."""
    labels = dict(dataset_json["labels"])
    labels.pop("ignore", None)
    order = dataset_json.get("regions_class_order")
    if order:
        regions = [name for name, value in labels.items() if value not in (0, [0])]
        return {0: "background", **dict(zip(order, regions, strict=True))}
    return {int(value): name for name, value in labels.items()}
