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


def array(weight: Tensor) -> NDArray[np.floating]:
    """A weight as the bindings take it."""
    return weight.detach().contiguous().numpy()


def arrays(weights: StepWeights) -> list[NDArray[np.floating]]:
    """A level's weights as the bindings take them."""
    return [array(weight) for weight in weights]


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


class _Weights(NamedTuple):
    """What a descent is differentiable with respect to; of all levels, finest first.

    Attributes:
        levels: of the steps.
        from_parent: `Automaton.from_parent`.
    """

    levels: list[StepWeights]
    from_parent: list[Tensor | None]

    def flat(self) -> list[Tensor]:
        """One after the other, as autograd takes them."""
        maps = [matrix for matrix in self.from_parent if matrix is not None]
        return [tensor for own in self.levels for tensor in own] + maps

    @classmethod
    def of_flat(cls, tensors: Sequence[Tensor], automaton: Automaton) -> "_Weights":
        """The inverse of `flat`, for the same automaton."""
        size, levels = len(StepWeights._fields), len(automaton.weights)
        maps = iter(tensors[levels * size :])
        return cls(
            [StepWeights(*tensors[i * size : (i + 1) * size]) for i in range(levels)],
            [None if matrix is None else next(maps) for matrix in automaton.from_parent],
        )


def _forward(at: _Descent, weights: _Weights) -> list[_LevelRun]:
    """All levels, the runs finest first."""
    threads = torch.get_num_threads()
    runs: list[_LevelRun] = []
    for level in reversed(range(len(weights.levels))):
        own, image = weights.levels[level], at.images[level]
        shape = (image.shape[0], *at.shapes[level])
        state = _memory.take((*shape, own.channels), image.dtype)
        log = _memory.take((at.automaton.steps[level], *shape, own.update_weight.shape[0]),
                           image.dtype)  # fmt: skip
        *seeds, origins = at.draws(level)
        is_window = tuple(image.shape[2:]) == tuple(at.shapes[level])
        coarsest = level + 1 == len(weights.levels)
        matrix = None if coarsest else weights.from_parent[level]
        module().enter(
            image.numpy(),
            [[0] * len(row) for row in origins] if is_window else origins,
            state.numpy(),
            origins,
            None if coarsest else runs[-1].state.numpy(),
            [] if coarsest else at.draws(level + 1)[-1],
            [] if coarsest else list(at.automaton.factors[level]),
            None if matrix is None else array(matrix),
            cpu_kernels(),
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
    weights: _Weights,
    runs: list[_LevelRun],
    grad_values: Sequence[Tensor],
) -> _Weights:
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
    result = _Weights([], [])
    for level, own in enumerate(weights.levels):
        run, (*seeds, origins) = runs[level], at.draws(level)
        grads = StepWeights(*map(_zeros, own))
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
        result.levels.append(grads)
        if level + 1 < len(weights.levels):
            parents, matrix = runs[level + 1].state, weights.from_parent[level]
            above = _memory.take(parents.shape, gradient.dtype)
            grad_matrix = None if matrix is None else _zeros(matrix)
            result.from_parent.append(grad_matrix)
            module().enter_backward(
                gradient.numpy(),
                origins,
                above.numpy(),
                at.draws(level + 1)[-1],
                automaton.input_channels,
                list(automaton.factors[level]),
                None if matrix is None else parents.numpy(),
                None if matrix is None else array(matrix),
                None if grad_matrix is None else grad_matrix.numpy(),
                cpu_kernels(),
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


def _zeros(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, memory_format=torch.contiguous_format)


class _Descend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: _Descent, wanted_levels: int, *weights: Tensor) -> tuple[Tensor, ...]:
        runs = _forward(at, _Weights.of_flat(weights, at.automaton))
        ctx.at, ctx.runs = at, runs
        ctx.save_for_backward(*weights)
        return tuple(_heads(run, at.automaton) for run in runs[:wanted_levels])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_values: Tensor) -> tuple[Tensor | None, ...]:
        weights = _Weights.of_flat(ctx.saved_tensors, ctx.at.automaton)
        # A backward pass uses the states up: another one begins with the forward pass.
        runs, ctx.runs = ctx.runs or _forward(ctx.at, weights), None
        return (None, None, *_backward(ctx.at, weights, runs, grad_values).flat())


def descend(
    images: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    origins: Sequence[Origins],
    automaton: Automaton,
    seed: int,
    every_level: bool = False,
) -> list[Tensor]:
    """Logits of a training step, differentiable with respect to the weights and the maps.

    Args:
        images: of every level, finest first, (N, n_in, *spatial): whole, or the window alone.
        shapes: cells of every level's window.
        origins: of every level's window, for each sample its first cell in the whole level.
        automaton: all levels.
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
    weights = _Weights(list(automaton.weights), list(automaton.from_parent))
    values: tuple[Tensor, ...] = _Descend.apply(at, wanted, *weights.flat())
    return list(values)
