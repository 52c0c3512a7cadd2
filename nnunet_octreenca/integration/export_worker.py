"""What nnU-Net's export processes run: a label map is written, logits go nnU-Net's way.

`predictor.install` puts these two functions in the place of nnU-Net's, which it sends to its
export processes by name. A label map is an integer array (z, y, x); logits have a fourth axis.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.inference import export_prediction
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.preprocessing.crop import box_slices

Properties = Mapping[str, Any]  # of a case, as nnU-Net's preprocessor and reader fill them in


def export_prediction_from_logits(
    prediction: NDArray | Tensor,
    properties: Properties,
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json: dict[str, Any],
    output_file_truncated: str,
    *options: Any,
) -> None:
    """Write one case.

    Args:
        prediction: label map (z, y, x), or logits (heads, z, y, x).
        properties: of the case.
        configuration_manager, plans_manager, dataset_json: of the model.
        output_file_truncated: the file's path without its ending.
        options: nnU-Net's others; a label map comes with `save_probabilities` false.
    """
    if prediction.ndim != 3:
        export_prediction.export_prediction_from_logits(
            prediction,
            properties,
            configuration_manager,
            plans_manager,
            dataset_json,
            output_file_truncated,
            *options,
        )
        return
    writer = plans_manager.image_reader_writer_class()
    file = output_file_truncated + dataset_json["file_ending"]
    writer.write_seg(restored(np.asarray(prediction), plans_manager, properties), file, properties)


def convert_predicted_logits_to_segmentation_with_correct_shape(
    prediction: NDArray | Tensor, plans_manager: PlansManager, *arguments: Any
) -> Any:
    """Return one case's label map in the image's own grid.

    Args:
        prediction: label map (z, y, x), or logits (heads, z, y, x).
        plans_manager: of the model.
        arguments: nnU-Net's others: configuration and label manager, properties, whether
            probabilities are returned too.
    """
    if prediction.ndim != 3:
        return export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape(
            prediction, plans_manager, *arguments
        )
    return restored(np.asarray(prediction), plans_manager, arguments[2])


def restored(labels: NDArray, plans_manager: PlansManager, properties: Properties) -> NDArray:
    """A label map in the image's own grid and axes; what was cropped away is background.

    Args:
        labels: (z, y, x) of the nonzero box, in the plans' axes.
        plans_manager: of the model.
        properties: of the case.
    """
    whole = np.zeros(properties["shape_before_cropping"], labels.dtype)
    whole[box_slices(properties["bbox_used_for_cropping"])] = labels
    return whole.transpose(plans_manager.transpose_backward)
