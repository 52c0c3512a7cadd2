"""The package's folders in the order of the data's way; imports point downwards only.

python docs/pictures/architecture.py [FOLDER]
"""

from style import (
    GREY,
    LIGHT_ORANGE,
    LIGHT_TEAL,
    LIGHT_VIOLET,
    LINE,
    ORANGE,
    QUIET,
    TEAL,
    VIOLET,
    arrow,
    box,
    canvas,
    save,
)

# Rows from the top: what a user calls, down to the core. A folder imports from lower rows.
LAYERS = [
    [("cli", "arguments, printing")],
    [("cluster", "the cases of prediction on many machines")],
    [("prediction", ""), ("datasets", ""), ("comparison", ""), ("export", "")],
    [("stores", "images and results behind URLs")],
    [("baselines", "networks to compare with, as nnU-Net trainers")],
    [("integration", "all that touches nnU-Net: trainers, planner, predictor, registration")],
    [("inference", "bands, ensembles, memory plan")],
    [("preprocessing", "crop, normalise, resample; restore")],
    [("images", "readers"), ("labels", "writers")],
    [("planning", "levels, steps, memory"), ("training", "loss, crops, schedule")],
    [("network", "OctreeNCA")],
    [("octree", "levels, windows"), ("ops", "nca_steps, engines")],
]
FACES = [GREY, GREY, GREY, GREY, GREY, LIGHT_ORANGE, GREY, GREY, GREY, GREY, LIGHT_TEAL, LIGHT_TEAL]
LEFT, WIDTH, HEIGHT, GAP, TOP = 2.3, 6.2, 0.5, 0.14, 0.3  # inches


def main() -> None:
    """Draw and save."""
    bottom = TOP + len(LAYERS) * (HEIGHT + GAP)
    figure, axes = canvas(LEFT + WIDTH + 1.9, bottom + 0.85)
    for number, (layer, face) in enumerate(zip(LAYERS, FACES, strict=True)):
        y = TOP + number * (HEIGHT + GAP)
        width = (WIDTH - GAP * (len(layer) - 1)) / len(layer)
        for place, (name, text) in enumerate(layer):
            x = LEFT + place * (width + GAP)
            box(axes, x, y, width, HEIGHT, face=face)
            axes.text(x + 0.16, y + HEIGHT / 2, name, va="center", weight="bold", fontsize=10.5)
            axes.text(x + width - 0.16, y + HEIGHT / 2, text, va="center", ha="right", fontsize=8.5)

    arrow(axes, (LEFT + WIDTH + 0.35, TOP), (LEFT + WIDTH + 0.35, bottom - GAP), color=TEAL, lw=1.8)
    axes.text(
        LEFT + WIDTH + 0.5, (TOP + bottom) / 2, "imports point\ndownwards", va="center",
        fontsize=9.5, color=TEAL,
    )  # fmt: skip

    def row(name: str) -> float:
        number = next(i for i, layer in enumerate(LAYERS) if name in [n for n, _ in layer])
        return TOP + number * (HEIGHT + GAP) + HEIGHT / 2

    box(axes, 0.2, row("integration") - 0.36, 1.25, 0.72, "nnU-Net's\ncommands",
        face=LIGHT_ORANGE, edge=ORANGE, fontsize=9.5)  # fmt: skip
    arrow(axes, (1.5, row("integration")), (LEFT - 0.06, row("integration")), color=ORANGE)
    box(axes, 0.2, row("cli") - 0.36, 1.25, 0.72, "nnunet_octreenca\ncommands", face=GREY,
        fontsize=8.5)  # fmt: skip
    arrow(axes, (1.5, row("cli")), (LEFT - 0.06, row("cli")))
    box(axes, 0.2, row("images") - 0.36, 1.25, 0.72, "images in,\nlabels out", face=LIGHT_VIOLET,
        edge=VIOLET, fontsize=9.5)  # fmt: skip
    arrow(axes, (1.5, row("images")), (LEFT - 0.06, row("images")), color=VIOLET,
          arrowstyle="<|-|>")  # fmt: skip
    box(axes, LEFT, bottom + 0.12, WIDTH, HEIGHT, face="white", edge=LINE)
    axes.text(LEFT + 0.16, bottom + 0.12 + HEIGHT / 2, "cpu/   cuda/", va="center", weight="bold")
    axes.text(
        LEFT + WIDTH - 0.16, bottom + 0.12 + HEIGHT / 2, "native engines, loaded by ops",
        va="center", ha="right", fontsize=8.5, color=QUIET,
    )  # fmt: skip
    core = row("network") - HEIGHT / 2
    axes.plot([LEFT - 0.14] * 2, [core, bottom - GAP], color=TEAL, lw=2)
    axes.text(
        LEFT - 0.24, (core + bottom - GAP) / 2, "the core:\ntorch and numpy\nonly", va="center",
        ha="right", fontsize=8.5, color=TEAL,
    )  # fmt: skip
    axes.set_aspect("equal")
    save(figure, "architecture")


if __name__ == "__main__":
    main()
