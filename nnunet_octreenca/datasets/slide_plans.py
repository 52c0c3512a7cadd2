"""What nnU-Net needs for training straight from slides: plans and fingerprint, by sampling."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_octreenca.datasets.raw_dataset import preprocessed_folder
from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.files import JsonMapping, JsonObject, write_json
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.planning import PLANS_NAME, RECIPES, extend_plans
from nnunet_octreenca.preprocessing.slide_windows import SlideCase

CONFIGURATION = "2d"
DATA_IDENTIFIER = f"{PLANS_NAME}_{CONFIGURATION}"
_SAMPLED = 50  # places a slide whose colours are looked at
_AROUND = 16  # pixels per side at each
_CHANNELS = 3
# Every level has its own window already: none is cropped.
_RECIPE = RECIPES["paper"]._replace(
    crops=lambda context, factors: (None,), settings={}, standardizes=True
)
# A coarse level that is averaged from so many pixels a side is slow to read.
_SLOW = 8


def preprocessed_or_error(folder: Path) -> Path:
    """nnU-Net's folder of preprocessed data for a raw data set.

    Raises:
        EnvironmentMismatchError: nnUNet_preprocessed is not set.
        InputError: the folder's name is none of a data set.
    """
    prepared = preprocessed_folder(folder)
    if prepared is not None:
        return prepared
    if folder.name and preprocessed_folder(Path("Dataset001_Any")) is None:
        raise EnvironmentMismatchError(
            "the environment variable nnUNet_preprocessed is not set; training straight from "
            "slides begins there. Set nnU-Net's three folders first"
        )
    raise InputError(f"{folder} must be named DatasetXXX_Name to be trained on")


def prepare_in_place(
    folder: Path,
    dataset_json: JsonMapping,
    cases: Sequence[SlideCase],
    patch_size: int,
    *,
    batch_size: int | None = None,
    settings: JsonMapping | None = None,
) -> list[str]:
    """Write what `nnUNetv2_train D 2d FOLD -tr OctreeNCASlideTrainer` reads.

    Args:
        folder: of the data set in nnUNet_preprocessed.
        dataset_json: its content.
        cases: the training slides.
        patch_size: pixels per side.
        batch_size: samples per training step.
        settings: keys of the plans' `octreenca` block.

    Returns:
        Sentences on what its user should know.

    Raises:
        PlansError: an unknown setting.
    """
    intensities = foreground_intensities(cases)
    plans = slide_plans(
        folder.name,
        dataset_json,
        np.median([case.shape for case in cases], 0).tolist(),
        intensities,
        patch_size,
        batch_size=batch_size,
        settings=settings,
    )
    data = folder / DATA_IDENTIFIER
    data.mkdir(parents=True, exist_ok=True)
    for stale in data.glob("*.json"):
        stale.unlink()
    for case in cases:
        case.save(data / f"{case.name}.json")
    fingerprint = {
        "foreground_intensity_properties_per_channel": intensities,
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [[1, *case.shape] for case in cases],
        "spacings": [[999.0, 1.0, 1.0] for _ in cases],
    }
    write_json(folder / "dataset_fingerprint.json", fingerprint)
    write_json(folder / "dataset.json", dict(dataset_json))
    write_json(folder / f"{PLANS_NAME}.json", plans)
    return [f"The plans are in {folder / f'{PLANS_NAME}.json'}.", *_slow_notes(cases, plans)]


def slide_plans(
    dataset_name: str,
    dataset_json: JsonMapping,
    median_shape: Sequence[float],
    intensities: Mapping[str, Mapping[str, float]],
    patch_size: int,
    *,
    batch_size: int | None = None,
    settings: JsonMapping | None = None,
) -> JsonObject:
    """Plans as nnU-Net would write them for RGB pictures, extended for OctreeNCA.

    Args:
        median_shape: of the slides, (rows, columns).
        intensities: `foreground_intensities`'.
        patch_size: pixels per side, rounded up to a multiple of the coarsest level's cells.
    """
    resampling: JsonObject = {"is_seg": False, "order": 1, "order_z": 0}
    functions = {
        key: value
        for part, own in (("data", {"order": 3}), ("seg", {"is_seg": True}), ("probabilities", {}))
        for key, value in (
            (f"resampling_fn_{part}", "resample_data_or_seg_to_shape"),
            (f"resampling_fn_{part}_kwargs", {**resampling, "force_separate_z": None, **own}),
        )
    }
    labels = len([name for name in dataset_json["labels"] if name not in ("background", "ignore")])
    base = {
        "dataset_name": dataset_name,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, *map(round, median_shape)],
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "nnunet_octreenca convert",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": dict(intensities),
        "configurations": {
            CONFIGURATION: {
                "data_identifier": DATA_IDENTIFIER,
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": batch_size or _RECIPE.batch_size,
                "patch_size": [patch_size] * 2,
                # What the octree is planned for; the slides' own median is put back below.
                "median_image_size_in_voxels": [patch_size] * 2,
                "spacing": [1.0, 1.0],
                "normalization_schemes": ["RGBTo01Normalization"] * _CHANNELS,
                "use_mask_for_norm": [False] * _CHANNELS,
                "batch_dice": True,
                **functions,
            }
        },
    }
    plans = extend_plans(
        base,
        input_channels=_CHANNELS,
        num_classes=labels + 1,
        foreground_labels=labels,
        has_regions=False,
        # No smaller context either.
        gpu_memory_target_in_gb=float("inf"),
        batch_size=batch_size,
        settings=settings,
        recipe=_RECIPE,
    )
    plans["configurations"][CONFIGURATION]["median_image_size_in_voxels"] = list(median_shape)
    return plans


def foreground_intensities(cases: Sequence[SlideCase]) -> dict[str, dict[str, float]]:
    """nnU-Net's statistics of every channel's foreground, from some places of every slide.

    Where no slide has foreground, from the slides' middles.
    """
    samples = []
    for case in cases:
        slide, labels = SlideRegions(case.image), SlideRegions(case.label, stored=True)
        places = [place for locations in case.locations.values() for place in locations]
        side = min(_AROUND, *case.shape)
        for place in places[:: max(1, len(places) // _SAMPLED)]:
            y, x = (
                min(max(at - side // 2, 0), n - side)
                for at, n in zip(place, case.shape, strict=True)
            )
            inside = labels.region(0, y, x, side, side)[..., 0] > 0
            samples.append(slide.scaled(case.downsample, y, x, side, side)[inside][:, :_CHANNELS])
        if not places:
            y, x = (n // 2 - side // 2 for n in case.shape)
            window = slide.scaled(case.downsample, y, x, side, side)
            samples.append(window.reshape(-1, window.shape[-1])[:, :_CHANNELS])
        slide.close()
        labels.close()
    values = np.concatenate(samples)
    low, high = np.percentile(values, (0.5, 99.5), axis=0)
    return {
        str(channel): {
            "max": float(one.max()),
            "mean": float(one.mean()),
            "median": float(np.median(one)),
            "min": float(one.min()),
            "percentile_00_5": float(low[channel]),
            "percentile_99_5": float(high[channel]),
            "std": float(one.std()),
        }
        for channel, one in enumerate(values.T)
    }


def _slow_notes(cases: Sequence[SlideCase], plans: JsonMapping) -> list[str]:
    """Slides whose coarse levels cannot be read from a coarse level of the file."""
    network = plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    coarsest = 2 ** len(network["factors"])
    slow = []
    for case in cases:
        slide = SlideRegions(case.image)
        factors = [
            slide.source_level(case.downsample * 2**level)[1]
            for level in range(len(network["factors"]) + 1)
        ]
        if max(factors) > _SLOW:
            slow.append(case.name)
        slide.close()
    if not slow:
        return []
    return [
        f"{', '.join(slow)}: no pyramid up to {coarsest} times coarser, so that drawing a patch "
        f"reads many pixels. A pyramidal copy of the slide trains faster."
    ]
