"""`nca_steps` as a torch.library operator: fake tensors, autograd, torch.compile, export.

The operators work on channels-last states, (N, *spatial, C), which is what every engine
computes on and what the network carries from level to level; `nca_steps` takes PyTorch's
(N, C, *spatial). `ops.engine` chooses who computes. An operator's arguments are tensors and
numbers, and each of its functions must name them all. So the four signatures below repeat one
another, and an engine travels as its name. The schemas are written out because PyTorch 2.6 cannot
derive them from `collections.abc.Sequence`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_octreenca.ops.engine import engine_for, engine_named
from nnunet_octreenca.ops.fire import FireDraws, fire_threshold
from nnunet_octreenca.ops.weights import StepWeights

_WEIGHTS = ", ".join(f"Tensor {name}" for name in StepWeights._fields)
_FORWARD = (
    f"(Tensor state, {_WEIGHTS}, SymInt steps, float fire_rate, SymInt seed, SymInt level, "
    f"SymInt[] origin, bool keep_trajectory, str engine) -> (Tensor, Tensor)"
)
_BACKWARD = (
    f"(Tensor grad_out, Tensor out, Tensor trajectory, {_WEIGHTS}, float fire_rate, SymInt seed, "
    f"SymInt level, SymInt[] origin, str engine) -> "
    f"(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("nnunet_octreenca::nca_steps", mutates_args=(), schema=_FORWARD)
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
    engine: str,
) -> tuple[Tensor, Tensor]:
    weights = StepWeights(perceive_weight, perceive_bias, hidden_weight, hidden_bias, update_weight)
    draws = FireDraws(fire_rate, seed, level, origin)
    return engine_named(engine).forward(state, weights, steps, draws, keep_trajectory)


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
    engine: str,
) -> tuple[Tensor, Tensor]:
    channels = engine_named(engine).trajectory_channels(state.shape[-1], update_weight.shape[0])
    kept = (steps, *state.shape[:-1], channels) if keep_trajectory else (0,)
    return state.new_empty(state.shape), state.new_empty(kept)


@torch.library.custom_op("nnunet_octreenca::nca_steps_backward", mutates_args=(), schema=_BACKWARD)
def _nca_steps_backward(
    grad_out: Tensor,
    out: Tensor,
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
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = StepWeights(perceive_weight, perceive_bias, hidden_weight, hidden_bias, update_weight)
    draws = FireDraws(fire_rate, seed, level, origin)
    grad, grads = engine_named(engine).backward(grad_out, out, trajectory, weights, draws)
    return (grad, *grads)


@_nca_steps_backward.register_fake
def _(
    grad_out: Tensor,
    out: Tensor,
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
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        grad_out.new_empty(grad_out.shape),
        torch.empty_like(perceive_weight),
        torch.empty_like(perceive_bias),
        torch.empty_like(hidden_weight),
        torch.empty_like(hidden_bias),
        torch.empty_like(update_weight),
    )


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:  # ctx: autograd's FunctionCtx, which takes any attribute
    state, *weights = inputs[:6]
    arguments = inputs[6:]
    out, trajectory = output
    engine, keep_trajectory = arguments[-1], arguments[-2]
    saved: tuple[Tensor, ...]
    if not keep_trajectory:  # the backward pass recomputes it from the first state
        saved = (state,)
    elif engine_named(engine).backward_needs_out:
        saved = (out, trajectory)
    else:
        saved = (trajectory,)
    ctx.save_for_backward(*weights, *saved)
    # Else autograd hands the backward pass zeros in the trajectory's size.
    ctx.set_materialize_grads(False)
    ctx.arguments = arguments


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_trajectory: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 13
    weights, saved = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    *arguments, keep_trajectory, engine = ctx.arguments
    if not keep_trajectory:
        saved = torch.ops.nnunet_octreenca.nca_steps(*saved, *weights, *arguments, True, engine)
    trajectory = saved[-1]
    out = saved[0] if engine_named(engine).backward_needs_out else grad_out.new_empty(0)
    grads = torch.ops.nnunet_octreenca.nca_steps_backward(
        grad_out, out, trajectory, *weights, *arguments[1:], engine
    )
    return (*grads, None, None, None, None, None, None, None)


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
    each step keeps its input state (4 C bytes a cell in float32; the C++ engine keeps only the
    cells that fire, and of them what changes) and the backward pass recomputes the rest.

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
        ValueError: shapes that do not fit, weights of another type or on another device than the
            state, a negative number of steps, a fire rate outside
            [0, 1], or a state that reaches beyond `full_shape`.

    >>> weights = StepWeights(torch.zeros(4, 3, 3), torch.zeros(4), torch.zeros(8, 8),
    ...                       torch.ones(8), torch.ones(3, 8))
    >>> nca_steps(torch.zeros(1, 4, 1, 1), weights, steps=2, fire_rate=1.0).flatten().tolist()
    [0.0, 16.0, 16.0, 16.0]
    """
    out = nca_steps_channels_last(
        state.movedim(1, -1) if state.ndim > 1 else state,
        weights,
        steps,
        fire_rate=fire_rate,
        seed=seed,
        level=level,
        origin=origin,
        full_shape=full_shape,
    )
    return out.movedim(-1, 1)


def nca_steps_channels_last(
    state: Tensor,
    weights: StepWeights,
    steps: int,
    *,
    fire_rate: float = 0.5,
    seed: int = 0,
    level: int = 0,
    origin: Sequence[int] | Sequence[Sequence[int]] | None = None,
    full_shape: Sequence[int] | None = None,
) -> Tensor:
    """`nca_steps` of a state (N, *spatial, C), which comes back in the same layout.

    Raises: what `nca_steps` raises, in terms of (N, C, *spatial).
    """
    weights.check()
    # Not `weights.dimension`: PyTorch 2.6 cannot compile a named tuple's properties.
    dimension, channels = weights.perceive_weight.ndim - 1, weights.perceive_weight.shape[0]
    if state.ndim != dimension + 2 or state.shape[-1] != channels:
        shape = (*state.shape[:1], *state.shape[-1:], *state.shape[1:-1]) if state.ndim > 1 else ()
        raise ValueError(
            f"state {tuple(shape)} must be (N, {channels}, "
            f"{'y, x' if dimension == 2 else 'z, y, x'}) for these weights"
        )
    weights.check_like(state)
    if steps < 0:
        raise ValueError(f"steps ({steps}) must be at least 0")
    fire_threshold(fire_rate)
    batch, spatial = state.shape[0], state.shape[1:-1]
    origins = _origins(origin, batch, dimension)
    if full_shape is not None:
        for first in origins:
            for axis in range(dimension):
                if first[axis] < 0 or first[axis] + spatial[axis] > full_shape[axis]:
                    raise ValueError(
                        f"axis {axis}: cells {first[axis]} to {first[axis] + spatial[axis] - 1} "
                        f"are not within the level's {full_shape[axis]}"
                    )
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (state, *weights))
    out: Tensor
    out, _ = torch.ops.nnunet_octreenca.nca_steps(
        state,
        *weights,
        steps,
        float(fire_rate),
        _signed64(seed),
        level,
        [coordinate for first in origins for coordinate in first],
        keep,
        engine_for(state, weights).name,
    )
    return out


def _signed64(value: int) -> int:
    """The int64 with the same low 64 bits, which is what an operator can take."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _origins(
    origin: Sequence[int] | Sequence[Sequence[int]] | None, batch: int, dimension: int
) -> list[list[int]]:
    """One origin a sample."""
    rows: list[Sequence[int]] = []
    alone: list[int] = []
    for entry in (0,) * dimension if origin is None else origin:
        if isinstance(entry, Sequence):
            rows.append(entry)
        else:
            alone.append(int(entry))
    per_sample = [[int(c) for c in row] for row in rows] if rows else [alone] * batch
    mixed = bool(rows and alone)
    if mixed or len(per_sample) != batch or any(len(row) != dimension for row in per_sample):
        raise ValueError(
            f"origin {origin} must be {dimension} coordinates, once or for each of the "
            f"{batch} samples"
        )
    return per_sample
