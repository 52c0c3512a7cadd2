"""Bytes that a streamed prediction needs, before anything is allocated.

Counted as in planning.memory: what is added to the process. The host's constants are held to
measurement by tests/planning/test_memory.py (`benchmarks/memory_model.py`, the cases "streamed").
"""

from collections.abc import Sequence
from enum import Enum
from math import prod
from typing import NamedTuple

from nnunet_octreenca.bands import spans
from nnunet_octreenca.octree import Factors, level_shapes
from nnunet_octreenca.ops.cpu_sizes import ring_slots
from nnunet_octreenca.ops.engine import BandEngine, engine_named
from nnunet_octreenca.ops.torch_engine import CPU_CHUNK
from nnunet_octreenca.planning.memory import FLOAT, FORWARD_STATES
from nnunet_octreenca.planning.rules import of_levels

# Bands of the image alive at once: the one computed, the one read ahead, the one it is made from.
_BANDS = 3


class Output(Enum):
    """What a stream gives for every cell."""

    LABELS = "labels"
    LOGITS = "logits"


class StreamBytes(NamedTuple):
    """What a stream needs on the host and on the device that computes, in bytes."""

    host: int
    device: int


def stream_bytes(
    shape: Sequence[int],
    *,
    factors: Factors,
    steps: Sequence[int],
    channels: int | Sequence[int],
    hidden: int | Sequence[int],
    input_channels: int,
    num_classes: int,
    band_rows: int,
    engine: str = "cpu",
    half: bool = False,
    fire_rate: float = 0.5,
    passes: int = 1,
    output: Output = Output.LABELS,
) -> StreamBytes:
    """Peak bytes of an image that goes through in bands, result by result.

    Args:
        shape: cells of the image per axis.
        factors, steps, channels, hidden, input_channels, num_classes: the network's; channels and
            hidden of all levels or of each.
        band_rows: rows (2-D) or planes (3-D) of a band.
        engine: its name; "torch" is counted as if it computed on the host.
        half: states in float16.
        passes: networks times seeds times mirrored copies.
        output: of a pass. A single pass can give labels at once; the logits of several are
            averaged.
    """
    kind = engine_named(engine)
    shapes = level_shapes(shape, factors)
    coarsest = len(shapes) - 1
    levels = range(max(coarsest, 1))
    channels, hidden = of_levels(channels, len(steps)), of_levels(hidden, len(steps))
    padded = [kind.padded_channels(own) for own in channels]
    cell = [own * (2 if half else FLOAT) for own in padded]
    row_cells = [prod(cells[1:]) for cells in shapes]
    image_row = row_cells[0] * input_channels * FLOAT
    span = spans(factors)
    band_rows = min(band_rows, shape[0])
    coarse = prod(shapes[-1]) * cell[-1] if coarsest else 0

    if isinstance(kind, BandEngine):
        rings, lag = 0.0, 0
        for level in levels:
            slots = min(ring_slots(shapes[level], steps[level]), shapes[level][0])
            rings += slots * row_cells[level] * cell[level]
            # Updates that wait for their neighbours: an index and a float32 state each.
            update = 4 + padded[level] * FLOAT
            rings += 2 * steps[level] * row_cells[level] * fire_rate * update
            # Every step trails the one before by two rows (cpu/stream.cpp).
            lag += 2 * steps[level] * span[level]
        held = min(lag + band_rows, shape[0])
        device, stream = 0.0, passes * (coarse + rings + held * image_row)
        read = band_rows
    else:
        copies = 2.0 if kind.on_gpu else FORWARD_STATES
        margins, held = 0, band_rows
        windows = []
        for level in levels:
            held = min(held + 2 * steps[level] + 1, shapes[level][0])
            windows.append(held)
            margins = max(margins, held * span[level])
            held = -(-held // span[level + 1] * span[level]) if coarsest else held
        held = min(max(margins, band_rows), shape[0])
        lag = held - band_rows
        work = max(n * row_cells[level] * cell[level] for level, n in enumerate(windows)) * copies
        numbers = max(2 * own + 2 * units for own, units in zip(channels, hidden, strict=True))
        chunk = 0 if kind.on_gpu else CPU_CHUNK * numbers * FLOAT
        computing = passes * coarse + work + held * image_row * 4 / 3 + chunk
        device, stream = (computing, 0.0) if kind.on_gpu else (0.0, computing)
        read = held
    bands = _BANDS + (2 if passes > 1 else 0)
    rows = bands * min(read, shape[0]) * image_row
    flushed = min(band_rows + lag, shape[0]) * row_cells[0]
    if output is Output.LOGITS:
        flushed *= num_classes * FLOAT * (passes + 1)
    return StreamBytes(round(stream + rows + flushed), round(device))
