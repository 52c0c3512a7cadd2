"""What `calibrate` measures of a validation case, and how it becomes a model's calibration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.calibration_record import SCORES, Calibration
from nnunet_octreenca.comparison.calibration import (
    Ranking,
    Voxels,
    fit_temperatures,
    logits_of,
    rank_scores,
)
from nnunet_octreenca.comparison.calibration_report import MeasuredCase
from nnunet_octreenca.comparison.label_maps import read_label_map, shape_text
from nnunet_octreenca.comparison.metrics import dice
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import read_json
from nnunet_octreenca.images.open_image import open_channels
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.integration.validation_cases import ValidationCase
from nnunet_octreenca.planning.dataset_description import DatasetDescription
from nnunet_octreenca.prediction.doubt import Doubt
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.segmentation import Segmentation

_MOST_VOXELS = 3_000_000  # of all cases, 12 bytes each and class while temperatures are fitted
_MOST_OF_CASE = 50_000


@dataclass
class Measurements:
    """Validation cases as they are measured.

    Attributes:
        described: the model's dataset.json.
        expected: how many cases there will be.
        cases: measured.
        empty: names of cases without any class in truth and result, which have no Dice.
    """

    described: DatasetDescription
    expected: int
    cases: list[MeasuredCase] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    _logits: list[NDArray[np.float32]] = field(default_factory=list)
    _truth: list[NDArray[np.integer] | NDArray[np.bool_]] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, expected: int) -> "Measurements":
        """For the cases of a model."""
        path = model.folder / "dataset.json"
        content = read_json(path, "give the folder that training made")
        return cls(DatasetDescription.from_json(content, path), expected)

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Class or region to its labels, in the order of the heads; without the background."""
        found = {
            name: values
            for name, values in self.described.labels.items()
            if name != "ignore" and values != (0,)
        }
        if self.described.has_regions:
            return found
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def measure(self, model: Model, case: ValidationCase, options: Options) -> None:
        """Segment a case with `options.quality`, and compare it with its truth.

        Raises:
            InputError: the truth has another shape than the image.
            OctreeNCAError: the case cannot be segmented.
        """
        source = open_channels(case.files, channels=model.channels)
        try:
            doubt = Segmentation(source, model, options).run_with_doubt()
        finally:
            source.close()
        truth = read_label_map(case.truth).labels
        if truth.shape != doubt.labels.shape:
            raise InputError(
                f"{case.truth} has {shape_text(truth.shape)} pixels and its image "
                f"{shape_text(doubt.labels.shape)}; the data set was changed since training"
            )
        counted = np.ones(truth.shape, bool)
        if "ignore" in self.described.labels:
            counted &= truth != self.described.labels["ignore"][0]
        scores = [
            dice(np.isin(truth, values) & counted, np.isin(doubt.labels, values) & counted)
            for values in self.classes.values()
        ]
        known = [score for score in scores if score == score]
        if known:
            (fold,) = model.folds
            self.cases.append(
                MeasuredCase(case.name, fold, float(np.mean(known)), doubt.nqm, doubt.resilience)
            )
        else:
            self.empty.append(case.name)
        self._sample(doubt, truth, counted, len(self.cases) + len(self.empty))

    def _sample(
        self, doubt: Doubt, truth: NDArray[np.integer], counted: NDArray[np.bool_], seed: int
    ) -> None:
        """Keep logits and truth of some voxels that the network saw."""
        assert doubt.probabilities is not None
        probable = doubt.probabilities.reshape(len(doubt.probabilities), -1)
        plain = not self.described.has_regions
        # What was cropped away, and voxels as sure as can be, tell nothing.
        seen = (probable[0] < 1) if plain else (probable > 0).any(0)
        places = np.flatnonzero(seen & counted.reshape(-1))
        count = min(_MOST_OF_CASE, _MOST_VOXELS // self.expected, len(places))
        chosen = np.random.default_rng(seed).choice(places, count, replace=False)
        labels = truth.reshape(-1)[chosen]
        self._logits.append(logits_of(np.ascontiguousarray(probable[:, chosen].T), plain))
        if plain:
            self._truth.append(labels.astype(np.int64))
        else:
            each = [np.isin(labels, values) for values in self.classes.values()]
            self._truth.append(np.stack(each, 1))

    def voxels(self) -> Voxels:
        """Of all cases."""
        return Voxels(np.concatenate(self._logits), np.concatenate(self._truth))

    def rank(self, limit: float) -> Ranking:
        """The scores, the best first.

        Raises:
            InputError: too few cases.
        """
        scores = {name: [getattr(case, name) for case in self.cases] for name in SCORES}
        return rank_scores(scores, [case.dice for case in self.cases], limit)


def calibration_of(
    measurements: Measurements,
    ranking: Ranking,
    *,
    files: dict[str, str],
    folds: Sequence[str],
    options: Options,
    mirror: bool,
) -> tuple[Calibration, Voxels]:
    """What is written into the model's folder, and the voxels that temperatures were fitted to."""
    voxels, best = measurements.voxels(), ranking.scores[0]
    calibration = Calibration(
        files=files,
        folds=list(folds),
        cases=len(measurements.cases),
        seeds=options.quality or 1,
        mirror=mirror,
        limit=ranking.limit,
        bad=ranking.bad,
        score=best.name,
        threshold=best.threshold,
        found=best.found,
        named=best.named,
        temperatures=fit_temperatures(voxels),
        ended=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return calibration, voxels


def require_new(path: Path, overwrite: bool) -> None:
    """Refuse to replace a calibration.

    Raises:
        InputError: there is one, and `overwrite` is off.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; --overwrite replaces it")
