"""Networks as the engine for web pages reads them."""

import struct

import numpy as np

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops.fire import fire_threshold


def packed_network(network: OctreeNCA) -> bytes:
    """A network's sizes and weights; `Network` in cpu/web.cpp is the inverse.

    Returns:
        Little-endian words of four bytes.
    """
    threshold = fire_threshold(network.fire_rate)
    words = [
        network.dimension,
        network.input_channels,
        network.logits,
        int(network.constant_background),
        len(network.steps),
        threshold & 0xFFFFFFFF,
        threshold >> 32,
    ]
    for channels, hidden, steps, factors in zip(
        network.level_channels,
        network.level_hidden,
        network.steps,
        (*network.factors, (1,) * network.dimension),
        strict=True,
    ):
        words += [channels, hidden, steps, *(1,) * (3 - network.dimension), *factors]
    automaton = network.automaton()
    numbers = [
        np.ascontiguousarray(weight.detach().cpu().numpy(), "<f4").tobytes()
        for weights, matrix in zip(automaton.weights, (*automaton.from_parent, None), strict=True)
        for weight in (*weights, matrix)
        if weight is not None
    ]
    return struct.pack(f"<{len(words)}I", *words) + b"".join(numbers)


def packed_seed(seed: int) -> tuple[int, int]:
    """The low and the high 32 bits of the 64 that count."""
    return seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
