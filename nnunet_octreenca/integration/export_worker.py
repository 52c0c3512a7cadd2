"""What nnU-Net's export processes run: label maps are written, logits are left to nnU-Net.

`predictor.install` puts these two functions in the place of nnU-Net's, which it sends to its
export processes by name. A label map is an integer array (z, y, x); logits have a fourth axis.
"""

import numpy as np
from nnunetv2.inference import export_prediction
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.integration.case_properties import CaseProperties
from nnunet_octreenca.preprocessing.crop import box_slices


def export_prediction_from_logits(
    predicted_array_or_file: NDArray | Tensor,
    properties_dict: CaseProperties,
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json_dict_or_file: JsonMapping,
    output_file_truncated: str,
    *arguments: object,
    **options: object,
) -> None:
    """Write one case. The parameters are nnU-Net's.

    Args:
        predicted_array_or_file: label map (z, y, x), or logits (heads, z, y, x).
        properties_dict: of the case.
        configuration_manager, plans_manager, dataset_json_dict_or_file: of the model.
        output_file_truncated: the file's path without its ending.
        arguments, options: nnU-Net's others, for logits only.
    """
    if predicted_array_or_file.ndim != 3:
        export_prediction.export_prediction_from_logits(
            predicted_array_or_file,
            properties_dict,
            configuration_manager,
            plans_manager,
            dataset_json_dict_or_file,
            output_file_truncated,
            *arguments,
            **options,
        )
        return
    labels = restored(np.asarray(predicted_array_or_file), plans_manager, properties_dict)
    file = output_file_truncated + dataset_json_dict_or_file["file_ending"]
    plans_manager.image_reader_writer_class().write_seg(labels, file, properties_dict)


def convert_predicted_logits_to_segmentation_with_correct_shape(
    predicted_logits: NDArray | Tensor,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties_dict: CaseProperties,
    *arguments: object,
    **options: object,
) -> NDArray | tuple[NDArray, NDArray]:
    """Return one case's label map in the image's own grid, and probabilities if asked for.

    The parameters are nnU-Net's.

    Args:
        predicted_logits: label map (z, y, x), or logits (heads, z, y, x).
        plans_manager, configuration_manager, label_manager: of the model.
        properties_dict: of the case.
        arguments, options: nnU-Net's others, for logits only.
    """
    if predicted_logits.ndim != 3:
        return export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape(
            predicted_logits,
            plans_manager,
            configuration_manager,
            label_manager,
            properties_dict,
            *arguments,
            **options,
        )
    return restored(np.asarray(predicted_logits), plans_manager, properties_dict)


def restored(labels: NDArray, plans_manager: PlansManager, properties: CaseProperties) -> NDArray:
    """Restore a label map to the image's own grid and axes; what was cropped away is background.

    Args:
        labels: (z, y, x) of the nonzero box, in the plans' axes.
        plans_manager: of the model.
        properties: of the case.
    """
    whole = np.zeros(properties["shape_before_cropping"], labels.dtype)
    whole[box_slices(properties["bbox_used_for_cropping"])] = labels
    return whole.transpose(plans_manager.transpose_backward)
