"""The report as files of tables: JSON, CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isnan
from typing import Any

from nnunet_octreenca.comparison.inputs import Inputs
from nnunet_octreenca.comparison.metrics import METRICS
from nnunet_octreenca.comparison.scores import Scores
from nnunet_octreenca.comparison.summary import Summary
from nnunet_octreenca.comparison.tables import Table
from nnunet_octreenca.files import JsonMapping, JsonObject

FORM = 1
"""Of the JSON file; raised where older code would misread it."""

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
