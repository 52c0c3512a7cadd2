"""The PyTorch engine: any device, any floating type; the oracle for the other engines.

States are channels-last, (N, *spatial, C), contiguous. Only the cells that fire are computed,
in chunks, so that no hidden activation of a whole level is ever held. The backward pass
recomputes them from each step's input state.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_octreenca.octree import upsample
from nnunet_octreenca.ops.automaton import Automaton, Part
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.fire import FireDraws, fire_mask
from nnunet_octreenca.ops.perceive import perceive, perceive_backward
from nnunet_octreenca.ops.weights import StepWeights

name = "torch"
backward_needs_out = False
low_precision = False
on_gpu = False

# Cells computed at once: on a CPU the chunk's 2 C + H floats a cell stay in the L2 cache,
# on a GPU a launch has enough to do (and 128 MiB of it at C = 16).
CPU_CHUNK = 4096
_GPU_CHUNK = 1 << 17
# Rows come in multiples of this: for a last chunk of less than 16 cells MKL adds up in another
# order, and a crop would differ from the whole in the last bit.
_ROWS = 64


def unsupported_reason(tensor: Tensor, weights: StepWeights) -> str | None:
    """None: PyTorch computes on any device, in any floating type."""
    return None


def supports(tensor: Tensor, weights: StepWeights) -> bool:
    """Always: what no other engine takes is computed here."""
    return True


def padded_channels(channels: int) -> int:
    """Channels from one cell of a state to the next: no more than there are."""
    return channels


def trajectory_channels(channels: int, changing: int) -> int:
    """Channels of a cell in the trajectory that `forward` keeps."""
    return channels


def fired_cells(state: Tensor, draws: FireDraws, step: int) -> Tensor:
    """Flat indices (over N and the spatial axes) of the cells that fire.

    Args:
        state: (N, *spatial, C).
    """
    spatial = state.shape[1:-1]
    masks = [
        fire_mask(
            spatial,
            fire_rate=draws.fire_rate,
            seed=draws.seed,
            level=draws.level,
            step=step,
            sample=sample,
            origin=origin,
            device=state.device,
        )
        for sample, origin in enumerate(draws.origins(len(spatial)))
    ]
    return torch.stack(masks).flatten().nonzero()[:, 0]


def _chunks(cells: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(cells, CPU_CHUNK if cells.device.type == "cpu" else _GPU_CHUNK))


def _padded(cells: Tensor) -> Tensor:
    """Repeat the last cell until there is a multiple of `_ROWS`."""
    missing = -len(cells) % _ROWS
    if not missing:
        return cells
    return torch.cat([cells, cells[-1:].expand(missing, *cells.shape[1:])])


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


def hand_down(others: Tensor, from_parent: Tensor) -> Tensor:
    """What children take of their parents' logits and hidden channels, on the parents' grid.

    Here differentiable with respect to both.

    Args:
        others: (N, *spatial, C of the parents - n_in).
        from_parent: (C of the children - n_in, C of the parents - n_in).

    Returns:
        (N, *spatial, C of the children - n_in).
    """
    with torch.autocast(others.device.type, enabled=False):
        mapped = [
            functional.linear(_padded(cells), from_parent)[: len(cells)]
            for cells in _chunks(others.reshape(-1, others.shape[-1]))
        ]
    return torch.cat(mapped).view(*others.shape[:-1], from_parent.shape[0])


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
    draws: FireDraws,
    keep_trajectory: bool,
) -> tuple[Tensor, Tensor]:
    """All steps of a level.

    Args:
        state: (N, *spatial, C), any strides; not changed.

    Returns:
        the state after the last step, and the input states of all steps, (steps, *state.shape),
        or an empty tensor where the trajectory is not to be kept (then two states are held).
    """
    state = state.contiguous()
    with torch.autocast(state.device.type, enabled=False):
        if keep_trajectory:
            trajectory = state.new_empty((steps, *state.shape))
            if steps:
                trajectory[0].copy_(state)
        else:
            trajectory = state.new_empty(0)
        current, spare = state, None
        for number in range(steps):
            cells = fired_cells(current, draws, number)
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
    grad_out: Tensor, out: Tensor, trajectory: Tensor, weights: StepWeights, draws: FireDraws
) -> tuple[Tensor, StepWeights]:
    """Gradients of `forward` with respect to the first state and the weights.

    Args:
        grad_out: gradient of the last state, (N, *spatial, C), any strides.
        out: the last state; not looked at.
        trajectory: input states of all steps, (steps, N, *spatial, C).
    """
    grad_out = grad_out.contiguous()
    with torch.autocast(grad_out.device.type, enabled=False):
        total = StepWeights(*(torch.zeros_like(weight) for weight in weights))
        grad = grad_out
        for number in reversed(range(trajectory.shape[0])):
            state = trajectory[number]
            cells = fired_cells(state, draws, number)
            grad, grads = step_backward(grad, state, weights, cells)
            for accumulated, new in zip(total, grads, strict=True):
                accumulated.add_(new)
        # An operator may not hand back what it was given.
        return (grad_out.clone() if grad is grad_out else grad), total


@torch.no_grad()
def octree_windows(
    images: list[Tensor],
    automaton: Automaton,
    seed: int,
    part: Part,
    *,
    labels: Tensor | None = None,
    state: str | None = None,
    non_finite: NonFiniteCells | None = None,
) -> Tensor | None:
    """Some levels of an octree on windows of one image, from the coarsest of these to the finest.

    Args:
        images: window of every level, finest first, (1, n_in, *spatial); emptied on the way, so
            that its memory is free for the next level.
        seed: of the fire draws.
        part: where the windows lie.
        labels: (1, *spatial) uint8 or int16, to be filled.
        state: "float32" or None.
        non_finite: counts the cells that are not finite.

    Returns:
        The finest level's state, (1, *spatial, C); None where it ended in labels.

    Raises:
        ValueError: another precision.
    """
    if state not in (None, "float32"):
        raise ValueError(f"state={state!r} needs the C++ engine or the CUDA engine")
    rest = (0,) * (automaton.dimension - 1)
    current, current_origin = part.parent, part.parent_origin
    while images:
        number, origin = part.finest + len(images) - 1, part.origins[len(images) - 1]
        image = images.pop().movedim(1, -1)
        if current is None:
            hidden = automaton.weights[number].channels - automaton.input_channels
            others = image.new_zeros((*image.shape[:-1], hidden))
        else:
            others, matrix = current[..., automaton.input_channels :], automaton.from_parent[number]
            others = upsample(
                others if matrix is None else hand_down(others, matrix),
                automaton.factors[number],
                image.shape[1:-1],
                (origin, *rest),
                (current_origin, *rest),
                first_axis=1,
            )
        draws = FireDraws(automaton.fire_rate, seed, number, (origin, *rest))
        current, current_origin = torch.cat([image, others], -1), origin
        current, _ = forward(
            current, automaton.weights[number], automaton.steps[number], draws, False
        )
        if non_finite is not None:
            first, end = part.rows(len(images), current.shape[1])
            non_finite.add_state(number, current[:, first:end])
    assert current is not None
    if labels is None:
        return current
    labels.copy_(automaton.head(current).argmax(1))
    return None
