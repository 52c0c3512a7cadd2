"""What the tables and figures of a report show, computed from the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from nnunet_octreenca.comparison.inputs import Inputs
from nnunet_octreenca.comparison.metrics import METRICS
from nnunet_octreenca.comparison.scores import Numbers, Scores, nan_mean
from nnunet_octreenca.comparison.statistics import (
    FEWEST,
    Interval,
    PairedTest,
    RankStability,
    Resamples,
    holm,
)

ALL = "mean of classes"
"""In place of a class: the mean of the classes' means, as nnU-Net's foreground mean."""


@dataclass(frozen=True)
class SummaryRow:
    """The mean of a metric over the cases, with its interval."""

    metric: str
    class_name: str
    method: str
    interval: Interval


@dataclass(frozen=True)
class PairRow:
    """Two methods compared in a metric."""

    metric: str
    class_name: str
    first: str
    second: str
    test: PairedTest


@dataclass(frozen=True)
class Chosen:
    """A case that is shown: which it is by the rule, and its score in the rule's metric."""

    role: str
    case: int
    score: float


@dataclass(frozen=True)
class Summary:
    """All that is said about the scores.

    Attributes:
        rows: per metric and class (and `ALL` of several classes) one of each method.
        pairs: likewise, one of each two methods.
        ranks: metric to the methods' ranks by `ALL`; empty of a single method.
        chosen: best, median and worst case.
        main: the metric that cases are chosen by.
        groups: how many; cases where none were given.
        resamples: how many were drawn, and from which seed.
        caveats: sentences.
    """

    rows: tuple[SummaryRow, ...]
    pairs: tuple[PairRow, ...]
    ranks: Mapping[str, RankStability]
    chosen: tuple[Chosen, ...]
    main: str
    groups: int
    resamples: int
    seed: int
    caveats: tuple[str, ...]


def summarise(scores: Scores, inputs: Inputs, *, seed: int = 0) -> Summary:
    """Intervals, paired tests, ranks and chosen cases.

    Args:
        scores: of `inputs`.
        inputs: whose groups are resampled.
        seed: of the draws.
    """
    resamples = Resamples(inputs.groups, seed=seed)
    rows: list[SummaryRow] = []
    pairs: list[PairRow] = []
    ranks: dict[str, RankStability] = {}
    for metric, values in scores.values.items():
        of_metric: list[PairRow] = []
        for class_name in class_rows(scores):
            of_class = [_of_class(scores, values[m], class_name) for m in range(len(values))]
            rows += [
                SummaryRow(metric, class_name, method, resamples.interval(of_method))
                for method, of_method in zip(scores.methods, of_class, strict=True)
            ]
            of_cases = [nan_mean(np.atleast_2d(one), axis=0) for one in of_class]
            of_metric += [
                PairRow(
                    metric,
                    class_name,
                    scores.methods[a],
                    scores.methods[b],
                    resamples.compare(of_cases[a], of_cases[b]),
                )
                for a, b in combinations(range(len(scores.methods)), 2)
            ]
        pairs += _corrected(of_metric)
        if len(scores.methods) > 1:
            ranks[metric] = resamples.rank_stability(
                list(values), higher_is_better=METRICS[metric].higher_is_better
            )
    main = scores.metrics[0]
    return Summary(
        rows=tuple(rows),
        pairs=tuple(pairs),
        ranks=ranks,
        chosen=choose_cases(scores, main),
        main=main,
        groups=resamples.groups,
        resamples=resamples.count,
        seed=seed,
        caveats=tuple(_caveats(scores, inputs, resamples.groups)),
    )


def class_rows(scores: Scores) -> tuple[str, ...]:
    """The classes, and of several the mean of them, first."""
    return (ALL, *scores.classes) if len(scores.classes) > 1 else scores.classes


def _of_class(scores: Scores, values: Numbers, class_name: str) -> Numbers:
    """A method's (cases,) of a class, or (classes, cases)."""
    return values if class_name == ALL else values[scores.classes.index(class_name)]


def _corrected(rows: Sequence[PairRow]) -> list[PairRow]:
    """With Holm's correction: all tests of a metric are one family."""
    corrected = holm([row.test.p for row in rows])
    return [
        replace(row, test=replace(row.test, holm=p)) for row, p in zip(rows, corrected, strict=True)
    ]


def choose_cases(scores: Scores, metric: str) -> tuple[Chosen, ...]:
    """Best, median and worst case by the mean over methods and classes; fewer of fewer cases.

    Of an even number of cases the lower median is taken; equal ones in the order of the cases.
    """
    means = nan_mean(scores.of_cases(metric), axis=0)
    known = [case for case in range(len(means)) if not np.isnan(means[case])]
    sign = -1 if METRICS[metric].higher_is_better else 1
    order = sorted(known, key=lambda case: sign * means[case])
    if not order:
        return ()
    places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"}
    if len(order) == 1:
        places = {0: "only"}
    elif len(order) == 2:
        places = {0: "best", 1: "worst"}
    return tuple(
        Chosen(role, order[place], float(means[order[place]])) for place, role in places.items()
    )


def _caveats(scores: Scores, inputs: Inputs, groups: int) -> list[str]:
    cases = len(scores.cases)
    what = "cases" if groups == cases else "groups of cases"
    found = list(inputs.notes)
    if groups < FEWEST and len(scores.methods) > 1:
        found.append(
            f"Only {groups} {what}: with fewer than {FEWEST}, no signed-rank test can reach "
            f"p < 0.05, so none was made. These figures cannot tell which method is better."
        )
    elif groups < 20:
        found.append(
            f"Only {groups} {what}: bootstrap intervals of so few tend to be too narrow, and only "
            f"large differences can be detected."
        )
    if groups == cases:
        found.append(
            "Cases are taken as independent. If several are of one patient, repeat with "
            "--group-by, or intervals are too narrow and p-values too small."
        )
    found.append(
        "The intervals hold for other cases like these. They do not contain what another training "
        "of the same method (another seed) would change."
    )
    for metric, values in scores.values.items():
        known = ~np.isnan(values)
        differing = int((known.any(0) & ~known.all(0)).sum())
        if differing:
            found.append(
                f"{METRICS[metric].name} of {differing} case(s) and class(es) exists for some "
                f"methods only, because truth and prediction are both empty for the others. Means "
                f"leave these out as nnU-Net's do, so that they are of different cases; paired "
                f"differences are of the cases that both methods have."
            )
    if inputs.ignored is not None:
        found.append(
            f"Pixels that the truth labels {inputs.ignored} (ignore) count as background in both "
            f"masks: for Dice this leaves them out as nnU-Net does, and surfaces may end there."
        )
    return found
