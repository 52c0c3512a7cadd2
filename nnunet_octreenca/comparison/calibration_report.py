"""The page of a calibration: risk against coverage, scores against Dice, reliability."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_octreenca.comparison.calibration import (
    Ranking,
    Reliability,
    ScoreResult,
    Voxels,
    reliability,
)
from nnunet_octreenca.comparison.figures import COLOURS, frame, legend, new_figure
from nnunet_octreenca.comparison.pages import filled, write_texts
from nnunet_octreenca.comparison.report import machine, versions
from nnunet_octreenca.comparison.statistics import FEWEST
from nnunet_octreenca.comparison.table_files import as_csv
from nnunet_octreenca.comparison.tables import MISSING, Cell, Table

FILES = ("calibration.html", "calibration.csv")

_MOST_ROWS = 2000


@dataclass(frozen=True)
class MeasuredCase:
    """A validation case.

    Attributes:
        name, fold: of the case.
        dice: mean of the classes.
        nqm, resilience: its scores.
    """

    name: str
    fold: str
    dice: float
    nqm: float
    resilience: float | None


def write_calibration_report(
    folder: Path,
    cases: Sequence[MeasuredCase],
    ranking: Ranking,
    voxels: Voxels,
    temperatures: Sequence[float],
    heads: Sequence[str],
    *,
    title: str,
    command: str,
) -> list[Path]:
    """Write `FILES`, each whole or not at all.

    Args:
        folder: is made.
        cases: all.
        ranking: of their scores.
        voxels: that the temperatures were fitted to.
        temperatures: of the heads.
        heads: their names.
        title: of the page.
        command: that repeats it.

    Raises:
        OutputError: they cannot be written.
    """
    before = reliability(voxels, [1.0] * len(heads))
    after = reliability(voxels, temperatures)
    content = {
        "title": title,
        "subtitle": f"{len(cases)} validation cases, {ranking.bad} with a Dice below "
        f"{ranking.limit:g}",
        "warnings": warnings_of(ranking),
        "sentences": sentences_of(ranking),
        "score_table": _score_table(ranking),
        "coverage": _coverage(ranking),
        "scatters": [_scatter(result, ranking) for result in ranking.scores],
        "temperature_table": _temperature_table(temperatures, heads, before, after, voxels),
        "reliability": _reliability(before, after),
        "case_table": _case_table(cases, ranking),
        "facts": [
            ("Command", command),
            ("Machine", machine()),
            ("Versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
        ],
    }
    rows = [["case", "fold", "dice", "nqm", "resilience"]]
    for case in cases:
        shown = "" if case.resilience is None else f"{case.resilience:.6g}"
        rows.append([case.name, case.fold, f"{case.dice:.6g}", f"{case.nqm:.6g}", shown])
    texts = {
        "calibration.csv": as_csv(rows),
        "calibration.html": filled("calibration.html", content),
    }
    write_texts(folder, texts)
    return [folder / name for name in FILES]


def warnings_of(ranking: Ranking) -> list[str]:
    """What is to be known before the figures are believed."""
    found = []
    if len(ranking.dice) < FEWEST:
        found.append(f"Only {len(ranking.dice)} cases: the order of the scores may be chance.")
    if ranking.scores[0].threshold is None:
        low, middle = np.quantile(ranking.dice, (0.1, 0.5))
        many = "No case" if not ranking.bad else "Every case"
        found.append(
            f"{many} has a Dice below {ranking.limit:g}, so that there is no threshold to warn "
            f"with; choose another --limit (a tenth of the cases is below {low:.3f}, half below "
            f"{middle:.3f})."
        )
    elif ranking.scores[0].aurc >= ranking.chance:
        found.append("No score orders the cases better than chance.")
    return found


def sentences_of(ranking: Ranking) -> list[str]:
    """What was found."""
    best = ranking.scores[0]
    room = max(ranking.chance - ranking.best, 1e-12)
    found = [
        f"{best.name} orders the cases best: AURC {best.aurc:.4f} (chance "
        f"{ranking.chance:.4f}, order by Dice itself {ranking.best:.4f}), "
        f"{100 * (ranking.chance - best.aurc) / room:.0f} % of the way from one to the other."
    ]
    if best.threshold is not None:
        side = "at most" if best.name == "resilience" else "at least"
        found.append(
            f"Cases with {best.name} of {side} {best.threshold:.4f} are to be looked at: "
            f"of {best.named} cases named, each by a threshold of all others, {best.found} were "
            f"bad; {ranking.bad} were bad in all."
        )
    return found


def _share(found: int, of: int) -> Cell:
    return Cell(MISSING) if not of else Cell(f"{found / of:.2f}", found / of)


def _score_table(ranking: Ranking) -> Table:
    rows = tuple(
        (
            Cell(result.name),
            Cell(f"{result.aurc:.4f}", result.aurc),
            Cell(MISSING)
            if result.threshold is None
            else Cell(f"{result.threshold:.4f}", result.threshold),
            _share(result.found, result.named),
            _share(result.found, ranking.bad),
            Cell(str(result.named), result.named),
        )
        for result in ranking.scores
    )
    return Table(
        "Scores",
        "AURC: mean risk (1 − Dice) of the surest cases, over all numbers of them; lower is "
        f"better. Precision and recall of naming cases with a Dice below {ranking.limit:g}: "
        "leave-one-out, each case judged by the threshold of all others (best F1).",
        ("Score", "AURC ↓", "Threshold", "Precision", "Recall", "Named"),
        rows,
        1,
    )


def _temperature_table(
    temperatures: Sequence[float],
    heads: Sequence[str],
    before: Reliability,
    after: Reliability,
    voxels: Voxels,
) -> Table:
    rows = tuple(
        (Cell(name), Cell(f"{value:.3f}", value))
        for number, (name, value) in enumerate(zip(heads, temperatures, strict=True))
        if number or not voxels.plain
    )
    return Table(
        "Temperatures",
        f"Logits of a class are divided by its temperature; above 1 the network was too sure. "
        f"Fitted to {len(voxels.logits):,} voxels drawn evenly. Expected calibration error of all "
        f"foreground classes: {before.error:.4f} before, {after.error:.4f} after, on the same "
        f"voxels.",
        ("Class", "Temperature"),
        rows,
        1,
    )


def _case_table(cases: Sequence[MeasuredCase], ranking: Ranking) -> Table:
    best = ranking.scores[0]
    values = best.values if best.name == "resilience" else -best.values
    order = np.argsort(values, kind="stable")[:_MOST_ROWS].tolist()
    rows = tuple(
        (
            Cell(cases[n].name),
            Cell(cases[n].fold),
            Cell(f"{cases[n].dice:.3f}", cases[n].dice),
            Cell(f"{cases[n].nqm:.4f}", cases[n].nqm),
            Cell(MISSING)
            if cases[n].resilience is None
            else Cell(f"{cases[n].resilience:.4f}", cases[n].resilience),
        )
        for n in order
    )
    return Table(
        "Cases",
        "The most doubtful first. All of them: calibration.csv.",
        ("Case", "Fold", "Dice", "nqm", "resilience"),
        rows,
        2,
    )


def _coverage(ranking: Ranking) -> str:
    count = len(ranking.dice)
    shares = np.arange(1, count + 1) / count
    with new_figure(6.5, 3.4) as (figure, save):
        axes = figure.subplots()
        frame(axes)
        for number, result in enumerate(ranking.scores):
            axes.plot(shares, result.curve, color=COLOURS[number], linewidth=2)
        best = np.sort(1 - ranking.dice).cumsum() / np.arange(1, count + 1)
        axes.plot(shares, best, "--", color="#010203", linewidth=1)
        axes.axhline(ranking.chance, color="#010203", linewidth=1, linestyle=":")
        axes.set_xlabel("share of cases kept, the surest first (dashed: by Dice; dotted: chance)")
        axes.set_ylabel("mean risk, 1 − Dice")
        legend(figure, [result.name for result in ranking.scores])
        return save("Risk of the cases that are kept, by share of cases kept")


def _scatter(result: ScoreResult, ranking: Ranking) -> str:
    with new_figure(6.5, 3.4) as (figure, save):
        axes = figure.subplots()
        frame(axes)
        axes.plot(result.values, ranking.dice, "o", color=COLOURS[0], markersize=4, alpha=0.75)
        axes.axhline(ranking.limit, color=COLOURS[1], linewidth=1.2)
        if result.threshold is not None:
            axes.axvline(result.threshold, color=COLOURS[1], linewidth=1.2, linestyle="--")
        axes.set_xlabel(f"{result.name} (line: limit of Dice; dashed: threshold)")
        axes.set_ylabel("Dice")
        return save(f"Dice of each case against {result.name}")


def _reliability(before: Reliability, after: Reliability) -> str:
    with new_figure(4.6, 4.2) as (figure, save):
        axes = figure.subplots()
        frame(axes)
        axes.plot([0, 1], [0, 1], color="#010203", linewidth=0.8)
        for number, each in enumerate((before, after)):
            there = each.counts > 0
            axes.plot(
                each.said[there], each.there[there], "o-", color=COLOURS[1 - number],
                linewidth=1.5, markersize=4,
            )  # fmt: skip
        axes.set_xlabel("probability said")
        axes.set_ylabel("share that was of the class")
        legend(figure, ["with temperatures", "as the network says"])
        return save("How often classes are there, by how probable they were said to be")
