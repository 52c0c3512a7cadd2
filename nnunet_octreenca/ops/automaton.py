"""A whole OctreeNCA, and a part of its octree, as the engines run them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_octreenca.ops.weights import StepWeights


def state_logits(state: Tensor, input_channels: int, logits: int, background: bool) -> Tensor:
    """Logits of a state.

    A function of numbers: PyTorch 2.6 cannot compile a named tuple's properties.

    Args:
        state: (N, *spatial, C).
        input_channels: n_in.
        logits: K.
        background: put a channel of zeros in front.

    Returns:
        (N, K or K + 1, *spatial).
    """
    values = state[..., input_channels : input_channels + logits].movedim(-1, 1)
    if background:
        values = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
    return values.contiguous()


class Automaton(NamedTuple):
    """All levels of an OctreeNCA as the engines run them, finest first.

    Attributes:
        weights: of all levels.
        steps: of all levels.
        factors: of the way from every level but the coarsest to the next, 1 or 2 an axis.
        from_parent: of the same ways, (C - n_in, C of the parents - n_in): the matrix that the
            parents' logits and hidden channels are multiplied with before they are copied to the
            children; None where both have as many channels and are copied as they are.
        fire_rate: probability that a cell applies its update, 0 to 1.
        logits: K; channels n_in to n_in + K of the state.
        background: label 0 where no logit is above 0; logits get a channel of zeros in front.
    """

    weights: Sequence[StepWeights]
    steps: Sequence[int]
    factors: Sequence[Sequence[int]]
    from_parent: Sequence[Tensor | None]
    fire_rate: float
    logits: int
    background: bool

    @property
    def dimension(self) -> int:
        """2 or 3 spatial axes."""
        return self.weights[0].dimension

    @property
    def input_channels(self) -> int:
        """n_in: leading channels of the state that no step changes."""
        return self.weights[0].input_channels

    def head(self, state: Tensor) -> Tensor:
        """Logits of a state (N, *spatial, C), (N, K or K + 1, *spatial) float32 (or float64)."""
        values = state_logits(state, self.input_channels, self.logits, self.background)
        return values.float() if values.dtype == torch.float16 else values


class Part(NamedTuple):
    """Some levels of an octree, and of each the cells from `origins` on along the first axis.

    Attributes:
        finest: the finest level of these.
        origins: first row or plane of each level's window, the finest first; a level's is a
            multiple of the factor to its parents.
        parent: state of the level above the coarsest of these, (1, *spatial, C as the engine pads
            it); None where there is none.
        parent_origin: first row or plane of `parent`.
        needed: of each window the first row and the end that the result depends on, counted within
            the window; the rest is margin, in which a state may well be lost. None for all.
    """

    finest: int
    origins: Sequence[int]
    parent: Tensor | None = None
    parent_origin: int = 0
    needed: Sequence[tuple[int, int]] | None = None

    def rows(self, index: int, count: int) -> tuple[int, int]:
        """The rows that the result depends on, of window `index` with `count` rows."""
        return (0, count) if self.needed is None else self.needed[index]
