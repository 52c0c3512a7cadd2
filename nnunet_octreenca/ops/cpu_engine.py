"""The C++ engine on CPU tensors: the same functions as the PyTorch engine, and whole octrees.

Here tensors become NumPy views and arguments take the form that `cpu/bindings.cpp` wants; what
is computed stands in `cpu/`.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_octreenca.ops.fire import fire_threshold
from nnunet_octreenca.ops.native import cpu_engine_wanted, cpu_kernels, cpu_module, precision
from nnunet_octreenca.ops.weights import StepWeights

_SEEDS = 1 << 64


@torch.compiler.assume_constant_result
def _wanted() -> bool:  # the environment is looked at when a graph is compiled
    return cpu_engine_wanted()


def supports(tensor: Tensor) -> bool:
    """Whether the engine computes on such a tensor: float32 or float64, on the CPU."""
    return (
        tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) and _wanted()
    )


def _arrays(weights: StepWeights) -> list[np.ndarray]:
    return [weight.detach().contiguous().numpy() for weight in weights]


def _contiguous(tensor: Tensor) -> Tensor:
    """A copy of its own, made by our threads (cpu/bindings.cpp says why)."""
    module: Any = cpu_module()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    module.copy(tensor.detach().numpy(), copy.numpy(), torch.get_num_threads())
    return copy


def _origins(origin: Sequence[int], batch: int, dimension: int) -> list[list[int]]:
    # Coordinates count modulo 2^32, as in the PyTorch engine.
    return [
        [int(c) for c in origin[sample * dimension : (sample + 1) * dimension]]
        for sample in range(batch)
    ]


def forward(
    state: Tensor,
    weights: StepWeights,
    steps: int,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
    keep_log: bool,
    *,
    schedule: str = "auto",
) -> tuple[Tensor, Tensor]:
    """All steps of a level.

    Args:
        state: (N, *spatial, C), any strides; not changed.
        origin: coordinates of the first cell, sample by sample: N * dimension numbers.
        keep_log: for a backward pass.
        schedule: order of the work: "wavefront", "sweep" or "auto". Changes no bit.

    Returns:
        the state after the last step, and the log: the old values of the cells that fired, in
        a tensor (steps, N, *spatial, C - n_in) whose unused end is never touched and so takes
        no memory; empty where none is to be kept.
    """
    module = cpu_module()
    assert module is not None
    out = _contiguous(state)
    changing = weights.channels - weights.input_channels
    log = out.new_empty((steps, *out.shape[:-1], changing) if keep_log else (0,))
    module.steps_forward(
        out.numpy(),
        _arrays(weights),
        steps,
        seed % _SEEDS,
        level,
        fire_threshold(fire_rate),
        _origins(origin, out.shape[0], weights.dimension),
        log.numpy() if keep_log else None,
        cpu_kernels(),
        torch.get_num_threads(),
        schedule,
        False,
    )
    return out, log


def backward(
    grad_out: Tensor,
    out: Tensor,
    log: Tensor,
    weights: StepWeights,
    fire_rate: float,
    seed: int,
    level: int,
    origin: Sequence[int],
) -> tuple[Tensor, StepWeights]:
    """Gradients of `forward` with respect to the first state and the weights.

    Args:
        grad_out: gradient of the last state, (N, *spatial, C).
        out, log: what `forward` returned. The steps are undone in them, so that no other state
            is needed, and done again at the end.
    """
    module = cpu_module()
    assert module is not None
    grad = _contiguous(grad_out)
    grads = StepWeights(
        *(torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights)
    )
    module.steps_backward(
        out.detach().numpy(),
        log.detach().numpy(),
        grad.numpy(),
        _arrays(weights),
        [g.numpy() for g in grads],
        log.shape[0],
        seed % _SEEDS,
        level,
        fire_threshold(fire_rate),
        _origins(origin, grad.shape[0], weights.dimension),
        cpu_kernels(),
        torch.get_num_threads(),
    )
    return grad, grads


@lru_cache(maxsize=1)
def _warn_no_bf16(kernels: str) -> None:
    warnings.warn(
        f"products of bfloat16 were asked for, but the {kernels} kernels of this processor have no "
        f"such instruction: float32 is used, which is more exact and as fast as it gets here",
        stacklevel=5,
    )


def octree(
    image: Tensor,
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
    schedule: str = "auto",
    emulate: bool = False,
) -> None:
    """All levels of a batch of images in one call each; writes labels or logits.

    Beside the image, memory is needed for the state of level 1 and, in 2-D, for some rows of
    level 0; nothing that PyTorch holds is copied.

    Args:
        image: (N, n_in, *spatial) float32, any strides.
        weights, steps, factors: of all levels, finest first.
        logits: K; channels n_in to n_in + K of the state.
        background: label 0 where no logit is above 0; `values` get a channel of zeros in front.
        labels: (N, *spatial) uint8 or int16, contiguous, to be filled.
        values: (N, K or K + 1, *spatial) float32, contiguous, to be filled instead.
        multiply: "float32", or "bfloat16": products of bfloat16 numbers, summed in float32.
        state: "float32", or "float16" to keep states in half the memory. Where left out, the
            environment decides (ops.native.precision).
        schedule: as in `forward`.
        emulate: compute with bfloat16 where the processor cannot, slowly (tests).

    Raises:
        ValueError: a precision that there is not.
        MemoryError: the states do not fit.
    """
    module: Any = cpu_module()
    kernels, bf16, half = _precisions(multiply, state, emulate)
    arrays = [_arrays(level) for level in weights]
    for sample in range(image.shape[0]):
        module.octree_forward(
            image[sample].detach().numpy(),
            arrays,
            list(steps),
            [list(row) for row in factors],
            seed % _SEEDS,
            fire_threshold(fire_rate),
            sample,
            logits,
            background,
            None if labels is None else labels[sample].numpy(),
            None if values is None else values[sample].numpy(),
            kernels,
            torch.get_num_threads(),
            schedule,
            bf16,
            half,
        )


def octree_stream(
    shape: Sequence[int],
    weights: Sequence[StepWeights],
    steps: Sequence[int],
    factors: Sequence[Sequence[int]],
    *,
    fire_rate: float,
    seed: int,
    logits: int,
    background: bool,
    multiply: str | None = None,
    state: str | None = None,
) -> Any:
    """All levels of one image that comes in bands (cpu/stream.hpp): the same bits as `octree`.

    Args: as `octree`; `shape` is the image's, without channels.

    Returns:
        The engine's object: `pool` all bands, `prepare`, then `begin` and `advance`
        (inference.stream uses it).

    Raises:
        ValueError: a precision that there is not.
        MemoryError: the coarsest level does not fit.
    """
    module: Any = cpu_module()
    kernels, bf16, half = _precisions(multiply, state, False)
    return module.OctreeStream(
        list(shape),
        [_arrays(level) for level in weights],
        list(steps),
        [list(row) for row in factors],
        seed % _SEEDS,
        fire_threshold(fire_rate),
        0,
        logits,
        background,
        kernels,
        torch.get_num_threads(),
        bf16,
        half,
    )


def _precisions(multiply: str | None, state: str | None, emulate: bool) -> tuple[str, bool, bool]:
    """The kernels, and whether they multiply bfloat16 and keep float16."""
    module: Any = cpu_module()
    multiply, state = precision(multiply, state)
    kernels = cpu_kernels()
    if multiply == "bfloat16" and not emulate and not module.native_bf16(kernels):
        _warn_no_bf16(kernels)
        multiply = "float32"
    return kernels, multiply == "bfloat16", state == "float16"
