"""The report's figures as SVG that takes the page's text colour, light or dark."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_octreenca.comparison.inputs import Inputs
from nnunet_octreenca.comparison.metrics import METRICS
from nnunet_octreenca.comparison.records import QUANTITIES
from nnunet_octreenca.comparison.scores import Scores
from nnunet_octreenca.comparison.summary import ALL, Summary, class_rows
from nnunet_octreenca.comparison.tables import metric_title
from nnunet_octreenca.files import JsonMapping

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's without yellow and black, which light and dark pages hide.
COLOURS = ("#1b7fc4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#aa4499")
_INK = "#010203"  # becomes currentColor
MOST_CLASSES = 12
_MOST_NAME = 28


def colour_of(method: int) -> str:
    """A method's colour in all figures."""
    return COLOURS[method % len(COLOURS)]


def distribution(scores: Scores, inputs: Inputs, metric: str) -> str:
    """Every case as a point beside a box of quartiles, by class and method."""
    classes = class_rows(scores)[:MOST_CLASSES]
    count = len(scores.methods)
    width = max(6.5, 0.34 * count * len(classes) + 1.6)
    with new_figure(min(width, 16), 3.2) as (figure, save):
        axes = figure.subplots()
        frame(axes)
        generator = np.random.default_rng(0)
        for method in range(count):
            values = scores.values[metric][method]
            for place, name in enumerate(classes):
                of_cases = (
                    scores.of_cases(metric)[method]
                    if name == ALL
                    else values[scores.classes.index(name)]
                )
                known = of_cases[~np.isnan(of_cases)]
                x = place + (method + 0.5) / (count + 0.6) - 0.5 + 0.3 / (count + 0.6)
                _box(axes, known, x, 0.55 / (count + 0.6), colour_of(method), generator)
        axes.set_xticks(range(len(classes)), [_short(name) for name in classes])
        axes.set_xlim(-0.6, len(classes) - 0.4)
        axes.set_ylabel(metric_title(metric, inputs))
        legend(figure, scores.methods)
        return save(f"{METRICS[metric].name} of each case, by class and method")


def _box(
    axes: Any, values: Any, x: float, width: float, colour: str, generator: np.random.Generator
) -> None:
    if not len(values):
        return
    if len(values) > 4:
        axes.boxplot(
            [values],
            positions=[x],
            widths=width,
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": colour},
            medianprops={"color": colour, "linewidth": 2},
            whiskerprops={"color": colour},
            capprops={"color": colour},
        )
    jitter = generator.uniform(-0.35, 0.35, len(values)) * width
    axes.plot(x + jitter, values, "o", color=colour, markersize=3.2, alpha=0.75, markeredgewidth=0)


def rank_stability(summary: Summary, scores: Scores) -> str:
    """Shares of the resamples in which each method has each rank, a panel a metric."""
    metrics, count = list(summary.ranks), len(scores.methods)
    height = 0.6 + 0.3 * count
    with new_figure(7.5, height * len(metrics) + 0.3) as (figure, save):
        panels = figure.subplots(len(metrics), 1, squeeze=False, sharex=True)[:, 0]
        for axes, metric in zip(panels, metrics, strict=True):
            frame(axes)
            found = summary.ranks[metric]
            order = sorted(range(count), key=lambda method: -found.ranks[method])
            for row, method in enumerate(order):
                left = 0.0
                for rank, share in enumerate(found.frequencies[method].tolist()):
                    opacity = 1 - 0.85 * rank / max(count - 1, 1)
                    axes.barh(row, share, left=left, color=colour_of(method), alpha=opacity)
                    if share > 0.08:
                        axes.text(
                            left + share / 2, row, str(rank + 1), ha="center", va="center",
                            color="#ffffff" if opacity > 0.6 else _INK, fontsize=9,
                        )  # fmt: skip
                    left += share
            axes.set_yticks(range(count), [_short(scores.methods[method]) for method in order])
            axes.set_xlim(0, 1)
            axes.set_title(METRICS[metric].name, fontsize=10, loc="left")
        panels[-1].set_xlabel("share of resamples, with rank 1 (best) at the left")
        return save("How often each method has each rank when cases are drawn again")


def differences(summary: Summary, inputs: Inputs, metric: str) -> str:
    """Paired differences of a metric with their intervals."""
    rows = [row for row in summary.pairs if row.metric == metric][::-1]
    with new_figure(7.5, 0.9 + 0.24 * len(rows)) as (figure, save):
        axes = figure.subplots()
        frame(axes)
        axes.axvline(0, color=_INK, linewidth=0.8)
        for place, row in enumerate(rows):
            found = row.test.difference
            told = row.test.holm is not None and row.test.holm < 0.05
            if not np.isnan(found.low):
                axes.plot([found.low, found.high], [place, place], color=COLOURS[0], linewidth=2)
            axes.plot(
                found.mean, place, "o", color=COLOURS[0], markersize=6,
                markerfacecolor=COLOURS[0] if told else "none",
            )  # fmt: skip
        names = [
            f"{_short(row.first)} − {_short(row.second)}, {_short(row.class_name)}" for row in rows
        ]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(f"{metric_title(metric, inputs)}, first − second; filled: p (Holm) < 0.05")
        return save(f"Paired differences in {METRICS[metric].name} with 95 % intervals")


def against_resources(
    summary: Summary, scores: Scores, records: Mapping[str, JsonMapping]
) -> str | None:
    """The main metric against memory, seconds, parameters; None where no record has any."""
    class_name = class_rows(scores)[0]
    means = {
        row.method: row.interval
        for row in summary.rows
        if row.metric == summary.main and row.class_name == class_name
    }
    names = [
        key
        for key in QUANTITIES
        if key != "seeds" and any(record.get(key, 0) > 0 for record in records.values())
    ]
    if not names:
        return None
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    with new_figure(3.4 * columns, 0.4 + 2.7 * rows) as (figure, save):
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        for axes, key in zip(panels, names, strict=False):
            frame(axes)
            known = [record.get(key, 0) for record in records.values()]
            _log_axis(axes, "x", [value for value in known if value > 0])
            axes.margins(x=0.25)
            title, unit = QUANTITIES[key]
            scale, unit = (1e9, "GB") if unit == "bytes" else (1, unit)
            for method, name in enumerate(scores.methods):
                value = records.get(name, {}).get(key, 0) / scale
                if value > 0 and not np.isnan(means[name].mean):
                    low, high = (
                        abs(np.nan_to_num(end - means[name].mean))
                        for end in (means[name].low, means[name].high)
                    )
                    axes.errorbar(
                        value, means[name].mean, [[low], [high]], fmt="o", color=colour_of(method),
                        capsize=3,
                    )  # fmt: skip
            axes.set_xlabel(f"{title} ({unit})" if unit else title)
        for axes in panels[::columns]:
            axes.set_ylabel(f"{METRICS[summary.main].name}, {_short(class_name)}")
        legend(figure, scores.methods)
        return save(f"{METRICS[summary.main].name} against what the methods take")


def curves(scores: Scores, records: Mapping[str, JsonMapping]) -> str | None:
    """The records' curves, a panel for each pair of axes; None where there are none."""
    found: dict[tuple[str, str, str], list[tuple[int, Any]]] = {}
    for method, name in enumerate(scores.methods):
        for curve in records.get(name, {}).get("curves", ()):
            if curve["points"]:
                panel = curve["x"], curve["y"], curve.get("scale", "linear")
                found.setdefault(panel, []).append((method, curve["points"]))
    if not found:
        return None
    with new_figure(7.5, 2.8 * len(found)) as (figure, save):
        panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
        for axes, ((x, y, scale), lines) in zip(panels, found.items(), strict=True):
            frame(axes)
            if scale == "log":
                every = [np.asarray(points) for _, points in lines]
                _log_axis(axes, "x", np.concatenate(every)[:, 0].tolist())
                _log_axis(axes, "y", np.concatenate(every)[:, 1].tolist())
            for method, points in lines:
                mark = "o-" if scale == "log" else "-"
                axes.plot(
                    *np.transpose(points),
                    mark,
                    color=colour_of(method),
                    linewidth=1.5,
                    markersize=3,
                )
            axes.set_xlabel(_short(x))
            axes.set_ylabel(_short(y))
        legend(figure, scores.methods)
        return save("Curves of the methods")


def _log_axis(axes: Any, which: str, values: Sequence[float]) -> None:
    """Along x or y, with numbers such as 20k, for which no powers must be typeset."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    narrow = max(values) < 50 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    return name if len(name) <= _MOST_NAME else name[: _MOST_NAME - 1] + "…"


def legend(figure: "Figure", methods: Sequence[str]) -> None:
    """Names above a figure, in the methods' colours."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=colour_of(n), marker="o", linewidth=0) for n in range(len(methods))
    ]
    figure.legend(
        marks, [_short(name) for name in methods], loc="outside upper left", frameon=False,
        ncols=4, handletextpad=0.1,
    )  # fmt: skip


def frame(axes: Any) -> None:
    """Two spines, a faint grid, no background."""
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color=_INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)


@contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple["Figure", Callable[[str], str]]]:
    """A figure of so many inches, and what turns it into SVG with a description."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "compare",
        "text.parse_math": False,  # names may hold dollar signs
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "font.size": 10,
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # nnU-Net sets a style of its own
        matplotlib.rcParams.update(settings)
        # Of signs that matplotlib's font lacks; the page's has them.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)

        def save(description: str) -> str:
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            return _inline(text.getvalue(), description)

        yield figure, save


def _inline(svg: str, description: str) -> str:
    """SVG for an HTML page: without prologue, in its own text colour, with a description."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    # Ids of several figures on a page must differ.
    prefix = re.sub(r"\W+", "-", description.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
