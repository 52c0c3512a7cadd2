"""What is wrong with a plans file: every key against its rule, and all against one another."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.planning import known_names
from nnunet_octreenca.planning.configuration import NETWORK_CLASS
from nnunet_octreenca.planning.dataset_description import DatasetDescription
from nnunet_octreenca.planning.network_model import MAX_PARAMETERS, network_faults, read_network
from nnunet_octreenca.planning.settings import BLOCK, Settings
from nnunet_octreenca.planning.value_rules import (
    Rule,
    broken,
    file_name,
    flag,
    identifier,
    number,
    one_of,
    short,
    some,
    too_deep,
    whole,
)

# Far above what can be trained; a number beyond them is a mistake or an attack.
MAX_AXIS = 1 << 16  # cells of a context
MAX_CELLS = 1 << 31
MAX_BATCH = 1 << 16
MAX_CONFIGURATIONS = 100

_COORDINATES = some(whole(0, 2), (3,))
_TOP: dict[str, Rule] = {
    "dataset_name": file_name(),
    "plans_name": file_name(),
    "transpose_forward": _COORDINATES,
    "transpose_backward": _COORDINATES,
    "original_median_spacing_after_transp": some(number(0, 1e9, above=True), (2, 3)),
    "original_median_shape_after_transp": some(number(0, 1e9), (2, 3)),
}
_INTENSITIES = {
    "mean": number(),
    "std": number(0),
    "percentile_00_5": number(),
    "percentile_99_5": number(),
    "median": number(),
    "min": number(),
    "max": number(),
}
_PARTS = ("data", "seg", "probabilities")  # that plans give a resampling function for
_OPTION = Rule(
    lambda value: value is None or isinstance(value, (bool, str)) or number().accepts(value),
    "a number, text, null, true or false",
)


def plans_faults(
    content: JsonMapping,
    dataset: DatasetDescription | None = None,
    *,
    custom_names: bool = False,
) -> Iterator[tuple[str, str]]:
    """What is wrong with a plans file.

    Args:
        content: of the file.
        dataset: what dataset.json says; None leaves out what concerns both.
        custom_names: classes and functions that are neither nnU-Net's nor ours may be named, where
            nnU-Net looks for them in its own folders only.

    Yields:
        The configuration at fault, empty for the whole file, and a sentence.
    """
    if too_deep(content):
        yield "", "it is nested too deeply for plans"
        return
    names = _names(custom_names)
    top = {**_TOP, "image_reader_writer": names["reader"], "label_manager": names["labels"]}
    required = ("dataset_name", "plans_name", "image_reader_writer", "transpose_forward",
                "transpose_backward")  # fmt: skip
    found = list(broken(content, top, required=required))
    yield from (("", fault) for fault in found)
    if not any(fault.startswith("transpose") for fault in found):
        forward, backward = content["transpose_forward"], content["transpose_backward"]
        if [forward[axis] for axis in backward] != [0, 1, 2]:
            both = f"transpose_backward {short(backward)} and transpose_forward {short(forward)}"
            yield "", f"{both} do not undo one another"
    statistics = _statistics(content)
    yield from (("", fault) for fault in _statistics_faults(statistics))
    configurations = content.get("configurations")
    if not isinstance(configurations, Mapping) or not configurations:
        yield "", "it has no configurations; make plans with nnUNetv2_plan_experiment"
        return
    if len(configurations) > MAX_CONFIGURATIONS:
        yield "", f"it has {len(configurations)} configurations; {MAX_CONFIGURATIONS} are allowed"
        return
    for name in configurations:
        if not file_name().accepts(name):
            yield "", f"a configuration is called {short(name)}; it must be {file_name().wanted}"
            continue
        for fault in _configuration_faults(configurations, name, statistics, dataset, names):
            yield name, fault


def _names(custom: bool) -> dict[str, Rule]:
    if custom:
        return dict.fromkeys(
            ("reader", "labels", "preprocessor", "normalization", "resampling"), identifier()
        )
    advice = known_names.CUSTOM
    return {
        "reader": one_of(known_names.READERS, advice),
        "labels": one_of(known_names.LABEL_MANAGERS, advice),
        "preprocessor": one_of(known_names.PREPROCESSORS, advice),
        "normalization": one_of(known_names.NORMALIZATIONS, advice),
        "resampling": one_of(known_names.RESAMPLINGS, advice),
    }


def _statistics(content: JsonMapping) -> Any:
    # Old plans name the statistics by modality.
    old, new = (f"foreground_intensity_properties_{by}" for by in ("by_modality", "per_channel"))
    return content.get(new, content.get(old, {}))


def _statistics_faults(statistics: Any) -> Iterator[str]:
    place = "foreground_intensity_properties_per_channel"
    if not isinstance(statistics, Mapping):
        yield f"{place} is {short(statistics)}, but must be an object"
        return
    for channel, values in statistics.items():
        if not channel.isdecimal():
            yield f"{place} has the key {short(channel)}; its keys must be numbers of channels"
            continue
        here = f"{place}.{channel[:20]}"
        if not isinstance(values, Mapping):
            yield f"{here} is {short(values)}, but must be an object"
            continue
        found = list(broken(values, _INTENSITIES, place=f"{here}."))
        yield from found
        low, high = values.get("percentile_00_5"), values.get("percentile_99_5")
        if not found and low is not None and high is not None and low > high:
            yield (
                f"{here} has percentile_00_5 {short(low)} above percentile_99_5 {short(high)}; are "
                f"they swapped?"
            )


def inherited(configurations: JsonMapping, name: str) -> JsonObject:
    """A configuration with what it inherits.

    Raises:
        ValueError: an ancestor is missing, is no object, or inherits from its heir.
    """
    line: list[str] = []
    current: Any = name
    resolved: JsonObject = {}
    while True:
        if current in line:
            raise ValueError(f"inherits_from is circular: {' -> '.join([*line, current])}")
        line.append(current)
        own = configurations.get(current) if isinstance(current, str) else None
        if not isinstance(own, Mapping):
            missing = current not in configurations if isinstance(current, str) else True
            raise ValueError(
                f"inherits_from names {short(current)}, which is not a configuration"
                if missing
                else f"configuration {short(current)} is {short(own)}, but must be an object"
            )
        resolved = {**own, **resolved}
        if own.get("inherits_from") is None:
            return resolved
        current = own["inherits_from"]
        if not isinstance(current, str):
            raise ValueError(f"inherits_from is {short(current)}, but must name a configuration")


def _configuration_faults(
    configurations: JsonMapping,
    name: str,
    statistics: Any,
    dataset: DatasetDescription | None,
    names: Mapping[str, Rule],
) -> Iterator[str]:
    place = f"configurations.{name}."
    try:
        values = inherited(configurations, name)
    except ValueError as error:
        yield f"{place[:-1]}: {error}"
        return
    yield from configuration_faults(values, names=names, place=place)
    stages = ("previous_stage", "next_stage")
    for key in stages:
        for stage in values[key] if isinstance(values.get(key), list) else [values.get(key)]:
            if stage is not None and not (isinstance(stage, str) and stage in configurations):
                yield f"{place}{key} is {short(stage)}, which is not a configuration of these plans"
    if dataset is not None:
        yield from _match_faults(values, statistics, dataset, place)


def configuration_faults(
    values: JsonMapping,
    *,
    names: Mapping[str, Rule] | None = None,
    place: str = "",
) -> Iterator[str]:
    """What is wrong with one configuration, its inheritance resolved.

    Args:
        values: its keys.
        names: rules for names of classes and functions; any bare name if left out.
        place: of it in the file, for the sentences.
    """
    names = _names(True) if names is None else names
    patch = some(whole(1, MAX_AXIS), (2, 3))
    found = list(broken(values, {"patch_size": patch}, required=("patch_size",), place=place))
    yield from found
    if found:
        return
    size = values["patch_size"]
    if prod(size) > MAX_CELLS:
        yield f"{place}patch_size {short(size)} has more than {MAX_CELLS} cells"
    axes = (len(size),)
    rules = {
        "spacing": some(number(0, 1e9, above=True), axes),
        "median_image_size_in_voxels": some(number(0, 1e9), axes),
        "batch_size": whole(1, MAX_BATCH),
        "data_identifier": file_name(),
        "preprocessor_name": names["preprocessor"],
        "normalization_schemes": some(names["normalization"], range(1, 1025)),
        "use_mask_for_norm": some(flag(), range(1, 1025)),
        "batch_dice": flag(),
        **{f"resampling_fn_{part}": names["resampling"] for part in _PARTS},
    }
    required = ("spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
                "resampling_fn_probabilities")  # fmt: skip
    yield from broken(values, rules, required=required, place=place)
    for part in _PARTS:
        yield from _option_faults(values, f"resampling_fn_{part}_kwargs", place)
    if "architecture" in values:
        yield from _architecture_faults(values, len(size), place)
    elif "UNet_class_name" not in values:  # in plans before nnU-Net 2.4
        yield f"{place}architecture is missing; plan the data set again"


def _option_faults(values: JsonMapping, key: str, place: str) -> Iterator[str]:
    options = values.get(key, {})
    if not isinstance(options, Mapping):
        yield f"{place}{key} is {short(options)}, but must be an object"
        return
    for name in options:
        if not identifier().accepts(name):
            yield f"{place}{key} has the key {short(name)}, which is not the name of an argument"
    named = {name: _OPTION for name in options if identifier().accepts(name)}
    yield from broken(options, named, place=f"{place}{key}.")


def _architecture_faults(values: JsonMapping, axes: int, place: str) -> Iterator[str]:
    architecture = values["architecture"]
    found = list(network_faults(architecture, f"{place}architecture"))
    yield from found
    if found or architecture["network_class_name"] != NETWORK_CLASS:
        return
    dimension = architecture["arch_kwargs"]["dimension"]
    if dimension != axes:
        yield (
            f"{place}architecture.arch_kwargs.dimension is {dimension}, but patch_size "
            f"{short(values['patch_size'])} has {axes} axes"
        )
    try:
        Settings.from_plans(values.get(BLOCK, {}))
    except PlansError as error:
        yield f"{place[:-1]}: {error}" if place else str(error)


def _match_faults(
    values: JsonMapping, statistics: Any, dataset: DatasetDescription, place: str
) -> Iterator[str]:
    """Channels and labels that plans and dataset.json number differently."""
    channels = len(dataset.channels)
    for key in ("normalization_schemes", "use_mask_for_norm"):
        found = values.get(key)
        if isinstance(found, list) and found and len(found) != channels:
            yield (
                f"{place}{key} has {len(found)} values, but dataset.json names {channels} channels"
            )
    schemes = values.get("normalization_schemes")
    needed = ("mean", "std", "percentile_00_5", "percentile_99_5")
    for channel, scheme in enumerate(schemes if isinstance(schemes, list) else []):
        own = statistics.get(str(channel)) if isinstance(statistics, Mapping) else None
        if scheme == "CTNormalization" and not (
            isinstance(own, Mapping) and all(key in own for key in needed)
        ):
            yield (
                f"{place}normalization_schemes has CTNormalization for channel {channel}, and "
                f"foreground_intensity_properties_per_channel lacks its {', '.join(needed)}"
            )
    architecture = values.get("architecture")
    if not isinstance(architecture, Mapping) or list(network_faults(architecture)):
        return
    if architecture["network_class_name"] != NETWORK_CLASS:
        return
    network = read_network(architecture["arch_kwargs"])
    inputs = channels + len(dataset.foreground) * (values.get("previous_stage") is not None)
    logits = dataset.heads - network.constant_background
    if min(network.channels) < inputs + logits:
        given = short(architecture["arch_kwargs"].get("channels", 16))
        yield (
            f"{place}architecture.arch_kwargs.channels is {given}, but the cells of every level "
            f"hold {inputs} channels of the image and {logits} logits"
        )
    statistics = {len(network.input_mean), len(network.input_std)}
    if statistics != {0} and statistics != {inputs}:
        yield (
            f"{place}architecture.arch_kwargs has {len(network.input_mean)} input_mean and "
            f"{len(network.input_std)} input_std for {inputs} channels of the image; give one of "
            f"each a channel, or neither"
        )
    if network.parameters(inputs) > MAX_PARAMETERS:
        yield (
            f"{place}architecture describes {network.parameters(inputs):,} parameters; an "
            f"OctreeNCA has some ten thousand, and {MAX_PARAMETERS:,} are allowed"
        )
