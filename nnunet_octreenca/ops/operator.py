"""`nca_steps` as a torch.library operator: fake tensors, autograd, torch.compile, export.

The operators work on channels-last states, (N, *spatial, C), which is what every engine
computes on; the function below takes PyTorch's (N, C, *spatial).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_octreenca.ops import torch_engine
from nnunet_octreenca.ops.fire import fire_threshold
from nnunet_octreenca.ops.weights import StepWeights


@torch.library.custom_op("nnunet_octreenca::nca_steps", mutates_args=())
def _nca_steps(
    state: Tensor,
    perceive_weight: Tensor,
    perceive_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    update_weight: Tensor,
    steps: int,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
    keep_trajectory: bool,
) -> tuple[Tensor, Tensor]:
    weights = StepWeights(perceive_weight, perceive_bias, hidden_weight, hidden_bias, update_weight)
    return torch_engine.forward(
        state.contiguous(), weights, steps, fire_rate, seed, level, origin, keep_trajectory
    )


@_nca_steps.register_fake
def _(
    state: Tensor,
    perceive_weight: Tensor,
    perceive_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    update_weight: Tensor,
    steps: int,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
    keep_trajectory: bool,
) -> tuple[Tensor, Tensor]:
    trajectory = state.new_empty((steps, *state.shape) if keep_trajectory else (0,))
    return state.new_empty(state.shape), trajectory


@torch.library.custom_op("nnunet_octreenca::nca_steps_backward", mutates_args=())
def _nca_steps_backward(
    grad_out: Tensor,
    trajectory: Tensor,
    perceive_weight: Tensor,
    perceive_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    update_weight: Tensor,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = StepWeights(perceive_weight, perceive_bias, hidden_weight, hidden_bias, update_weight)
    grad, grads = torch_engine.backward(
        grad_out.contiguous(), trajectory, weights, fire_rate, seed, level, origin
    )
    return (grad, *grads)


@_nca_steps_backward.register_fake
def _(
    grad_out: Tensor,
    trajectory: Tensor,
    perceive_weight: Tensor,
    perceive_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    update_weight: Tensor,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        grad_out.new_empty(grad_out.shape),
        torch.empty_like(perceive_weight),
        torch.empty_like(perceive_bias),
        torch.empty_like(hidden_weight),
        torch.empty_like(hidden_bias),
        torch.empty_like(update_weight),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    state, *weights = inputs[:6]
    steps, fire_rate, seed, level, origin, keep_trajectory = inputs[6:]
    # Without a trajectory the backward pass recomputes it from the first state.
    ctx.save_for_backward(output[1] if keep_trajectory else state, *weights)
    # Else autograd hands the backward pass zeros in the trajectory's size.
    ctx.set_materialize_grads(False)
    ctx.arguments = (steps, fire_rate, seed, level, origin, keep_trajectory)


def _backward(ctx, grad_out, grad_trajectory):  # type: ignore[no-untyped-def]
    if grad_out is None:
        return (None,) * 12
    trajectory, *weights = ctx.saved_tensors
    steps, fire_rate, seed, level, origin, keep_trajectory = ctx.arguments
    if not keep_trajectory:
        _, trajectory = torch.ops.nnunet_octreenca.nca_steps(
            trajectory, *weights, steps, fire_rate, seed, level, origin, True
        )
    grads = torch.ops.nnunet_octreenca.nca_steps_backward(
        grad_out, trajectory, *weights, fire_rate, seed, level, origin
    )
    return (*grads, None, None, None, None, None, None)


_nca_steps.register_autograd(_backward, setup_context=_setup_context)


def nca_steps(
    state: Tensor,
    weights: StepWeights,
    steps: int,
    fire_rate: float = 0.5,
    seed: int = 0,
    level: int = 0,
    origin: Sequence[int] | Sequence[Sequence[int]] | None = None,
    full_shape: Sequence[int] | None = None,
) -> Tensor:
    """Run n steps of one level (paper section 3; DESIGN section 1).

    One step, for every cell: perceive the neighbourhood with a depthwise convolution
    (reflect padding), map [state, perceived] through linear, ReLU, linear to an update of the
    non-image channels, and add it where the cell fires.

    Differentiable with respect to the state and the weights. No hidden activation is stored:
    each step keeps its input state (4 C bytes a cell in float32) and the backward pass
    recomputes the rest.

    Args:
        state: (N, C, *spatial), spatial (y, x) or (z, y, x); channels
            [image n_in | logits K | hidden]. Not changed.
        weights: the level's weights, in the state's type and on its device.
        steps: how many, at least 0.
        fire_rate: probability that a cell applies its update, 0 to 1.
        seed: of the fire draws; same seed, same result.
        level: enters the draws only.
        origin: coordinates in the whole level of the first cell, one for all samples or one
            each; zeros if left out. A crop with its origin draws what the whole would draw
            there.
        full_shape: cells of the whole level per axis, of which the state is a part; the
            state's own shape if left out.

    Returns:
        The state after `steps` steps, (N, C, *spatial).

    Raises:
        ValueError: shapes that do not fit, a negative number of steps, a fire rate outside
            [0, 1], or a state that reaches beyond `full_shape`.

    >>> weights = StepWeights(torch.zeros(4, 3, 3), torch.zeros(4), torch.zeros(8, 8),
    ...                       torch.ones(8), torch.ones(3, 8))
    >>> nca_steps(torch.zeros(1, 4, 1, 1), weights, steps=2, fire_rate=1.0).flatten().tolist()
    [0.0, 16.0, 16.0, 16.0]
    """
    weights.check()
    dimension = weights.dimension
    if state.ndim != dimension + 2 or state.shape[1] != weights.channels:
        raise ValueError(
            f"state {tuple(state.shape)} must be (N, {weights.channels}, "
            f"{'y, x' if dimension == 2 else 'z, y, x'}) for these weights"
        )
    if steps < 0:
        raise ValueError(f"steps ({steps}) must be at least 0")
    fire_threshold(fire_rate)
    batch, spatial = state.shape[0], state.shape[2:]
    origins = _origins(origin, batch, dimension)
    if full_shape is not None:
        for first in origins:
            for axis in range(dimension):
                if first[axis] < 0 or first[axis] + spatial[axis] > full_shape[axis]:
                    raise ValueError(
                        f"axis {axis}: cells {first[axis]} to {first[axis] + spatial[axis] - 1} "
                        f"are not within the level's {full_shape[axis]}"
                    )
    tensors = (state, *weights)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    out, _ = torch.ops.nnunet_octreenca.nca_steps(
        state.movedim(1, -1),
        *weights,
        steps,
        float(fire_rate),
        _signed64(seed),
        level,
        [coordinate for first in origins for coordinate in first],
        keep,
    )
    return out.movedim(-1, 1)


def _signed64(value: int) -> int:
    """The int64 with the same low 64 bits, which is what an operator can take."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _origins(origin: Sequence[Any] | None, batch: int, dimension: int) -> list[list[int]]:
    """One origin a sample."""
    if origin is None:
        origin = (0,) * dimension
    rows: Sequence[Any] = origin
    if not any(isinstance(row, Sequence) for row in rows):
        rows = [rows] * batch
    per_sample = [[int(c) for c in row] for row in rows]
    if len(per_sample) != batch or any(len(row) != dimension for row in per_sample):
        raise ValueError(
            f"origin {origin} must be {dimension} coordinates, once or for each of the "
            f"{batch} samples"
        )
    return per_sample
