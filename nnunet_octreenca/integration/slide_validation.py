"""Segment and score whole slides after training; summary.json in nnU-Net's format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import save_summary_json
from numpy.typing import NDArray

from nnunet_octreenca.files import JsonObject, atomic_write
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.images.source import NO_INFO
from nnunet_octreenca.inference.ensemble import Ensemble
from nnunet_octreenca.inference.memory_plan import memory_limit, plan_memory
from nnunet_octreenca.inference.passes import Member
from nnunet_octreenca.inference.whole_image import mirrorings
from nnunet_octreenca.libraries import import_optional
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.preprocessing.slide_windows import SlideCase

_BAND = 1024  # rows read or compared at a time
_TILE = 256


class CaseScore(TypedDict):
    """A case of nnU-Net's summary.json."""

    reference_file: str
    prediction_file: str
    metrics: dict[int, dict[str, float]]


def validate_slides(
    network: OctreeNCA,
    cases: Sequence[SlideCase],
    folder: Path,
    *,
    labels: Sequence[int],
    ignore_label: int | None,
    mirror_axes: Sequence[int] | None,
    context: Sequence[int],
    seed: int,
    device: torch.device | str,
    log: Callable[..., object],
) -> JsonObject:
    """Segment slides, write NAME.tif for each and summary.json, and return the summary.

    Args:
        network: on `device`, in evaluation mode.
        cases: the slides.
        folder: to write to.
        labels: to score.
        ignore_label: of pixels that do not count.
        mirror_axes: averaged over, if any.
        context: cells per axis that a smaller slide is surrounded by zeros up to.
        seed, device: of the pass.
        log: called with what to tell.

    Returns:
        nnU-Net's summary.

    Raises:
        OutOfMemoryError: a slide does not fit even in the smallest bands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: list[CaseScore] = []
    for case in cases:
        log(f"predicting {case.name}, {case.shape[0]} x {case.shape[1]}")
        predicted = _segmented(network, case, mirror_axes, context, seed, device)
        target = folder / f"{case.name}.tif"
        with atomic_write(target) as temporary:
            import_optional("tifffile", "slides").imwrite(
                temporary, predicted, tile=(_TILE, _TILE), compression="zlib"
            )
        results.append(
            {
                "reference_file": str(case.label),
                "prediction_file": str(target),
                "metrics": score(predicted, case, labels, ignore_label),
            }
        )
    summary = summarise(results, labels)
    save_summary_json(summary, str(folder / "summary.json"))
    return summary


def _segmented(
    network: OctreeNCA,
    case: SlideCase,
    mirror_axes: Sequence[int] | None,
    context: Sequence[int],
    seed: int,
    device: torch.device | str,
) -> NDArray[np.uint8]:
    """Segment a whole slide by streaming: labels (rows, columns)."""
    image = WholeSlide(case, context)
    passes = len(mirrorings(mirror_axes))
    plan = plan_memory(
        network, image.shape, memory_limit(device=device), passes=passes,
        beside=int(np.prod(case.shape)),
    )  # fmt: skip
    predicted = np.empty(image.shape, np.uint8)
    ensemble = Ensemble([Member(network, seed)], mirror_axes=mirror_axes, band_rows=plan.band_rows)
    try:
        for first, labels in ensemble.segment(image):
            predicted[first : first + len(labels)] = labels
    finally:
        image.close()
    return predicted[image.inside]


class WholeSlide:
    """A slide at its working resolution as the network sees it, 0 to 1, an `ImageSource`.

    Args:
        case: the slide.
        context: cells per axis that a smaller slide is surrounded by zeros up to.
    """

    channels: int = 3
    dtype: np.dtype = np.dtype(np.float32)
    spacing: tuple[float, ...] = (1.0, 1.0)
    info = NO_INFO

    def __init__(self, case: SlideCase, context: Sequence[int]) -> None:
        self._case = case
        self._slide = SlideRegions(case.image)
        self.shape = tuple(max(pair) for pair in zip(case.shape, context, strict=True))
        starts = [(a - own) // 2 for a, own in zip(self.shape, case.shape, strict=True)]
        self.inside = tuple(slice(at, at + n) for at, n in zip(starts, case.shape, strict=True))

    def read(self, first: int, end: int) -> NDArray[np.float32]:
        """Rows `first` to `end - 1`, (3, rows, columns)."""
        band = np.zeros((3, end - first, self.shape[1]), np.float32)
        rows, columns = self.inside
        begin, stop = max(first, rows.start), min(end, rows.stop)
        if begin < stop:
            height, width = stop - begin, self._case.shape[1]
            pixels = self._slide.scaled(self._case.downsample, begin - rows.start, 0, height, width)
            inner = band[:, begin - first : stop - first, columns]
            inner[:] = np.moveaxis(pixels, -1, 0)
            inner /= 255
        return band

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


def score(
    predicted: NDArray[np.uint8],
    case: SlideCase,
    labels: Sequence[int],
    ignore_label: int | None,
) -> dict[int, dict[str, float]]:
    """Compute nnU-Net's metrics of a slide for every label, band by band."""
    most = 256
    counts = np.zeros((most, most), np.int64)  # reference by prediction
    reference = SlideRegions(case.label, stored=True)
    for first in range(0, case.shape[0], _BAND):
        rows = min(_BAND, case.shape[0] - first)
        truth = reference.region(0, first, 0, rows, case.shape[1])[..., 0].astype(np.int64)
        pairs = truth * most + predicted[first : first + rows]
        counts += np.bincount(pairs.ravel(), minlength=most * most).reshape(most, most)
    reference.close()
    if ignore_label is not None:
        counts[ignore_label] = 0
    metrics = {}
    for label in labels:
        tp = int(counts[label, label])
        fp, fn = int(counts[:, label].sum()) - tp, int(counts[label].sum()) - tp
        there = tp + fp + fn > 0
        metrics[label] = {
            "Dice": 2 * tp / (2 * tp + fp + fn) if there else np.nan,
            "IoU": tp / (tp + fp + fn) if there else np.nan,
            "FP": fp,
            "TP": tp,
            "FN": fn,
            "TN": int(counts.sum()) - tp - fp - fn,
            "n_pred": fp + tp,
            "n_ref": fn + tp,
        }
    return metrics


def summarise(results: Sequence[CaseScore], labels: Sequence[int]) -> JsonObject:
    """Means over cases and labels, as in nnU-Net's `compute_metrics_on_folder`."""

    def mean(values: list[float]) -> float:
        there = [value for value in values if not np.isnan(value)]
        return float(np.mean(there)) if there else float("nan")

    names = list(results[0]["metrics"][labels[0]])
    means = {
        label: {name: mean([one["metrics"][label][name] for one in results]) for name in names}
        for label in labels
    }
    foreground = {name: float(np.mean([means[label][name] for label in labels])) for name in names}
    return {"metric_per_case": list(results), "mean": means, "foreground_mean": foreground}
