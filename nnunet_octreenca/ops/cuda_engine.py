"""The CUDA engine: the same functions as the PyTorch engine, and whole octrees.

Here tensors become pointers and levels are cut into launches; what is computed stands in `cuda/`.
States are (N, *spatial, C), their channels filled up with zeros to groups of 16.
"""

import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunet_octreenca.errors import CudaError, EnvironmentMismatchError
from nnunet_octreenca.ops import cuda_device
from nnunet_octreenca.ops.cuda_level import LevelLaunches, grid, padded
from nnunet_octreenca.ops.cuda_program import (
    MOST_SAMPLES,
    Configuration,
    DoesNotFitError,
    arguments,
    program,
)
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, precision, wanted_engine
from nnunet_octreenca.ops.weights import StepWeights


class Part(NamedTuple):
    """Some levels of an octree, and of each the cells from `origins` on along the first axis.

    Attributes:
        finest: the finest level of these.
        origins: first row or plane of each level's window, the finest first; a level's is a
            multiple of the factor to its parents.
        parent: state of the level above the coarsest of these, (1, *spatial, C padded); None where
            there is none.
        parent_origin: first row or plane of `parent`.
    """

    finest: int
    origins: Sequence[int]
    parent: Tensor | None = None
    parent_origin: int = 0


def supports(tensor: Tensor, weights: StepWeights) -> bool:
    """Whether the engine computes on such a tensor: float32, on a GPU that it can use.

    Raises:
        EnvironmentMismatchError: `OCTREENCA_ENGINE` is "cuda" and the GPU cannot be used.
    """
    if tensor.device.type != "cuda" or tensor.dtype != torch.float32:
        return False
    index = tensor.device.index
    hidden = weights.hidden_weight.shape[0]
    return _usable(index, weights.dimension, weights.channels, weights.input_channels, hidden)


@torch.compiler.assume_constant_result
def _usable(index: int, dimension: int, channels: int, inputs: int, hidden: int) -> bool:
    wanted = wanted_engine()
    if wanted == "torch":
        return False
    problem = unsupported_reason(index, dimension, channels, inputs, hidden)
    if problem is None:
        return True
    if wanted == "cuda":
        raise EnvironmentMismatchError(f"{ENGINE_VARIABLE} is 'cuda', but {problem}")
    _warn_fallback(problem)
    return False


@cache
def unsupported_reason(
    index: int, dimension: int, channels: int, inputs: int, hidden: int
) -> str | None:
    """Why a GPU cannot run a network; None if it can."""
    try:
        device = cuda_device._gpu(index)
        name = _single(device.architecture)
        configuration = Configuration(dimension, channels, inputs, hidden, name)
        program(configuration, device.architecture, True)
        device.load(configuration, False)
    except (CudaError, DoesNotFitError) as error:
        return str(error)
    return None


@lru_cache(maxsize=8)
def _warn_fallback(problem: str) -> None:
    warnings.warn(
        f"the CUDA engine is not used, PyTorch computes instead (correct, slower): {problem}",
        stacklevel=5,
    )


def _single(architecture: int) -> str:
    """float32: on tensor cores where they multiply TF32."""
    return "tf32" if architecture >= 80 else "plain"


def _stripped(state: Tensor, channels: int) -> Tensor:
    return state if state.shape[-1] == channels else state[..., :channels].contiguous()


def _launches(
    device: cuda_device.Device,
    state: Tensor,
    weights: StepWeights,
    backward: bool,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
) -> LevelLaunches:
    """The float32 kernels of a level in the shape of a state or of its gradient."""
    return LevelLaunches(
        device,
        weights,
        _single(device.architecture),
        backward,
        shape=state.shape[1:-1],
        batch=state.shape[0],
        fire_rate=fire_rate,
        seed=seed,
        level=level,
        origin=origin,
    )


def forward(
    state: Tensor,
    weights: StepWeights,
    steps: int,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
    keep_trajectory: bool,
    *,
    device: cuda_device.Device | None = None,
) -> tuple[Tensor, Tensor]:
    """All steps of a level, float32.

    Args:
        state: (N, *spatial, C), any strides; not changed.
        origin: coordinates of the first cell, sample by sample: N * dimension numbers.
        keep_trajectory: for a backward pass.
        device: where it runs; the tensor's GPU if left out.

    Returns:
        the state after the last step, and the input states of all steps, (steps, N, *spatial,
        C filled up to a multiple of 16), or an empty tensor where they are not to be kept (then
        two states are held).

    Raises:
        CudaError, OutOfMemoryError: the GPU refuses.
    """
    device = device or cuda_device.device_of(state)
    with _on(state):
        run = _launches(device, state, weights, keep_trajectory, fire_rate, seed, level, origin)
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
    trajectory: Tensor,
    weights: StepWeights,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
    *,
    device: cuda_device.Device | None = None,
) -> tuple[Tensor, StepWeights]:
    """Gradients of `forward` with respect to the first state and the weights.

    The same bits in every run on the same kind of GPU: sums over cells have a fixed order.

    Args:
        grad_out: gradient of the last state, (N, *spatial, C).
        trajectory: what `forward` kept.

    Raises:
        CudaError, OutOfMemoryError: the GPU refuses.
    """
    device = device or cuda_device.device_of(grad_out)
    with _on(grad_out):
        run = _launches(device, grad_out, weights, True, fire_rate, seed, level, origin)
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


def octree(
    pyramid: list[Tensor],
    weights: Sequence[StepWeights],
    steps: Sequence[int],
    factors: Sequence[Sequence[int]],
    *,
    fire_rate: float,
    seed: int,
    logits: int,
    background: bool,
    labels: Tensor | None = None,
    values: Tensor | None = None,
    multiply: str | None = None,
    state: str | None = None,
    fused: int | None = None,
    part: Part | None = None,
    device: cuda_device.Device | None = None,
) -> Tensor | None:
    """All levels of a batch of images; writes labels or logits.

    Beside the image two states of the finest level are held and nothing else of its size: 64 bytes
    a cell in float16 and 128 in float32 at 16 channels.

    Args:
        pyramid: the image of every level, finest first, (N, n_in, *spatial) float32; emptied on
            the way, so that its memory is free for the next level.
        weights, steps, factors: of all levels, finest first.
        logits: K; channels n_in to n_in + K of the state.
        background: label 0 where no logit is above 0; `values` get a channel of zeros in front.
        labels: (N, *spatial) uint8 or int16, contiguous, to be filled.
        values: (N, K or K + 1, *spatial) float32, contiguous, to be filled instead.
        multiply, state: as on the CPU ("float32", or "bfloat16" and "float16"; else the environment
            decides). A state in float16 is multiplied in float16 too: the fast mode. Products of
            bfloat16 with states in float32 are not made: float32 is used.
        fused: steps a launch, 1 or 2; the engine's choice if left out.
        part: of the octree, where not all of it is to be computed: `pyramid` then holds windows of
            one image, and neither labels nor values may be given.
        device: where it runs; the tensors' GPU if left out.

    Returns:
        The finest level's state, (N, *spatial, C filled up to a multiple of 16); None where the
        last step ended in labels.

    Raises:
        ValueError: a precision that there is not.
        CudaError, OutOfMemoryError: the GPU refuses.
    """
    device = device or cuda_device.device_of(pyramid[0])
    _, state_type = precision(multiply, state)
    half = state_type == "float16"
    kind = "half" if half else _single(device.architecture)
    batch, dimension = pyramid[0].shape[0], weights[0].dimension
    if pyramid[0].numel() == 0:
        return None
    part = part or Part(0, (0,) * len(pyramid))
    parent, parent_origin = part.parent, part.parent_origin
    parent_shape: Sequence[int] = () if parent is None else parent.shape[1:-1]
    current: Tensor | None = None
    with _on(pyramid[0]):
        while pyramid:
            number, origin = part.finest + len(pyramid) - 1, part.origins[len(pyramid) - 1]
            image = pyramid.pop().contiguous()
            shape = tuple(image.shape[2:])
            if parent is not None and parent_origin * factors[number][0] != origin:
                parent = parent[:, origin // factors[number][0] - parent_origin :]
                parent_shape = parent.shape[1:-1]
            run = LevelLaunches(
                device,
                weights[number],
                kind,
                False,
                shape=shape,
                batch=batch,
                fire_rate=fire_rate,
                seed=seed,
                level=number,
                origin=(origin, *(0,) * (dimension - 1)) * batch,
            )
            current = torch.empty(
                (batch, *shape, run.configuration.padded),
                dtype=torch.float16 if half else torch.float32,
                device=image.device,
            )
            _enter(run, image, current, parent, parent_shape, factors, number)
            del image
            parent = None  # its memory is free for the second state
            to_labels = number == 0 and labels is not None and steps[0] > 0
            current = _run_steps(
                run,
                current,
                steps[number],
                fused,
                labels if to_labels else None,
                logits,
                background,
            )
            parent, parent_shape, parent_origin = current, shape, origin
        if labels is not None and steps[0] > 0:
            return None
        assert current is not None
        if labels is not None:
            heads = torch.empty(
                (batch, logits + background, *shape), dtype=torch.float32, device=labels.device
            )
            _leave(run, current, heads, logits, background)
            labels.copy_(heads.argmax(1))
        elif values is not None:
            _leave(run, current, values, logits, background)
        return current


def _run_steps(
    run: LevelLaunches,
    current: Tensor,
    steps: int,
    fused: int | None,
    labels: Tensor | None,
    logits: int,
    background: bool,
) -> Tensor:
    """All steps of a level between two states; the last one to labels where they are wanted."""
    most = fused or (2 if run.configuration.dimension == 2 and 2 in run.program.forward else 1)
    spare: Tensor | None = None
    done = 0
    while done < steps:
        count = min(most, steps - done)
        if labels is not None and done + count == steps:
            run.forward(
                current,
                labels,
                done,
                count,
                label_bytes=labels.element_size(),
                logits=logits,
                background=background,
            )
            return current
        if spare is None:
            spare = torch.empty_like(current)
        run.forward(current, spare, done, count)
        current, spare = spare, current
        done += count
    return current


def _enter(
    run: LevelLaunches,
    image: Tensor,
    state: Tensor,
    parent: Tensor | None,
    parent_shape: Sequence[int],
    factors: Sequence[Sequence[int]],
    level: int,
) -> None:
    factor = [*(1,) * (3 - len(run.shape)), *(factors[level] if parent is not None else (1, 1, 1))]
    run.loaded.launch(
        "enter",
        grid(run.batch * run.cells),
        arguments(
            "EnterArguments",
            *_three(run.shape),
            *_three(parent_shape if parent is not None else run.shape),
            run.batch,
            *factor[:3],
            0,
            image.data_ptr(),
            0 if parent is None else parent.data_ptr(),
            state.data_ptr(),
        ),
    )


def _leave(
    run: LevelLaunches, state: Tensor, values: Tensor, logits: int, background: bool
) -> None:
    run.loaded.launch(
        "leave",
        grid(run.batch * run.cells),
        arguments(
            "LeaveArguments",
            run.cells,
            run.batch,
            state.data_ptr(),
            values.data_ptr(),
            logits,
            int(background),
        ),
    )


def _three(shape: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (3 - len(shape)) + tuple(shape)


def _on(tensor: Tensor) -> Any:
    """PyTorch allocates and finds its current stream on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else torch.no_grad()
