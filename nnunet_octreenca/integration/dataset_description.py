"""dataset.json as people edit it and as nnU-Net's first version wrote it, in today's form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_octreenca.errors import InputError


def read_description(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A data set's description as nnU-Net v2 has it.

    Args:
        content: of dataset.json. Labels may be version 1's, number to name; numbers may be text;
            channels may be called `modality`; the file ending may be in upper case.
        path: of the file, for errors.

    Returns:
        `labels`: name to number or list of numbers, the background 0 among them;
        `channel_names`: number (as text) to name; `file_ending` in lower case; the rest as it was.

    Raises:
        InputError: labels or channels are missing, or are no such things.
    """
    description = dict(content)
    description["labels"] = _labels(content.get("labels"), path)
    if "regions_class_order" in content and content["regions_class_order"] is not None:
        order = content["regions_class_order"]
        if not isinstance(order, list):
            raise InputError(f"regions_class_order in {path} is {order!r}; it must be a list")
        description["regions_class_order"] = [
            _number(value, "regions_class_order", path) for value in order
        ]
    elif any(
        isinstance(value, list) and len(value) > 1 for value in description["labels"].values()
    ):
        raise InputError(f"{path} has regions and lacks regions_class_order; add it")
    channels = content.get("channel_names", content.get("modality"))
    if isinstance(channels, list):
        channels = {str(number): name for number, name in enumerate(channels)}
    if not isinstance(channels, dict) or not channels:
        raise InputError(f"{path} names no channels; add channel_names, as training had them")
    description.pop("modality", None)
    description["channel_names"] = channels
    ending = content.get("file_ending", "")
    description["file_ending"] = ending.lower() if isinstance(ending, str) else ""
    return description


def _labels(found: Any, path: Path) -> dict[str, int | list[int]]:
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} names no labels; add them, as training had them")
    if _is_first_version(found):
        found = {name: number for number, name in found.items()}
    labels: dict[str, int | list[int]] = {}
    for name, value in found.items():
        if isinstance(value, list):
            labels[name] = [_number(part, f"the label {name!r}", path) for part in value]
        else:
            labels[name] = _number(value, f"the label {name!r}", path)
    zero = next((name for name, value in labels.items() if value == 0), None)
    if zero is None:
        raise InputError(f"{path} has no label 0; the background must be 0")
    if zero != "background":  # which nnU-Net asks for by this name
        labels = {"background" if name == zero else name: v for name, v in labels.items()}
    return labels


def _is_first_version(labels: Mapping[str, Any]) -> bool:
    """Whether labels go from number to name: {"0": "background", "1": "tumour"}."""
    return all(key.strip().isdecimal() for key in labels) and all(
        isinstance(value, str) and not value.strip().isdecimal() for value in labels.values()
    )


def _number(value: Any, what: str, path: Path) -> int:
    try:
        number = int(value)
        if isinstance(value, bool) or number != float(value) or number < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} in {path} is {value!r}; it must be a whole number") from error
    return number
