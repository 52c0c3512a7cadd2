"""What the pictures share: colours, and an SVG file that is the same in every run."""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
INK, QUIET, LINE, PAPER = "#263238", "#78909c", "#b0bec5", "#ffffff"
TEAL, LIGHT_TEAL = "#00796b", "#b2dfdb"
ORANGE, LIGHT_ORANGE = "#e8710a", "#fde3c8"
VIOLET, LIGHT_VIOLET = "#5e4fa2", "#dcd7f0"
GREY = "#eceff1"
# Logits and probabilities: nothing is paper, much is teal.
TO_TEAL = LinearSegmentedColormap.from_list("to_teal", [PAPER, LIGHT_TEAL, TEAL])

# Text as paths of matplotlib's own font, and ids from a fixed salt instead of random ones.
mpl.rcdefaults()  # whoever imports us may have a style of their own
mpl.rcParams.update(
    {
        "svg.fonttype": "path",
        "svg.hashsalt": "octreenca",
        "image.composite_image": False,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": LINE,
    }
)


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of so many inches and axes over all of it, in inches, origin at the top left."""
    figure = Figure((width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def box(
    axes: Any,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str = "",
    *,
    face: str = PAPER,
    edge: str = LINE,
    radius: float = 0.06,
    **font: Any,
) -> None:
    """A rounded box with its text in the middle."""
    axes.add_patch(
        FancyBboxPatch(
            (x + radius, y + radius),
            width - 2 * radius,
            height - 2 * radius,
            boxstyle=f"round,pad={radius},rounding_size={radius}",
            facecolor=face,
            edgecolor=edge,
            linewidth=1.1,
        )
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **font)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    """An arrow between two points."""
    options = {"color": QUIET, "linewidth": 1.3, "arrowstyle": "-|>", "mutation_scale": 11}
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **(options | style)))


def save(figure: Figure, name: str) -> Path:
    """Write NAME.svg beside the scripts, or to the folder given as the first argument."""
    given = [argument for argument in sys.argv[1:2] if not argument.startswith("-")]
    folder = Path(given[0]) if given else HERE
    path = folder / f"{name}.svg"
    figure.savefig(path, dpi=180, metadata={"Date": None})
    return path
