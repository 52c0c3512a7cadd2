"""A whole plans file, extended from an existing one (stock, ResEnc, ...)."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.planning.configuration import NETWORK_CLASS, octreenca_configuration
from nnunet_octreenca.planning.input_statistics import InputStatistics, input_statistics
from nnunet_octreenca.planning.level_sizes import LevelSizes
from nnunet_octreenca.planning.recipe import RECIPES, Recipe
from nnunet_octreenca.planning.rules import brief, of_levels
from nnunet_octreenca.planning.settings import BLOCK, Settings

PLANS_NAME = "nnUNetOctreeNCAPlans"


def extend_plans(
    plans: JsonMapping,
    *,
    input_channels: int,
    num_classes: int,
    foreground_labels: int,
    has_regions: bool,
    gpu_memory_target_in_gb: float = 8.0,
    plans_name: str = PLANS_NAME,
    batch_size: int | None = None,
    settings: JsonMapping | None = None,
    preset: JsonMapping | None = None,
    recipe: Recipe = RECIPES["default"],
    cases: int | None = None,
) -> JsonObject:
    """OctreeNCA's plans from an existing plans file, for each of its configurations.

    `data_identifier`, spacing, normalization and resampling stay as they were, so that data
    preprocessed for the existing plans is used again.

    Args:
        plans: the existing plans.
        input_channels: channels of the data set's images.
        num_classes: nnU-Net's segmentation heads.
        foreground_labels: labels without the background; a cascade's second stage gets the
            first one's as so many more input channels.
        has_regions: region-based labels.
        gpu_memory_target_in_gb: GiB that one training step may take.
        plans_name: name of the new plans.
        batch_size: samples per training step; the recipe's if left out.
        settings: keys of the `octreenca` block that differ from the recipe's; also `channels` and
            `hidden` of the network, a list being for the configurations of as many levels.
        preset: one of the paper's set-ups (`load_preset`); replaces what is worked out in the
            configurations that have as many axes.
        recipe: how networks are trained that no preset describes.
        cases: of the data set, validation cases among them; None where nobody knows.

    Returns:
        The new plans, for nnU-Net to read as `plans_name`.json; `plans` stays as it is.

    Raises:
        PlansError: `plans` is not a plans file, a setting cannot be used, or nothing fits the
            memory target.

    Examples:
        >>> stock = {"configurations": {"2d": {"median_image_size_in_voxels": [320, 320]}}}
        >>> plans = extend_plans(
        ...     stock, input_channels=3, num_classes=2, foreground_labels=1, has_regions=False
        ... )
        >>> plans["configurations"]["2d"]["patch_size"]
        [320, 320]
        >>> plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["steps"]
        [5, 5, 5, 5, 20]
    """
    if not isinstance(plans.get("configurations"), Mapping) or not plans["configurations"]:
        raise PlansError(
            "this is not an nnU-Net plans file: it has no configurations. Make one with "
            "nnUNetv2_plan_experiment"
        )
    if "__" in plans_name:
        raise PlansError(
            f"plans name {plans_name!r} must not hold '__': nnU-Net splits folder names there"
        )
    sizes, settings = LevelSizes.split(settings)
    extended = deepcopy(dict(plans))
    extended["plans_name"] = plans_name
    for name, configuration in extended["configurations"].items():
        inherits = "inherits_from" in configuration
        cascaded = configuration.get("previous_stage") is not None
        if inherits and not cascaded:
            continue  # its parent is extended, and so is it
        median = _inherited(extended["configurations"], name, "median_image_size_in_voxels")
        if preset is not None and len(preset["patch_size"]) == len(median):
            own = _from_preset(preset, has_regions, settings, sizes)
            needed = input_channels + (foreground_labels if cascaded else 0)
            needed += num_classes - (not has_regions)
            given = own["architecture"]["arch_kwargs"]["channels"]
            channels = min(of_levels(given, len(own["architecture"]["arch_kwargs"]["steps"])))
            if needed > channels:
                raise PlansError(
                    f"the preset's cells have {channels} channels, but {name!r} needs {needed} for "
                    f"image and labels; omit the preset to have the channels computed"
                )
            configuration.update(own)
            continue
        inputs = input_channels + (foreground_labels if cascaded else 0)
        configuration.update(
            octreenca_configuration(
                median,
                input_channels=inputs,
                num_classes=num_classes,
                has_regions=has_regions,
                gpu_memory_target_in_gb=gpu_memory_target_in_gb,
                batch_size=batch_size,
                settings=settings,
                recipe=recipe,
                statistics=_statistics(extended, name, inputs) if recipe.standardizes else None,
                sizes=sizes,
                cases=cases,
            )
        )
    sizes.check_used()
    return extended


def _statistics(plans: JsonMapping, name: str, inputs: int) -> InputStatistics | None:
    """Of what nnU-Net hands a configuration's network; None where it is standardized already."""
    intensities = plans.get("foreground_intensity_properties_per_channel")
    if not isinstance(intensities, Mapping) or not intensities:
        return None
    schemes = _inherited(plans["configurations"], name, "normalization_schemes")
    return input_statistics(intensities, schemes, inputs)


def _from_preset(
    preset: JsonMapping, has_regions: bool, settings: JsonMapping, sizes: LevelSizes
) -> JsonObject:
    chosen = deepcopy(dict(preset))
    network = chosen["architecture"]["arch_kwargs"]
    network["constant_background"] = not has_regions
    levels = len(network["steps"])
    channels, hidden = sizes.of(
        levels, of_levels(network["channels"], levels), of_levels(network["hidden"], levels)
    )
    network.update(channels=brief(channels), hidden=brief(hidden))
    chosen[BLOCK] = Settings.from_plans({**chosen[BLOCK], **settings}).to_plans()
    return chosen


def _inherited(configurations: JsonMapping, name: str, key: str) -> Any:
    """A configuration's value, its ancestors' where it has none."""
    visited: list[str] = []
    current: str | None = name
    while current is not None and current not in visited:
        visited.append(current)
        if current not in configurations:
            break
        if key in configurations[current]:
            return configurations[current][key]
        current = configurations[current].get("inherits_from")
    raise PlansError(
        f"configuration {name!r} has no {key!r} (looked in {' -> '.join(visited)}); make the "
        f"plans again with nnUNetv2_plan_experiment"
    )


def octreenca_settings(
    configuration: JsonMapping, *, configuration_name: str, plans_name: str
) -> Settings:
    """The settings of a configuration of OctreeNCA's.

    Args:
        configuration: with its inheritance resolved.
        configuration_name, plans_name: for the message.

    Raises:
        PlansError: the configuration describes another network.
    """
    other = other_network(configuration)
    if other is not None:
        raise PlansError(
            f"configuration {configuration_name!r} of plans {plans_name!r} describes {other}, not "
            f"OctreeNCA. Run `nnunet_octreenca extend_plans -d DATASET -p {plans_name}` and train "
            f"with `-p {PLANS_NAME}`"
        )
    return Settings.from_plans(configuration.get(BLOCK, {}))


def other_network(configuration: JsonMapping) -> str | None:
    """The class that a configuration describes, without its module; None if it is OctreeNCA."""
    architecture = configuration.get("architecture")
    found = architecture.get("network_class_name") if isinstance(architecture, Mapping) else None
    if found == NETWORK_CLASS:
        return None
    return found.split(".")[-1][:80] if isinstance(found, str) else "no network"
