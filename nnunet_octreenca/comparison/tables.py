"""The report's tables as JSON, CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from nnunet_octreenca.comparison.inputs import Inputs
from nnunet_octreenca.comparison.metrics import METRICS
from nnunet_octreenca.comparison.records import QUANTITIES
from nnunet_octreenca.comparison.scores import Scores
from nnunet_octreenca.comparison.statistics import FEWEST, Interval
from nnunet_octreenca.comparison.summary import Summary
from nnunet_octreenca.files import JsonMapping, JsonObject

FORM = 1
"""Of the JSON file; raised where older code would misread it."""

MISSING = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "²": r"\textsuperscript{2}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


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


def case_rows(scores: Scores, inputs: Inputs) -> list[tuple[str, ...]]:
    """One row of each value: metric, class, method, case, group, value (empty if there is none)."""
    return [
        ("metric", "class", "method", "case", "group", "value"),
        *(
            (metric, class_name, method, case, inputs.groups[c],
             "" if isnan(values[m, k, c]) else repr(float(values[m, k, c])))
            for metric, values in scores.values.items()
            for k, class_name in enumerate(scores.classes)
            for m, method in enumerate(scores.methods)
            for c, case in enumerate(scores.cases)
        ),
    ]  # fmt: skip


def as_json(
    scores: Scores,
    inputs: Inputs,
    summary: Summary,
    records: Mapping[str, JsonMapping],
    provenance: JsonMapping,
) -> JsonObject:
    """Everything that was measured and said, with NaN as null."""
    content = {
        "form": FORM,
        **provenance,
        "units": dict(inputs.units),
        "tolerance": scores.tolerance,
        "metrics": {name: asdict(METRICS[name]) for name in scores.metrics},
        "classes": {name: list(values) for name, values in inputs.classes.items()},
        "methods": list(scores.methods),
        "cases": [
            {
                "case": case,
                "group": inputs.groups[c],
                "truth": str(inputs.truth[c]),
                "metrics": {
                    method: {
                        class_name: {
                            metric: float(values[m, k, c])
                            for metric, values in scores.values.items()
                        }
                        for k, class_name in enumerate(scores.classes)
                    }
                    for m, method in enumerate(scores.methods)
                },
            }
            for c, case in enumerate(scores.cases)
        ],
        "summary": [asdict(row) for row in summary.rows],
        "comparisons": [asdict(row) for row in summary.pairs],
        "ranks": {
            metric: {
                "methods": list(scores.methods),
                "ranks": list(found.ranks),
                "frequencies": found.frequencies.tolist(),
                "kendall": found.kendall,
            }
            for metric, found in summary.ranks.items()
        },
        "chosen_cases": [
            {"role": one.role, "case": scores.cases[one.case], summary.main: one.score}
            for one in summary.chosen
        ],
        "groups": summary.groups,
        "resamples": summary.resamples,
        "seed": summary.seed,
        "caveats": list(summary.caveats),
        "records": dict(records),
    }
    cleaned: JsonObject = _without_nan(content)
    return cleaned


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and isnan(value) else value


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """Comma-separated values, quoted where needed."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def summary_csv_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The summary's numbers in full, one row of each metric, class and method."""
    return [
        ("metric", "class", "method", "cases", "mean", "low", "high"),
        *(
            (row.metric, row.class_name, row.method, str(row.interval.cases),
             *map(_plain, (row.interval.mean, row.interval.low, row.interval.high)))
            for row in summary.rows
        ),
    ]  # fmt: skip


def pair_csv_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The paired differences in full."""
    return [
        ("metric", "class", "first", "second", "cases", "groups", "difference", "low", "high", "p",
         "p_holm", "higher", "equal", "lower"),
        *(
            (row.metric, row.class_name, row.first, row.second, str(test.difference.cases),
             str(test.groups),
             *map(_plain, (test.difference.mean, test.difference.low, test.difference.high,
                           test.p, test.holm)),
             str(test.wins), str(test.ties), str(test.losses))
            for row in summary.pairs
            for test in (row.test,)
        ),
    ]  # fmt: skip


def _plain(value: float | None) -> str:
    return "" if value is None or isnan(value) else repr(float(value))


def as_markdown(tables: Sequence[Table], title: str, caveats: Sequence[str]) -> str:
    """Tables and caveats as a Markdown page."""
    parts = [f"# {markdown_text(title)}", ""]
    for table in tables:
        head = [markdown_text(name) for name in table.head]
        sides = ["---"] * table.texts + ["---:"] * (len(head) - table.texts)
        lines = [head, sides, *([markdown_text(c.text) for c in row] for row in table.rows)]
        parts += [f"## {markdown_text(table.title)}", "", markdown_text(table.note), ""]
        parts += [f"| {' | '.join(line)} |" for line in lines]
        parts.append("")
    if caveats:
        parts += ["## Caveats", "", *(f"- {markdown_text(caveat)}" for caveat in caveats), ""]
    return "\n".join(parts)


def markdown_text(text: str) -> str:
    r"""Text that Markdown and HTML leave as it is.

    >>> markdown_text("a|b *c*")
    'a\\|b \\*c\\*'
    """
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", text)


def as_latex(tables: Sequence[Table]) -> str:
    r"""Tables for \input, with the package booktabs."""
    parts = ["% \\usepackage[T1]{fontenc}", "% \\usepackage{booktabs}", ""]
    for table in tables:
        columns = "l" * table.texts + "r" * (len(table.head) - table.texts)
        lines = [table.head, *([cell.text for cell in row] for row in table.rows)]
        head, *body = (" & ".join(map(latex_text, line)) + r" \\" for line in lines)
        parts += [
            r"\begin{table}",
            rf"\caption{{{latex_text(table.title)}. {latex_text(table.note)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


def latex_text(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> print(latex_text(r"50 % of a_b & \c"))
    50 \% of a\_b \& \textbackslash{}c
    """
    return "".join(_LATEX.get(sign, sign) for sign in text)


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
