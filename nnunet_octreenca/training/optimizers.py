"""The optimizer that the plans name."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nnunet_octreenca.training.soap import SOAP

# By the plans' name: a name in the state of each weight that no other optimizer keeps.
_KEEPS = {"adam": "exp_avg", "soap": "squares"}


def make_optimizer(
    name: str,
    weights: Iterable[nn.Parameter],
    lr: float,
    *,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The plans' optimizer.

    Args:
        name: "adam" or "soap".
        weights: to be trained.
        lr, betas, weight_decay: see `planning.settings.Settings`.
    """
    weights = list(weights)
    options: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay}
    if name == "soap":
        return SOAP(weights, lr, **options)
    fused = all(each.device.type in ("cpu", "cuda") for each in weights) or None
    return torch.optim.Adam(weights, lr, fused=fused, **options)


def load_state(optimizer: torch.optim.Optimizer, state: Any, name: str) -> None:
    """Continue with the state that a checkpoint holds.

    Args:
        optimizer: of `make_optimizer`.
        state: its `state_dict`.
        name: the plans' of the optimizer.

    Raises:
        ValueError: it is another optimizer's.
    """
    optimizer.load_state_dict(state)
    kept = {name for each in optimizer.state.values() for name in each}
    if kept and _KEEPS[name] not in kept:
        raise ValueError(f"no state of the plans' optimizer, {name!r}")
