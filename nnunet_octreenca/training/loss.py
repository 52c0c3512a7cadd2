"""The paper's loss: (2 - lambda) BCE + lambda Dice, over every foreground logit."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from nnunet_octreenca.octree import Factors, Window, pool
from nnunet_octreenca.training.crops import cut


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; each one's gradient is the sum of what all of them hold.

    torch.distributed.nn.functional.all_reduce does the same, but warns that it is deprecated in
    favour of a private module.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class _Truth(NamedTuple):
    """What logits should say.

    Attributes:
        wanted: (N, K, *spatial), 0 to 1.
        mask: (N, 1, *spatial), the part of a cell that counts; None where all of it does.
    """

    wanted: Tensor
    mask: Tensor | None

    def cut(self, window: Window) -> "_Truth":
        """That of a window for each sample."""
        mask = None if self.mask is None else cut(self.mask, *window)
        return _Truth(cut(self.wanted, *window), mask)


class SegmentationLoss(nn.Module):
    """(2 - lambda) BCE + lambda (1 - Dice), computed in float32.

    Both terms are of sigmoids, one for each foreground label or region; the background is
    where all of them are low (paper section 3; DESIGN section 1, "Output").

    Args:
        regions: True where the target holds a channel for each region, False for label maps.
        ignore_label: for label maps, the label to leave out; for regions any value but None
            says that the target's last channel marks what to leave out.
        dice_weight: lambda, 0 to 2.
        batch_dice: Dice over the whole batch (and all processes) instead of sample by sample.
        smooth: added above and below the Dice quotient.
    """

    def __init__(
        self,
        *,
        regions: bool = False,
        ignore_label: int | None = None,
        dice_weight: float = 1.0,
        batch_dice: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.ignore_label = ignore_label
        self.dice_weight = dice_weight
        self.batch_dice = batch_dice
        self.smooth = smooth

    def forward(self, heads: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            heads: (N, K, *spatial) logits of K regions, or (N, K + 1, *spatial) with the
                background's first for label maps.
            target: (N, K or K + 1, *spatial) booleans for regions, (N, 1, *spatial) labels.
        """
        return self._loss(heads, self._truth(target, self._regions_of(heads)))

    def on_levels(
        self,
        heads: Sequence[Tensor],
        target: Tensor,
        windows: Sequence[Window],
        factors: Factors,
        weight: float,
    ) -> Tensor:
        """The mean of all levels' losses, each weighted by `weight` times the finer level's.

        A coarse cell's truth is the average over the cells below it, of those that are not to be
        ignored.

        Args:
            heads: logits of every level's window, finest first; as those of `forward`.
            target: of the whole context, as that of `forward`.
            windows: of every level.
            factors: the octree's.
        """
        regions = self._regions_of(heads[0])
        finest = cut(target, windows[0].shape, windows[0].origins)
        total, weights = self._loss(heads[0], self._truth(finest, regions)), 1.0
        truth: _Truth | None = None
        for level, (logits, window) in enumerate(zip(heads[1:], windows[1:], strict=True), start=1):
            factor = factors[level - 1]
            truth = (
                self._pooled_labels(target, regions, factor)
                if truth is None
                else _pooled(truth, factor)
            )
            total = total + weight**level * self._loss(logits, truth.cut(window))
            weights += weight**level
        return total / weights

    def _loss(self, heads: Tensor, truth: _Truth) -> Tensor:
        with torch.autocast(heads.device.type, enabled=False):
            logits = heads.float() if self.regions else heads[:, 1:].float()
            wanted, mask = truth
            bce = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            if mask is None:
                bce = bce.mean()
            else:
                # With everything ignored both terms are 0 and so are their gradients.
                bce = (bce * mask).sum() / (mask.sum() * logits.shape[1]).clamp_min(1.0)
            dice = self._dice(logits.sigmoid(), wanted, mask)
            return (2 - self.dice_weight) * bce + self.dice_weight * (1 - dice)

    def _regions_of(self, heads: Tensor) -> range:
        """The target's channels, or the labels, that there are logits for."""
        return range(heads.shape[1]) if self.regions else range(1, heads.shape[1])

    def _truth(self, target: Tensor, regions: range) -> _Truth:
        if self.regions:
            return _Truth(target[:, : len(regions)].float(), self._mask(target))
        labels = torch.arange(regions.start, regions.stop, device=target.device, dtype=target.dtype)
        labels = labels.view(1, -1, *[1] * (target.ndim - 2))
        return _Truth((target == labels).float(), self._mask(target))

    def _mask(self, target: Tensor) -> Tensor | None:
        """1 where the target counts, (N, 1, *spatial); None where all of it does."""
        if self.ignore_label is None:
            return None
        return (
            1.0 - target[:, -1:].float() if self.regions else (target != self.ignore_label).float()
        )

    def _pooled_labels(self, target: Tensor, regions: range, factor: Sequence[int]) -> _Truth:
        """Truth of level 1, region by region: level 0's of all regions would be large."""
        mask = self._mask(target)
        counted = None if mask is None else pool(mask, factor)
        parts = []
        for region in regions:
            own = target[:, region : region + 1] if self.regions else target == region
            parts.append(_averaged(own.float(), mask, counted, factor))
        return _Truth(torch.cat(parts, 1), counted)

    def _dice(self, probability: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            probability = probability * mask
        axes = tuple(range(2, probability.ndim))
        overlap = (probability * wanted).sum(axes)
        total = probability.sum(axes) + (wanted if mask is None else wanted * mask).sum(axes)
        if self.batch_dice:
            gather: Callable[[Tensor], Tensor] = (
                _SumOverProcesses.apply if dist.is_available() and dist.is_initialized() else _same
            )
            overlap, total = gather(overlap.sum(0)), gather(total.sum(0))
        return ((2 * overlap + self.smooth) / (total + self.smooth)).mean()


def _pooled(truth: _Truth, factor: Sequence[int]) -> _Truth:
    """Truth of the next coarser level."""
    counted = None if truth.mask is None else pool(truth.mask, factor)
    return _Truth(_averaged(truth.wanted, truth.mask, counted, factor), counted)


def _averaged(
    wanted: Tensor, mask: Tensor | None, counted: Tensor | None, factor: Sequence[int]
) -> Tensor:
    """Means over the cells that count; `counted` is the mask on the coarser level."""
    if mask is None or counted is None:
        return pool(wanted, factor)
    return pool(wanted * mask, factor) / counted.clamp_min(1e-6)


def _same(value: Tensor) -> Tensor:
    return value
