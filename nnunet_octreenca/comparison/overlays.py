"""Segmentations over the image: what is right, too much, and missed."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_octreenca.arrays import Labels, Pixels
from nnunet_octreenca.comparison.inputs import Inputs
from nnunet_octreenca.comparison.label_maps import LabelMap, read_label_map
from nnunet_octreenca.comparison.surfaces import bounding_box
from nnunet_octreenca.images.open_image import open_image

RIGHT, TOO_MUCH, MISSED, WRONG = 1, 2, 3, 4
OUTCOMES: Mapping[int, tuple[str, tuple[int, int, int]]] = {
    RIGHT: ("right (true positive)", (0, 168, 107)),
    TOO_MUCH: ("too much (false positive)", (226, 42, 38)),
    MISSED: ("missed (false negative)", (38, 110, 240)),
    WRONG: ("another class than the truth's", (232, 170, 20)),
}
"""What a pixel can be: name and RGB colour."""

_OPACITY = 0.5
_SIDE = 300  # pixels of a panel's longer side
_MARGIN = 0.15  # of the foreground's box around it
_NARROWEST = 24  # pixels of the image


@dataclass(frozen=True)
class Panel:
    """One picture of a case."""

    title: str
    picture: str  # data URI


@dataclass(frozen=True)
class CasePictures:
    """Rows of panels: the image, the truth, and each method, in up to three planes."""

    rows: tuple[tuple[Panel, ...], ...]


@dataclass(frozen=True)
class LoadedCase:
    """A case to be shown, cut to the surroundings of its foreground.

    Attributes:
        image: (channels, *spatial), one or three channels, uint8.
        truth: labels, without what is to be ignored.
        outcomes: method to what each pixel is, 0 where nothing is.
        spacing: mm (or pixels) per axis; of a video of its planes' axes with 1 before.
        flips: per axis, whether it is shown from its end.
        corner: index of the first pixel in the whole image.
        video: the first axis is time.
    """

    image: NDArray[np.uint8]
    truth: Labels
    outcomes: Mapping[str, NDArray[np.uint8]]
    spacing: tuple[float, ...]
    flips: tuple[bool, ...]
    corner: tuple[int, ...]
    video: bool


def outcome(truth: Labels, prediction: Labels) -> NDArray[np.uint8]:
    """What each pixel is, one of `OUTCOMES`; 0 where both are background.

    >>> outcome(np.array([0, 1, 0, 1, 1]), np.array([0, 1, 1, 0, 2])).tolist()
    [0, 1, 2, 3, 4]
    """
    result = np.zeros(truth.shape, np.uint8)
    true, predicted = truth > 0, prediction > 0
    result[true & predicted] = WRONG
    result[true & (truth == prediction)] = RIGHT
    result[~true & predicted] = TOO_MUCH
    result[true & ~predicted] = MISSED
    return result


def load_case(inputs: Inputs, case: int) -> LoadedCase:
    """Read a case's image and label maps.

    Raises:
        InputError: the image is damaged.
    """
    assert inputs.images is not None
    truth = read_label_map(inputs.truth[case], video=inputs.video)
    shown = _shown(truth.labels, inputs, truth)
    found = {
        name: _shown(read_label_map(files[case], video=inputs.video).labels, inputs, truth)
        for name, files in inputs.predictions.items()
    }
    box = _surroundings([shown, *found.values()])
    if inputs.video:
        box = (slice(0, shown.shape[0]), *box[1:])
    return LoadedCase(
        image=_picture(inputs.images[case], box),
        truth=shown[box],
        outcomes={name: outcome(shown[box], labels[box]) for name, labels in found.items()},
        spacing=(1.0,) * (shown.ndim - len(truth.spacing)) + truth.spacing,
        flips=_flips(truth),
        corner=tuple(side.start for side in box),
        video=inputs.video,
    )


def _shown(labels: Labels, inputs: Inputs, truth: LabelMap) -> Labels:
    if inputs.ignored is None:
        return labels
    return np.where(truth.labels == inputs.ignored, 0, labels)


def _surroundings(maps: Sequence[Labels]) -> tuple[slice, ...]:
    """The box of all foreground with a margin, within the image."""
    anywhere = np.zeros(maps[0].shape, bool)
    for labels in maps:
        anywhere |= labels > 0
    sides = []
    length: int
    for side, length in zip(bounding_box(anywhere), anywhere.shape, strict=True):
        first, end = (side.start, side.stop) if side.stop else (0, length)
        missing = max(_NARROWEST - (end - first), 0)
        margin = max(round(_MARGIN * (end - first)), -(-missing // 2))
        sides.append(slice(max(first - margin, 0), min(end + margin, length)))
    return tuple(sides)


def _picture(path: Path, box: Sequence[slice]) -> NDArray[np.uint8]:
    """The image in a box, (1 or 3 channels, *box), brightened to its own range."""
    source = open_image(path)
    try:
        rows = source.read(box[0].start, box[0].stop)
        window = (slice(None), slice(None), *box[1:])
        band = rows[window]
        colours = source.channels == 3 and band.dtype == np.uint8
        pixels: Pixels = np.array(band if colours else band[:1])
    finally:
        source.close()
    if colours:
        return pixels.astype(np.uint8)
    values = pixels.astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = (values - low) / max(float(high - low), 1e-6)
    bright: NDArray[np.uint8] = (255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return bright


def _flips(found: LabelMap) -> tuple[bool, ...]:
    """So that a volume shows the patient's left at the right, and the head and the face up."""
    axes = found.labels.ndim
    if found.geometry is None or axes < 3:
        return (False,) * axes
    along = np.diag(np.reshape(found.geometry.direction, (axes, axes)))
    return bool(along[2] > 0), bool(along[1] < 0), bool(along[0] < 0)


def draw_case(loaded: LoadedCase) -> CasePictures:
    """Panels of the image, the truth and each method."""
    rows = []
    for axis, place in _planes(loaded):
        image = np.moveaxis(_plane(loaded.image, axis, place, loaded.flips, 1), 0, -1)
        truth = _plane(loaded.truth, axis, place, loaded.flips, 0) > 0
        image = np.broadcast_to(image, (*truth.shape, 3))
        steps = [s for a, s in enumerate(loaded.spacing) if axis is None or a != axis]
        name = _place_text(axis, place, loaded)
        panels = [
            Panel(f"image{name}", _png(image, steps)),
            Panel("truth", _png(_blend(image, truth * np.uint8(RIGHT)), steps)),
        ]
        for method, outcomes in loaded.outcomes.items():
            here = _plane(outcomes, axis, place, loaded.flips, 0)
            panels.append(Panel(method, _png(_blend(image, here), steps)))
        rows.append(tuple(panels))
    return CasePictures(tuple(rows))


def _planes(loaded: LoadedCase) -> list[tuple[int | None, int]]:
    """(axis, index) of the planes that are shown; of a 2-D picture itself."""
    truth = loaded.truth > 0
    if truth.ndim == 2:
        return [(None, 0)]
    if not truth.any():
        truth = np.any([found > 0 for found in loaded.outcomes.values()], axis=0)
    if loaded.video:
        length = truth.shape[0]
        return [(0, place) for place in sorted({length // 6, length // 2, length * 5 // 6})]
    # Where most of the truth is.
    counts = (truth.sum(tuple(a for a in range(3) if a != axis)) for axis in range(3))
    return [(axis, int(np.argmax(count))) for axis, count in enumerate(counts)]


def _place_text(axis: int | None, place: int, loaded: LoadedCase) -> str:
    if axis is None:
        return ""
    name = "frame" if loaded.video else "zyx"[axis]
    return f", {name} {place + loaded.corner[axis]}"


def _plane(
    values: Pixels, axis: int | None, place: int, flips: Sequence[bool], channels: int
) -> Pixels:
    """A plane as it is shown; `channels` axes come before the spatial ones."""
    left = list(flips)
    if axis is not None:
        values = values.take(place, axis + channels)
        left.pop(axis)
    steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in left)
    shown: Pixels = values[(slice(None),) * channels + steps]
    return shown


def _blend(image: NDArray[np.uint8], outcomes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    result = image.astype(np.float32)
    for number, (_, colour) in OUTCOMES.items():
        here = outcomes == number
        result[here] = (1 - _OPACITY) * result[here] + _OPACITY * np.array(colour, np.float32)
    blended: NDArray[np.uint8] = result.round().astype(np.uint8)
    return blended


def _png(pixels: NDArray[np.uint8], steps: Sequence[float]) -> str:
    """A data URI of a picture in true proportions."""
    height, width = (n * step for n, step in zip(pixels.shape[:2], steps, strict=True))
    scale = _SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    smaller = size[0] < pixels.shape[1] or size[1] < pixels.shape[0]
    way = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).resize(size, way).save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
