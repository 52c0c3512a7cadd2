"""Model folders as nnU-Net's training leaves them, with weights that were never trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning import RECIPES, extend_plans

RESAMPLING = {"order_z": 0, "force_separate_z": None}


def stock_plans(
    patch: Sequence[int],
    channels: int = 1,
    *,
    schemes: Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
    reader: str = "SimpleITKIO",
    transpose: Sequence[int] = (0, 1, 2),
    dataset: str = "Dataset903_Hand",
) -> dict[str, Any]:
    """Plans of one configuration as nnU-Net writes them, 2d or 3d_fullres by the patch's axes."""
    name = "2d" if len(patch) == 2 else "3d_fullres"
    functions = {
        key: value
        for part, order in (("data", 3), ("seg", 1), ("probabilities", 1))
        for key, value in (
            (f"resampling_fn_{part}", "resample_data_or_seg_to_shape"),
            (f"resampling_fn_{part}_kwargs",
             {**RESAMPLING, "is_seg": part == "seg", "order": order}),
        )
    }  # fmt: skip
    return {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [*(1,) * (3 - len(patch)), *patch],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [list(transpose).index(axis) for axis in range(3)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(c): {"mean": 10.0, "std": 20.0, "percentile_00_5": -50.0, "percentile_99_5": 90.0}
            for c in range(channels)
        },
        "configurations": {
            name: {
                "data_identifier": f"nnUNetPlans_{name}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "median_image_size_in_voxels": list(patch),
                "spacing": list(spacing or [1.0] * len(patch)),
                "normalization_schemes": list(schemes or ["ZScoreNormalization"] * channels),
                "use_mask_for_norm": [False] * channels,
                "batch_dice": False,
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet."
                    "PlainConvUNet",
                    "arch_kwargs": {},
                    "_kw_requires_import": [],
                },
                **functions,
            }
        },
    }


def model_folder(
    folder: Path,
    *,
    patch: Sequence[int] = (32, 32),
    channels: int = 3,
    labels: dict[str, Any] | None = None,
    regions: Sequence[int] | None = None,
    schemes: Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
    ending: str = ".png",
    folds: Sequence[str] = ("0",),
    channel_names: dict[str, str] | None = None,
    transpose: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    standardizes: bool = False,
    cells: Sequence[int] | None = None,
    always_fires: bool = False,
) -> Path:
    """Write one; `OctreeNCA`s with weights large enough to give every label somewhere.

    `steps` are every level's, instead of the plan's. `standardizes`: as today's plans have it for
    intensities that nnU-Net leaves raw. `cells`: channels of every level, the finest first.
    `always_fires`: as today's plans have it; else half of the cells fire, which is where engines,
    bands and seeds can differ.
    """
    labels = labels or {"background": 0, "first": 1, "second": 2}
    name = "2d" if len(patch) == 2 else "3d_fullres"
    foreground = [value for key, value in labels.items() if key not in ("background", "ignore")]
    heads = len(regions) if regions else len(foreground) + 1
    natural = ending == ".png"
    plans = stock_plans(
        patch,
        channels,
        schemes=schemes or (["RGBTo01Normalization"] * channels if natural else None),
        spacing=spacing,
        reader="NaturalImage2DIO" if natural else "SimpleITKIO",
        transpose=transpose,
    )
    extended = extend_plans(
        plans,
        input_channels=channels,
        num_classes=heads,
        foreground_labels=len(foreground),
        has_regions=regions is not None,
        batch_size=2,
        settings={} if cells is None else {"channels": list(cells)},
        recipe=RECIPES["default" if always_fires else "stochastic"]._replace(
            standardizes=standardizes
        ),
    )
    described = {
        "channel_names": channel_names or {str(c): f"channel {c}" for c in range(channels)},
        "labels": labels,
        "numTraining": 5,
        "file_ending": ending,
    } | ({"regions_class_order": list(regions)} if regions else {})
    (configuration,) = extended["configurations"].values()
    arguments = configuration["architecture"]["arch_kwargs"]
    if steps is not None:
        arguments["steps"] = [steps] * len(arguments["steps"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(extended))
    (folder / "dataset.json").write_text(json.dumps(described))
    for number, fold in enumerate(folds):
        torch.manual_seed(number)
        network = OctreeNCA(channels, heads, **arguments)
        for level in network.levels:
            nn.init.normal_(level.update.weight, std=0.12)
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": name, "plans": extended},
                "trainer_name": "OctreeNCATrainer",
                "inference_allowed_mirroring_axes": tuple(range(len(patch))),
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder
