"""The memory model: bytes that training and inference need, before anything is allocated.

Counted are tensors; the process itself (Python, torch, a CUDA context) comes on top. The
constants were fitted to peaks that `benchmarks/memory_model.py` measures, and
tests/planning/test_memory.py holds them to it.
"""

from collections.abc import Sequence
from math import prod

from nnunet_octreenca.octree import Crop, Factors, level_shapes, window_shapes

_FLOAT = 4
# Whole states alive beside the trajectory while a level's backward pass runs: gradients of
# output and input, perceived and its gradient, and what padding and convolution hold (oneDNN
# keeps reordered copies of both operands).
_BACKWARD_STATES = 8
# Alive while a level's forward pass runs without a trajectory: two states, what perceive
# holds, and a part of the state as it was handed in.
_FORWARD_STATES = 5.3
# Copies of the heads that loss, targets and their gradients hold, with an ignore label.
_LOSS_COPIES = 7
# One chunk of fired cells: 2 C inputs, H hidden units and their gradients.
_CHUNK_CELLS = 4096
# The C++ engine, beside the log: the gradient handed in, the one handed back, and what the way
# from a level to its parents holds.
_CPU_BACKWARD_STATES = 2.6
# Its kernels pad a cell's channels to whole vectors: of 8 with AVX2, at most 16.
_CPU_LANES = 8
# Rows of level 0 that its wave keeps, with 10 steps (cpu/steps.cpp, ring_slots).
_CPU_RING_ROWS = 30


def training_bytes(
    shape: Sequence[int],
    *,
    factors: Factors,
    steps: Sequence[int],
    channels: int,
    hidden: int,
    input_channels: int,
    num_classes: int,
    batch_size: int,
    crop: Crop | None = None,
    engine: str = "torch",
    fire_rate: float = 0.5,
) -> int:
    """Peak bytes of one training step.

    Args:
        shape: cells of the context (nnU-Net's patch size) per axis.
        factors, steps, channels, hidden, input_channels, num_classes: the network's.
        batch_size: samples per step.
        crop: of the finest levels, if any.
        engine: "torch", which the planner plans for (the CUDA engine needs less), or "cpu".
        fire_rate: counts for the C++ engine, which keeps only the cells that fire.
    """
    cells = [batch_size * prod(box) for box in window_shapes(shape, factors, crop)]
    pixels = [batch_size * prod(whole) for whole in level_shapes(shape, factors)]
    state = channels * _FLOAT
    if engine == "cpu":
        # A level keeps its last state, and of every step what the fired cells were before.
        log = (channels - input_channels) * _FLOAT * fire_rate
        kept = sum(round(n * (state + count * log)) for count, n in zip(steps, cells, strict=True))
        padding = -channels % _CPU_LANES
        padded = 2 * max(cells) // batch_size * (channels + padding) * _FLOAT if padding else 0
        working = round(max(cells) * state * _CPU_BACKWARD_STATES) + padded
        loss = cells[0] * num_classes * _FLOAT * _LOSS_COPIES
        return kept + max(working, loss) + sum(pixels) * input_channels * _FLOAT
    # Every step keeps its input state until the backward pass has used it.
    kept = sum(count * n * state for count, n in zip(steps, cells, strict=True))
    working = max(cells) * state * _BACKWARD_STATES
    loss = cells[0] * num_classes * _FLOAT * _LOSS_COPIES
    image = sum(pixels) * input_channels * _FLOAT
    chunk = _CHUNK_CELLS * (4 * channels + 3 * hidden) * _FLOAT
    # The loss is over before the last level's backward pass works.
    return kept + max(working, loss) + image + chunk


def inference_bytes(
    shape: Sequence[int],
    *,
    factors: Factors,
    channels: int,
    hidden: int,
    input_channels: int,
    num_classes: int,
    engine: str = "torch",
) -> int:
    """Peak bytes of one pass over a whole image, logits out.

    Args: as `training_bytes`, and engine "cuda"; `shape` is the image's.
    """
    pixels = [prod(whole) for whole in level_shapes(shape, factors)]
    state = channels * _FLOAT
    image = sum(pixels) * input_channels * _FLOAT
    heads = 2 * pixels[0] * num_classes * _FLOAT
    if engine == "cpu":
        padded = (channels + -channels % _CPU_LANES) * _FLOAT
        parents = (pixels[1] if len(pixels) > 1 else 0) * padded
        head = heads // 2
        if len(shape) == 2 and shape[0] >= 2 * _CPU_RING_ROWS:
            # The finest level exists as some rows only, logits are written as they come.
            return _CPU_RING_ROWS * shape[1] * padded + parents + head + image
        # The finest level's state, at first beside its parents, at last beside the logits.
        return pixels[0] * padded + max(parents, head) + image
    if engine == "cuda":
        # Two states of the finest level, their channels in groups of 16.
        return 2 * pixels[0] * (channels + -channels % 16) * _FLOAT + image + heads // 2
    chunk = _CHUNK_CELLS * (2 * channels + 2 * hidden) * _FLOAT
    return round(pixels[0] * state * _FORWARD_STATES) + image + heads + chunk
