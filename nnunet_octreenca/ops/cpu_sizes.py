"""Sizes that the C++ engine lays its memory out with, as the memory model needs them.

They are asked of the native module. Where none was built (the memory model then still describes
machines that have it), the numbers here stand in; tests/ops/test_cpu_sizes.py holds both together.
"""

from collections.abc import Sequence
from math import prod

from nnunet_octreenca.ops.native import cpu_kernels, cpu_module

# Floats of a vector with AVX2, the most common kernels.
USUAL_LANES = 8


def lanes() -> int:
    """Floats of a vector of the kernels that run: a state's channels are padded to whole vectors.

    Without the native module those of AVX2.
    """
    module = cpu_module()
    return USUAL_LANES if module is None else int(module.lanes(cpu_kernels()))


def ring_slots(shape: Sequence[int], steps: int) -> int:
    """Rows (2-D) or planes (3-D) of a level that a wavefront through its steps keeps.

    Args:
        shape: cells of the level per axis.
        steps: of the level.
    """
    module = cpu_module()
    if module is None:
        return computed_ring_slots(shape, steps)
    return int(module.ring_slots(list(shape), steps))


def computed_ring_slots(shape: Sequence[int], steps: int) -> int:
    """`ring_slots` without the native module: every step trails the one before by two rows.

    A thread does some 1,000 cells of a step before it looks for other work.

    >>> computed_ring_slots((4000, 3000), 10)
    26
    """
    batch = min(max(1000 // max(prod(shape[1:]), 1), 1), 16)
    return 2 * steps + 4 + 2 * batch
