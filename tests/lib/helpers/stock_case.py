"""Stock nnU-Net's preprocessing and export of one case, as the oracle of `inference`'s own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.preprocessing.plan import PreprocessingPlan

SPLINE = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
INTENSITIES = {"mean": 31.5, "std": 12.25, "percentile_00_5": -20.0, "percentile_99_5": 90.0}
PLAIN_LABELS = {"background": 0, "one": 1, "two": 2}


class StockCase:
    """Plans of one configuration, and what stock nnU-Net does by them."""

    def __init__(
        self,
        patch: Sequence[int],
        spacing: Sequence[float],
        *,
        schemes: Sequence[str] = ("ZScoreNormalization",),
        masked: Sequence[bool] | None = None,
        forward: Sequence[int] = (0, 1, 2),
        data: tuple[str, dict] = (SPLINE, {"order": 3, "order_z": 0, "force_separate_z": None}),
        logits: tuple[str, dict] = (SPLINE, {"order": 1, "order_z": 0, "force_separate_z": None}),
        labels: dict[str, Any] = PLAIN_LABELS,
        regions: Sequence[int] | None = None,
    ) -> None:
        functions: dict[str, Any] = {}
        for part, (name, arguments) in {"data": data, "seg": data, "probabilities": logits}.items():
            functions[f"resampling_fn_{part}"] = name
            labels_too = {} if name == "no_resampling_hack" else {"is_seg": part == "seg"}
            functions[f"resampling_fn_{part}_kwargs"] = {**arguments, **labels_too}
        if data[0] == SPLINE:
            functions["resampling_fn_seg_kwargs"] |= {"order": 0}
        self.configuration = {
            "preprocessor_name": "DefaultPreprocessor",
            "patch_size": list(patch),
            "spacing": list(spacing),
            "normalization_schemes": list(schemes),
            "use_mask_for_norm": list(masked or [False] * len(schemes)),
            "architecture": {},
            **functions,
        }
        self.plans = {
            "transpose_forward": list(forward),
            "transpose_backward": [int(axis) for axis in np.argsort(forward)],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(channel): INTENSITIES for channel in range(len(schemes))
            },
            "configurations": {"this": self.configuration},
        }
        self.dataset_json: dict[str, Any] = {"labels": labels}
        if regions is not None:
            self.dataset_json["regions_class_order"] = list(regions)
        self.manager = PlansManager(self.plans)

    @property
    def preprocessing(self) -> PreprocessingPlan:
        return PreprocessingPlan.from_plans(self.plans, self.configuration, self.dataset_json)

    def preprocessed(self, source: ArraySource) -> tuple[NDArray, dict]:
        """Stock's (channels, z, y, x) and its properties; a 2-D image as its readers give it."""
        array, spacing = source.array, list(source.spacing)
        if array.ndim == 3:
            array, spacing = array[:, None], [999.0, *spacing]
        data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            array,
            None,
            {"spacing": spacing},
            self.manager,
            self.manager.get_configuration("this"),
            self.dataset_json,
        )
        return data, properties

    def segmentation(self, logits: NDArray, properties: dict) -> NDArray:
        """Stock's labels (z, y, x) of logits (classes, z, y, x) in the preprocessed grid."""
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            torch.from_numpy(logits),
            self.manager,
            self.manager.get_configuration("this"),
            self.manager.get_label_manager(self.dataset_json),
            properties,
            num_threads_torch=1,
        )


def amid_zeros(image: NDArray, context: Sequence[int]) -> NDArray:
    """(channels, *spatial) surrounded by zeros up to the context, the odd one last."""
    missing = [max(all_ - own, 0) for all_, own in zip(context, image.shape[1:], strict=True)]
    return np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)])


def smooth(rng: np.random.Generator, shape: Sequence[int], cells: float = 2.0) -> NDArray:
    """Random float32 numbers without sharp edges along the last axes, of deviation about 1."""
    from scipy.ndimage import gaussian_filter

    noise = rng.normal(size=shape)
    noise = gaussian_filter(noise, [0, *(cells for _ in shape[1:])])
    return (noise / max(noise.std(), 1e-6)).astype(np.float32)
