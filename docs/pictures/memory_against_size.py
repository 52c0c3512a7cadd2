"""Memory of one pass against the image's size, from the results of the benchmark.

python docs/pictures/memory_against_size.py [FOLDER]
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from style import INK, LINE, ORANGE, PAPER, QUIET, TEAL, save

RESULTS = Path(__file__).parents[1] / "results" / "memory_against_size.json"
NAMED = {"OctreeNCA, C++": TEAL, "OctreeNCA, PyTorch": TEAL, "nnU-Net": ORANGE}
TITLES = {2: "pictures, RGB", 3: "volumes, one channel"}


def main() -> None:
    """Draw and save."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    figure = Figure((9.5, 4.2), facecolor=PAPER, layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, number in zip(both, TITLES, strict=True):
        draw(axes, [row for row in content["rows"] if row["axes"] == number], number)
        axes.axhline(content["limit_bytes"] / 1e9, color=QUIET, lw=0.8, ls=":")
    both[0].set_ylabel("memory of one pass, GB")
    save(figure, "memory_against_size")


def draw(axes: Any, rows: list[dict[str, Any]], number: int) -> None:
    """A line of each method; named are ours and nnU-Net's."""
    for row in rows:
        sides = [int(side) for side in row["bytes"]]
        voxels = [side**number / 1e6 for side in sides]
        memory = [size / 1e9 for size in row["bytes"].values()]
        colour = NAMED.get(row["method"])
        dashes = "--" if row["method"].endswith("PyTorch") else "-"
        own = {"color": colour, "lw": 2.2, "zorder": 3} if colour else {"color": LINE, "lw": 1.1}
        label = row["method"] if colour else None
        axes.plot(voxels, memory, ls=dashes, marker="o", ms=3, label=label, **own)
    axes.plot([], [], color=LINE, lw=1.1, marker="o", ms=3, label="other methods")
    axes.set(xscale="log", yscale="log", xlabel="million voxels", title=TITLES[number])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")


if __name__ == "__main__":
    main()
