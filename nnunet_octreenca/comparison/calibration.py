"""Which score of doubt predicts bad results, and how probable classes really are.

Risk is 1 - Dice. Selective prediction keeps the cases that the score is surest of: the risk of what
is kept, against how much is kept, is the risk-coverage curve, and its mean the AURC (Geifman and
El-Yaniv 2017). Temperatures divide logits (Guo et al. 2017), one for each class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_octreenca.calibration_record import badness
from nnunet_octreenca.errors import InputError

FEWEST = 5
"""Cases that a calibration needs."""

_TEMPERATURES = 0.05, 20.0
_BINS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreResult:
    """How well a score orders cases by their risk.

    Attributes:
        name: of the score.
        values: of the cases.
        curve: risk of the n + 1 surest cases, for all n.
        aurc: mean of the curve.
        threshold: cases at least as doubtful are named; None without bad cases or good ones.
        found, named: bad cases among those named, each case judged by a threshold that was fitted
            to all others.
    """

    name: str
    values: Floats
    curve: Floats
    aurc: float
    threshold: float | None
    found: int
    named: int


@dataclass(frozen=True)
class Ranking:
    """All scores of the same cases.

    Attributes:
        dice: of the cases.
        limit: below which a case is bad.
        scores: the best first.
        best, chance: AURC of the order by Dice itself, and of no order.
    """

    dice: Floats
    limit: float
    scores: tuple[ScoreResult, ...]
    best: float
    chance: float

    @property
    def bad(self) -> int:
        """How many cases are below the limit."""
        return int((self.dice < self.limit).sum())


def risk_coverage(doubt: Floats, risk: Floats) -> Floats:
    """Mean risk of the surest 1, 2, ... cases; of equally sure ones their mean risk counts.

    >>> risk_coverage(np.array([3.0, 1, 2]), np.array([0.6, 0.0, 0.3])).round(3).tolist()
    [0.0, 0.15, 0.3]
    """
    order = np.argsort(doubt, kind="stable")
    ordered, risks = doubt[order], risk[order].astype(float)
    for value in np.unique(ordered):
        equal = ordered == value
        risks[equal] = risks[equal].mean()
    curve: Floats = risks.cumsum() / np.arange(1, len(risks) + 1)
    return curve


def best_threshold(doubt: Floats, bad: NDArray[np.bool_]) -> float | None:
    """The doubt from which on cases are named, for the best F1; the fewest named of equal ones.

    >>> best_threshold(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True]))
    3.0
    """
    if not bad.any() or bad.all():
        return None
    found, best = None, -1.0
    for value in np.unique(doubt)[::-1]:
        named = doubt >= value
        f1 = 2 * (named & bad).sum() / (named.sum() + bad.sum())
        if f1 > best:
            found, best = float(value), float(f1)
    return found


def rank_scores(
    scores: Mapping[str, Sequence[float | None]], dice: Sequence[float], limit: float
) -> Ranking:
    """Order the scores by how well they order the cases.

    Args:
        scores: name (`calibration_record.SCORES`) to a value of each case; a score that lacks one
            is left out.
        dice: of the cases, 0 to 1.
        limit: below which a case is bad.

    Raises:
        InputError: fewer cases than `FEWEST`, or no score has a value of every case.
    """
    if len(dice) < FEWEST:
        raise InputError(
            f"{len(dice)} validation cases are too few to calibrate with; give more folds with -f "
            f"(at least {FEWEST} cases)"
        )
    known = {name: each for name, each in scores.items() if None not in each}
    if not known:
        raise InputError(f"no score of {', '.join(scores)} has a value of every case")
    quality = np.array(dice, float)
    results = [_result(name, np.array(each, float), quality, limit) for name, each in known.items()]
    return Ranking(
        dice=quality,
        limit=limit,
        scores=tuple(sorted(results, key=lambda result: result.aurc)),
        best=float(risk_coverage(1 - quality, 1 - quality).mean()),
        chance=float((1 - quality).mean()),
    )


def _result(name: str, values: Floats, dice: Floats, limit: float) -> ScoreResult:
    doubt = np.array([badness(name, value) for value in values])
    bad = dice < limit
    named = np.zeros(len(dice), bool)
    for case in range(len(dice)):
        others = np.arange(len(dice)) != case
        threshold = best_threshold(doubt[others], bad[others])
        named[case] = threshold is not None and doubt[case] >= threshold
    curve = risk_coverage(doubt, 1 - dice)
    threshold = best_threshold(doubt, bad)
    return ScoreResult(
        name=name,
        values=values,
        curve=curve,
        aurc=float(curve.mean()),
        threshold=None if threshold is None else badness(name, threshold),
        found=int((named & bad).sum()),
        named=int(named.sum()),
    )


class Voxels(NamedTuple):
    """Samples of voxels with their truth.

    Attributes:
        logits: (n, heads) float32; 0 for the background of plain labels.
        truth: of plain labels (n,), the head; of regions (n, heads), whether each is there.
    """

    logits: NDArray[np.float32]
    truth: NDArray[Any]

    @property
    def plain(self) -> bool:
        """Labels exclude one another."""
        return self.truth.ndim == 1


def fit_temperatures(voxels: Voxels) -> list[float]:
    """Of every head, what its logit is divided by for the highest likelihood of the truth.

    The background of plain labels has no logit, and 1. So has a class without a voxel of its own.

    Returns:
        Within 0.05 and 20.
    """
    logits = torch.from_numpy(voxels.logits).double()
    truth = torch.from_numpy(np.ascontiguousarray(voxels.truth))
    heads = logits.shape[1]
    if voxels.plain:
        free = truth.long().bincount(minlength=heads) > 0
        free[0] = False
    else:
        free = truth.bool().any(0)
    logs = torch.zeros(heads, dtype=torch.float64, requires_grad=True)
    low, high = (float(np.log(value)) for value in _TEMPERATURES)

    def warmed() -> torch.Tensor:
        return logits / torch.where(free, logs, 0.0).clamp(low, high).exp()

    def loss() -> torch.Tensor:
        if voxels.plain:
            return torch.nn.functional.cross_entropy(warmed(), truth.long())
        return torch.nn.functional.binary_cross_entropy_with_logits(warmed(), truth.double())

    optimizer: Any = torch.optim.LBFGS([logs], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value: Any = loss()
        value.backward()
        result: torch.Tensor = value
        return result

    if bool(free.any()):
        optimizer.step(closure)
    found = torch.where(free, logs.detach(), 0.0).clamp(low, high).exp()
    return [round(float(value), 4) for value in found]


@dataclass(frozen=True)
class Reliability:
    """How often classes are there, against how probable they were said to be.

    Attributes:
        edges: of the bins.
        said: mean probability in each bin; nan of empty ones.
        there: share of voxels that were of the class.
        counts: voxels and classes in each bin.
    """

    edges: Floats
    said: Floats
    there: Floats
    counts: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of both, weighted by the counts."""
        apart = np.abs(np.nan_to_num(self.said - self.there))
        return float((apart * self.counts).sum() / max(self.counts.sum(), 1))


def reliability(voxels: Voxels, temperatures: Sequence[float]) -> Reliability:
    """Of all foreground classes or regions together."""
    warm = torch.from_numpy(voxels.logits / np.asarray(temperatures, np.float32))
    if voxels.plain:
        said = warm.softmax(1).numpy()[:, 1:]
        there = voxels.truth[:, None] == np.arange(1, warm.shape[1])
    else:
        said, there = warm.sigmoid().numpy(), voxels.truth.astype(bool)
    edges = np.linspace(0, 1, _BINS + 1)
    bins = np.clip((said * _BINS).astype(int), 0, _BINS - 1).ravel()
    counts = np.bincount(bins, minlength=_BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, said.ravel().astype(float), _BINS) / counts
        share = np.bincount(bins, there.ravel().astype(float), _BINS) / counts
    return Reliability(edges, mean, share, counts)


def logits_of(probabilities: NDArray[np.float32], plain: bool) -> NDArray[np.float32]:
    """The logits (n, heads) that gave such probabilities; the background's is 0.

    >>> logits_of(np.array([[0.5, 0.5]], np.float32), plain=True).tolist()
    [[0.0, 0.0]]
    """
    tiny = np.float32(1e-30)
    safe = np.clip(probabilities, tiny, 1)
    if plain:
        return np.log(safe) - np.log(safe[:, :1])
    rest = np.clip(1 - probabilities.astype(np.float64), 1e-8, 1)
    found: NDArray[np.float32] = (np.log(safe) - np.log(rest)).astype(np.float32)
    return found
