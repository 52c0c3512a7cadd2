"""The PyTorch engine: any device, any floating type; the oracle for the other engines.

States are channels-last, (N, *spatial, C), contiguous. Only the cells that fire are computed,
in chunks, so that no hidden activation of a whole level is ever held. The backward pass
recomputes them from each step's input state.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_octreenca.ops.fire import fire_mask
from nnunet_octreenca.ops.perceive import perceive, perceive_backward
from nnunet_octreenca.ops.weights import StepWeights

# Cells computed at once: on a CPU the chunk's 2 C + H floats a cell stay in the L2 cache,
# on a GPU a launch has enough to do (and 128 MiB of it at C = 16).
_CPU_CHUNK = 4096
_GPU_CHUNK = 1 << 17
# Rows come in multiples of this: for a last chunk of less than 16 cells MKL adds up in another
# order, and a crop would differ from the whole in the last bit.
_ROWS = 64


def fired_cells(
    state: Tensor, fire_rate: float, seed: int, level: int, step: int, origin: Sequence[int]
) -> Tensor:
    """Flat indices (over N and the spatial axes) of the cells that fire.

    Args:
        state: (N, *spatial, C).
        origin: coordinates of the first cell, sample by sample: N * dimension numbers.
    """
    batch, spatial = state.shape[0], state.shape[1:-1]
    dimension = len(spatial)
    masks = [
        fire_mask(
            spatial,
            fire_rate=fire_rate,
            seed=seed,
            level=level,
            step=step,
            sample=sample,
            origin=origin[sample * dimension : (sample + 1) * dimension],
            device=state.device,
        )
        for sample in range(batch)
    ]
    return torch.stack(masks).flatten().nonzero()[:, 0]


def _chunks(cells: Tensor) -> Iterator[Tensor]:
    return iter(cells.split(_CPU_CHUNK if cells.device.type == "cpu" else _GPU_CHUNK))


def _padded(cells: Tensor) -> Tensor:
    """The last cell again until there is a multiple of `_ROWS`."""
    missing = -len(cells) % _ROWS
    return torch.cat([cells, cells[-1:].expand(missing)]) if missing else cells


def _inputs(state: Tensor, perceived: Tensor, cells: Tensor) -> Tensor:
    """[state | perceived] of some cells, (len(cells), 2 C)."""
    channels = state.shape[-1]
    return torch.cat(
        [
            state.view(-1, channels).index_select(0, cells),
            perceived.view(-1, channels).index_select(0, cells),
        ],
        1,
    )


def step(state: Tensor, weights: StepWeights, cells: Tensor, out: Tensor) -> None:
    """One step: perceive, update, fire (DESIGN section 1).

    Args:
        state: (N, *spatial, C).
        cells: flat indices of the cells that fire.
        out: where the new state is written, shaped like `state` and not overlapping it.
    """
    perceived = perceive(state, weights.perceive_weight, weights.perceive_bias)
    out.copy_(state)
    changing = out.view(-1, weights.channels)[:, weights.input_channels :]
    for chunk in _chunks(cells):
        inputs = _inputs(state, perceived, _padded(chunk))
        hidden = functional.linear(inputs, weights.hidden_weight, weights.hidden_bias).relu_()
        update = functional.linear(hidden, weights.update_weight)
        changing.index_add_(0, chunk, update[: len(chunk)])


def step_backward(
    grad_out: Tensor, state: Tensor, weights: StepWeights, cells: Tensor
) -> tuple[Tensor, StepWeights]:
    """Gradients of one step with respect to its input state and the weights.

    Args:
        grad_out: gradient of the new state, (N, *spatial, C).
        state: the step's input state.
        cells: flat indices of the cells that fired.
    """
    channels, inputs_ = weights.channels, weights.input_channels
    perceived = perceive(state, weights.perceive_weight, weights.perceive_bias)
    grad_state = grad_out.clone()
    grad_perceived = torch.zeros_like(perceived)
    grad_hidden_weight = torch.zeros_like(weights.hidden_weight)
    grad_hidden_bias = torch.zeros_like(weights.hidden_bias)
    grad_update_weight = torch.zeros_like(weights.update_weight)
    for chunk in _chunks(cells):
        inputs = _inputs(state, perceived, chunk)
        hidden = functional.linear(inputs, weights.hidden_weight, weights.hidden_bias).relu_()
        grad_update = grad_out.view(-1, channels).index_select(0, chunk)[:, inputs_:]
        grad_update_weight.addmm_(grad_update.t(), hidden)
        grad_hidden = (grad_update @ weights.update_weight).mul_(hidden > 0)
        grad_hidden_weight.addmm_(grad_hidden.t(), inputs)
        grad_hidden_bias.add_(grad_hidden.sum(0))
        grad_inputs = grad_hidden @ weights.hidden_weight
        grad_state.view(-1, channels).index_add_(0, chunk, grad_inputs[:, :channels])
        grad_perceived.view(-1, channels).index_copy_(0, chunk, grad_inputs[:, channels:])
    del perceived
    through, grad_kernel, grad_bias = perceive_backward(
        grad_perceived, state, weights.perceive_weight
    )
    grads = StepWeights(
        grad_kernel, grad_bias, grad_hidden_weight, grad_hidden_bias, grad_update_weight
    )
    return grad_state.add_(through), grads


def forward(
    state: Tensor,
    weights: StepWeights,
    steps: int,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
    keep_trajectory: bool,
) -> tuple[Tensor, Tensor]:
    """All steps of a level.

    Returns:
        the state after the last step, and the input states of all steps, (steps, *state.shape),
        or an empty tensor where the trajectory is not to be kept (then two states are held).
    """
    with torch.autocast(state.device.type, enabled=False):
        if keep_trajectory:
            trajectory = state.new_empty((steps, *state.shape))
            if steps:
                trajectory[0].copy_(state)
        else:
            trajectory = state.new_empty(0)
        current, spare = state, None
        for number in range(steps):
            cells = fired_cells(current, fire_rate, seed, level, number, origin)
            if keep_trajectory and number + 1 < steps:
                target = trajectory[number + 1]
            else:
                target = spare if spare is not None else torch.empty_like(state)
            step(current, weights, cells, target)
            # The caller's tensor is never written to.
            spare = None if current is state or keep_trajectory else current
            current = target
        return (state.clone() if current is state else current), trajectory


def backward(
    grad_out: Tensor,
    trajectory: Tensor,
    weights: StepWeights,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
) -> tuple[Tensor, StepWeights]:
    """Gradients of `forward` with respect to the first state and the weights.

    Args:
        grad_out: gradient of the last state, (N, *spatial, C).
        trajectory: input states of all steps, (steps, N, *spatial, C).
    """
    with torch.autocast(grad_out.device.type, enabled=False):
        total = StepWeights(*(torch.zeros_like(weight) for weight in weights))
        grad = grad_out
        for number in reversed(range(trajectory.shape[0])):
            state = trajectory[number]
            cells = fired_cells(state, fire_rate, seed, level, number, origin)
            grad, grads = step_backward(grad, state, weights, cells)
            for accumulated, new in zip(total, grads, strict=True):
                accumulated.add_(new)
        # An operator may not hand back what it was given.
        return (grad_out.clone() if grad is grad_out else grad), total
