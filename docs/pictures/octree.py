"""The levels of an octree, drawn from the planner's rules and the image pyramid.

python docs/pictures/octree.py [FOLDER]
"""

import numpy as np
import torch
from matplotlib.patches import Rectangle
from style import INK, ORANGE, QUIET, arrow, canvas, save

from nnunet_octreenca.octree import image_pyramid, level_shapes
from nnunet_octreenca.planning.rules import level_factors, level_steps

CELLS = 80
SIDE, GAP, TOP = 1.62, 0.62, 0.62  # inches
NODE = (2, 1)  # of the coarsest level, (y, x): what it covers on every level is marked


def tissue(cells: int) -> np.ndarray:
    """(y, x) in 0 to 1: a section with two glands, bright lumens and nuclei."""
    generator = np.random.default_rng(4)
    y, x = np.mgrid[:cells, :cells] / cells
    image = 0.93 - 0.25 * (((x - 0.5) / 0.47) ** 2 + ((y - 0.5) / 0.43) ** 2 < 1)
    for cy, cx, ry, rx in ((0.42, 0.36, 0.2, 0.17), (0.6, 0.68, 0.15, 0.19)):
        distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        image[distance < 1] = 0.38
        image[distance < 0.42] = 0.9
    for cy, cx in generator.uniform(0.12, 0.88, (46, 2)):
        if ((cx - 0.5) / 0.43) ** 2 + ((cy - 0.5) / 0.39) ** 2 < 1:
            image[(y - cy) ** 2 + (x - cx) ** 2 < 2e-4] -= 0.22
    return np.clip(image, 0.08, 1)


def main() -> None:
    """Draw and save."""
    image = tissue(CELLS)
    factors = level_factors(image.shape)
    shapes = level_shapes(image.shape, factors)
    steps = level_steps(shapes)
    pyramid = image_pyramid(torch.from_numpy(image)[None, None], factors)
    width = len(shapes) * SIDE + (len(shapes) - 1) * GAP + 0.4
    figure, axes = canvas(width, TOP + SIDE + 0.78)
    for level, (shape, count) in enumerate(zip(shapes, steps, strict=True)):
        x = 0.2 + level * (SIDE + GAP)
        axes.imshow(
            pyramid[level][0, 0],
            cmap="bone",
            vmin=0,
            vmax=1,
            extent=(x, x + SIDE, TOP + SIDE, TOP),
            interpolation="nearest",
        )
        axes.add_patch(Rectangle((x, TOP), SIDE, SIDE, fill=False, edgecolor=INK, linewidth=0.8))
        cell = SIDE / shapes[-1][0]
        corner = (x + NODE[1] * cell, TOP + NODE[0] * cell)
        axes.add_patch(Rectangle(corner, cell, cell, fill=False, edgecolor=ORANGE, linewidth=2))
        if shape[0] <= 20:  # the grid of cells, where it can be seen
            for line in np.linspace(0, SIDE, shape[0] + 1)[1:-1]:
                axes.plot([x, x + SIDE], [TOP + line] * 2, color=INK, linewidth=0.25)
                axes.plot([x + line] * 2, [TOP, TOP + SIDE], color=INK, linewidth=0.25)
        middle = x + SIDE / 2
        axes.text(middle, TOP - 0.13, f"level {level}", ha="center", va="bottom", weight="bold")
        axes.text(
            middle, TOP + SIDE + 0.14, f"{shape[0]} x {shape[1]} cells", ha="center", va="top"
        )
        axes.text(middle, TOP + SIDE + 0.36, f"{count} steps", ha="center", va="top", color=QUIET)
        if level:
            arrow(axes, (x - GAP + 0.08, TOP + SIDE / 2), (x - 0.08, TOP + SIDE / 2))
            axes.text(
                x - GAP / 2, TOP + SIDE / 2 - 0.1, "average\n2 x 2", ha="center", va="bottom",
                fontsize=7.5, color=QUIET,
            )  # fmt: skip
    axes.set(xlim=(0, width), ylim=(TOP + SIDE + 0.78, 0), aspect="equal")
    save(figure, "octree")


if __name__ == "__main__":
    main()
