"""All metrics of all methods, classes and cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.comparison.inputs import Inputs, Track
from nnunet_octreenca.comparison.label_maps import read_label_map
from nnunet_octreenca.comparison.metrics import METRICS, measure
from nnunet_octreenca.errors import InputError

Numbers: TypeAlias = NDArray[np.float64]

DEFAULT_METRICS = ("dice", "nsd", "hd95", "volume_difference")


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        methods, classes, cases: names.
        values: metric to (methods, classes, cases); NaN where both masks are empty.
        tolerance: of NSD, in the unit of lengths.
    """

    methods: tuple[str, ...]
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    values: Mapping[str, Numbers]
    tolerance: float

    @property
    def metrics(self) -> tuple[str, ...]:
        """Keys of `METRICS`."""
        return tuple(self.values)

    def of_cases(self, metric: str) -> Numbers:
        """(methods, cases): mean over the classes that have a value."""
        return nan_mean(self.values[metric], axis=1)


def score(
    inputs: Inputs,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    tolerance: float = 1.0,
    track: Track = lambda items, _: items,
) -> Scores:
    """Measure every method in every case.

    Args:
        inputs: as `find_inputs` checked them.
        metrics: keys of `METRICS`; frame_dice is of videos only.
        tolerance: of NSD, in mm of volumes and pixels else.
        track: shows progress.

    Raises:
        InputError: a metric is unknown or not for these data, or the tolerance is below 0.
    """
    names = checked_metrics(metrics, inputs.video)
    checked_tolerance(tolerance)
    methods, classes = tuple(inputs.predictions), tuple(inputs.classes)
    shape = (len(methods), len(classes), len(inputs.cases))
    values = {name: np.full(shape, np.nan) for name in names}
    for case in track(range(len(inputs.cases)), "measuring"):
        truth = read_label_map(inputs.truth[case], video=inputs.video)
        masks = {name: inputs.mask(truth.labels, name, truth.labels) for name in classes}
        for method, files in enumerate(inputs.predictions.values()):
            found = read_label_map(files[case], video=inputs.video)
            for place, name in enumerate(classes):
                measured = measure(
                    masks[name],
                    inputs.mask(found.labels, name, truth.labels),
                    truth.spacing,
                    names=names,
                    tolerance=tolerance,
                    # mm3 become ml; mm2 stay.
                    millilitres=inputs.units["volume"] == "ml",
                )
                for metric, value in measured.items():
                    values[metric][method, place, case] = value
    return Scores(methods, classes, inputs.cases, values, tolerance)


def checked_tolerance(tolerance: float) -> None:
    """Refuse a tolerance of NSD that is none.

    Raises:
        InputError: below 0, or not finite.
    """
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"--tolerance is {tolerance:g}, but must be 0 or more")


def checked_metrics(names: Sequence[str], video: bool) -> tuple[str, ...]:
    """The metrics to compute, each once, with frame_dice of videos.

    Raises:
        InputError: one is unknown, none is left, or frame_dice is asked for without a video.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(
            f"--metrics names {unknown[0]!r}, which is none of {', '.join(METRICS)}; choose of them"
        )
    if "frame_dice" in names and not video:
        raise InputError("the metric frame_dice needs --video: without it cases have no frames")
    wanted = tuple(dict.fromkeys([*names, "frame_dice"] if video else names))
    if not wanted:
        raise InputError(f"--metrics names none; choose of {', '.join(METRICS)}")
    return wanted


def nan_mean(values: Numbers, axis: int) -> Numbers:
    """Mean of what is not NaN along an axis; NaN where all is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Numbers = np.where(known, values, 0).sum(axis) / known.sum(axis)
    return means
