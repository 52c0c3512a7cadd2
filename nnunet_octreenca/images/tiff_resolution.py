"""How large a TIFF file says its pixels are."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict
from xml.etree import ElementTree

from nnunet_octreenca.deferred_files import fetch
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import read_json

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

_MICRONS = {
    "m": 1e6,
    "dm": 1e5,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # greek mu
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "\\u00b5m": 1.0,  # as ImageJ escapes it
    "nm": 1e-3,
    "pm": 1e-6,
    "å": 1e-4,
    "inch": 25400.0,
    "in": 25400.0,
    '"': 25400.0,
}
_LENGTH = re.compile(r"\s*([+-]?[\d.,]+(?:[eE][+-]?\d+)?)\s*([^\d\s]*)\s*")
# The resolution tags also hold what an image is to be printed at, often a default: 72 to 1200 dots
# an inch, 353 to 21 microns. Only what is finer can have come from a microscope.
_COARSEST_TAG = 20.0
# Values of the tag ResolutionUnit in microns; the last two are later additions.
_INCH = 2
_UNITS = {_INCH: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}


class _OmeSizes(TypedDict, total=False):
    """Microns per pixel of the axes that say so."""

    y_x: tuple[float, float]
    z: float


def microns_per_pixel(tiff: "TiffFile", series: "TiffPageSeries") -> tuple[float, float] | None:
    """Microns per pixel (y, x) of the finest level of a series; None where nothing is said.

    Args:
        tiff: the open `tifffile.TiffFile`.
        series: its `TiffPageSeries`.
    """
    if tiff.is_ome:
        return _ome_sizes(tiff, series).get("y_x")
    size = _described(series.keyframe.description)
    if size is not None or tiff.is_svs:
        return size
    unit = _imagej_unit(tiff)
    if unit is None:
        tag = series.keyframe.tags.valueof("ResolutionUnit", 1 if tiff.is_imagej else _INCH)
        unit = _UNITS.get(tag) if isinstance(tag, int) else None
    elif unit != _MICRONS["inch"]:
        return _from_tags(series.keyframe, unit)
    size = None if unit is None else _from_tags(series.keyframe, unit)
    return size if size is not None and max(size) <= _COARSEST_TAG else None


def plane_distance(tiff: "TiffFile", series: "TiffPageSeries") -> float | None:
    """Microns between the planes of a stack; None where nothing is said."""
    if tiff.is_ome:
        return _ome_sizes(tiff, series).get("z")
    unit = _imagej_unit(tiff)
    return None if unit is None else length((tiff.imagej_metadata or {}).get("spacing"), unit)


def length(text: object, unit: float = 1.0) -> float | None:
    """A length in microns, however it is spelled; None where it is none, or not above 0.

    Args:
        text: a number, with a decimal comma or an exponent, and with its unit or without.
        unit: in microns, where the text names none.

    >>> [length(text) for text in ("0.25", " 0,25 ", "2.5E-1", "250 nm", "0", "none")]
    [0.25, 0.25, 0.25, 0.25, None, None]
    """
    match = _LENGTH.fullmatch(str(text))
    if match is None:
        return None
    number = match[1] if "." in match[1] else match[1].replace(",", ".")
    try:
        microns = float(number) * (_MICRONS[match[2].lower()] if match[2] else unit)
    except (ValueError, KeyError):
        return None
    return microns if 0 < microns < float("inf") else None


def _imagej_unit(tiff: "TiffFile") -> float | None:
    if not tiff.is_imagej:
        return None
    return _MICRONS.get(str((tiff.imagej_metadata or {}).get("unit", "")).strip().lower())


def spacing_beside(path: Path) -> tuple[float, ...] | None:
    """The mm (z, y, x) that nnU-Net's reader of 3-D TIFFs takes from CASE.json next to the file.

    None where there is no such file.

    Raises:
        InputError: it does not hold three numbers.
    """
    beside = path.with_name(path.stem.removesuffix("_0000") + ".json")
    if not beside.is_file():
        return None
    fetch(beside)
    spacing = read_json(beside, "it should hold the spacing of the TIFF next to it").get("spacing")
    try:
        z, y, x = (float(n) for n in spacing or ())
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{beside} should hold the spacing of {path.name} as three numbers, not {spacing!r}"
        ) from error
    return z, y, x


def _ome_sizes(tiff: "TiffFile", series: "TiffPageSeries") -> _OmeSizes:
    try:
        root = ElementTree.fromstring(tiff.ome_metadata or "")
    except (ElementTree.ParseError, TypeError):
        return {}
    pixels = [element for element in root.iter() if element.tag.split("}")[-1] == "Pixels"]
    index = next((i for i, other in enumerate(tiff.series) if other is series), 0)
    if index >= len(pixels):
        return {}
    sizes: dict[str, float] = {}
    for axis in "XYZ":
        unit = _MICRONS.get(pixels[index].get(f"PhysicalSize{axis}Unit", "µm").strip().lower())
        size = None if unit is None else length(pixels[index].get(f"PhysicalSize{axis}"), unit)
        if size is not None:
            sizes[axis] = size
    found: _OmeSizes = {}
    if "X" in sizes and "Y" in sizes:
        found["y_x"] = (sizes["Y"], sizes["X"])
    if "Z" in sizes:
        found["z"] = sizes["Z"]
    return found


def _described(description: str) -> tuple[float, float] | None:
    """Of a description as Aperio writes it, `...|AppMag = 20|MPP = 0.499|...`."""
    for item in description.split("|")[1:]:
        key, _, value = item.partition("=")
        if key.strip().upper() == "MPP":
            size = length(value)
            return None if size is None else (size, size)
    return None


def _from_tags(page: "TiffPage", unit: float) -> tuple[float, float] | None:
    sizes = []
    for name in ("YResolution", "XResolution"):
        try:
            pixels, units = page.tags.valueof(name)
            sizes.append(unit * units / pixels)
        except (TypeError, ValueError, ZeroDivisionError):
            return None
    return (sizes[0], sizes[1]) if 0 < min(sizes) <= max(sizes) < float("inf") else None
