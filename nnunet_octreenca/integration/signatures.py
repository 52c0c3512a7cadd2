"""The functions of nnU-Net that we wrap or replace, with the parameters that we know them by.

A release of nnU-Net that changes one of them is refused with a sentence: called with what it does
not expect, a wrapper would end in a traceback, or worse, do something else.
"""

import inspect
from typing import Any

from nnunetv2.inference import data_iterators, export_prediction, predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.run import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities import utils
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.integration.nnunet_version import nnunet_version

KNOWN = "2.8"  # the release whose functions these are
# At the end of parameters: others may follow, which are passed on.
_MORE = "..."
_SIGNATURES: dict[Any, dict[str, str]] = {
    nnUNetPredictor: {
        "predict_sliding_window_return_logits": "self input_image",
        "predict_from_data_iterator": "self data_iterator save_probabilities ...",
        "predict_logits_from_preprocessed_data": "self data",
        "initialize_from_trained_model_folder": "self model_training_output_dir ...",
        "_manage_input_and_output_lists": "self list_of_lists_or_source_folder ...",
    },
    export_prediction: {
        "export_prediction_from_logits": "predicted_array_or_file properties_dict "
        "configuration_manager plans_manager dataset_json_dict_or_file output_file_truncated ...",
        "convert_predicted_logits_to_segmentation_with_correct_shape": "predicted_logits "
        "plans_manager configuration_manager label_manager properties_dict ...",
    },
    nnUNetTrainer: {
        "__init__": "self plans configuration fold dataset_json device",
        "initialize": "self",
        "build_network_architecture": "plans_manager configuration_manager num_input_channels "
        "num_output_channels enable_deep_supervision",
        "_set_batch_size_and_oversample": "self",
        "_do_i_compile": "self",
        "_build_loss": "self",
        "configure_optimizers": "self",
        "set_deep_supervision_enabled": "self enabled",
        "plot_network_architecture": "self",
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size": "self",
        "get_dataloaders": "self",
        "run_training": "self",
        "on_train_start": "self",
        "on_train_epoch_start": "self",
        "train_step": "self batch",
        "on_train_epoch_end": "self train_outputs",
        "on_validation_epoch_start": "self",
        "validation_step": "self batch",
        "on_train_end": "self",
        "save_checkpoint": "self filename",
        "load_checkpoint": "self filename_or_checkpoint",
        "perform_actual_validation": "self save_probabilities",
    },
    load_pretrained_weights: {"load_pretrained_weights": "network fname verbose"},
    DefaultPreprocessor: {
        "run": "self ...",
        "run_case": "self image_files seg_file plans_manager configuration_manager dataset_json",
    },
    # Names in nnU-Net's modules that stand for ours while its functions run.
    stock: {
        "get_allowed_n_proc_DA": "",
        "SingleThreadedAugmenter": "data_loader transform",
        "save_json": "obj file indent sort_keys",
    },
}
_NAMES: dict[Any, tuple[str, ...]] = {
    stock: ("multiprocessing",),
    predict_from_raw_data: (
        "multiprocessing",
        "export_prediction_from_logits",
        "convert_predicted_logits_to_segmentation_with_correct_shape",
    ),
    data_iterators: ("sleep",),
    utils: ("Pool",),
    ConfigurationManager: ("preprocessor_class",),
}


def require_known_signatures() -> None:
    """Check nnU-Net's functions.

    Raises:
        EnvironmentMismatchError: one is missing, or takes other parameters.
    """
    changed = [
        *(
            found
            for owner, signatures in _SIGNATURES.items()
            for name, expected in signatures.items()
            if (found := _change(owner, name, expected.split())) is not None
        ),
        *(
            f"{_called(owner, name)} is gone"
            for owner, names in _NAMES.items()
            for name in names
            if not hasattr(owner, name)
        ),
    ]
    if changed:
        raise EnvironmentMismatchError(
            f"nnU-Net {nnunet_version()} differs from {KNOWN}, which this version of "
            f"nnunet_octreenca works with: {'; '.join(changed)}. Run `pip install -U "
            f"nnunet_octreenca`, or go back with `pip install 'nnunetv2=={KNOWN}.*'`"
        )


def _change(owner: Any, name: str, expected: list[str]) -> str | None:
    """What has changed; None if nothing has."""
    function = getattr(owner, name, None)
    if function is None:
        return f"{_called(owner, name)} is gone"
    found = list(inspect.signature(function).parameters)
    if expected[-1:] == [_MORE]:
        expected = expected[:-1]
        same = found[: len(expected)] == expected
    else:
        same = found == expected
    return None if same else f"{_called(owner, name)} takes ({', '.join(found)})"


def _called(owner: Any, name: str) -> str:
    return f"{owner.__name__.rpartition('.')[2]}.{name}"
