"""Annotated regions of a GeoJSON file, as QuPath exports them, and the labels they stand for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping, JsonObject, load_json
from nnunet_octreenca.libraries import import_optional

if TYPE_CHECKING:
    from shapely import Geometry, Polygon

_RESERVED = ("background", "ignore")  # QuPath's classes may spell them in any case
_ELLIPSE_POINTS = 360


class Regions(NamedTuple):
    """What a file holds.

    Attributes:
        polygons: shapely's, and the label of each, in the file's order.
        notes: sentences about what was left out or counted as another class.
    """

    polygons: list[tuple["Polygon", int]]
    notes: tuple[str, ...]


def read_regions(file: Path, labels: Mapping[str, int]) -> Regions:
    """Read a GeoJSON file.

    A region's class is `properties.classification.name`, or `names` joined by ": " as QuPath
    writes it since version 0.6. A sub-class that is not declared ("Tumor: Positive") counts as
    the nearest of its parents that is ("Tumor"). "Ignore*" is `ignore`; other classes with an
    asterisk ("Region*"), which QuPath ignores too, are left out unless declared. Regions without
    a class are left out where any region has one; where none has and a single class is declared,
    they are of that class. Points, lines and empty geometries are left out.

    Args:
        file: a FeatureCollection, a list of features, or one feature.
        labels: class name to label, with `background`, and `ignore` where it is declared.

    Raises:
        InputError: it is no GeoJSON, a class is not declared, or no region has a class although
            several are declared.
        EnvironmentMismatchError: shapely is not installed.
    """
    shapes: list[tuple[Polygon, str | None]] = []
    flat = 0
    try:
        for feature in _features(load_json(file.read_text(encoding="utf-8-sig"))):
            polygon = _polygon(feature.get("geometry"))
            if polygon is None:
                flat += 1
            else:
                shapes.append((polygon, _class_name(feature)))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error})") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{file} is not a GeoJSON file of polygons ({error!r})") from error
    except Exception as error:
        if type(error).__module__.startswith("shapely"):
            raise InputError(f"{file} holds a geometry that is damaged ({error})") from error
        raise
    counted: dict[str | None, int | None] = {}
    for name in {name for _, name in shapes}:
        counted[name] = None if name is None else _label(name, labels, file)
    if shapes and set(counted) == {None}:
        foreground = [label for name, label in labels.items() if name not in _RESERVED]
        if len(foreground) > 1:
            raise InputError(
                f"{file} holds {len(shapes)} region(s), none of which has a class; declared are "
                f"{', '.join(labels)}. Set their classes in QuPath and export them again"
            )
        counted[None] = foreground[0]
    polygons = [
        (polygon, label) for polygon, name in shapes if (label := counted[name]) is not None
    ]
    return Regions(polygons, tuple(_notes(Counter(n for _, n in shapes), counted, labels, flat)))


def _features(content: JsonObject | list[JsonObject]) -> list[JsonObject]:
    if isinstance(content, list):
        return content
    if content.get("type") == "Feature":
        return [content]
    features: list[JsonObject] = content["features"]
    return features


def _class_name(feature: JsonMapping) -> str | None:
    """The class as QuPath shows it; None for a region without."""
    own = (feature.get("properties") or {}).get("classification")
    if isinstance(own, Mapping):
        own = own.get("names") or own.get("name")
    if isinstance(own, list):
        own = ": ".join(map(str, own))
    return str(own).strip() or None if own is not None else None


def _label(name: str, labels: Mapping[str, int], file: Path) -> int | None:
    """The label of a class; None for those that QuPath ignores.

    Raises:
        InputError: it is not declared, nor is a parent.
    """
    by_parts = {tuple(_parts(declared)): label for declared, label in labels.items()}
    parts = _parts(name)
    for end in range(len(parts), 0, -1):
        if tuple(parts[:end]) in by_parts:
            return by_parts[tuple(parts[:end])]
    if name.casefold().rstrip("*") in labels and name.casefold().rstrip("*") in _RESERVED:
        return labels[name.casefold().rstrip("*")]
    if name.casefold() == "ignore*":
        raise InputError(
            f"{file} holds a region of the class {name!r}; declare a value for what is not "
            f"annotated with --ignore VALUE, or remove the region"
        )
    if name.endswith("*"):
        return None
    raise InputError(
        f"{file} holds a polygon of the class {name!r}; declared are {', '.join(labels)}. "
        f"Declare it with --class NAME=VALUE"
    )


def _parts(name: str) -> list[str]:
    return [part.strip() for part in name.split(":")]


def _polygon(geometry: JsonMapping | None) -> "Geometry":
    """What a geometry covers, valid, as a shapely (multi-)polygon; None if that is nothing."""
    shapely = import_optional("shapely", "slides")
    if geometry is None:
        return None
    shape = shapely.geometry.shape(geometry)
    if geometry.get("isEllipse"):  # QuPath defines it by the outline's bounding box
        left, top, right, bottom = shape.bounds
        angles = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
        middle, half = ((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)
        points = np.stack([np.cos(angles) * half[0] / 2, np.sin(angles) * half[1] / 2], 1)
        shape = shapely.Polygon(points + middle)
    if not shape.is_valid:  # an outline that crosses itself may have an area of 0
        shape = shapely.make_valid(shape)
    parts = list(_polygons_of(shape))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.unary_union(parts)


def _polygons_of(shape: "Geometry") -> Iterator["Polygon"]:
    if hasattr(shape, "geoms"):
        for part in shape.geoms:
            yield from _polygons_of(part)
    elif shape.area > 0:
        yield shape


def _notes(
    counts: Mapping[str | None, int],
    counted: Mapping[str | None, int | None],
    labels: Mapping[str, int],
    flat: int,
) -> Iterator[str]:
    if flat:
        yield f"{flat} point(s), line(s) or empty region(s) left out"
    names = {label: name for name, label in labels.items()}
    for name, count in counts.items():
        label = counted[name]
        shown = "without a class" if name is None else f"of the class {name!r}"
        if label is None:
            yield f"{count} region(s) {shown} left out"
        elif name is None or _parts(name) != _parts(names[label]):
            yield f"{count} region(s) {shown} count as {names[label]!r}"
