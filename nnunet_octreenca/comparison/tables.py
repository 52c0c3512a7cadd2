"""The tables of a report, and how their numbers are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from nnunet_octreenca.comparison.inputs import Inputs
from nnunet_octreenca.comparison.metrics import METRICS
from nnunet_octreenca.comparison.records import QUANTITIES
from nnunet_octreenca.comparison.scores import Scores
from nnunet_octreenca.comparison.statistics import FEWEST, Interval
from nnunet_octreenca.comparison.summary import Summary
from nnunet_octreenca.files import JsonMapping

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A text and the number that its column is sorted by."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: in a few words.
        note: what must be known to read it.
        head: names of the columns.
        rows: one cell a column.
        texts: how many columns hold text; numbers follow.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int


def summary_table(summary: Summary, inputs: Inputs) -> Table:
    """A row of each class and method, a column of each metric."""
    metrics = list(dict.fromkeys(row.metric for row in summary.rows))
    cells: dict[tuple[str, str], dict[str, Interval]] = {}
    for row in summary.rows:
        cells.setdefault((row.class_name, row.method), {})[row.metric] = row.interval
    main = summary.main
    rows = tuple(
        (
            Cell(class_name),
            Cell(method),
            Cell(str(found[main].cases), found[main].cases),
            *(
                Cell(interval_text(found[name], digits_of(name, inputs)), _known(found[name].mean))
                for name in metrics
            ),
        )
        for (class_name, method), found in cells.items()
    )
    return Table(
        "Summary",
        f"Mean over cases with its 95 % bootstrap interval (BCa, {summary.resamples:,} resamples "
        f"of {groups_text(summary, inputs)}, seed {summary.seed}). Cases: those with a "
        f"{METRICS[main].name}.",
        ("Class", "Method", "Cases", *(metric_title(name, inputs) for name in metrics)),
        rows,
        2,
    )


def pair_table(summary: Summary, inputs: Inputs) -> Table:
    """A row of each metric, class and two methods."""
    rows = tuple(
        (
            Cell(METRICS[row.metric].name),
            Cell(row.class_name),
            Cell(row.first),
            Cell(row.second),
            Cell(
                interval_text(row.test.difference, digits_of(row.metric, inputs), signed=True),
                _known(row.test.difference.mean),
            ),
            Cell(p_text(row.test.p), row.test.p),
            Cell(p_text(row.test.holm), row.test.holm),
            Cell(f"{row.test.wins} / {row.test.ties} / {row.test.losses}", row.test.wins),
            Cell(str(row.test.difference.cases), row.test.difference.cases),
        )
        for row in summary.pairs
    )
    few = (
        f" {MISSING}: fewer than {FEWEST} pairs, which cannot tell."
        if any(row.test.p is None for row in summary.pairs)
        else ""
    )
    return Table(
        "Paired differences",
        "First minus second method in the same cases, with 95 % bootstrap interval; p of "
        "Wilcoxon's signed-rank test, two-sided, and with Holm's correction for all tests of the "
        f"same metric in this table.{few}",
        ("Metric", "Class", "First", "Second", "Difference", "p", "p (Holm)",
         "Higher / equal / lower", "Cases"),
        rows,
        4,
    )  # fmt: skip


def rank_table(summary: Summary, scores: Scores) -> Table:
    """A row of each metric and method, a column of each rank."""
    count = len(scores.methods)
    rows = tuple(
        (
            Cell(METRICS[metric].name),
            Cell(method),
            Cell(str(found.ranks[place]), found.ranks[place]),
            *(
                Cell(f"{100 * share:.1f} %", float(share))
                for share in found.frequencies[place].tolist()
            ),
            Cell(_number(found.kendall, 2), _known(found.kendall)),
        )
        for metric, found in summary.ranks.items()
        for place, method in enumerate(scores.methods)
    )
    return Table(
        "Stability of the ranking",
        "How often a method has each rank when the cases are drawn again; equal means share the "
        "better rank. Kendall's tau: agreement with the ranking of all cases; 1 is full.",
        ("Metric", "Method", "Rank", *(f"Rank {n + 1}" for n in range(count)), "Kendall's tau"),
        rows,
        2,
    )


GIVEN = "As given by --records; not measured by this program."


def record_table(records: Mapping[str, JsonMapping], note: str = GIVEN) -> Table:
    """A row of each method, a column of each quantity that any of them has.

    Args:
        records: method to its record.
        note: where the figures are from.
    """
    names = [key for key in QUANTITIES if any(key in record for record in records.values())]
    texts = [key for key in ("device", "notes") if any(key in r for r in records.values())]
    rows = tuple(
        (
            Cell(method),
            *(Cell(str(record.get(key, MISSING))) for key in texts),
            *(Cell(quantity_text(key, record.get(key)), record.get(key)) for key in names),
        )
        for method, record in records.items()
    )
    return Table(
        "Methods",
        note,
        ("Method", *(key.capitalize() for key in texts), *(QUANTITIES[key][0] for key in names)),
        rows,
        1 + len(texts),
    )


def quantity_text(name: str, value: float | None) -> str:
    """A quantity of a record for people.

    >>> quantity_text("training_peak_bytes", 2.1e9), quantity_text("training_seconds", 90)
    ('2.10 GB', '90 s')
    """
    if value is None:
        return MISSING
    unit = QUANTITIES[name][1]
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    text = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"
    return f"{text} {unit}".strip()


def metric_title(name: str, inputs: Inputs) -> str:
    """A metric's name with its unit and which way is better."""
    metric = METRICS[name]
    unit = metric.unit.format(**inputs.units)
    return f"{metric.name}{f' ({unit})' if unit else ''} {'↑' if metric.higher_is_better else '↓'}"


def groups_text(summary: Summary, inputs: Inputs) -> str:
    """How many cases there are, of how many groups.

    Written for the middle of a sentence.
    """
    cases = f"{len(inputs.cases)} cases"
    return cases if summary.groups == len(inputs.cases) else f"{summary.groups} groups of {cases}"


def digits_of(metric: str, inputs: Inputs) -> int:
    """After the decimal point: a pixel has no thousandths."""
    digits = METRICS[metric].digits
    if METRICS[metric].unit != "{volume}":
        return digits
    return {"ml": digits, "mm²": 1}.get(inputs.units["volume"], 0)


def interval_text(found: Interval, digits: int, *, signed: bool = False) -> str:
    """Mean and interval for people.

    >>> interval_text(Interval(0.5, 0.25, 0.75, 9), 2)
    '0.50 (0.25 to 0.75)'
    """
    sign = "+" if signed else ""
    if isnan(found.mean):
        return MISSING
    mean = f"{found.mean:{sign},.{digits}f}"
    if isnan(found.low):
        return f"{mean} (no interval)"
    return f"{mean} ({found.low:{sign},.{digits}f} to {found.high:{sign},.{digits}f})"


def p_text(p: float | None) -> str:
    """A p-value for people.

    >>> p_text(0.0412), p_text(1e-9), p_text(None)
    ('0.041', '< 0.001', '–')
    """
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float, digits: int) -> str:
    return MISSING if isnan(value) else f"{value:.{digits}f}"


def _known(value: float) -> float | None:
    return None if isnan(value) else value
