"""Resilience: how much of a segmentation an automaton restores after its state was disturbed.

A cellular automaton that is sure of its result returns to it (Sadafi et al. 2026). Nothing is
trained for this: the last state gets noise, a few more steps of the finest level run, and the
labels before and after are compared.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_octreenca.errors import NotFiniteError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.network.walk import run_level, walk
from nnunet_octreenca.ops.finite import LOGITS_NOT_FINITE
from nnunet_octreenca.planning import inference_bytes

NOISE = 0.25
"""Standard deviation of the noise, in those of each channel over the image."""


class Overlap(NamedTuple):
    """Cells that have the same class before and after, of those that have one.

    Attributes:
        both: cells of a class, before and after.
        before, after: cells of a class.
    """

    both: int = 0
    before: int = 0
    after: int = 0

    def __add__(self, other: object) -> "Overlap":
        """The overlap of two images together."""
        assert isinstance(other, Overlap)
        return Overlap(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def resilience(self) -> float | None:
        """Dice of the labels before and after, 0 to 1; None where neither has a class.

        >>> Overlap(30, 40, 35).resilience
        0.8
        """
        cells = self.before + self.after
        return 2 * self.both / cells if cells else None


def resilience_bytes(network: OctreeNCA, shape: tuple[int, ...]) -> int:
    """Memory that `disturbed` needs for an image of so many cells per axis."""
    return inference_bytes(shape, **network.sizes, engine="torch")


@torch.inference_mode()
def disturbed(network: OctreeNCA, image: Tensor, seed: int, noise: float = NOISE) -> Overlap:
    """Segment an image, disturb the last state, run half as many steps again, and compare.

    Every channel but the image's gets Gaussian noise of `noise` times its own standard deviation
    over the image.

    Args:
        network: in evaluation mode.
        image: (1, n_in, *spatial), normalized, where the network lies.
        seed: of the fire draws and of the noise; the steps after the noise draw with `seed` + 1.
        noise: its strength.

    Raises:
        NotFiniteError: a state became NaN or infinite.
    """
    state = image
    for moment in walk(network, image, seed, every=None):
        state = moment.state
    before = _classes(network, state)
    own = state[..., network.input_channels :]
    spread = own.flatten(0, -2).std(0, correction=0)
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    added = torch.randn(own.shape, generator=generator).to(own) * (noise * spread)
    state = torch.cat([state[..., : network.input_channels], own + added], -1)
    steps = max(1, network.steps[0] // 2)
    state = run_level(network, state, 0, steps, seed + 1)
    if not bool(torch.isfinite(state.sum())):
        raise NotFiniteError(LOGITS_NOT_FINITE)
    after = _classes(network, state)
    both = int(((before == after) & (before > 0)).sum())
    return Overlap(both, int((before > 0).sum()), int((after > 0).sum()))


def _classes(network: OctreeNCA, state: Tensor) -> Tensor:
    """The label of every cell; of regions, whether each is there."""
    logits = network.automaton().head(state)
    return logits.argmax(1) if network.constant_background else (logits > 0).to(torch.uint8)
