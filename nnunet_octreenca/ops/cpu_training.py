"""A training step's way through all levels on the C++ engine, forward and backward.

The same as `OctreeNCA._descend` composed of operators, but nothing is copied on the way: a level's
steps run in the state that was filled for it, and its backward pass in the gradient. States, logs
and gradients are kept for the next step, which saves the system's giving out zeroed pages (a third
of a large level's forward pass).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.ops.automaton import Automaton
from nnunet_octreenca.ops.fire import fire_threshold
from nnunet_octreenca.ops.native import cpu_kernels, cpu_module
from nnunet_octreenca.ops.weights import StepWeights

SEEDS = 1 << 64
# Bytes that wait for the next step at most.
_MOST_KEPT = 1 << 29
_WORTH_KEEPING = 1 << 18

Origins = Sequence[Sequence[int]]


def module() -> ModuleType:
    """The C++ module, which must be there."""
    found = cpu_module()
    assert found is not None
    return found


def arrays(weights: StepWeights) -> list[NDArray[np.floating]]:
    """The weights as the bindings take them."""
    return [weight.detach().contiguous().numpy() for weight in weights]


class _Memory:
    """Buffers between two training steps."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []  # flat, smallest first

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with arbitrary content."""
        numbers = int(np.prod(shape, dtype=np.int64))
        for index, buffer in enumerate(self._kept):
            # Not one for another: a small tensor would hold a large buffer.
            if buffer.dtype == dtype and numbers <= buffer.numel() <= 2 * numbers:
                return self._kept.pop(index)[:numbers].view(*shape)
        return torch.empty(tuple(shape), dtype=dtype)

    def give(self, tensor: Tensor) -> None:
        """Keep a tensor's memory, which nobody else may use any more."""
        flat = tensor.view(-1)
        size = flat.numel() * flat.element_size()
        kept = sum(each.numel() * each.element_size() for each in self._kept)
        if size < _WORTH_KEEPING or kept + size > _MOST_KEPT:
            return
        self._kept = sorted([*self._kept, flat], key=Tensor.numel)

    def clear(self) -> None:
        self._kept.clear()


_memory = _Memory()


def release_memory() -> None:
    """Give back what waits for another training step."""
    _memory.clear()


class _Descent(NamedTuple):
    """What a descent computes from, besides the weights; of all levels, finest first.

    Attributes:
        images: (N, n_in, *spatial) of the whole level, or of the window.
        origins: of every level's window, for each sample.
        shapes: cells of every level's window.
    """

    images: tuple[Tensor, ...]
    origins: tuple[Origins, ...]
    shapes: tuple[Sequence[int], ...]
    automaton: Automaton
    seed: int

    def draws(self, level: int) -> tuple[int, int, int, list[list[int]]]:
        """Seed, level, threshold and origins as the bindings take them."""
        rows = [[int(at) for at in row] for row in self.origins[level]]
        return self.seed % SEEDS, level, fire_threshold(self.automaton.fire_rate), rows


class _LevelRun(NamedTuple):
    """What a level's backward pass needs."""

    state: Tensor
    log: Tensor


def _forward(at: _Descent, weights: Sequence[StepWeights]) -> list[_LevelRun]:
    """All levels, the runs finest first."""
    threads = torch.get_num_threads()
    runs: list[_LevelRun] = []
    for level in reversed(range(len(weights))):
        own, image = weights[level], at.images[level]
        shape = (image.shape[0], *at.shapes[level])
        state = _memory.take((*shape, own.channels), image.dtype)
        log = _memory.take((at.automaton.steps[level], *shape, own.update_weight.shape[0]),
                           image.dtype)  # fmt: skip
        *seeds, origins = at.draws(level)
        is_window = tuple(image.shape[2:]) == tuple(at.shapes[level])
        coarsest = level + 1 == len(weights)
        module().enter(
            image.numpy(),
            [[0] * len(row) for row in origins] if is_window else origins,
            state.numpy(),
            origins,
            None if coarsest else runs[-1].state.numpy(),
            [] if coarsest else at.draws(level + 1)[-1],
            [] if coarsest else list(at.automaton.factors[level]),
            threads,
        )
        module().steps_forward(
            state.numpy(),
            arrays(own),
            at.automaton.steps[level],
            *seeds,
            origins,
            log.numpy(),
            cpu_kernels(),
            threads,
            "auto",
            False,
        )
        runs.append(_LevelRun(state, log))
    return runs[::-1]


def _heads(run: _LevelRun, automaton: Automaton) -> Tensor:
    """Logits of a level, (N, K or K + 1, *window)."""
    state = run.state
    heads = automaton.logits + automaton.background
    values = state.new_empty((state.shape[0], heads, *state.shape[1:-1]))
    module().heads(
        state.numpy(),
        automaton.input_channels,
        automaton.background,
        values.numpy(),
        torch.get_num_threads(),
    )
    return values


def _add_heads_backward(gradient: Tensor, grad_values: Tensor, automaton: Automaton) -> None:
    """Add to a state's gradient what its logits' gradient says."""
    first, last = automaton.input_channels, automaton.input_channels + automaton.logits
    logits = grad_values[:, int(automaton.background) :]
    gradient[..., first:last] += logits.movedim(1, -1)


def _backward(
    at: _Descent,
    weights: Sequence[StepWeights],
    runs: list[_LevelRun],
    grad_values: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of all weights from those of the levels' logits; the runs are used up."""
    threads = torch.get_num_threads()
    automaton = at.automaton
    gradient = _memory.take(runs[0].state.shape, grad_values[0].dtype)
    module().heads_backward(
        grad_values[0].contiguous().numpy(),
        automaton.input_channels,
        automaton.background,
        gradient.numpy(),
        threads,
    )
    result: list[Tensor] = []
    for level, own in enumerate(weights):
        run, (*seeds, origins) = runs[level], at.draws(level)
        grads = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in own]
        module().steps_backward(
            run.state.numpy(),
            run.log.numpy(),
            gradient.numpy(),
            arrays(own),
            [grad.numpy() for grad in grads],
            automaton.steps[level],
            *seeds,
            origins,
            cpu_kernels(),
            threads,
            False,
        )
        result += grads
        if level + 1 < len(weights):
            above = _memory.take(runs[level + 1].state.shape, gradient.dtype)
            module().enter_backward(
                gradient.numpy(),
                origins,
                above.numpy(),
                at.draws(level + 1)[-1],
                automaton.input_channels,
                list(automaton.factors[level]),
                threads,
            )
            _memory.give(gradient)
            gradient = above
            if level + 1 < len(grad_values):
                _add_heads_backward(gradient, grad_values[level + 1], automaton)
        _memory.give(run.state)
        _memory.give(run.log)
    _memory.give(gradient)
    return result


def _by_level(tensors: Sequence[Tensor]) -> list[StepWeights]:
    size = len(StepWeights._fields)
    return [StepWeights(*tensors[i : i + size]) for i in range(0, len(tensors), size)]


class _Descend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: _Descent, wanted_levels: int, *weights: Tensor) -> tuple[Tensor, ...]:
        runs = _forward(at, _by_level(weights))
        ctx.at, ctx.runs = at, runs
        ctx.save_for_backward(*weights)
        return tuple(_heads(run, at.automaton) for run in runs[:wanted_levels])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_values: Tensor) -> tuple[Tensor | None, ...]:
        weights = _by_level(ctx.saved_tensors)
        # A backward pass uses the states up: another one begins with the forward pass.
        runs, ctx.runs = ctx.runs or _forward(ctx.at, weights), None
        return (None, None, *_backward(ctx.at, weights, runs, grad_values))


def descend(
    images: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    origins: Sequence[Origins],
    automaton: Automaton,
    seed: int,
    every_level: bool = False,
) -> list[Tensor]:
    """Logits of a training step, differentiable with respect to the weights.

    Args:
        images: of every level, finest first, (N, n_in, *spatial): whole, or the window alone.
        shapes: cells of every level's window.
        origins: of every level's window, for each sample its first cell in the whole level.
        automaton: all levels; the states' channels may differ, and those that parents and
            children share are handed down.
        seed: of the fire draws.
        every_level: also return the coarser levels' logits.

    Returns:
        (N, K or K + 1, *window of level 0), and with `every_level` those of all levels, finest
        first.

    Raises:
        ValueError: windows that do not nest or reach beyond an image.
    """
    at = _Descent(
        tuple(image.detach() for image in images), tuple(origins), tuple(shapes), automaton, seed
    )
    wanted = len(automaton.weights) if every_level else 1
    tensors = (tensor for own in automaton.weights for tensor in own)
    values: tuple[Tensor, ...] = _Descend.apply(at, wanted, *tensors)
    return list(values)
