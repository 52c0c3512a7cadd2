"""The report: one HTML page that needs nothing else, and its tables in other formats."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nnunet_octreenca import __version__
from nnunet_octreenca.comparison import figures
from nnunet_octreenca.comparison.inputs import Inputs
from nnunet_octreenca.comparison.metrics import METRICS
from nnunet_octreenca.comparison.overlays import OUTCOMES, LoadedCase, draw_case, load_case
from nnunet_octreenca.comparison.pages import filled, write_texts
from nnunet_octreenca.comparison.scores import Scores
from nnunet_octreenca.comparison.statistics import FEWEST
from nnunet_octreenca.comparison.summary import ALL, Summary
from nnunet_octreenca.comparison.table_files import (
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    case_rows,
    pair_csv_rows,
    summary_csv_rows,
)
from nnunet_octreenca.comparison.tables import (
    GIVEN,
    Cell,
    Table,
    digits_of,
    groups_text,
    metric_title,
    pair_table,
    rank_table,
    record_table,
    summary_table,
)
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.resources import physical_memory

FILES = (
    "report.html",
    "comparison.json",
    "summary.csv",
    "differences.csv",
    "cases.csv",
    "tables.md",
    "tables.tex",
)
"""What a report consists of; report.html is written last."""

_MOST_ROWS = 2000
_LIBRARIES = ("numpy", "scipy", "scikit-image", "matplotlib", "SimpleITK")


@dataclass(frozen=True)
class Provenance:
    """Where the figures are from.

    Attributes:
        command: that repeats them.
        began: when, ISO 8601.
        seconds: that measuring took.
        arguments: of the command, for JSON.
    """

    command: str
    began: str
    seconds: float
    arguments: JsonMapping


def write_report(
    folder: Path,
    inputs: Inputs,
    scores: Scores,
    summary: Summary,
    provenance: Provenance,
    *,
    records: Mapping[str, JsonMapping] | None = None,
    records_note: str = GIVEN,
    more_tables: Sequence[Table] = (),
    title: str = "Comparison of segmentations",
    viewer: Callable[[Mapping[str, LoadedCase]], JsonMapping] | None = None,
) -> list[Path]:
    """Write the report's files, each whole or not at all.

    Args:
        folder: is made; files of an earlier report are replaced.
        inputs, scores, summary: what was compared, measured and found.
        provenance: of the figures.
        records: of methods, from `read_records`.
        records_note: where the records are from.
        more_tables: shown with the records.
        title: of the page.
        viewer: makes the page's viewer of the chosen cases, `volume_viewer.volume_viewer` or
            `picture_viewer.picture_viewer`.

    Returns:
        The files.

    Raises:
        OutputError: they cannot be written.
        InputError: an image of a chosen case is damaged.
    """
    records = records or {}
    tables = [summary_table(summary, inputs)]
    if summary.pairs:
        tables += [pair_table(summary, inputs), rank_table(summary, scores)]
    if records:
        tables.append(record_table(records, records_note))
    tables += more_tables
    content = as_json(scores, inputs, summary, records, _provenance_json(provenance))
    loaded = (
        {scores.cases[one.case]: load_case(inputs, one.case) for one in summary.chosen}
        if inputs.images is not None
        else {}
    )
    texts = {
        "comparison.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n",
        "summary.csv": as_csv(summary_csv_rows(summary)),
        "differences.csv": as_csv(pair_csv_rows(summary)),
        "cases.csv": as_csv(case_rows(scores, inputs)),
        "tables.md": as_markdown(tables, title, summary.caveats),
        "tables.tex": as_latex(tables),
        "report.html": render(
            {
                **_results(inputs, scores, summary),
                **_cases(loaded, scores, summary),
                **_methods(records, scores, summary, records_note),
                "more_tables": more_tables,
                "title": title,
                "facts": _facts(provenance, inputs, summary),
                "viewer": viewer(loaded) if viewer is not None and loaded else None,
            }
        ),
    }
    write_texts(folder, texts)
    return [folder / name for name in FILES]


def render(content: JsonMapping) -> str:
    """The HTML page; all texts but figures, styles and scripts are escaped."""
    sections = [
        (id_, name)
        for id_, name, there in (
            ("summary", "Summary", True),
            ("distribution", "Every case", True),
            ("differences", "Differences", content["pair_table"].rows),
            ("ranks", "Ranking", content["pair_table"].rows),
            ("cases", "Best and worst", content["cases"]),
            ("viewer", content["viewer"] and content["viewer"]["title"], content["viewer"]),
            ("methods", "Methods", content["record_table"] or content["more_tables"]),
            ("definitions", "Metrics", True),
            ("caveats", "Caveats", True),
            ("provenance", "Provenance", True),
        )
        if there
    ]
    return filled("report.html", {**content, "sections": sections})


def _results(inputs: Inputs, scores: Scores, summary: Summary) -> JsonObject:
    """What the sections on results show."""
    methods = f"{len(scores.methods)} method{'s' * (len(scores.methods) != 1)}"
    few = summary.groups < FEWEST
    return {
        "subtitle": f"{methods}, {groups_text(summary, inputs)} ({inputs.kind}), "
        f"{len(scores.classes)} class{'es' * (len(scores.classes) != 1)}",
        "short_caveat": next((c for c in summary.caveats if few and c.startswith("Only ")), ""),
        "summary_table": summary_table(summary, inputs),
        "distributions": [figures.distribution(scores, inputs, m) for m in scores.metrics],
        "more_classes": len(scores.classes) >= figures.MOST_CLASSES,
        "case_table": case_table(scores, inputs, summary.main),
        "pair_table": pair_table(summary, inputs),
        "differences": [
            figures.differences(summary, inputs, metric)
            for metric in scores.metrics
            if summary.pairs
        ],
        "rank_table": rank_table(summary, scores),
        "rank_figure": figures.rank_stability(summary, scores) if summary.ranks else "",
        "definitions": [
            (metric_title(name, inputs), _definition(name, scores, inputs))
            for name in scores.metrics
        ],
        "caveats": summary.caveats,
    }


def _definition(name: str, scores: Scores, inputs: Inputs) -> str:
    says = METRICS[name].says
    if name == "nsd":
        says += f" Tolerance: {scores.tolerance:g} {inputs.units['length']}."
    if inputs.video and name in ("nsd", "hd95", "cldice"):
        says += " Mean of the frames."
    return says


def case_table(scores: Scores, inputs: Inputs, metric: str) -> Table:
    """A row of each case, a column of each method: a metric, as mean of the classes."""
    values = scores.of_cases(metric)
    digits = digits_of(metric, inputs)
    grouped = inputs.groups != inputs.cases
    rows = tuple(
        (
            Cell(case),
            *((Cell(inputs.groups[c]),) if grouped else ()),
            *(
                Cell("–") if value != value else Cell(f"{value:,.{digits}f}", value)
                for value in values[:, c].tolist()
            ),
        )
        for c, case in enumerate(scores.cases[:_MOST_ROWS])
    )
    left = len(scores.cases) - len(rows)
    more = f" {left} more are in cases.csv." if left else " All metrics and classes: cases.csv."
    return Table(
        f"{METRICS[metric].name} of each case" + (f", {ALL}" if len(scores.classes) > 1 else ""),
        f"{metric_title(metric, inputs)}.{more}",
        ("Case", *(("Group",) if grouped else ()), *scores.methods),
        rows,
        1 + grouped,
    )


def _cases(loaded: Mapping[str, LoadedCase], scores: Scores, summary: Summary) -> JsonObject:
    """The overlays."""
    metric = METRICS[summary.main]
    shown = []
    for one in summary.chosen if loaded else ():
        name = scores.cases[one.case]
        title = f"{one.role.capitalize()}: {name}, {metric.name} {one.score:.{metric.digits}f}"
        shown.append({"title": title, "rows": draw_case(loaded[name]).rows})
    return {
        "cases": shown,
        "case_rule": f"Cases in the order of their {metric.name}, mean over methods and classes: "
        f"the first, the middle (of an even number the worse) and the last. The pictures are cut "
        f"to the foreground; of volumes they are the planes with most of the truth, in the order "
        f"of the voxels, the head and the face up.",
        "outcomes": list(OUTCOMES.values()),
    }


def _methods(
    records: Mapping[str, JsonMapping], scores: Scores, summary: Summary, note: str
) -> JsonObject:
    """What records add."""
    drawn: Sequence[str | None] = (
        figures.against_resources(summary, scores, records),
        figures.curves(scores, records),
    )
    return {
        "record_table": record_table(records, note) if records else None,
        "record_figures": [figure for figure in drawn if figure],
    }


def _facts(provenance: Provenance, inputs: Inputs, summary: Summary) -> list[tuple[str, str]]:
    return [
        ("Command", provenance.command),
        ("Began", provenance.began),
        ("Measuring", f"{provenance.seconds:.1f} s"),
        ("Cases", groups_text(summary, inputs)),
        ("Bootstrap", f"{summary.resamples:,} resamples, BCa, seed {summary.seed}"),
        (
            "Test",
            "Wilcoxon's signed-rank, two-sided, exact up to 200 pairs; Holm's correction within "
            "each metric",
        ),
        ("Machine", machine()),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
    ]


def machine() -> str:
    """Processor, cores, memory and system; no name of the machine."""
    processor = platform.processor() or platform.machine()
    memory = physical_memory() / 2**30
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}"


def versions() -> dict[str, str]:
    """Of this program, Python and the libraries that compute."""
    found = {"nnunet_octreenca": __version__, "Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _provenance_json(provenance: Provenance) -> dict[str, Any]:
    return {
        "command": provenance.command,
        "arguments": dict(provenance.arguments),
        "began": provenance.began,
        "seconds": round(provenance.seconds, 3),
        "machine": machine(),
        "versions": versions(),
    }
