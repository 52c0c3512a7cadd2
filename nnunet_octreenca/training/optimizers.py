"""The optimizer that the plans name."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nnunet_octreenca.planning.settings import Settings
from nnunet_octreenca.training.soap import SOAP

# By the plans' name: a name in the state of each weight that no other optimizer keeps.
_KEEPS = {"adam": "exp_avg", "soap": "squares"}


def make_optimizer(settings: Settings, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The plans' optimizer at the plans' learning rate."""
    weights = list(weights)
    options: dict[str, Any] = {"betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.optimizer == "soap":
        return SOAP(weights, settings.initial_lr, **options)
    fused = all(each.device.type in ("cpu", "cuda") for each in weights) or None
    return torch.optim.Adam(weights, settings.initial_lr, fused=fused, **options)


def load_state(optimizer: torch.optim.Optimizer, state: Any, settings: Settings) -> None:
    """Continue with the state that a checkpoint holds.

    Raises:
        ValueError: it is another optimizer's.
    """
    optimizer.load_state_dict(state)
    kept = {name for each in optimizer.state.values() for name in each}
    if kept and _KEEPS[settings.optimizer] not in kept:
        raise ValueError(f"no state of the plans' optimizer, {settings.optimizer!r}")
