"""The CUDA engine: the same functions as the PyTorch engine, and whole octrees.

Here tensors become pointers and levels are cut into launches; the computation is in `cuda/`.
States are (N, *spatial, C), their channels filled up with zeros to groups of 16.
"""

import warnings
from functools import cache, lru_cache

import torch
from torch import Tensor

from nnunet_octreenca.errors import CudaError, EnvironmentMismatchError
from nnunet_octreenca.ops import cuda_device
from nnunet_octreenca.ops.cuda_inputs import aligned, check_level, check_trajectory
from nnunet_octreenca.ops.cuda_level import LevelLaunches, grid, padded
from nnunet_octreenca.ops.cuda_octree import hand_down, octree, octree_windows
from nnunet_octreenca.ops.cuda_program import (
    MOST_SAMPLES,
    Configuration,
    DoesNotFitError,
    arguments,
    padded_channels,
    program,
    single_precision,
)
from nnunet_octreenca.ops.fire import FireDraws
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, only_pytorch_wanted, wanted_engine
from nnunet_octreenca.ops.weights import StepWeights

__all__ = [
    "backward",
    "backward_needs_out",
    "forward",
    "hand_down",
    "low_precision",
    "name",
    "octree",
    "octree_windows",
    "on_gpu",
    "padded_channels",
    "supports",
    "trajectory_channels",
    "unsupported_reason",
]

name = "cuda"
backward_needs_out = False
low_precision = True
on_gpu = True


def supports(tensor: Tensor, weights: StepWeights) -> bool:
    """Whether the engine computes on such a tensor: float32, on a GPU that it can use, and so the
    weights.

    Raises:
        EnvironmentMismatchError: `OCTREENCA_ENGINE` is "cuda" and the GPU cannot be used.
    """
    if tensor.device.type != "cuda" or tensor.dtype != torch.float32 or weights.mismatch(tensor):
        return False
    usable: bool = _usable(tensor.device.index, *_sizes(weights))
    return usable


def unsupported_reason(tensor: Tensor, weights: StepWeights) -> str | None:
    """Why the engine cannot compute on such a tensor, whatever is asked for; None if it can."""
    if tensor.device.type != "cuda" or tensor.dtype != torch.float32:
        return (
            f"the CUDA engine computes on float32 tensors on a GPU, not on {tensor.dtype} on "
            f"{tensor.device}"
        )
    return weights.mismatch(tensor) or gpu_problem(tensor.device.index, *_sizes(weights))


def _sizes(weights: StepWeights) -> tuple[int, int, int, int]:
    hidden = weights.hidden_weight.shape[0]
    return weights.dimension, weights.channels, weights.input_channels, hidden


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _usable(index: int, dimension: int, channels: int, inputs: int, hidden: int) -> bool:
    if only_pytorch_wanted():
        return False
    problem = gpu_problem(index, dimension, channels, inputs, hidden)
    if problem is None:
        return True
    if wanted_engine() == name:
        raise EnvironmentMismatchError(f"{ENGINE_VARIABLE} is {name!r}, but {problem}")
    warn_fallback(problem)
    return False


@cache
def gpu_problem(index: int, dimension: int, channels: int, inputs: int, hidden: int) -> str | None:
    """Why a GPU cannot run a network of these sizes; None if it can."""
    try:
        device = cuda_device.gpu(index)
        configuration = Configuration(
            dimension, channels, inputs, hidden, single_precision(device.architecture)
        )
        program(configuration, device.architecture, True)
        device.load(configuration, False)
    except (CudaError, DoesNotFitError) as error:
        return str(error)
    return None


@lru_cache(maxsize=8)
def warn_fallback(problem: str) -> None:
    """Say, once a problem, that PyTorch computes instead."""
    warnings.warn(
        f"the CUDA engine is not used, PyTorch computes instead (correct, slower): {problem}",
        stacklevel=5,
    )


def trajectory_channels(channels: int, changing: int) -> int:
    """Channels of a cell in the trajectory that `forward` keeps."""
    return padded_channels(channels)


def _stripped(state: Tensor, channels: int) -> Tensor:
    return state if state.shape[-1] == channels else state[..., :channels].contiguous()


def _launches(
    device: cuda_device.Device,
    state: Tensor,
    weights: StepWeights,
    backward: bool,
    draws: FireDraws,
) -> LevelLaunches:
    """The float32 kernels of a level in the shape of a state or of its gradient."""
    precision = single_precision(device.architecture)
    shape, batch = state.shape[1:-1], state.shape[0]
    return LevelLaunches(
        device, weights, precision, backward, shape=shape, batch=batch, draws=draws
    )


def forward(
    state: Tensor,
    weights: StepWeights,
    steps: int,
    draws: FireDraws,
    keep_trajectory: bool,
    *,
    device: cuda_device.Device | None = None,
) -> tuple[Tensor, Tensor]:
    """All steps of a level, float32.

    Args:
        state: (N, *spatial, C), any strides; not changed.
        keep_trajectory: for a backward pass.
        device: where it runs; the tensor's GPU if left out.

    Returns:
        the state after the last step, and the input states of all steps, (steps, N, *spatial,
        C filled up to a multiple of 16), or an empty tensor where they are not to be kept (then
        two states are held).

    Raises:
        ValueError: tensors of other types, shapes or devices than these.
        CudaError, OutOfMemoryError: the GPU refuses.
    """
    check_level("state", state, weights)
    device = device or cuda_device.device_of(state)
    with cuda_device.current(state):
        run = _launches(device, state, weights, keep_trajectory, draws)
        current, spare = padded(state.detach(), run.configuration.padded), None
        trajectory = current.new_empty((steps, *current.shape) if keep_trajectory else (0,))
        if keep_trajectory and steps:
            trajectory[0].copy_(current)
            current = trajectory[0]
        theirs = current.data_ptr() in (state.data_ptr(), trajectory.data_ptr())
        if state.numel():
            for number in range(steps):
                if keep_trajectory and number + 1 < steps:
                    target = trajectory[number + 1]
                else:
                    target = spare if spare is not None else torch.empty_like(current)
                run.forward(current, target, number)
                spare = None if theirs or keep_trajectory else current
                current, theirs = target, False
        out = _stripped(current, weights.channels)
        # An operator may not hand back what it was given.
        return (out.clone() if theirs else out), trajectory


def backward(
    grad_out: Tensor,
    out: Tensor,
    trajectory: Tensor,
    weights: StepWeights,
    draws: FireDraws,
    *,
    device: cuda_device.Device | None = None,
) -> tuple[Tensor, StepWeights]:
    """Gradients of `forward` with respect to the first state and the weights.

    The same bits in every run on the same kind of GPU: sums over cells have a fixed order.

    Args:
        grad_out: gradient of the last state, (N, *spatial, C).
        out: the last state; not looked at.
        trajectory: what `forward` kept.

    Raises:
        ValueError: tensors of other types, shapes or devices than these.
        CudaError, OutOfMemoryError: the GPU refuses.
    """
    check_level("gradient", grad_out, weights)
    check_trajectory(trajectory, grad_out, padded_channels(weights.channels))
    trajectory = aligned(trajectory)
    device = device or cuda_device.device_of(grad_out)
    with cuda_device.current(grad_out):
        run = _launches(device, grad_out, weights, True, draws)
        configuration, layout = run.configuration, run.program.backward
        assert layout is not None
        gradient = padded(grad_out.detach(), configuration.padded)
        if gradient.data_ptr() == grad_out.data_ptr():
            gradient = gradient.clone()
        perceived = torch.empty_like(gradient)
        blocks = min(
            max(run.tiles(layout.tile, min(run.batch, MOST_SAMPLES)), 1),
            run.loaded.resident_blocks("backward_cells"),
        )
        sums = gradient.new_zeros(blocks, configuration.sums(layout.warps))
        if gradient.numel():
            for number in reversed(range(trajectory.shape[0])):
                for first, level_values in run.groups():
                    offset = first * run.cells * configuration.cell_bytes
                    given = arguments(
                        "BackwardArguments",
                        *level_values,
                        trajectory[number].data_ptr() + offset,
                        gradient.data_ptr() + offset,
                        perceived.data_ptr() + offset,
                        run.words.data_ptr(),
                        sums.data_ptr(),
                        number,
                        0,
                    )
                    run.loaded.launch("backward_cells", blocks, given)
                    quads = level_values[3] * run.cells * configuration.padded // 4
                    run.loaded.launch("backward_perceive", grid(quads), given)
        grads = StepWeights(*(torch.empty_like(weight) for weight in run.raw))
        run.loaded.launch(
            "reduce",
            grid(sum(weight.numel() for weight in grads)),
            arguments(
                "ReduceArguments",
                sums.data_ptr(),
                blocks,
                *run.raw_pointers(),
                *(grad.data_ptr() for grad in grads),
            ),
        )
        return _stripped(gradient, weights.channels), grads
