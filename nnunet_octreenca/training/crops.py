"""Crops of the finest levels in a training step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_octreenca.octree import Shape


def crop_origins(
    target: Tensor, crop_shape: Sequence[int], oversample: float, generator: torch.Generator
) -> list[Shape]:
    """The first cell of each sample's crop.

    As in nnU-Net's data loader, the last `oversample` part of the batch must hold foreground:
    of the labels or regions that there are one is drawn, and of its cells one, which becomes the
    crop's middle as far as the context allows. A single sample must with that probability.

    Args:
        target: (N, channels, *context); labels above 0 are foreground (-1 and 0 are not).
        crop_shape: cells per axis.
        oversample: part of the batch, 0 to 1.
        generator: on the CPU; makes the draw repeatable.
    """
    batch, context = target.shape[0], target.shape[2:]
    crop_shape = [min(c, n) for c, n in zip(crop_shape, context, strict=True)]
    room = [n - c for n, c in zip(context, crop_shape, strict=True)]
    free = round(batch * (1 - oversample))
    if batch == 1:
        free = int(torch.rand((), generator=generator) >= oversample)
    origins = []
    for sample in range(batch):
        origin = [int(torch.randint(r + 1, (), generator=generator)) for r in room]
        if sample >= free:
            cells = _cells_of_one_label(target[sample], generator)
            if len(cells):
                cell = cells[int(torch.randint(len(cells), (), generator=generator))]
                origin = [
                    min(max(int(at) - c // 2, 0), r)
                    for at, c, r in zip(cell, crop_shape, room, strict=True)
                ]
        origins.append(tuple(origin))
    return origins


def _cells_of_one_label(target: Tensor, generator: torch.Generator) -> Tensor:
    """Cells (n, axes) of a label or region that is drawn among those that occur."""
    if target.dtype == torch.bool:
        present = target.flatten(1).any(1).nonzero().flatten().tolist()
    else:
        present = [label for label in torch.unique(target).tolist() if label > 0]
    if not present:
        return target.new_empty((0, target.ndim - 1))
    drawn = present[int(torch.randint(len(present), (), generator=generator))]
    mask = target[drawn] if target.dtype == torch.bool else (target == drawn).any(0)
    return mask.nonzero()


def cut(target: Tensor, crop_shape: Sequence[int], origins: Sequence[Shape]) -> Tensor:
    """The target of each sample's crop, (N, channels, *crop_shape)."""
    crops = []
    for sample, origin in enumerate(origins):
        crop = target[sample]
        for axis, (first, length) in enumerate(zip(origin, crop_shape, strict=True), start=1):
            crop = crop.narrow(axis, first, min(length, crop.shape[axis]))
        crops.append(crop)
    return torch.stack(crops)
