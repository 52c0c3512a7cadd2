"""Where a network fails: a small one is trained, then shown what it was not trained for.

python docs/pictures/failures.py [FOLDER] [--iterations N]

The network is that of `descent.py`: it finds the organ in slices of phantoms, 64 x 64 pixels of
1 mm. Below each image stand the Dice score, which needs the truth, and two numbers that do not:
how well mirrored copies and fire draws agree, and the organ's area. Training takes a minute or
two on two cores.
"""

import argparse
from itertools import combinations, islice

import numpy as np
import torch
from descent import SHAPE, slices, trained
from matplotlib.patches import Rectangle
from scipy.ndimage import zoom
from style import INK, ORANGE, QUIET, TEAL, canvas, save

from nnunet_octreenca import OctreeNCA
from nnunet_octreenca.datasets.phantoms import BRIGHTNESS, draw_anatomy, draw_image

SIDE, GAP, TOP, BOTTOM = 1.62, 0.22, 0.55, 0.95  # inches
SEEDS = (0, 1, 2)
SEEN = 60  # training slices that the usual area is taken from
PLANE = 12

Picture = tuple[np.ndarray, np.ndarray]


def raw_slice(seed: int, brightness: tuple[float, ...] = BRIGHTNESS) -> Picture:
    """A test slice as scanned and its organ, (y, x) each; the anatomy depends on the seed."""
    generator = np.random.default_rng(seed)
    tissue, labels = draw_anatomy(SHAPE, generator)
    volume = draw_image(tissue, brightness, generator).astype(np.float32)
    return volume[PLANE], labels[PLANE] > 0


def cases(seed: int = 100) -> dict[str, tuple[str, Picture]]:
    """Title, explanation, and image with its organ."""
    image, organ = raw_slice(seed)
    metal = image.copy()
    metal[6:12, 40:46] = 40 * image.max()
    inverted = raw_slice(seed, BRIGHTNESS[::-1])
    small = (zoom(image, 0.5, order=1), zoom(organ.astype(float), 0.5, order=1) > 0.5)
    large = (zoom(image, 4, order=1), zoom(organ.astype(float), 4, order=1) > 0.5)
    return {
        "as trained": ("64 x 64, 1 mm", (image, organ)),
        "out of range": ("metal, 40 x as bright", (metal, organ)),
        "wrong spacing": ("2 mm read as 1 mm", small),
        "unseen contrast": ("dark and bright swapped", inverted),
        "larger than the context": ("organ of 100 pixels", large),
    }


@torch.inference_mode()
def passes(network: OctreeNCA, image: np.ndarray) -> torch.Tensor:
    """The organ's logits (passes, y, x): every seed with every mirrored copy."""
    values = torch.from_numpy((image - image.mean()) / image.std()).float()[None, None]
    return torch.stack(
        [
            network(values.flip(axes), seed=seed).flip(axes)[0, 1]
            for seed in SEEDS
            for axes in ((), (2,), (3,), (2, 3))
        ]
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks; 1 where both are empty."""
    both = one.sum() + other.sum()
    return float(2 * (one & other).sum() / both) if both else 1.0


def agreement(logits: torch.Tensor) -> float:
    """The mean Dice score between any two passes."""
    masks = (logits > 0).numpy()
    return float(np.mean([dice(one, other) for one, other in combinations(masks, 2)]))


def main() -> None:
    """Train, draw and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--iterations", type=int, default=600)
    network = trained(parser.parse_args().iterations)
    areas = [int(organ.sum()) for _, organ in islice(slices(0), SEEN)]
    shown = cases()
    width = 0.3 + len(shown) * (SIDE + GAP) - GAP + 0.1
    figure, axes = canvas(width, TOP + SIDE + BOTTOM)
    for number, (title, (below, (image, organ))) in enumerate(shown.items()):
        logits = passes(network, image)
        found = logits.mean(0).numpy() > 0
        x = 0.2 + number * (SIDE + GAP)
        extent = (x, x + SIDE, TOP + SIDE, TOP)
        brightest = np.percentile(image, 99)
        axes.imshow(image, extent=extent, cmap="bone", vmin=0, vmax=brightest,
                    interpolation="nearest")  # fmt: skip
        for mask, colour in ((organ, ORANGE), (found, TEAL)):
            if mask.any() and not mask.all():
                axes.contour(mask[::-1], levels=[0.5], colors=[colour], linewidths=1.4,
                             extent=(x, x + SIDE, TOP + SIDE, TOP))  # fmt: skip
        axes.add_patch(Rectangle((x, TOP), SIDE, SIDE, fill=False, edgecolor=INK, lw=0.8))
        centred = {"x": x + SIDE / 2, "ha": "center", "va": "top"}
        axes.text(y=TOP - 0.4, s=title, weight="bold", fontsize=9, **centred)
        axes.text(y=TOP - 0.2, s=below, fontsize=8, color=QUIET, **centred)
        area = int(found.sum())
        usual = min(areas) <= area <= max(areas)
        lines = (
            (f"Dice {dice(found, organ):.2f}", INK),
            (f"agreement {agreement(logits):.2f}", INK),
            (f"area {area} mm²" + ("" if usual else " !"), INK if usual else ORANGE),
        )
        for row, (text, colour) in enumerate(lines):
            axes.text(y=TOP + SIDE + 0.1 + 0.2 * row, s=text, fontsize=9, color=colour, **centred)
    axes.text(0.2, TOP + SIDE + 0.76, f"teal: prediction, orange: truth; area in the training "
              f"slices: {min(areas)} to {max(areas)} mm²", fontsize=8, color=QUIET,
              va="top")  # fmt: skip
    axes.set(xlim=(0, width), ylim=(TOP + SIDE + BOTTOM, 0), aspect="equal")
    save(figure, "failures")


if __name__ == "__main__":
    main()
