"""Contexts that are moved, so that no place in them means anything."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def draw_offsets(
    samples: int, context: Sequence[int], share: float, generator: torch.Generator
) -> list[tuple[int, ...]]:
    """How many cells each sample is moved along every axis.

    Args:
        samples: as many.
        context: cells per axis.
        share: of each axis that a sample is moved by at most, forwards or backwards.
        generator: on the CPU; makes the draw repeatable.
    """
    most = [int(share * n) for n in context]
    return [
        tuple(int(torch.randint(-m, m + 1, (), generator=generator)) for m in most)
        for _ in range(samples)
    ]


def moved(values: Tensor, offsets: Sequence[tuple[int, ...]]) -> Tensor:
    """Samples moved by their offsets; what comes in is 0, as where nnU-Net pads an image.

    Args:
        values: (N, channels, *context), an image, a label map or regions.
        offsets: of each sample, in cells per axis.

    Returns:
        As `values`.

    >>> moved(torch.tensor([[[1, 2, 3]]]), [(1,)])
    tensor([[[0, 1, 2]]])
    """
    result = torch.zeros_like(values)
    for sample, offset in enumerate(offsets):
        ends = list(zip(offset, values.shape[2:], strict=True))
        to: tuple[Any, ...] = (..., *(slice(max(0, o), max(0, n + min(0, o))) for o, n in ends))
        of: tuple[Any, ...] = (..., *(slice(max(0, -o), max(0, n - max(0, o))) for o, n in ends))
        result[sample][to] = values[sample][of]
    return result
