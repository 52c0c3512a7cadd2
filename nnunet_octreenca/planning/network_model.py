"""The network that plans describe: OctreeNCA's arguments within their limits, nothing to import."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.planning import known_names
from nnunet_octreenca.planning.configuration import NETWORK_CLASS
from nnunet_octreenca.planning.level_sizes import MAX_CHANNELS, MAX_HIDDEN, MAX_LEVELS
from nnunet_octreenca.planning.rules import of_levels
from nnunet_octreenca.planning.value_rules import (
    Rule,
    broken,
    flag,
    number,
    one_or_list,
    optional,
    short,
    some,
    whole,
)

# Far above what can be trained; a number beyond them is a mistake or an attack.
MAX_STEPS = 10_000
MAX_PARAMETERS = 500_000_000

_NETWORK: dict[str, Rule] = {
    "dimension": whole(2, 3),
    "steps": some(whole(0, MAX_STEPS), range(1, MAX_LEVELS + 1)),
    "fire_rate": number(0, 1, above=True),
    "constant_background": flag(),
    "input_mean": optional(some(number(), range(1, MAX_CHANNELS + 1))),
    "input_std": optional(some(number(0, above=True), range(1, MAX_CHANNELS + 1))),
}
# Whose lengths the number of levels decides.
_OF_LEVELS = ("factors", "channels", "hidden")


@dataclass(frozen=True)
class Network:
    """The arguments of an `OctreeNCA` in the plans.

    Attributes:
        dimension: spatial axes.
        channels: of a cell's state, of every level, finest first.
        hidden: units of the update, of every level.
        factors: L - 1 rows with 1 or 2 per axis, finest first.
        steps: of every level, finest first.
        fire_rate: probability of an update.
        constant_background: whether the background's logit is 0 and not the network's.
        input_mean, input_std: of the image's channels; empty where the image is taken as it is.
    """

    dimension: int
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    factors: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    fire_rate: float
    constant_background: bool
    input_mean: tuple[float, ...] = ()
    input_std: tuple[float, ...] = ()

    def parameters(self, input_channels: int) -> int:
        """Numbers in the network's weights.

        >>> Network(2, (16,) * 5, (64,) * 5, ((2, 2),) * 4, (10,) * 5, 0.5, True).parameters(3)
        15520
        """
        levels: int = sum(
            own * (3**self.dimension + 1) + hidden * (3 * own + 1 - input_channels)
            for own, hidden in zip(self.channels, self.hidden, strict=True)
        )
        maps = sum(
            (own - input_channels) * (above - input_channels)
            for own, above in pairwise(self.channels)
            if own != above
        )
        return levels + maps


def read_network(arguments: JsonMapping) -> Network:
    """The network of `arch_kwargs` in which `network_faults` finds nothing."""
    levels = len(arguments["steps"])
    channels = of_levels(arguments.get("channels", 16), levels)
    hidden = arguments.get("hidden")
    return Network(
        dimension=arguments["dimension"],
        channels=channels,
        hidden=tuple(4 * own for own in channels) if hidden is None else of_levels(hidden, levels),
        factors=tuple(map(tuple, arguments["factors"])),
        steps=tuple(arguments["steps"]),
        fire_rate=float(arguments.get("fire_rate", 0.5)),
        constant_background=arguments.get("constant_background", True),
        input_mean=tuple(arguments.get("input_mean") or ()),
        input_std=tuple(arguments.get("input_std") or ()),
    )


def network_faults(architecture: Any, place: str = "architecture") -> Iterator[str]:
    """What is wrong with a configuration's `architecture`, of any network.

    Args:
        architecture: the value.
        place: of it, for the sentences.
    """
    if not isinstance(architecture, Mapping):
        yield f"{place} is {short(architecture)}, but must be an object"
        return
    name = architecture.get("network_class_name")
    arguments = architecture.get("arch_kwargs")
    imported = architecture.get("_kw_requires_import", [])
    if not known_names.known_network(name):
        yield (
            f"{place}.network_class_name is {short(name)}, which is neither OctreeNCA nor a "
            f"network of nnU-Net's; {known_names.CUSTOM}"
        )
    if not isinstance(arguments, Mapping):
        yield f"{place}.arch_kwargs is {short(arguments)}, but must be an object"
        return
    yield from _import_faults(name, imported, arguments, f"{place}._kw_requires_import")
    if name == NETWORK_CLASS:
        yield from _octreenca_faults(arguments, f"{place}.arch_kwargs.")


def _import_faults(
    network: Any, imported: Any, arguments: JsonMapping, place: str
) -> Iterator[str]:
    if not isinstance(imported, (list, tuple)):
        yield f"{place} is {short(imported)}, but must be a list"
    elif imported and network == NETWORK_CLASS:
        yield f"{place} is {short(imported)}, but OctreeNCA imports nothing; it must be empty"
    else:
        for key in imported:
            value = arguments.get(key) if isinstance(key, str) else key
            if value is not None and not known_names.known_part(value):
                yield (
                    f"{place} has {short(key)} import {short(value)}, which is not part of "
                    f"nnU-Net's networks; {known_names.CUSTOM}"
                )


def _octreenca_faults(arguments: JsonMapping, place: str) -> Iterator[str]:
    unknown = sorted(map(str, set(arguments) - set(_NETWORK) - set(_OF_LEVELS)))
    if unknown:
        yield (
            f"{place[:-1]} has {short(unknown[0])}, which is not an argument of OctreeNCA; remove "
            f"it"
        )
    found = list(broken(arguments, _NETWORK, required=("dimension", "steps"), place=place))
    yield from found
    if any(f"{place}{key} " in fault for fault in found for key in ("dimension", "steps")):
        return
    levels, axes = len(arguments["steps"]), arguments["dimension"]
    row = some(whole(1, 2), (axes,))
    factors = some(row, (levels - 1,))
    wanted = f"{levels - 1} rows, one fewer than steps, each {row.wanted}"
    rules = {
        "factors": Rule(factors.good, wanted),
        "channels": one_or_list(whole(1, MAX_CHANNELS), (levels,)),
        "hidden": optional(one_or_list(whole(1, MAX_HIDDEN), (levels,))),
    }
    yield from broken(arguments, rules, required=("factors",), place=place)
