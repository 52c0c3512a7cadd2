"""How large a TIFF file says its pixels are."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import read_json

_MICRONS = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # greek mu
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "\\u00b5m": 1.0,  # as ImageJ escapes it
    "nm": 1e-3,
    "pm": 1e-6,
    "å": 1e-4,
    "inch": 25400.0,
    "in": 25400.0,
}
# The resolution tags also hold what an image is to be printed at, often a default: 72 to 1200 dots
# an inch, 353 to 21 microns. Only what is finer can have come from a microscope.
_COARSEST_TAG = 20.0
_CENTIMETRE, _INCH = 3, 2  # values of the tag ResolutionUnit


def microns_per_pixel(tiff: Any, series: Any) -> tuple[float, float] | None:
    """Microns per pixel (y, x) of the finest level of a series; None where nothing is said.

    Args:
        tiff: the open `tifffile.TiffFile`.
        series: its `TiffPageSeries`.
    """
    if tiff.is_ome:
        return _ome_sizes(tiff, series).get("y_x")
    if tiff.is_svs:
        return _aperio(series.keyframe.description)
    if tiff.is_imagej:
        unit = _MICRONS.get(str(tiff.imagej_metadata.get("unit", "")).lower())
        return None if unit is None else _from_tags(series.keyframe, unit)
    unit_tag = series.keyframe.tags.valueof("ResolutionUnit", _INCH)
    unit = {_CENTIMETRE: 1e4, _INCH: 25400.0}.get(int(unit_tag))
    size = None if unit is None else _from_tags(series.keyframe, unit)
    return size if size is not None and max(size) <= _COARSEST_TAG else None


def plane_distance(tiff: Any, series: Any) -> float | None:
    """Microns between the planes of a stack; None where nothing is said."""
    if tiff.is_ome:
        return _ome_sizes(tiff, series).get("z")
    if tiff.is_imagej:
        unit = _MICRONS.get(str(tiff.imagej_metadata.get("unit", "")).lower())
        distance = tiff.imagej_metadata.get("spacing")
        return None if unit is None or not distance else float(distance) * unit
    return None


def spacing_beside(path: Path) -> tuple[float, ...] | None:
    """The mm (z, y, x) that nnU-Net's reader of 3-D TIFFs takes from the file CASE.json beside.

    None where there is no such file.

    Raises:
        InputError: it does not hold three numbers.
    """
    beside = path.with_name(path.stem.removesuffix("_0000") + ".json")
    if not beside.is_file():
        return None
    spacing = read_json(beside, "it should hold the spacing of the TIFF beside it").get("spacing")
    try:
        z, y, x = (float(n) for n in spacing or ())
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{beside} should hold the spacing of {path.name} as three numbers, not {spacing!r}"
        ) from error
    return z, y, x


def _ome_sizes(tiff: Any, series: Any) -> dict[str, Any]:
    try:
        root = ElementTree.fromstring(tiff.ome_metadata)
    except (ElementTree.ParseError, TypeError):
        return {}
    pixels = [element for element in root.iter() if element.tag.split("}")[-1] == "Pixels"]
    index = next((i for i, other in enumerate(tiff.series) if other is series), 0)
    if index >= len(pixels):
        return {}
    sizes: dict[str, float] = {}
    for axis in "XYZ":
        unit = _MICRONS.get(pixels[index].get(f"PhysicalSize{axis}Unit", "µm").lower())
        size = _positive(pixels[index].get(f"PhysicalSize{axis}"))
        if unit is not None and size is not None:
            sizes[axis] = size * unit
    found: dict[str, Any] = {}
    if "X" in sizes and "Y" in sizes:
        found["y_x"] = (sizes["Y"], sizes["X"])
    if "Z" in sizes:
        found["z"] = sizes["Z"]
    return found


def _aperio(description: str) -> tuple[float, float] | None:
    for item in description.split("|")[1:]:
        key, _, value = item.partition("=")
        if key.strip() == "MPP":
            size = _positive(value)
            return None if size is None else (size, size)
    return None


def _from_tags(page: Any, unit: float) -> tuple[float, float] | None:
    sizes = []
    for name in ("YResolution", "XResolution"):
        try:
            pixels, units = page.tags.valueof(name)
            sizes.append(unit * units / pixels)
        except (TypeError, ValueError, ZeroDivisionError):
            return None
    return (sizes[0], sizes[1]) if min(sizes) > 0 else None


def _positive(text: str | None) -> float | None:
    try:
        number = float(text or 0)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None
