"""What children take of parents with other channels, on any engine, differentiable."""

from typing import Any

import torch
from torch import Tensor

from nnunet_octreenca.ops.engine import Engine


class _HandDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, others: Tensor, from_parent: Tensor, engine: Engine) -> Tensor:
        ctx.save_for_backward(others, from_parent)
        return engine.hand_down(others, from_parent)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        others, from_parent = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            to_parents = gradient @ from_parent
            to_map = gradient.flatten(0, -2).t() @ others.flatten(0, -2)
        return to_parents, to_map, None


def hand_down(others: Tensor, from_parent: Tensor, engine: Engine) -> Tensor:
    """The parents' logits and hidden channels as the children's, on the parents' grid.

    The bits are those of the engine's whole octrees. For graphs that are compiled,
    `torch_engine.hand_down` is what PyTorch can trace.

    Args:
        others: (N, *spatial, C of the parents - n_in), any strides.
        from_parent: (C of the children - n_in, C of the parents - n_in).
        engine: what computes on such tensors.

    Returns:
        (N, *spatial, C of the children - n_in).
    """
    mapped: Tensor = _HandDown.apply(others, from_parent, engine)
    return mapped
