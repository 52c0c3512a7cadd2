"""Method records: what is known of a method beyond its predictions, such as memory and time.

`method_records.schema.json` beside this file is their JSON schema.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject, read_json

FORM = 1
"""Of the file; raised where older code would misread it."""

QUANTITIES: Mapping[str, tuple[str, str]] = {
    "parameters": ("Parameters", ""),
    "training_seconds": ("Training", "s"),
    "iterations": ("Training steps", ""),
    "prediction_seconds": ("Prediction of all cases", "s"),
    "training_peak_bytes": ("Peak memory of training", "bytes"),
    "prediction_peak_bytes": ("Peak memory of prediction", "bytes"),
    "training_device_peak_bytes": ("Peak GPU memory of training", "bytes"),
    "device_peak_bytes": ("Peak GPU memory of prediction", "bytes"),
    "bytes_per_voxel": ("Memory per voxel of the network", "B"),
    "cold_seconds": ("First case with start", "s"),
    "case_seconds": ("Case, disk to disk", "s"),
    "network_seconds": ("Case, network alone", "s"),
    "seeds": ("Trainings (seeds)", ""),
}
"""Numbers of a method: name and unit for people."""

_TEXTS = ("device", "notes")
_LONGEST = 1000


def read_records(path: Path, methods: Collection[str]) -> dict[str, JsonObject]:
    """The records of the compared methods.

    Args:
        path: JSON file.
        methods: that are compared; each record must be of one.

    Raises:
        InputError: it is damaged, or a record is of no method or breaks the schema.
    """
    content = read_json(path, "give a file of method records as --records")
    if content.get("form") != FORM:
        raise InputError(f"{path}: form is {content.get('form')!r}, but must be {FORM}")
    records = content.get("methods")
    if not isinstance(records, dict):
        raise InputError(f"{path}: methods must be an object from a method's name to its record")
    for name, record in records.items():
        if name not in methods:
            raise InputError(
                f"{path} has a record of {name!r}, which is not compared; the methods are "
                f"{', '.join(methods)}"
            )
        fault = _fault(record)
        if fault:
            raise InputError(f"{path}: the record of {name!r} {fault}")
    return records


def _fault(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "must be an object"
    for key, value in record.items():
        if key in QUANTITIES:
            if not _is_number(value) or value < 0:
                return f"has {key} {value!r}, which must be a number of 0 or more"
        elif key in _TEXTS:
            if not isinstance(value, str) or len(value) > _LONGEST:
                return f"has {key} that is no text of at most {_LONGEST} characters"
        elif key == "curves":
            if not isinstance(value, list) or not all(map(_is_curve, value)):
                return (
                    "has curves that are not a list of {x, y, points: [[x, y], ...]} with, if it "
                    'is wanted, scale: "linear" or "log" (for numbers above 0)'
                )
        else:
            known = ", ".join([*QUANTITIES, *_TEXTS, "curves"])
            return f"has the key {key!r}, which is none of {known}"
    return None


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < float("inf")
    )


def _is_curve(curve: Any) -> bool:
    return (
        isinstance(curve, dict)
        and {"x", "y", "points"} <= set(curve) <= {"x", "y", "points", "scale"}
        and isinstance(curve["x"], str)
        and isinstance(curve["y"], str)
        and isinstance(curve["points"], list)
        and all(
            isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))
            for point in curve["points"]
        )
        and curve.get("scale", "linear") in ("linear", "log")
        and (curve.get("scale") != "log" or all(min(point) > 0 for point in curve["points"]))
    )
