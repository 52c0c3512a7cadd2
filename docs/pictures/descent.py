"""What each level knows: a small network is trained, then watched on its way down.

python docs/pictures/descent.py [FOLDER] [--iterations N]

Images are slices of phantoms. The network has to find the organ; vessels are as bright as it is.
Training takes a minute or two on two cores.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.patches import Rectangle
from style import INK, QUIET, TO_TEAL, arrow, canvas, save

from nnunet_octreenca import OctreeNCA, nca_steps
from nnunet_octreenca.datasets.phantoms import BRIGHTNESS, draw_anatomy, draw_image
from nnunet_octreenca.octree import image_pyramid, level_shapes, upsample
from nnunet_octreenca.planning.rules import level_factors, level_steps
from nnunet_octreenca.training import SegmentationLoss

SHAPE = (24, 64, 64)
PLANES = (10, 12, 14)
TRAINING_SLICES, BATCH, LEARNING_RATE = 120, 4, 1.6e-3
SIDE, GAP, TOP, BOTTOM = 1.5, 0.34, 0.5, 0.5  # inches

Slice = tuple[np.ndarray, np.ndarray]


def slices(seed: int) -> Iterator[Slice]:
    """Endless normalised images and organs, (y, x) each."""
    generator = np.random.default_rng(seed)
    while True:
        tissue, labels = draw_anatomy(SHAPE, generator)
        volume = draw_image(tissue, BRIGHTNESS, generator).astype(np.float32)
        for plane in PLANES:
            image = volume[plane]
            yield (image - image.mean()) / image.std(), labels[plane] > 0


def trained(iterations: int) -> OctreeNCA:
    """A network after so many iterations."""
    torch.manual_seed(0)
    factors = level_factors(SHAPE[1:])
    steps = level_steps(level_shapes(SHAPE[1:], factors))
    network = OctreeNCA(1, 2, dimension=2, factors=factors, steps=steps)
    loss = SegmentationLoss()
    adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.PolynomialLR(adam, iterations, power=0.9)
    source = slices(0)
    pool = [next(source) for _ in range(TRAINING_SLICES)]
    generator = np.random.default_rng(1)
    for iteration in range(iterations):
        chosen = [pool[n] for n in generator.integers(0, len(pool), BATCH)]
        images, organs = (
            torch.from_numpy(np.stack(part))[:, None] for part in zip(*chosen, strict=True)
        )
        adam.zero_grad()
        loss(network(images, seed=iteration), organs.to(torch.int16)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def descent(network: OctreeNCA, image: torch.Tensor) -> list[torch.Tensor]:
    """The organ's logit (y, x) after each level of an image (y, x), coarsest first."""
    pyramid = image_pyramid(image[None, None], network.factors)
    state, logits = torch.zeros(1, network.level_channels[-1], *pyramid[-1].shape[2:]), []
    for level in reversed(range(len(network.steps))):
        if level < len(network.factors):
            state = upsample(state, network.factors[level], pyramid[level].shape[2:])
        state = torch.cat([pyramid[level], state[:, 1:]], 1)
        weights = network.levels[level].weights()
        state = nca_steps(state, weights, network.steps[level], seed=0, level=level)
        logits.append(state[0, 1])
    return logits


def main() -> None:
    """Train, draw and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--iterations", type=int, default=600)
    network = trained(parser.parse_args().iterations)
    image, organ = next(slices(100))
    logits = descent(network, torch.from_numpy(image))
    whole = network(torch.from_numpy(image)[None, None], seed=0)[0, 1]
    assert torch.allclose(logits[-1], whole, atol=1e-3), "the descent is not the network's"

    panels = [("image", f"{len(image)} x {len(image)}", image, {"cmap": "bone"})]
    for level, logit in zip(reversed(range(len(logits))), logits, strict=True):
        below = f"{len(logit)} x {len(logit)}, {network.steps[level]} steps"
        style = {"cmap": TO_TEAL, "vmin": 0, "vmax": 1}
        panels.append((f"level {level}", below, logit.sigmoid().numpy(), style))
    panels.append(("ground truth", "", organ, style))
    width, height = 0.4 + len(panels) * (SIDE + GAP) - GAP, TOP + SIDE + BOTTOM
    figure, axes = canvas(width, height)
    for number, (title, below, values, style) in enumerate(panels):
        x, middle = 0.2 + number * (SIDE + GAP), TOP + SIDE / 2
        extent = (x, x + SIDE, TOP + SIDE, TOP)
        axes.imshow(values, extent=extent, interpolation="nearest", **style)
        axes.add_patch(Rectangle((x, TOP), SIDE, SIDE, fill=False, edgecolor=INK, lw=0.8))
        centred = {"x": x + SIDE / 2, "ha": "center"}
        axes.text(y=TOP - 0.12, s=title, va="bottom", weight="bold", **centred)
        axes.text(y=TOP + SIDE + 0.13, s=below, va="top", fontsize=9, color=QUIET, **centred)
        if 0 < number < len(panels) - 1:
            arrow(axes, (x - GAP + 0.05, middle), (x - 0.05, middle))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    save(figure, "descent")


if __name__ == "__main__":
    main()
