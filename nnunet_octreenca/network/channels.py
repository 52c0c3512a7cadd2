"""Channels and hidden units of every level, and the maps between levels that differ."""

from collections.abc import Sequence

import torch
from torch import nn


def of_levels(name: str, given: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """A number for every level, of one for all or of a list, finest first.

    Args:
        name: of the argument, for the error.

    Raises:
        ValueError: a list of another length than the levels.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        return (int(given),) * levels
    if len(given) != levels:
        raise ValueError(
            f"{name} ({list(given)}) must be one number, or one for each of the {levels} levels"
        )
    return tuple(int(number) for number in given)


def check_levels(
    channels: Sequence[int], hidden: Sequence[int], input_channels: int, logits: int
) -> None:
    """Compare every level's channels with what its cells hold.

    Raises:
        ValueError: too few of them, or no hidden units; the message names the level.
    """
    for level, (own, units) in enumerate(zip(channels, hidden, strict=True)):
        if own < input_channels + logits:
            raise ValueError(
                f"channels ({own}) must hold {input_channels} image channels and {logits} logits"
                f"{_where(channels, level)}"
            )
        if units < 1:
            raise ValueError(f"hidden ({units}) must be at least 1{_where(hidden, level)}")


def _where(row: Sequence[int], level: int) -> str:
    """The level, where it is not all."""
    return "" if len(set(row)) == 1 else f" on level {level} of {list(row)}"


def brief(row: tuple[int, ...]) -> int | tuple[int, ...]:
    """The number that all levels share, or all numbers."""
    return row[0] if len(set(row)) == 1 else row


def channel_map(parents: int, children: int) -> nn.Linear:
    """From the parents' logits and hidden channels to the children's.

    It starts as the copy of as many as both have, so that logits stay logits, with a little noise
    for the others.
    """
    linear = nn.Linear(parents, children, bias=False)
    nn.init.normal_(linear.weight, std=0.02)
    shared = min(parents, children)
    with torch.no_grad():
        linear.weight[:shared, :shared] += torch.eye(shared)
    return linear
