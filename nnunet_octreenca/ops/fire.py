"""Fire draws: which cells apply their update in a step.

The draw is a pure function of (seed, level, step, sample, cell coordinates in the whole
image). Nothing is stored or streamed, so every engine, tile, thread count and device gets
the same draw. `cpu/fire.hpp` computes the same bits; a test holds the two together.

The mix is lowbias32 (C. Wellons, "Prospecting for Hash Functions", 2018): two 32-bit
multiplications, cheap in SIMD. Every row along x gets its own base and odd stride, so
that no two rows are shifted copies of one another; a cell's draw is mix(base + x * stride).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunet_octreenca.ops.native import cpu_module

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio, odd
_MASK = 0xFFFFFFFF
CERTAIN = 1 << 32  # the threshold of fire_rate = 1


def _mix_int(value: int) -> int:
    value &= _MASK
    value ^= value >> 16
    value = value * 0x7FEB352D & _MASK
    value ^= value >> 15
    value = value * 0x846CA68B & _MASK
    return value ^ value >> 16


def _absorb_int(key: int, word: int) -> int:
    return _mix_int((key ^ (word & _MASK)) + _GOLDEN)


def draw_key(seed: int, level: int, step: int, sample: int) -> int:
    """The 32-bit key of one sample's step: all of a draw but the cell's coordinates.

    Args:
        seed: any integer; its low 64 bits count.
        level: level of the octree, 0 is the finest.
        step: step within the level, from 0.
        sample: index in the batch.
    """
    key = 0
    for word in (seed, seed >> 32, level, step, sample):
        key = _absorb_int(key, word)
    return key


def fire_threshold(fire_rate: float) -> int:
    """The number of 32-bit draws that fire, 0 to 2^32.

    Raises:
        ValueError: `fire_rate` is not within [0, 1].
    """
    if not 0.0 <= fire_rate <= 1.0:
        raise ValueError(f"fire_rate ({fire_rate}) must be within [0, 1]")
    return round(fire_rate * CERTAIN)


class FireDraws(NamedTuple):
    """What the fire draws of a level depend on, but for the step.

    Attributes:
        fire_rate: probability that a cell fires, 0 to 1.
        seed: any integer; its low 64 bits count.
        level: level of the octree, 0 is the finest.
        origin: coordinates in the whole level of the first cell, sample by sample: N * dimension
            numbers, which count modulo 2^32.
    """

    fire_rate: float
    seed: int
    level: int
    origin: Sequence[int]

    @property
    def threshold(self) -> int:
        """See `fire_threshold`."""
        return fire_threshold(self.fire_rate)

    def origins(self, dimension: int) -> list[list[int]]:
        """One origin a sample."""
        numbers = [int(coordinate) for coordinate in self.origin]
        return [numbers[i : i + dimension] for i in range(0, len(numbers), dimension)]


def _signed(value: int) -> int:
    """The int32 with the same 32 bits."""
    value &= _MASK
    return value - (1 << 32) if value >> 31 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int32 drags the sign along."""
    return (value >> bits) & ((1 << (32 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """lowbias32 on int32 tensors, whose products wrap."""
    value = value ^ _shift_right(value, 16)
    value = value * _signed(0x7FEB352D)
    value = value ^ _shift_right(value, 15)
    value = value * _signed(0x846CA68B)
    return value ^ _shift_right(value, 16)


def _absorb(key: Tensor, word: Tensor) -> Tensor:
    return _mix((key ^ word) + _signed(_GOLDEN))


def _fire_torch(
    key: int, shape: Sequence[int], threshold: int, origin: Sequence[int], device: torch.device
) -> Tensor:
    # 2-D is 3-D with a single plane z = 0.
    depth, height, width = (1,) * (3 - len(shape)) + tuple(shape)
    z0, y0, x0 = (0,) * (3 - len(origin)) + tuple(origin)

    def axis(first: int, length: int) -> Tensor:
        return torch.arange(first, first + length, dtype=torch.int32, device=device)

    key_tensor = torch.full((1,), _signed(key), dtype=torch.int32, device=device)
    plane = _absorb(key_tensor, axis(z0, depth))[:, None]
    base = _absorb(plane, axis(y0, height)[None])[..., None]
    stride = _mix(base + _signed(_GOLDEN)) | 1
    draw = _mix(base + axis(x0, width) * stride)
    # Flipping the top bit turns the unsigned order into the signed one.
    fired = (draw ^ _signed(1 << 31)) < _signed(threshold ^ 1 << 31)
    return fired.reshape(tuple(shape))


def fire_mask(
    shape: Sequence[int],
    *,
    fire_rate: float,
    seed: int,
    level: int,
    step: int,
    sample: int = 0,
    origin: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    native: bool = True,
) -> Tensor:
    """Which cells of one sample fire in one step (DESIGN: "fire draws are counter-based").

    Args:
        shape: cells per axis, (y, x) or (z, y, x).
        fire_rate: probability that a cell fires, 0 to 1.
        seed, level, step, sample: see `draw_key`.
        origin: coordinates, in the whole level, of the first cell; zeros if left out.
        device: where the mask is wanted.
        native: draw with the C++ code where it was built (the same bits, faster).

    Returns:
        bool tensor of `shape`, True where the cell fires.

    Raises:
        ValueError: `fire_rate` is not within [0, 1].

    >>> fire_mask((2, 2), fire_rate=1.0, seed=0, level=0, step=0).all().item()
    True
    """
    threshold = fire_threshold(fire_rate)
    origin = tuple(origin) if origin is not None else (0,) * len(shape)
    device = torch.device(device)
    if threshold in (0, CERTAIN):
        return torch.full(tuple(shape), threshold == CERTAIN, dtype=torch.bool, device=device)
    key = draw_key(seed, level, step, sample)
    module = cpu_module() if native and device.type == "cpu" else None
    if module is None:
        return _fire_torch(key, shape, threshold, origin, device)
    fired = np.empty(tuple(shape), dtype=np.bool_)
    padded = (1,) * (3 - len(shape)) + tuple(shape)
    z0, y0, x0 = (0,) * (3 - len(origin)) + origin
    module.fire_mask(
        fired.reshape(padded).view(np.uint8), key, threshold, z0, y0, x0, torch.get_num_threads()
    )
    return torch.from_numpy(fired)
