"""The memory model: bytes that training and inference need, before anything is allocated.

Counted are tensors; the process itself (Python, torch, a CUDA context) comes on top. The
constants were fitted to peaks that `benchmarks/memory_model.py` measures, and
tests/planning/test_memory.py holds them to it.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from nnunet_octreenca.octree import Crop, Factors, level_shapes, window_shapes
from nnunet_octreenca.ops.cpu_sizes import ring_slots
from nnunet_octreenca.ops.cuda_program import Configuration, backward_layout, single_precision
from nnunet_octreenca.ops.engine import engine_named
from nnunet_octreenca.ops.torch_engine import CPU_CHUNK
from nnunet_octreenca.planning.rules import of_levels

FLOAT = 4
# Whole states alive besides the trajectory while a level's backward pass runs: gradients of
# output and input, perceived and its gradient, and what padding and convolution hold (oneDNN
# keeps reordered copies of both operands).
_BACKWARD_STATES = 8
# Alive while a level's forward pass runs without a trajectory: two states, what perceive
# holds, and a part of the state as it was handed in.
FORWARD_STATES = 5.3
# Copies of the heads that loss, targets and their gradients hold, with an ignore label.
_LOSS_COPIES = 7
# The C++ engine, besides the log: a level's gradient and its parents', logits, target and loss, and
# buffers that are larger than what they hold.
_CPU_BACKWARD_STATES = 2.0


# The CUDA engine's backward pass: two blocks at a time on each of an H100's 132 multiprocessors.
_CUDA_ARCHITECTURE = 90
_CUDA_BLOCKS = 264


class _Numbers(NamedTuple):
    """What the models of all engines count with; of all levels, finest first."""

    cells: list[int]  # computed
    pixels: list[int]  # of the image
    steps: Sequence[int]
    channels: Sequence[int]
    hidden: Sequence[int]
    input_channels: int
    num_classes: int
    dimension: int
    every_level: bool = False  # whether each level has a loss

    @property
    def states(self) -> list[int]:
        """Bytes of a cell's state."""
        return [channels * FLOAT for channels in self.channels]

    def padded(self, engine: str) -> list[int]:
        """Bytes of a cell's state as an engine pads it in whole octrees."""
        pad = engine_named(engine).padded_channels
        return [pad(channels) * FLOAT for channels in self.channels]

    def largest(self, cell_bytes: Sequence[int]) -> int:
        """Bytes of the largest level's state."""
        return max(n * size for n, size in zip(self.cells, cell_bytes, strict=True))

    @property
    def image(self) -> int:
        """Bytes of the image on all levels."""
        return sum(self.pixels) * self.input_channels * FLOAT

    @property
    def head(self) -> int:
        """Bytes of the finest level's logits."""
        return self.cells[0] * self.num_classes * FLOAT

    @property
    def loss(self) -> int:
        """Bytes that the loss needs at once: logits of its levels, and averaged truth."""
        if not self.every_level:
            return self.head * _LOSS_COPIES
        heads = sum(self.cells) * self.num_classes * FLOAT
        return heads * _LOSS_COPIES + sum(self.pixels[1:]) * self.num_classes * FLOAT


def _training_torch(numbers: _Numbers, batch_size: int, fire_rate: float) -> int:
    # Every step keeps its input state until the backward pass has used it.
    levels = zip(numbers.steps, numbers.cells, numbers.states, strict=True)
    kept = sum(count * n * state for count, n, state in levels)
    working = numbers.largest(numbers.states) * _BACKWARD_STATES
    # One chunk of fired cells: 2 C inputs, H hidden units and their gradients.
    sizes = zip(numbers.channels, numbers.hidden, strict=True)
    chunk = CPU_CHUNK * max(4 * channels + 3 * hidden for channels, hidden in sizes) * FLOAT
    # The loss is over before the last level's backward pass works.
    return kept + max(working, numbers.loss) + numbers.image + chunk


def _training_cpu(numbers: _Numbers, batch_size: int, fire_rate: float) -> int:
    # A level keeps its last state, and of every step what the fired cells were before.
    kept = working = 0
    for count, n, state, padded in zip(
        numbers.steps, numbers.cells, numbers.states, numbers.padded("cpu"), strict=True
    ):
        log = (state - numbers.input_channels * FLOAT) * fire_rate
        kept += round(n * (state + count * log))
        copies = 2 * n // batch_size * padded if padded > state else 0
        working = max(working, round(n * state * _CPU_BACKWARD_STATES) + copies)
    return kept + max(working, numbers.loss) + numbers.image


def _training_cuda(numbers: _Numbers, batch_size: int, fire_rate: float) -> int:
    # Every step's input state, with its channels filled up.
    kept = working = 0
    for count, n, state, padded in zip(
        numbers.steps, numbers.cells, numbers.states, numbers.padded("cuda"), strict=True
    ):
        kept += count * n * padded
        # The gradient handed in and, filled up, what becomes of it and of perceived; stripped at
        # last.
        stripped = state if padded > state else 0
        working = max(working, n * (2 * padded + state + stripped))
    return kept + max(working + _cuda_sums(numbers), numbers.loss) + numbers.image


def _cuda_sums(numbers: _Numbers) -> int:
    # Each block adds up gradients of the weights on its own.
    sizes = (numbers.dimension, numbers.channels[0], numbers.input_channels, numbers.hidden[0])
    configuration = Configuration(*sizes, single_precision(_CUDA_ARCHITECTURE))
    layout = backward_layout(configuration, _CUDA_ARCHITECTURE)
    if layout is None:  # such a network trains with PyTorch
        return 0
    # Of the finest level, in whose backward pass all trajectories are still there.
    tiles = -(-numbers.cells[0] // prod(layout.tile))
    return min(tiles, _CUDA_BLOCKS) * configuration.sums(layout.warps) * FLOAT


_TRAINING = {"torch": _training_torch, "cuda": _training_cuda, "cpu": _training_cpu}


def training_bytes(
    shape: Sequence[int],
    *,
    factors: Factors,
    steps: Sequence[int],
    channels: int | Sequence[int],
    hidden: int | Sequence[int],
    input_channels: int,
    num_classes: int,
    batch_size: int,
    crop: Crop | None = None,
    engine: str = "torch",
    fire_rate: float = 0.5,
    every_level: bool = False,
) -> int:
    """Peak bytes of one training step.

    Args:
        shape: cells of the context (nnU-Net's patch size) per axis.
        factors, steps, channels, hidden, input_channels, num_classes: the network's; channels and
            hidden of all levels or of each.
        batch_size: samples per step.
        crop: of the finest levels, if any.
        engine: its name. The CUDA engine fills the channels up to groups of 16, and so needs less
            than PyTorch or more.
        fire_rate: counts for the C++ engine, which keeps only the cells that fire.
        every_level: whether there is a loss on each level.

    Raises:
        ValueError: there is no such engine.
    """
    numbers = _Numbers(
        [batch_size * prod(box) for box in window_shapes(shape, factors, crop)],
        [batch_size * prod(whole) for whole in level_shapes(shape, factors)],
        steps,
        of_levels(channels, len(steps)),
        of_levels(hidden, len(steps)),
        input_channels,
        num_classes,
        len(shape),
        every_level,
    )
    return _TRAINING[engine_named(engine).name](numbers, batch_size, fire_rate)


def _inference_torch(numbers: _Numbers, shape: Sequence[int]) -> int:
    sizes = zip(numbers.channels, numbers.hidden, strict=True)
    chunk = CPU_CHUNK * max(2 * channels + 2 * hidden for channels, hidden in sizes) * FLOAT
    states = round(numbers.largest(numbers.states) * FORWARD_STATES)
    return states + numbers.image + 2 * numbers.head + chunk


def _inference_cuda(numbers: _Numbers, shape: Sequence[int]) -> int:
    # Two states of the largest level, mostly the finest.
    return 2 * numbers.largest(numbers.padded("cuda")) + numbers.image + numbers.head


def _inference_cpu(numbers: _Numbers, shape: Sequence[int]) -> int:
    padded = numbers.padded("cpu")
    states = [n * size for n, size in zip(numbers.cells, padded, strict=True)]
    finest, parents = states[0], states[1] if len(states) > 1 else 0
    coarse = max((own + above for own, above in pairwise([*states[1:], 0])), default=0)
    rows = ring_slots(shape, numbers.steps[0])
    if len(shape) == 2 and shape[0] >= 2 * rows:
        # The finest level exists as some rows only, logits are written as they come.
        finest = rows * shape[1] * padded[0]
        return max(finest + parents + numbers.head, coarse) + numbers.image
    # The finest level's state, at first together with its parents, at last with the logits.
    return max(finest + max(parents, numbers.head), coarse) + numbers.image


_INFERENCE = {"torch": _inference_torch, "cuda": _inference_cuda, "cpu": _inference_cpu}


def inference_bytes(
    shape: Sequence[int],
    *,
    factors: Factors,
    steps: Sequence[int],
    channels: int | Sequence[int],
    hidden: int | Sequence[int],
    input_channels: int,
    num_classes: int,
    engine: str = "torch",
) -> int:
    """Peak bytes of one pass over a whole image, logits out.

    Args: as `training_bytes`; `shape` is the image's.
    """
    pixels = [prod(whole) for whole in level_shapes(shape, factors)]
    numbers = _Numbers(
        pixels,
        pixels,
        steps,
        of_levels(channels, len(steps)),
        of_levels(hidden, len(steps)),
        input_channels,
        num_classes,
        len(shape),
    )
    return _INFERENCE[engine_named(engine).name](numbers, shape)
