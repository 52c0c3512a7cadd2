"""How sure a model is of a case: samples compared voxel by voxel, in the image's own grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.inference.resilience import Overlap
from nnunet_octreenca.preprocessing.case import PreprocessedCase
from nnunet_octreenca.preprocessing.restore import PartLogits, image_array

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Doubt:
    """Labels of a case, and how much its samples disagree.

    Attributes:
        labels: of the mean logits of all seeds, (y, x) or (z, y, x); where cells always fire, of
            the logits without chance.
        deviation: standard deviation of the probabilities over the samples, of the class in which
            it is largest, 0 to 0.5, in the labels' grid.
        probabilities: (heads, *labels' shape) of the mean logits, each divided by its
            temperature; None where nobody asked.
        nqm: sum of the standard deviation of the foreground's probability over the sum of its
            mean (M3D-NCA, Kalkhof and Mukhopadhyay 2023).
        nqm_of_heads: the same of each head by itself; of the background nan.
        overlap: of the labels before and after the state was disturbed; None where that was not
            done.
        note: why it was not; empty if it was.
    """

    labels: Pixels
    deviation: Values
    probabilities: Values | None
    nqm: float
    nqm_of_heads: tuple[float, ...]
    overlap: Overlap | None = None
    note: str = ""

    @property
    def resilience(self) -> float | None:
        """As of `Overlap`."""
        return None if self.overlap is None else self.overlap.resilience


def probabilities_of(logits: Values, plain: bool) -> Values:
    """Softmax over the heads, (heads, ...), or of regions each head's sigmoid."""
    values = torch.from_numpy(logits)
    result: Values = (values.softmax(0) if plain else values.sigmoid()).numpy()
    return result


class DoubtRestorer:
    """Collects a case's labels and the disagreement of its samples, part by part, band by band.

    Standard deviations are taken of probabilities in the image's grid, block by block: what is
    held for the whole image is the labels and 4 bytes a cell, or those and the probabilities.

    Args:
        prepared: the case.
        folds, seeds: how many of each; members come fold by fold.
        apart: whether a fold's first member gives the labels, and the others the samples; else
            the labels are those of the mean of all.
        copies: mirrored copies of each member.
        plain: labels are plain, not regions.
        temperatures: of the heads, if probabilities are wanted; None if not.
    """

    def __init__(
        self,
        prepared: PreprocessedCase,
        *,
        folds: int,
        seeds: int,
        copies: int,
        plain: bool,
        apart: bool = False,
        temperatures: Sequence[float] | None = None,
    ) -> None:
        self._prepared, self._plain = prepared, plain
        self._folds, self._seeds, self._copies = folds, seeds, copies
        self._apart = apart
        self._labels = prepared.restorer()
        layout, dimension = prepared.layout, prepared.dimension
        heads = layout.preprocessing.num_classes
        self._deviation, self._box = image_array(layout, dimension, np.dtype(np.float32))
        self._probabilities = self._probability_box = None
        if temperatures is not None:
            self._temperatures = np.asarray(temperatures, np.float32)
            self._probabilities, self._probability_box = image_array(
                layout, dimension, np.dtype(np.float32), (heads,)
            )
            if plain:  # what was cropped away is background
                self._probabilities[0] = 1
        # Sums over the voxels: of the foreground, then of every head.
        self._sums = np.zeros((2, heads + 1))

    def part(self, number: int) -> "DoubtPart":
        """The receiver of a part's bands."""
        return DoubtPart(self, number)

    def finish(self) -> Doubt:
        """The case's doubt.

        Raises:
            ValueError: some bands of some part are still missing.
        """
        deviations, means = self._sums
        shares = deviations / np.maximum(means, np.finfo(np.float64).tiny)
        of_heads = shares[1:].tolist()
        if self._plain:
            of_heads[0] = float("nan")
        return Doubt(
            labels=self._labels.finish(),
            deviation=self._deviation,
            probabilities=self._probabilities,
            nqm=float(shares[0]),
            nqm_of_heads=tuple(of_heads),
        )

    def _rows(self, box: Pixels, number: int, lead: int) -> Pixels:
        """A part of an array of the box: itself, or a plane."""
        if self._prepared.layout.preprocessing.dimension == 3:
            return box
        plane: Pixels = np.moveaxis(box, lead, 0)[number]
        return plane

    def add(self, number: int, first: int, of_seeds: Values, mean: Values | None) -> None:
        """Take rows or planes of a part in the image's grid.

        Args:
            number: the part.
            first: row or plane within the box.
            of_seeds: logits (seeds, heads, rows, ...).
            mean: of the labels, (heads, rows, ...), if probabilities are wanted.
        """
        logits = torch.from_numpy(of_seeds)
        probable = logits.softmax(1) if self._plain else logits.sigmoid()
        spread, average = probable.std(0, correction=0), probable.mean(0)
        rows = slice(first, first + spread.shape[1])
        self._rows(self._box, number, 0)[rows] = spread.amax(0).numpy()
        if self._plain:  # the foreground is what the background is not
            foreground, there = spread[0], 1 - average[0]
        else:
            union = probable.amax(1)
            foreground, there = union.std(0, correction=0), union.mean(0)
        for place, values in enumerate(((foreground, spread), (there, average))):
            of_all, of_heads = values
            self._sums[place, 0] += float(of_all.sum(dtype=torch.float64))
            self._sums[place, 1:] += of_heads.flatten(1).sum(1, dtype=torch.float64).numpy()
        if mean is not None and self._probability_box is not None:
            warm = mean / self._temperatures.reshape(-1, *(1,) * (mean.ndim - 1))
            target = self._rows(self._probability_box, number, 1)
            target[:, rows] = probabilities_of(warm, self._plain)


class DoubtPart:
    """Receives the logits of all members for one part, bands in ascending order.

    Made by `DoubtRestorer.part`.
    """

    def __init__(self, restorer: DoubtRestorer, number: int) -> None:
        self._restorer, self._number = restorer, number
        layout = restorer._prepared.layout
        self._labels = restorer._labels.part(number)
        self._of_seeds = [PartLogits(layout) for _ in range(restorer._seeds)]
        self._mean = None if restorer._probabilities is None else PartLogits(layout)

    def add(self, values: Values) -> None:
        """Add the next band: sums over mirrored copies, (members, heads, rows, ...)."""
        folds, copies = self._restorer._folds, self._restorer._copies
        apart = int(self._restorer._apart)
        of_fold = apart + self._restorer._seeds
        deciding = values[::of_fold] if apart else values
        total = deciding[0].copy()
        for one in deciding[1:]:
            total += one
        total /= len(deciding) * copies
        self._labels.add_logits(total)
        if self._mean is not None:
            self._mean.add_logits(total)
        for number, part in enumerate(self._of_seeds):
            samples = values[apart + number :: of_fold]
            part.add_logits(samples.sum(0) / np.float32(folds * copies))
        means = [] if self._mean is None else self._mean.take()
        blocks = zip(*(part.take() for part in self._of_seeds), strict=True)
        for place, block in enumerate(blocks):
            self._restorer.add(
                self._number,
                block[0][0],
                np.stack([logits for _, logits in block]),
                means[place][1] if means else None,
            )
