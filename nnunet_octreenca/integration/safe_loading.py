"""Where nnU-Net itself loads a checkpoint of ours: as data, so that nothing in it is run.

nnU-Net reads checkpoints with `torch.load(weights_only=False)` in two functions that our trainer
does not override: `-pretrained_weights`, and its predictor's
`initialize_from_trained_model_folder`. Both are wrapped as soon as the trainer is imported; other
networks are left to nnU-Net. `nnUNetv2_predict` reads the checkpoint before it looks for the
trainer, and so before this module is there (docs/explanation/security.md).
"""

import sys
from collections.abc import Callable
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import load_pretrained_weights as stock_module
from torch import nn

from nnunet_octreenca.errors import CheckpointError
from nnunet_octreenca.files import read_json
from nnunet_octreenca.integration.predictor import is_ours, unwrapped, wrap_method
from nnunet_octreenca.planning.configuration import NETWORK_CLASS
from nnunet_octreenca.planning.plans_model import check_model
from nnunet_octreenca.training.checkpoints import data_only, read_checkpoint

_stock_pretrained = stock_module.load_pretrained_weights


def load_pretrained_weights(network: nn.Module, fname: str, verbose: bool = False) -> None:
    """nnU-Net's `-pretrained_weights`, for our networks from a checkpoint that is read as data.

    Raises:
        CheckpointError: the file holds more than data, is damaged, or is of another network.
    """
    if not is_ours(network):
        _stock_pretrained(network, fname, verbose)
        return
    print("################### Loading pretrained weights from file ", fname, "###################")
    try:
        weights = read_checkpoint(fname)["network_weights"]
        unwrapped(network).load_state_dict(weights)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{fname} does not exist; give another -pretrained_weights"
        ) from error
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{fname} holds no weights for the network that the plans describe ({error}); give a "
            f"checkpoint that was trained with the same channels, classes and octree"
        ) from error


def install() -> None:
    """Wrap nnU-Net's two functions; a second call does nothing."""
    # run_training imports the function by its name; __main__ where it is run as a script.
    for module in (stock_module, *map(sys.modules.get, ("nnunetv2.run.run_training", "__main__"))):
        if getattr(module, "load_pretrained_weights", None) is _stock_pretrained:
            module.load_pretrained_weights = load_pretrained_weights

    def as_data(stock: Callable[..., None]) -> Callable[..., None]:
        def initialize_from_trained_model_folder(
            self: nnUNetPredictor, model_training_output_dir: str, *args: object, **kwargs: object
        ) -> None:
            folder = Path(model_training_output_dir)
            if not _describes_octreenca(folder):
                return stock(self, model_training_output_dir, *args, **kwargs)
            with data_only(f"a checkpoint in {folder}"):
                return stock(self, model_training_output_dir, *args, **kwargs)

        return initialize_from_trained_model_folder

    wrap_method("initialize_from_trained_model_folder", as_data)


def _describes_octreenca(folder: Path) -> bool:
    """Whether a model folder's plans are OctreeNCA's; they are checked if so."""
    if not (folder / "plans.json").is_file():
        return False  # nnU-Net says so
    plans = read_json(folder / "plans.json", "copy the model again")
    if NETWORK_CLASS not in str(plans.get("configurations")):
        return False
    description = read_json(folder / "dataset.json", "copy the model again")
    check_model(
        plans, description, folder / "plans.json", folder / "dataset.json", custom_names=True
    )
    return True
