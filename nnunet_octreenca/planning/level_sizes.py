"""Channels and hidden units of every level, where the user gives them."""

from collections.abc import Sequence

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.planning.rules import HIDDEN_UNITS_PER_CHANNEL, of_levels
from nnunet_octreenca.planning.value_rules import one_or_list, short, whole

# Far above what can be trained; a number beyond them is a mistake or an attack.
MAX_LEVELS = 32
MAX_CHANNELS = 4_096
MAX_HIDDEN = 65_536
_RULES = {
    "channels": one_or_list(whole(1, MAX_CHANNELS), range(1, MAX_LEVELS + 1)),
    "hidden": one_or_list(whole(1, MAX_HIDDEN), range(1, MAX_LEVELS + 1)),
}


class LevelSizes:
    """What was given for the network's channels and hidden units, for several configurations.

    A list is for configurations of as many levels; the others keep what is worked out.

    Args:
        given: "channels" and "hidden", a number or a list each; others are not looked at.

    Raises:
        PlansError: a value that is neither.
    """

    def __init__(self, given: JsonMapping) -> None:
        self.given = {key: given[key] for key in _RULES if key in given}
        self._levels_seen: set[int] = set()
        for key, value in self.given.items():
            if not _RULES[key].accepts(value):
                raise PlansError(f"{key} is {short(value)}, but must be {_RULES[key].wanted}")

    @staticmethod
    def split(settings: JsonMapping | None) -> tuple["LevelSizes", JsonObject]:
        """The sizes among some settings, and the other settings."""
        settings = settings or {}
        return LevelSizes(settings), {k: v for k, v in settings.items() if k not in _RULES}

    def of(
        self, levels: int, planned: Sequence[int], hidden: Sequence[int] | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """C and H of every level, finest first.

        Args:
            levels: L.
            planned: C where none is given.
            hidden: H where neither is given; 4 C if left out.

        >>> LevelSizes({"channels": [16, 24]}).of(2, [16, 16]), LevelSizes({}).of(1, [16])
        (((16, 24), (64, 96)), ((16,), (64,)))
        """
        self._levels_seen.add(levels)
        channels = self._of("channels", levels)
        units = self._of("hidden", levels)
        if channels is None and units is None and hidden is not None:
            units = tuple(hidden)
        channels = tuple(planned) if channels is None else channels
        if units is None:
            units = tuple(HIDDEN_UNITS_PER_CHANNEL * own for own in channels)
        return channels, units

    def _of(self, key: str, levels: int) -> tuple[int, ...] | None:
        value = self.given.get(key)
        if value is None or (not isinstance(value, int) and len(value) != levels):
            return None
        return of_levels(value, levels)

    def check_used(self) -> None:
        """Look for lists that no configuration took.

        Raises:
            PlansError: there is one.
        """
        seen = " or ".join(map(str, sorted(self._levels_seen)))
        for key, value in self.given.items():
            if not isinstance(value, int) and len(value) not in self._levels_seen:
                raise PlansError(
                    f"{key} is {short(value)} for {len(value)} levels, but the configurations have "
                    f"{seen}; give one number for all levels, or one for each, finest first"
                )


def check_room(channels: Sequence[int], input_channels: int, logits: int) -> None:
    """Compare every level's channels with what its cells must hold.

    Raises:
        PlansError: they are too few.
    """
    if min(channels) < input_channels + logits:
        raise PlansError(
            f"channels is {list(channels)}, but the cells of every level hold {input_channels} "
            f"channels of the image and {logits} logits"
        )
