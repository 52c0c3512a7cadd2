"""How sure a comparison is: paired bootstrap, signed-rank tests, and how stable a ranking is.

Cases of the same group (a patient) are not independent: what is resampled, tested and counted is
the group. Without groups each case is its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

RESAMPLES = 10_000
FEWEST = 6
"""Pairs: of fewer, no two-sided signed-rank test can reach p < 0.05 (2 / 2^5 = 0.0625)."""
_MOST_NUMBERS = 2 * 10**7  # of all weights: 160 MB
_LEVEL = 0.95
_EXACT = 200


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: over cases; NaN where no case has a value.
        low, high: NaN where the interval cannot be known: fewer than two groups.
        cases: with a value.
    """

    mean: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same cases.

    Attributes:
        difference: first minus second, over the cases in which both have a value.
        p: two-sided, of Wilcoxon's signed-rank test; None of fewer than `FEWEST` groups.
        holm: the same after Holm's correction within the family it was tested in.
        wins, ties, losses: cases in which the first method's value is higher, equal, lower.
        groups: that were tested.
    """

    difference: Interval
    p: float | None
    holm: float | None
    wins: int
    ties: int
    losses: int
    groups: int


@dataclass(frozen=True)
class RankStability:
    """How often each method has which rank when the cases are drawn again.

    Attributes:
        ranks: of all cases, 1 is the best; equal means share the better rank.
        frequencies: (method, rank - 1) shares of the resamples.
        kendall: mean of Kendall's tau-b between each resample's ranks and `ranks`; NaN of a single
            method.
    """

    ranks: tuple[int, ...]
    frequencies: Numbers
    kendall: float


class Resamples:
    """The same draws of groups, with replacement, for all methods, classes and metrics.

    Args:
        groups: a name for each case; cases of one name are drawn together.
        seed: of the draws.
        count: of resamples; fewer of very many groups.

    Attributes:
        groups: how many.
        count: of resamples.
    """

    def __init__(self, groups: Sequence[str], *, seed: int = 0, count: int = RESAMPLES) -> None:
        names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
        self._group_of = np.array([names[name] for name in groups], np.intp)
        self.groups = len(names)
        self.count = min(count, max(_MOST_NUMBERS // max(self.groups, 1), 1000))
        self._seed = seed

    @cached_property
    def _weights(self) -> Numbers:
        """(resamples, groups): how often each group was drawn."""
        generator = np.random.default_rng(self._seed)
        shares = np.full(self.groups, 1 / self.groups)
        return generator.multinomial(self.groups, shares, self.count).astype(float)

    @cached_property
    def _without_one(self) -> Numbers:
        """(groups, groups): each group left out once."""
        return 1 - np.eye(self.groups)

    def interval(self, values: Numbers) -> Interval:
        """The mean over cases of a metric and its interval.

        Args:
            values: (cases,), or (classes, cases): then the mean of the classes' means. NaN is
                left out.
        """
        values = np.atleast_2d(np.asarray(values, float))
        known = ~np.isnan(values)
        mean = _nan_mean(np.array([_mean(row) for row in values]))
        cases = int(known.any(0).sum())
        if len(np.unique(self._group_of[known.any(0)])) < 2:
            return Interval(mean, np.nan, np.nan, cases)
        low, high = bca(mean, self.means(values), self._means(values, self._without_one))
        return Interval(mean, low, high, cases)

    def means(self, values: Numbers) -> Numbers:
        """(resamples,): the same mean in each resample; NaN where all its values are."""
        return self._means(np.atleast_2d(np.asarray(values, float)), self._weights)

    def _means(self, values: Numbers, weights: Numbers) -> Numbers:
        of_classes = []
        for row in values:
            known = ~np.isnan(row)
            groups = self._group_of[known]
            sums = np.bincount(groups, row[known], minlength=self.groups)
            counts = np.bincount(groups, minlength=self.groups)
            with np.errstate(invalid="ignore"):
                of_classes.append((weights @ sums) / (weights @ counts))
        stacked = np.array(of_classes)
        there = ~np.isnan(stacked)
        with np.errstate(invalid="ignore"):
            means: Numbers = np.where(there, stacked, 0).sum(0) / there.sum(0)
        return means

    def compare(self, first: Numbers, second: Numbers) -> PairedTest:
        """Two methods' values of the same cases, (cases,) each; `holm` is left to `corrected`."""
        differences = np.asarray(first, float) - np.asarray(second, float)
        # Equal but for rounding is equal: signs and ranks would be of noise.
        scale = np.nanmax(np.abs([first, second]), initial=0.0)
        differences[np.abs(differences) <= 1e-12 * scale] = 0
        known = ~np.isnan(differences)
        groups = self._group_of[known]
        counts = np.bincount(groups, minlength=self.groups)
        sums = np.bincount(groups, differences[known], minlength=self.groups)
        of_groups = sums[counts > 0] / counts[counts > 0]
        return PairedTest(
            difference=self.interval(differences),
            p=signed_rank(of_groups),
            holm=None,
            wins=int((differences > 0).sum()),
            ties=int((differences == 0).sum()),
            losses=int((differences < 0).sum()),
            groups=len(of_groups),
        )

    def rank_stability(self, values: Sequence[Numbers], *, higher_is_better: bool) -> RankStability:
        """Ranks of the methods by their means, in all cases and in the resamples.

        Args:
            values: of each method, as `interval` takes them.
            higher_is_better: of the metric.
        """
        sign = -1 if higher_is_better else 1
        whole = np.array([[sign * self.interval(row).mean] for row in values])
        drawn = np.stack([sign * self.means(row) for row in values])
        ranks = _ranks(whole)[:, 0]
        resampled = _ranks(drawn)
        frequencies = np.stack(
            [(resampled == place + 1).mean(1) for place in range(len(values))], 1
        )
        return RankStability(
            tuple(int(rank) for rank in ranks), frequencies, _kendall(ranks, resampled)
        )


def bca(estimate: float, resampled: Numbers, jackknife: Numbers) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval at 95 % (Efron, 1987).

    Args:
        estimate: of all cases.
        resampled: of each resample; NaN is left out.
        jackknife: with each group left out.

    Returns:
        Both ends; those of the percentile interval where the correction is not defined because
        all resamples lie on one side.
    """
    from scipy.stats import norm

    resampled = resampled[~np.isnan(resampled)]
    jackknife = jackknife[~np.isnan(jackknife)]
    tails = np.array([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    if np.ptp(resampled) <= 1e-12 * max(abs(estimate), 1e-300):
        return estimate, estimate
    below = np.mean(resampled < estimate) + np.mean(resampled == estimate) / 2
    off = jackknife.mean() - jackknife
    spread = float((off**2).sum())
    if 0 < below < 1 and spread > 0:
        acceleration = float((off**3).sum()) / (6 * spread**1.5)
        bias = norm.ppf(below)
        shifted = bias + norm.ppf(tails)
        tails = norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(resampled, tails)
    return float(low), float(high)


def signed_rank(differences: Numbers) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; None of fewer than `FEWEST` differences.

    Zeros are left out (Wilcoxon's way); 1 where nothing is left. Exact up to 200 differences, with
    ties too, for which the normal approximation of few differences gives p below any possible one.
    """
    from scipy.stats import rankdata, wilcoxon

    if len(differences) < FEWEST:
        return None
    different = differences[differences != 0]
    if not len(different):
        return 1.0
    if len(different) > _EXACT:
        return float(wilcoxon(different, method="approx").pvalue)
    magnitudes = np.abs(different)
    # Ties but for rounding are ties; doubled, their mean ranks are whole numbers.
    ranks = (2 * rankdata(np.round(magnitudes / magnitudes.max(), 12))).astype(int)
    total = int(ranks.sum())
    chances = np.zeros(total + 1)  # of each sum of the positive differences' ranks
    chances[0] = 1
    for rank in ranks:
        chances[rank:] = (chances[rank:] + chances[: total + 1 - rank]) / 2
        chances[:rank] /= 2
    positive = int(ranks[different > 0].sum())
    smaller = min(positive, total - positive)
    return min(1.0, 2 * float(chances[: smaller + 1].sum()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of a family of p-values; None stays and does not count.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for step, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - step) * p))
        corrected[place] = largest
    return corrected


def _mean(row: Numbers) -> float:
    """As nnU-Net takes it."""
    return float(np.nanmean(row)) if not np.isnan(row).all() else np.nan


def _nan_mean(values: Numbers) -> float:
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else np.nan


def _ranks(values: Numbers) -> NDArray[np.intp]:
    """(methods, resamples): 1 + how many are lower; NaN ranks last."""
    filled = np.where(np.isnan(values), np.inf, values)
    ranks: NDArray[np.intp] = 1 + (filled[None] < filled[:, None]).sum(1)
    return ranks


def _kendall(ranks: NDArray[np.intp], resampled: NDArray[np.intp]) -> float:
    """Mean tau-b between one ranking and each column of others, where it is defined."""
    first, second = np.triu_indices(len(ranks), 1)
    if not len(first):
        return np.nan
    own = np.sign(ranks[first] - ranks[second])[:, None]
    others = np.sign(resampled[first] - resampled[second])
    scale = np.sqrt((own**2).sum(0) * (others**2).sum(0))
    agreeing = (own * others).sum(0)
    return float(np.mean(agreeing[scale > 0] / scale[scale > 0])) if (scale > 0).any() else np.nan
