"""dataset.json as people edit it and as nnU-Net's first version wrote it: checked, in one form."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.planning.known_names import CUSTOM, READERS
from nnunet_octreenca.planning.value_rules import (
    broken,
    identifier,
    one_of,
    optional,
    short,
    too_deep,
    whole,
)

HIGHEST_LABEL = 32767  # label maps are at most 16 bits with a sign
MOST_CHANNELS = 1024
_MAX_NAME = 200
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ENDING = re.compile(r"\.[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_READER = "overwrite_image_reader_writer"


@dataclass(frozen=True)
class DatasetDescription:
    """What dataset.json says of images and labels.

    Attributes:
        channels: names of an image's channels, in their order.
        labels: name to label; of a region all of its labels. The background is 0, alone.
        regions_class_order: the labels that regions write; None for plain labels.
        file_ending: of images and label maps, in lower case; empty if it is not said.
    """

    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None
    file_ending: str

    @classmethod
    def from_json(
        cls, content: JsonMapping, path: Path | str, *, custom_names: bool = False
    ) -> "DatasetDescription":
        """Read dataset.json.

        Raises:
            InputError: what `description_faults` finds first.
        """
        described = read_description(content, path, custom_names=custom_names)
        labels = {
            name: tuple(value) if isinstance(value, list) else (value,)
            for name, value in described["labels"].items()
        }
        order: list[int] = described.get("regions_class_order") or []
        regions = any(len(value) > 1 for value in labels.values())
        return cls(
            channels=tuple(described["channel_names"].values()),
            labels=labels,
            regions_class_order=tuple(order) if regions else None,
            file_ending=described["file_ending"],
        )

    @property
    def has_regions(self) -> bool:
        """Whether labels are regions, which may overlap."""
        return self.regions_class_order is not None

    @property
    def foreground(self) -> frozenset[int]:
        """All labels but the background and what is to be ignored."""
        return frozenset(
            label for name, values in self.labels.items() if name != "ignore" for label in values
        ) - {0}

    @property
    def heads(self) -> int:
        """nnU-Net's segmentation heads: regions, or plain labels with the background."""
        if self.regions_class_order is not None:
            return len(self.regions_class_order)
        return len(self.foreground) + 1


def read_description(
    content: JsonMapping, path: Path | str, *, custom_names: bool = False
) -> JsonObject:
    """A data set's description as nnU-Net v2 has it.

    Args:
        content: of dataset.json. Labels may be version 1's, number to name; numbers may be text;
            channels may be called `modality`; the file ending may be in upper case.
        path: of the file, for errors.
        custom_names: as for `description_faults`.

    Returns:
        `labels`: name to number or list of numbers, the background 0 among them;
        `channel_names`: number (as text) to name; `file_ending` in lower case; the rest as it was.

    Raises:
        InputError: what `description_faults` finds first.
    """
    for fault in description_faults(content, path, custom_names=custom_names):
        raise InputError(fault)
    description = dict(content)
    description["labels"] = _background_first_named(_labels(content["labels"]))
    if content.get("regions_class_order") is not None:
        description["regions_class_order"] = [
            _number(value) for value in content["regions_class_order"]
        ]
    description.pop("modality", None)
    description["channel_names"] = _channels(content)
    description["file_ending"] = str(content.get("file_ending") or "").lower()
    return description


def description_faults(
    content: JsonMapping, path: Path | str, *, custom_names: bool = False
) -> Iterator[str]:
    """What is wrong with dataset.json, one sentence a fault.

    Args:
        content: of the file.
        path: for the sentences.
        custom_names: a reader that is neither nnU-Net's nor ours may be named.
    """
    if too_deep(content):
        yield f"{path} is nested too deeply for a description of a data set"
        return
    yield from _label_faults(content.get("labels"), content.get("regions_class_order"), path)
    yield from _channel_faults(content, path)
    ending = content.get("file_ending")
    if ending is not None and not (isinstance(ending, str) and _ENDING.fullmatch(ending)):
        yield (
            f"file_ending in {path} is {short(ending)}, but must be an ending of a file, such as "
            f"'.nii.gz'"
        )
    reader = identifier() if custom_names else one_of(READERS | {"None"}, CUSTOM)
    rules = {"numTraining": whole(0, 10**9), _READER: optional(reader)}
    for fault in broken(content, rules):
        yield f"{path}: {fault}"


def _label_faults(found: Any, order: Any, path: Path | str) -> Iterator[str]:
    if not isinstance(found, dict) or not found:
        yield f"{path} names no labels; add them, as training had them"
        return
    wrong = False
    for name, value in _named(found).items():
        for part in value if isinstance(value, list) else [value]:
            if _number(part) is None:
                wrong = True
                yield (
                    f"the label {short(name)} in {path} is {short(part)}; it must be a whole "
                    f"number within [0, {HIGHEST_LABEL}]"
                )
        if value == [] or not isinstance(name, str) or not _is_printable(name):
            wrong = True
            yield f"the label {short(name)} in {path} has no numbers, or no name that can be shown"
    if wrong:
        return
    labels = _labels(found)
    if 0 not in labels.values():
        yield f"{path} has no label 0; the background must be 0"
        return
    yield from _region_faults(labels, order, path)


def _region_faults(labels: JsonObject, order: Any, path: Path | str) -> Iterator[str]:
    kept = {name: value for name, value in labels.items() if name != "ignore"}
    regions = any(isinstance(value, list) and len(value) > 1 for value in kept.values())
    if order is not None and not isinstance(order, list):
        yield f"regions_class_order in {path} is {short(order)}; it must be a list"
        return
    for value in order or ():
        if _number(value) is None:
            yield (
                f"regions_class_order in {path} holds {short(value)}; each must be a whole number "
                f"within [0, {HIGHEST_LABEL}]"
            )
    numbers = sorted({n for v in kept.values() for n in (v if isinstance(v, list) else [v])})
    if "ignore" in labels and labels["ignore"] != numbers[-1] + 1:
        yield (
            f"the label 'ignore' in {path} is {short(labels['ignore'])}; it must be the one above "
            f"all others, {numbers[-1] + 1}"
        )
    order = order or []
    if regions and not order:
        yield f"{path} has regions and lacks regions_class_order; add it"
    elif regions:
        count = sum(value not in (0, [0]) for value in kept.values())
        if len(order) != count:
            yield (
                f"{path} names {count} regions, but regions_class_order {short(order)} has "
                f"{len(order)} labels; it must have one a region"
            )
    elif numbers != list(range(len(numbers))):
        yield (
            f"the labels in {path} are {short(numbers)}; they must be 0, 1, 2, ... without a gap, "
            f"as training had them"
        )


def _channel_faults(content: JsonMapping, path: Path | str) -> Iterator[str]:
    channels = _channels(content)
    if not isinstance(channels, dict) or not channels:
        yield f"{path} names no channels; add channel_names, as training had them"
        return
    if len(channels) > MOST_CHANNELS:
        yield f"{path} names {len(channels)} channels; at most {MOST_CHANNELS} are supported"
    elif set(channels) != {str(number) for number in range(len(channels))}:
        yield (
            f"channel_names in {path} are numbered {short(list(channels))}; they must be numbered "
            f"from '0' to '{len(channels) - 1}'"
        )
    for name in channels.values():
        if not isinstance(name, str) or not _is_printable(name):
            yield (
                f"channel_names in {path} hold {short(name)}, which is not a name that can be shown"
            )


def _channels(content: JsonMapping) -> Any:
    channels = content.get("channel_names", content.get("modality"))
    if isinstance(channels, list):
        return {str(number): name for number, name in enumerate(channels)}
    return channels


def _is_printable(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and not _UNPRINTABLE.search(name)


def _named(found: JsonMapping) -> dict[Any, Any]:
    """Name to number, which version 1 has the other way round."""
    if _is_first_version(found):
        return {name: number for number, name in found.items()}
    return dict(found)


def _labels(found: JsonMapping) -> JsonObject:
    return {
        name: [_number(part) for part in value] if isinstance(value, list) else _number(value)
        for name, value in _named(found).items()
    }


def _background_first_named(labels: JsonObject) -> JsonObject:
    """nnU-Net asks for the background by this name."""
    zero = next(name for name, value in labels.items() if value == 0)
    if zero == "background":
        return labels
    return {"background" if name == zero else name: value for name, value in labels.items()}


def _is_first_version(labels: JsonMapping) -> bool:
    """Whether labels go from number to name: {"0": "background", "1": "tumour"}."""
    return all(key.strip().isdecimal() for key in labels) and all(
        isinstance(value, str) and not value.strip().isdecimal() for value in labels.values()
    )


def _number(value: Any) -> int | None:
    """A label, None if it is none."""
    try:
        number = int(value)
        exact = number == float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, bool) or not exact or not 0 <= number <= HIGHEST_LABEL:
        return None
    return number
