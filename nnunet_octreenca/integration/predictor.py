"""Make nnU-Net's predictor segment with OctreeNCA in one pass over the whole image.

Prediction (`nnUNetv2_predict`, its Python class, `predict_from_modelfolder`) and the trainer's
validation all pass through `nnUNetPredictor.predict_sliding_window_return_logits`. A wrapper
around that method checks the network: ours are run in one pass, all others by nnU-Net. Predictions
that are only exported are passed on as label maps (label_export).
"""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities import utils
from torch import nn
from tqdm import tqdm

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.inference import predict_logits
from nnunet_octreenca.inference.whole_image import mirrorings
from nnunet_octreenca.integration import export_worker
from nnunet_octreenca.integration.label_export import labels_instead, labels_suffice
from nnunet_octreenca.integration.signatures import require_known_signatures
from nnunet_octreenca.integration.worker_pools import patient, watched_pools
from nnunet_octreenca.planning.settings import BLOCK, Settings

SEED_VARIABLE = "nnUNet_octreenca_seed"
_MARK = "octreenca_wrapped"
# Natural images, whose one file may hold red, green and blue.
_MULTICHANNEL_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


def unwrapped(network: nn.Module) -> nn.Module:
    """The network below torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        inner = getattr(network, "_orig_mod", None) or (
            network.module if isinstance(network, nn.parallel.DistributedDataParallel) else None
        )
        if inner is None:
            return network
        network = inner


def inference_seed(settings: Settings) -> int:
    """The seed of the fire draws: from the environment variable if set, else from the plans.

    Raises:
        EnvironmentMismatchError: the variable is not a whole number.
    """
    text = os.environ.get(SEED_VARIABLE)
    if text is None:
        return settings.seed or 0
    try:
        return int(text)
    except ValueError as error:
        raise EnvironmentMismatchError(
            f"{SEED_VARIABLE} is {text!r}, but must be a whole number"
        ) from error


def _predict_whole_image(predictor: nnUNetPredictor, input_image: torch.Tensor) -> torch.Tensor:
    predictor.network = predictor.network.to(predictor.device)
    predictor.network.eval()
    network: Any = unwrapped(predictor.network)
    settings = Settings.from_plans(predictor.configuration_manager.configuration.get(BLOCK, {}))
    axes = predictor.allowed_mirroring_axes if predictor.use_mirroring else None
    planes = input_image.shape[1] if network.dimension == 2 else 1
    if predictor.verbose:
        print(f"one pass over the whole image {tuple(input_image.shape)}, mirror axes {axes}")
    with tqdm(
        total=planes * len(mirrorings(axes)), disable=not predictor.allow_tqdm, unit="pass"
    ) as bar:
        return predict_logits(
            network,
            input_image,
            mirror_axes=axes,
            context=predictor.configuration_manager.patch_size,
            seed=inference_seed(settings),
            device=predictor.device,
            progress=bar.update,
        )


def _check_folder(folder: str, ending: str) -> None:
    if not Path(folder).is_dir():
        raise InputError(f"the input folder {folder} does not exist")
    if not any(Path(folder).glob(f"*_0000{ending}")):
        raise InputError(
            f"the input folder {folder} contains no image named *_0000{ending}, which is what this "
            f"model reads. Name the images CASE_0000{ending}, with a file for each channel"
        )


def _check_channels(cases: list[list[str]], dataset_json: JsonObject) -> None:
    names: JsonObject = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
    ending = dataset_json["file_ending"]
    if ending.lower() in _MULTICHANNEL_ENDINGS:
        return  # one file holds all channels; the network looks at them
    for files in cases:
        if len(files) != len(names):
            found = ", ".join(Path(file).name for file in files) or "none"
            raise InputError(
                f"the model was trained with {len(names)} channel(s) "
                f"({', '.join(map(str, names.values()))}), but a case has {len(files)} file(s): "
                f"{found}. Give CASE_0000{ending} to CASE_{len(names) - 1:04d}{ending}"
            )


def is_ours(network: nn.Module) -> bool:
    """Whether a network, perhaps wrapped, is OctreeNCA."""
    return getattr(unwrapped(network), "segments_whole_images", False)


def _ours(predictor: nnUNetPredictor) -> bool:
    return predictor.network is not None and is_ours(predictor.network)


def wrap_method(name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a method of nnU-Net's predictor by what `make` returns for it; once."""
    stock = getattr(nnUNetPredictor, name)
    if getattr(stock, _MARK, False):
        return
    wrapper = wraps(stock)(make(stock))
    setattr(wrapper, _MARK, True)
    setattr(nnUNetPredictor, name, wrapper)


def install() -> None:
    """Wrap nnU-Net's predictor; a second call does nothing.

    Raises:
        EnvironmentMismatchError: nnU-Net's functions are not those that we know.
    """
    require_known_signatures()

    def whole_image(stock: Callable[..., Any]) -> Callable[..., Any]:
        def predict_sliding_window_return_logits(
            self: nnUNetPredictor, input_image: torch.Tensor
        ) -> Any:
            if _ours(self):
                return _predict_whole_image(self, input_image)
            return stock(self, input_image)

        return predict_sliding_window_return_logits

    def checked_lists(stock: Callable[..., Any]) -> Callable[..., Any]:
        # Stock ends well on an empty folder, and badly in a worker on a missing channel.
        def _manage_input_and_output_lists(
            self: nnUNetPredictor, source: Any, *args: Any, **kwargs: Any
        ) -> Any:
            if _ours(self) and isinstance(source, str):
                _check_folder(source, self.dataset_json["file_ending"])
            if not _ours(self):
                return stock(self, source, *args, **kwargs)
            with watched_pools(listing=utils):
                lists = stock(self, source, *args, **kwargs)
            _check_channels(lists[0], self.dataset_json)
            return lists

        return _manage_input_and_output_lists

    def for_export(stock: Callable[..., Any]) -> Callable[..., Any]:
        def predict_from_data_iterator(
            self: nnUNetPredictor,
            data_iterator: Any,
            save_probabilities: bool = False,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            if not _ours(self):
                return stock(self, data_iterator, save_probabilities, *args, **kwargs)
            with watched_pools(export=predict_from_raw_data), patient(data_iterator) as watched:
                if save_probabilities:
                    return stock(self, watched, save_probabilities, *args, **kwargs)
                with labels_suffice(self, watched) as cases:
                    return stock(self, cases, save_probabilities, *args, **kwargs)

        return predict_from_data_iterator

    def exported(stock: Callable[..., Any]) -> Callable[..., Any]:
        def predict_logits_from_preprocessed_data(self: nnUNetPredictor, data: torch.Tensor) -> Any:
            return labels_instead(self, stock(self, data))

        return predict_logits_from_preprocessed_data

    for export in (
        export_worker.export_prediction_from_logits,
        export_worker.convert_predicted_logits_to_segmentation_with_correct_shape,
    ):
        setattr(predict_from_raw_data, export.__name__, export)
    wrap_method("predict_sliding_window_return_logits", whole_image)
    wrap_method("predict_from_data_iterator", for_export)
    wrap_method("predict_logits_from_preprocessed_data", exported)
    wrap_method("_manage_input_and_output_lists", checked_lists)
