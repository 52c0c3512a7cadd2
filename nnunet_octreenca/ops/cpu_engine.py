"""The C++ engine on CPU tensors: the same functions as the PyTorch engine, and whole octrees.

Here tensors become NumPy views and arguments take the form that `cpu/bindings.cpp` wants; the
computation itself is in `cpu/`.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.ops.automaton import Automaton
from nnunet_octreenca.ops.cpu_sizes import lanes
from nnunet_octreenca.ops.cpu_training import SEEDS, array, arrays, module
from nnunet_octreenca.ops.cpu_training import descend as descend
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.fire import FireDraws, fire_threshold
from nnunet_octreenca.ops.native import (
    cpu_engine_wanted,
    cpu_kernels,
    cpu_module_problem,
    precision,
)
from nnunet_octreenca.ops.weights import StepWeights

name = "cpu"
backward_needs_out = True  # its log is undone from the last state
low_precision = True
on_gpu = False


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _wanted() -> bool:  # the environment is looked at when a graph is compiled
    return cpu_engine_wanted()


def unsupported_reason(tensor: Tensor, weights: StepWeights) -> str | None:
    """Why the engine cannot compute on such a tensor, whatever is asked for; None if it can."""
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64):
        return (
            f"the C++ engine computes on float32 and float64 tensors in the CPU's memory, not on "
            f"{tensor.dtype} on {tensor.device}"
        )
    mismatch = weights.mismatch(tensor)
    if mismatch is not None:
        return mismatch
    problem = cpu_module_problem()
    return problem and f"the C++ module is not there ({problem})"


def supports(tensor: Tensor, weights: StepWeights) -> bool:
    """Whether the engine computes on such a tensor: float32 or float64, on the CPU, and so the
    weights.

    Raises:
        EnvironmentMismatchError: `OCTREENCA_ENGINE` is "cpu" and the C++ module is not there.
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and weights.mismatch(tensor) is None
        and _wanted()
    )


def padded_channels(channels: int) -> int:
    """Channels from one cell of a state to the next: C in whole vectors of the kernels."""
    return channels + -channels % lanes()


def trajectory_channels(channels: int, changing: int) -> int:
    """Channels of a cell in the log that `forward` keeps: those that change."""
    return changing


def _contiguous(tensor: Tensor) -> Tensor:
    """A copy, made by our threads (cpu/bindings.cpp says why)."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    module().copy(tensor.detach().numpy(), copy.numpy(), torch.get_num_threads())
    return copy


def hand_down(others: Tensor, from_parent: Tensor) -> Tensor:
    """What children take of their parents' logits and hidden channels: the bits of `octree`.

    Args:
        others: (N, *spatial, C of the parents - n_in), any strides.
        from_parent: (C of the children - n_in, C of the parents - n_in).

    Returns:
        (N, *spatial, C of the children - n_in).

    Raises:
        ValueError: shapes or types that do not fit.
    """
    to = others.new_empty((*others.shape[:-1], from_parent.shape[0]))
    module().hand_down(
        array(others), array(from_parent), to.numpy(), cpu_kernels(), torch.get_num_threads()
    )
    return to


def forward(
    state: Tensor,
    weights: StepWeights,
    steps: int,
    draws: FireDraws,
    keep_trajectory: bool,
    *,
    schedule: str = "auto",
) -> tuple[Tensor, Tensor]:
    """All steps of a level.

    Args:
        state: (N, *spatial, C), any strides; not changed.
        keep_trajectory: keep the log, for a backward pass.
        schedule: order of the work: "wavefront", "sweep" or "auto". Changes no bit.

    Returns:
        the state after the last step, and the log: the old values of the cells that fired, in
        a tensor (steps, N, *spatial, C - n_in) whose unused end is never touched and so takes
        no memory; empty where none is to be kept.

    Raises:
        ValueError: weights of another type or on another device than the state.
    """
    weights.check_like(state)
    out = _contiguous(state)
    changing = weights.channels - weights.input_channels
    log = out.new_empty((steps, *out.shape[:-1], changing) if keep_trajectory else (0,))
    module().steps_forward(
        out.numpy(),
        arrays(weights),
        steps,
        draws.seed % SEEDS,
        draws.level,
        draws.threshold,
        draws.origins(weights.dimension),
        log.numpy() if keep_trajectory else None,
        cpu_kernels(),
        torch.get_num_threads(),
        schedule,
        False,
    )
    return out, log


def backward(
    grad_out: Tensor,
    out: Tensor,
    trajectory: Tensor,
    weights: StepWeights,
    draws: FireDraws,
) -> tuple[Tensor, StepWeights]:
    """Gradients of `forward` with respect to the first state and the weights.

    Args:
        grad_out: gradient of the last state, (N, *spatial, C).
        out, trajectory: what `forward` returned. The steps are undone in them, so that no other
            state is needed, and done again at the end.

    Raises:
        ValueError: weights of another type or on another device than the gradient.
    """
    weights.check_like(grad_out, "gradient")
    grad = _contiguous(grad_out)
    grads = StepWeights(
        *(torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights)
    )
    module().steps_backward(
        out.detach().numpy(),
        trajectory.detach().numpy(),
        grad.numpy(),
        arrays(weights),
        [g.numpy() for g in grads],
        trajectory.shape[0],
        draws.seed % SEEDS,
        draws.level,
        draws.threshold,
        draws.origins(weights.dimension),
        cpu_kernels(),
        torch.get_num_threads(),
        True,
    )
    return grad, grads


@lru_cache(maxsize=1)
def warn_no_bf16(kernels: str) -> None:
    """Say, once, that bfloat16 products were asked for and float32 is used."""
    warnings.warn(
        f"products of bfloat16 were asked for, but the {kernels} kernels of this processor have no "
        f"such instruction: float32 is used, which is more exact and as fast as it gets here",
        stacklevel=5,
    )


def octree(
    image: Tensor,
    automaton: Automaton,
    seed: int,
    *,
    labels: Tensor | None = None,
    values: Tensor | None = None,
    multiply: str | None = None,
    state: str | None = None,
    non_finite: NonFiniteCells | None = None,
    schedule: str = "auto",
    emulate: bool = False,
) -> None:
    """All levels of a batch of images in one call each; writes labels or logits.

    Besides the image, memory is needed for the state of level 1 and, in 2-D, for some rows of
    level 0; nothing that PyTorch holds is copied.

    Args:
        image: (N, n_in, *spatial) float32, any strides.
        seed: of the fire draws.
        labels: (N, *spatial) uint8 or int16, contiguous, to be filled.
        values: (N, K or K + 1, *spatial) float32, contiguous, to be filled instead.
        multiply: "float32", or "bfloat16": products of bfloat16 numbers, summed in float32.
        state: "float32", or "float16" to keep states in half the memory. Where left out, the
            environment decides (ops.native.precision).
        non_finite: counts the cells that are not finite.
        schedule: as in `forward`.
        emulate: compute with bfloat16 where the processor cannot, slowly (tests).

    Raises:
        ValueError: a precision that there is not, or an image or weights that are not float32 in
            the CPU's memory.
        MemoryError: the states do not fit.
    """
    kernels, bf16, half = _precisions(multiply, state, emulate)
    _check_float32(image, "image")
    for weights in automaton.weights:
        weights.check_like(image, "image")
    levels = _levels(automaton, seed)
    for sample in range(image.shape[0]):
        counts = module().octree_forward(
            image[sample].detach().numpy(),
            *levels,
            sample,
            automaton.logits,
            automaton.background,
            None if labels is None else labels[sample].numpy(),
            None if values is None else values[sample].numpy(),
            kernels,
            torch.get_num_threads(),
            schedule,
            bf16,
            half,
            non_finite is not None,
        )
        if non_finite is not None:
            for level, (found, checked) in enumerate(counts):
                non_finite.add(level, found, checked)


class BandStream(Protocol):
    """All levels of one image that comes in bands (cpu/stream.hpp).

    Call `pool` with all bands, `prepare`, then `begin` and `advance` for every range of rows
    wanted. Rows are planes in 3-D.

    Raises (all calls): ValueError where they come out of order or do not fit the image.
    """

    def pool(self, band: NDArray[np.float32], first: int) -> None:
        """Take the image's next rows, (n_in, rows, *axes)."""

    def prepare(self) -> None:
        """Compute the coarsest level, once all is pooled."""

    def save(self) -> NDArray[np.uint8]:
        """The coarsest level, once it is prepared, as bytes for `restore`."""

    def restore(self, saved: NDArray[np.uint8]) -> None:
        """Take the coarsest level of another stream instead of `pool` and `prepare`."""

    def begin(self, first: int, end: int) -> tuple[int, int]:
        """Rows wanted; returns the range of rows of the image to hand over."""

    def ready(self, image_end: int) -> int:
        """How far the wanted rows are done with the image's rows below `image_end`."""

    def advance(
        self,
        band: NDArray[np.float32],
        first: int,
        labels: NDArray[np.integer] | None,
        values: NDArray[np.float32] | None,
    ) -> None:
        """Take the image's next rows; fill what becomes ready."""

    def non_finite(self) -> list[tuple[int, int]]:
        """Of every level, finest first: cells that are not finite after the level's steps, and
        cells that were looked at, of those computed so far that the wanted rows depend on.
        """


def octree_stream(
    shape: Sequence[int],
    automaton: Automaton,
    seed: int,
    *,
    multiply: str | None = None,
    state: str | None = None,
) -> BandStream:
    """All levels of one image that comes in bands (cpu/stream.hpp): the same bits as `octree`.

    Args: as `octree`; `shape` is the image's, without channels.

    Raises:
        ValueError: a precision that there is not, or weights that are not float32 in the CPU's
            memory.
        MemoryError: the coarsest level does not fit.
    """
    for weights in automaton.weights:
        weights.check_like(torch.empty(0), "image")
    kernels, bf16, half = _precisions(multiply, state, False)
    stream: BandStream = module().OctreeStream(
        list(shape),
        *_levels(automaton, seed),
        0,
        automaton.logits,
        automaton.background,
        kernels,
        torch.get_num_threads(),
        bf16,
        half,
    )
    return stream


def _levels(automaton: Automaton, seed: int) -> tuple[object, ...]:
    """Weights, steps, factors, maps, seed and threshold as the bindings take them."""
    return (
        [arrays(level) for level in automaton.weights],
        list(automaton.steps),
        [list(row) for row in automaton.factors],
        [None if matrix is None else array(matrix) for matrix in automaton.from_parent],
        seed % SEEDS,
        fire_threshold(automaton.fire_rate),
    )


def _check_float32(tensor: Tensor, what: str) -> None:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(
            f"the {what} must be torch.float32 on cpu, but it is {tensor.dtype} on {tensor.device}"
        )


def _precisions(multiply: str | None, state: str | None, emulate: bool) -> tuple[str, bool, bool]:
    """The kernels, and whether they multiply bfloat16 and keep float16."""
    multiply, state = precision(multiply, state)
    kernels = cpu_kernels()
    if multiply == "bfloat16" and not emulate and not module().native_bf16(kernels):
        warn_no_bf16(kernels)
        multiply = "float32"
    return kernels, multiply == "bfloat16", state == "float16"
