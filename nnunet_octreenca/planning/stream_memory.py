"""Bytes that a streamed prediction needs, before anything is allocated.

Counted as in planning.memory: what is added to the process. The host's constants are held to
measurement by tests/planning/test_memory.py (`benchmarks/memory_model.py`, the cases "streamed").
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from nnunet_octreenca.octree import Factors, level_shapes
from nnunet_octreenca.planning.memory import _CHUNK_CELLS, _CPU_LANES, _FLOAT, _FORWARD_STATES

# Bands of the image alive at once: the one computed, the one read ahead, the one it is made from.
_BANDS = 3


class StreamBytes(NamedTuple):
    """What a stream needs on the host and on the device that computes, in bytes."""

    host: int
    device: int


def stream_bytes(
    shape: Sequence[int],
    *,
    factors: Factors,
    steps: Sequence[int],
    channels: int,
    hidden: int,
    input_channels: int,
    num_classes: int,
    units: int,
    engine: str = "cpu",
    half: bool = False,
    fire_rate: float = 0.5,
    passes: int = 1,
    labels: bool = True,
) -> StreamBytes:
    """Peak bytes of an image that goes through in bands, result by result.

    Args:
        shape: cells of the image per axis.
        factors, steps, channels, hidden, input_channels, num_classes: the network's.
        units: rows (2-D) or planes (3-D) of a band.
        engine: "cpu" (C++), "cuda", or "torch", which is counted as if it computed on the host.
        half: states in float16.
        passes: networks times seeds times mirrored copies.
        labels: a single pass gives labels at once; else logits are added up.
    """
    shapes = level_shapes(shape, factors)
    coarsest = len(shapes) - 1
    levels = range(max(coarsest, 1))
    state = 2 if half else _FLOAT
    unit = [prod(cells[1:]) for cells in shapes]
    image_unit = unit[0] * input_channels * _FLOAT
    spans = [1]
    for row in factors:
        spans.append(spans[-1] * row[0])
    units = min(units, shape[0])

    if engine == "cpu":
        padded = channels + -channels % _CPU_LANES
        coarse = prod(shapes[-1]) * padded * state if coarsest else 0
        rings, lag = 0.0, 0
        for level in levels:
            count = steps[level]
            batch = min(max(1000 // unit[level], 1), 16) if len(shape) == 2 else 1
            slots = min(2 * count + 4 + 2 * batch, shapes[level][0])
            rings += slots * unit[level] * padded * state
            # Updates that wait for their neighbours: an index and a float32 state each.
            rings += 2 * count * unit[level] * fire_rate * (4 + padded * _FLOAT)
            lag += 2 * count * spans[level]
        held = min(lag + units, shape[0])
        each = coarse + rings + held * image_unit
        device, stream = 0.0, passes * each
    else:
        padded = channels + -channels % 16 if engine == "cuda" else channels
        copies = 2.0 if engine == "cuda" else _FORWARD_STATES
        margins, held = 0, units
        windows = []
        for level in levels:
            held = min(held + 2 * steps[level] + 1, shapes[level][0])
            windows.append(held)
            margins = max(margins, held * spans[level])
            held = -(-held // spans[level + 1] * spans[level]) if coarsest else held
        held = min(max(margins, units), shape[0])
        lag = held - units
        coarse = prod(shapes[-1]) * padded * state if coarsest else 0
        work = max(n * unit[level] for level, n in enumerate(windows)) * padded * state * copies
        chunk = _CHUNK_CELLS * (2 * channels + 2 * hidden) * _FLOAT if engine == "torch" else 0
        on_device = passes * coarse + work + held * image_unit * 4 / 3 + chunk
        device, stream = (on_device, 0.0) if engine == "cuda" else (0, on_device)
    kept = _BANDS + (2 if passes > 1 else 0)
    rows = kept * min(units + (0 if engine == "cpu" else lag), shape[0]) * image_unit
    heads = 1 if labels else (num_classes * _FLOAT)
    flushed = min(units + lag, shape[0]) * unit[0] * heads * (1 if labels else passes + 1)
    return StreamBytes(round(stream + rows + flushed), round(device))
