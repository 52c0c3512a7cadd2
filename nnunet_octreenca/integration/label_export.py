"""Send label maps instead of logits to nnU-Net's export processes.

nnU-Net copies the logits of all classes to a worker process and takes the largest there: 2 bytes
a class and cell, several times over. Plain labels whose shape stays as it is do not
need them: the label map is made in bands where the logits are, by nnU-Net's own function, and is
sent instead, one byte a cell. There it is written by export_worker.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.integration.configuration_manager import OctreeNCAConfigurationManager

_PROPERTIES = "octreenca_properties"  # of the case that a predictor is at, while labels suffice
_BAND = 1 << 22  # cells whose labels are computed at a time


# A case as nnU-Net's predictor iterates over them: data, data_properties and ofile.
Preprocessed = Mapping[str, object]


@contextmanager
def labels_suffice(
    predictor: nnUNetPredictor, cases: Iterable[Preprocessed]
) -> Iterator[Iterable[Preprocessed]]:
    """While this lasts, `labels_instead` makes label maps of the predictor's logits.

    Args:
        predictor: nnU-Net's, about to predict and export `cases`, no probabilities asked for.
        cases: what it iterates over; iterate over what this gives instead.
    """
    plain = (
        type(predictor.configuration_manager) is OctreeNCAConfigurationManager
        and type(predictor.label_manager) is LabelManager
        and not predictor.label_manager.has_regions
        # nnU-Net ends these when it has finished, if it finds them.
        and not isinstance(cases, MultiThreadedAugmenter)
    )
    if not plain:
        yield cases
        return
    try:
        yield _noted(predictor, cases)
    finally:
        setattr(predictor, _PROPERTIES, None)


def _noted(predictor: nnUNetPredictor, cases: Iterable[Preprocessed]) -> Iterator[Preprocessed]:
    for case in cases:
        setattr(predictor, _PROPERTIES, case["data_properties"])
        yield case


def labels_instead(predictor: nnUNetPredictor, logits: Tensor) -> Tensor:
    """The label map (z, y, x) of a case, or its logits where they may be needed.

    Args:
        predictor: that computed them.
        logits: (heads, z, y, x) on the CPU.
    """
    properties = getattr(predictor, _PROPERTIES, None)
    if properties is None:
        return logits
    if tuple(logits.shape[1:]) != tuple(properties["shape_after_cropping_and_before_resampling"]):
        return logits  # they are to be resampled first
    return torch.from_numpy(label_map(predictor.label_manager, logits))


def label_map(manager: LabelManager, logits: Tensor) -> NDArray[np.uint8 | np.uint16]:
    """Compute nnU-Net's label map (z, y, x) of logits (heads, z, y, x), band by band."""
    dtype = np.uint8 if len(manager.foreground_labels) < 255 else np.uint16
    labels = np.empty(logits.shape[1:], dtype=dtype)
    values = logits.numpy()
    rows = max(1, _BAND // max(1, logits.shape[3]))
    for z in range(logits.shape[1]):
        for y in range(0, logits.shape[2], rows):
            band = values[:, z : z + 1, y : y + rows]
            labels[z : z + 1, y : y + rows] = manager.convert_logits_to_segmentation(band)
    return labels
