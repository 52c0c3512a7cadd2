"""What is measured of a class in one case, from two masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from nnunet_octreenca.comparison.surfaces import (
    CONVENTION,
    Mask,
    bounding_box,
    hausdorff,
    surface_dice,
    surface_distances,
)

NAN = float("nan")


@dataclass(frozen=True)
class Metric:
    """How a metric is shown and read.

    Attributes:
        name: for people.
        unit: "" of a share; "{length}" stands for mm or pixels, "{volume}" for ml or pixels.
        higher_is_better: else lower is.
        digits: after the decimal point.
        says: its definition, and what it gives for empty masks.
    """

    name: str
    unit: str
    higher_is_better: bool
    digits: int
    says: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "dice": Metric(
            "Dice",
            "",
            True,
            3,
            "2 TP / (2 TP + FP + FN), as nnU-Net counts it. Both masks empty: left out. One empty: "
            "0.",
        ),
        "nsd": Metric(
            "NSD",
            "",
            True,
            3,
            "Normalised surface distance (surface Dice): share of both surfaces within the "
            f"tolerance; {CONVENTION}. Both masks empty: left out. One empty: 0.",
        ),
        "hd95": Metric(
            "HD95",
            "{length}",
            False,
            2,
            "Hausdorff distance: the larger of both directions' 95th percentiles by area, on the "
            "same surface elements. Both masks empty: left out. One empty: the diagonal of the "
            "image.",
        ),
        "volume_difference": Metric(
            "Volume difference",
            "{volume}",
            False,
            3,
            "Absolute difference of both masks' volumes (areas in 2-D). Both masks empty: 0.",
        ),
        "cldice": Metric(
            "clDice",
            "",
            True,
            3,
            "Centreline Dice of thin structures (Shit et al., 2021): the harmonic mean of the "
            "shares of either skeleton (scikit-image) within the other mask. Both masks empty: "
            "left out. One empty: 0.",
        ),
        "frame_dice": Metric(
            "Frame Dice",
            "",
            True,
            3,
            "Mean of the frames' Dice. Frames in which both masks are empty are left out.",
        ),
    }
)


def dice(truth: Mask, prediction: Mask) -> float:
    """Dice coefficient, with nnU-Net's arithmetic; NaN where both masks are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both = int(np.count_nonzero(truth & prediction))
    false = int(np.count_nonzero(prediction)) - both
    missed = int(np.count_nonzero(truth)) - both
    if not both + false + missed:
        return NAN
    return 2 * both / (2 * both + false + missed)


def frame_dice(truth: Mask, prediction: Mask) -> float:
    """Mean of the Dice of a video's frames; NaN where all masks are empty.

    Args:
        truth, prediction: (frame, y, x).
    """
    each = [dice(true, predicted) for true, predicted in zip(truth, prediction, strict=True)]
    return mean_of_known(each)


def volume_difference(truth: Mask, prediction: Mask, pixel: float) -> float:
    """Absolute difference of two volumes, in the unit of `pixel`.

    Args:
        truth, prediction: of the same shape.
        pixel: the volume of one pixel or voxel.
    """
    return abs(int(np.count_nonzero(truth)) - int(np.count_nonzero(prediction))) * pixel


def cl_dice(truth: Mask, prediction: Mask) -> float:
    """Centreline Dice: how much of either skeleton the other mask covers, 0 to 1.

    Args:
        truth, prediction: (y, x) or (z, y, x).

    Returns:
        NaN where both masks are empty, 0 where one is.
    """
    from skimage.morphology import skeletonize

    box = bounding_box(truth | prediction)
    truth, prediction = truth[box], prediction[box]
    if not truth.any() or not prediction.any():
        return NAN if not truth.any() and not prediction.any() else 0.0
    true_lines, predicted_lines = skeletonize(truth) > 0, skeletonize(prediction) > 0
    precision = _share(predicted_lines, truth)
    sensitivity = _share(true_lines, prediction)
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0


def _share(lines: Mask, mask: Mask) -> float:
    return int(np.count_nonzero(lines & mask)) / max(int(np.count_nonzero(lines)), 1)


def measure(
    truth: Mask,
    prediction: Mask,
    spacing: Sequence[float],
    *,
    names: Sequence[str],
    tolerance: float,
    millilitres: bool = True,
) -> dict[str, float]:
    """The metrics of one class in one case.

    Args:
        truth, prediction: (y, x) or (z, y, x); of a video (frame, y, x).
        spacing: mm per axis (ones of pictures, whose lengths are in pixels); of a video of (y, x).
        names: keys of `METRICS`. With frame_dice the masks are of a video: distances and clDice
            are means over its frames, as Dice is in frame_dice.
        tolerance: of NSD, in the unit of `spacing`.
        millilitres: volumes are in ml; else in the unit of `spacing`, squared or cubed.

    Returns:
        Name to value; NaN where both masks are empty.
    """
    video = "frame_dice" in names
    found: dict[str, float] = {}
    if "dice" in names:
        found["dice"] = dice(truth, prediction)
    if video:
        found["frame_dice"] = frame_dice(truth, prediction)
    if "volume_difference" in names:
        pixel = float(np.prod(spacing)) / (1000 if millilitres else 1)
        found["volume_difference"] = volume_difference(truth, prediction, pixel)
    pairs = list(zip(truth, prediction, strict=True)) if video else [(truth, prediction)]
    rows = [_shapes(true, predicted, spacing, names, tolerance) for true, predicted in pairs]
    for name in ("nsd", "hd95", "cldice"):
        if name in names:
            found[name] = mean_of_known([row[name] for row in rows])
    return {name: found[name] for name in names}


def _shapes(
    truth: Mask, prediction: Mask, spacing: Sequence[float], names: Sequence[str], tolerance: float
) -> dict[str, float]:
    """NSD, HD95 and clDice of one image, as far as they are asked for."""
    found: dict[str, float] = {}
    if "nsd" in names or "hd95" in names:
        distances = surface_distances(truth, prediction, spacing)
        far = hausdorff(distances, 95)
        found["nsd"] = surface_dice(distances, tolerance)
        found["hd95"] = diagonal(truth.shape, spacing) if far == np.inf else far
    if "cldice" in names:
        found["cldice"] = cl_dice(truth, prediction)
    return found


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Of an image, in the unit of `spacing`: no distance within it is longer.

    >>> diagonal((3, 4), (1.0, 1.0))
    5.0
    """
    return float(np.linalg.norm([n * step for n, step in zip(shape, spacing, strict=True)]))


def mean_of_known(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none.

    >>> mean_of_known([1.0, float("nan"), 0.5])
    0.75
    """
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else NAN
