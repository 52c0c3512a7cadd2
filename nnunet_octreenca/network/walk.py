"""The automaton watched at work: the states between the steps of a pass over a whole image."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_octreenca.network.octreenca import OctreeNCA
from nnunet_octreenca.octree import image_pyramid, windows
from nnunet_octreenca.ops import nca_steps_channels_last
from nnunet_octreenca.ops.finite import NonFiniteCells


class Moment(NamedTuple):
    """A state on the way from the coarsest level to the finest.

    Attributes:
        level: 0 is the finest.
        step: how many steps of this level are done; 0 as the level begins.
        state: (N, *spatial, C), channels [image n_in | logits K | hidden].
    """

    level: int
    step: int
    state: Tensor


@torch.no_grad()
def walk(
    network: OctreeNCA, image: Tensor, seed: int | None = None, *, every: int | None = 1
) -> Iterator[Moment]:
    """The states of one pass, from the coarsest level to the finest, computed in float32.

    The states are those of the pass to the bit, on whichever engine: each one is computed from its
    level's beginning, because engines run the steps of a level together. All steps of a level of n
    steps cost n (n + 1) / 2.

    Args:
        network: in evaluation mode.
        image: (N, n_in, *spatial) of any size, where the network lies.
        seed: of the fire draws; the network's if left out.
        every: steps between two moments of a level; a level's first and last state are always
            among them. None for these two alone.

    Yields:
        The moments; `automaton().head` of the last state gives the logits of `OctreeNCA.infer`.

    Raises:
        InputError: the image has other channels or axes than the network.
        NotFiniteError: cells of a level are NaN or infinite after its steps.
        ValueError: `every` is below 1.

    >>> network = OctreeNCA(1, 2, dimension=2, factors=[[2, 2]], steps=[2, 3])
    >>> [(m.level, m.step, *m.state.shape) for m in walk(network, torch.zeros(1, 1, 5, 4), every=2)]
    [(1, 0, 1, 3, 2, 16), (1, 2, 1, 3, 2, 16), (1, 3, 1, 3, 2, 16), \
(0, 0, 1, 5, 4, 16), (0, 2, 1, 5, 4, 16)]
    """
    if every is not None and every < 1:
        raise ValueError(f"every ({every}) must be at least 1")
    image = network.checked(image)
    images = image_pyramid(image, network.factors)
    origins = [(0,) * network.dimension] * image.shape[0]
    boxes = windows(image.shape[2:], network.factors, None, origins)
    non_finite = NonFiniteCells(len(network.steps), image.device)
    state: Tensor | None = None
    for level in reversed(range(len(network.steps))):
        first = network.enter_level(level, images[level], boxes, state)
        yield Moment(level, 0, first)
        for step in _stops(network.steps[level], every):
            state = run_level(network, first, level, step, seed)
            if step == network.steps[level]:
                non_finite.add_state(level, state)
            yield Moment(level, step, state)
        if not network.steps[level]:
            state = first
    non_finite.check(network.steps, half=False)


def run_level(
    network: OctreeNCA, state: Tensor, level: int, steps: int, seed: int | None = None
) -> Tensor:
    """`steps` steps of a level, from a state (N, *spatial, C) of the whole level."""
    return nca_steps_channels_last(
        state,
        network.level_weights(level),
        steps,
        fire_rate=network.fire_rate,
        seed=network.seed if seed is None else seed,
        level=level,
    )


def _stops(steps: int, every: int | None) -> list[int]:
    """The steps after which a state is wanted, the last one always among them.

    >>> _stops(5, 2), _stops(4, None), _stops(0, 1)
    ([2, 4, 5], [4], [])
    """
    if not steps:
        return []
    return [*range(every, steps, every), steps] if every is not None else [steps]
