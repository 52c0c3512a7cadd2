"""The paper's loss: (2 - lambda) BCE + lambda Dice, over every foreground logit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional


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
        with torch.autocast(heads.device.type, enabled=False):
            logits, wanted, mask = self._foreground(heads.float(), target)
            bce = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            if mask is None:
                bce = bce.mean()
            else:
                # With everything ignored both terms are 0 and so are their gradients.
                bce = (bce * mask).sum() / (mask.sum() * logits.shape[1]).clamp_min(1.0)
            dice = self._dice(logits.sigmoid(), wanted, mask)
            return (2 - self.dice_weight) * bce + self.dice_weight * (1 - dice)

    def _foreground(self, heads: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.regions:
            if self.ignore_label is None:
                return heads, target.float(), None
            return heads, target[:, :-1].float(), 1.0 - target[:, -1:].float()
        mask = None if self.ignore_label is None else (target != self.ignore_label).float()
        logits = heads[:, 1:]
        labels = torch.arange(1, heads.shape[1], device=target.device, dtype=target.dtype)
        labels = labels.view(1, -1, *[1] * (target.ndim - 2))
        return logits, (target == labels).float(), mask

    def _dice(self, probability: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            probability, wanted = probability * mask, wanted * mask
        axes = tuple(range(2, probability.ndim))
        overlap = (probability * wanted).sum(axes)
        total = probability.sum(axes) + wanted.sum(axes)
        if self.batch_dice:
            gather: Callable[[Tensor], Tensor] = (
                _SumOverProcesses.apply if dist.is_available() and dist.is_initialized() else _same
            )
            overlap, total = gather(overlap.sum(0)), gather(total.sum(0))
        return ((2 * overlap + self.smooth) / (total + self.smooth)).mean()


def _same(value: Tensor) -> Tensor:
    return value
