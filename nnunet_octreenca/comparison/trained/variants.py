"""OctreeNCA varied by its plans: `--ablate steps=5,10 levels=2,3`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.octree import level_shapes
from nnunet_octreenca.planning.context import speed_crop
from nnunet_octreenca.planning.rules import HIDDEN_UNITS_PER_CHANNEL, level_steps
from nnunet_octreenca.planning.settings import BLOCK

Change: TypeAlias = tuple[str, float]
"""What is varied, and its value."""


def parse_ablations(words: Sequence[str]) -> list[Change]:
    """Each value of each KEY=VALUE,VALUE,... word.

    Raises:
        InputError: another form, an unknown key, or no number.

    >>> parse_ablations(["steps=5,10", "lambda=0.5"])
    [('steps', 5), ('steps', 10), ('lambda', 0.5)]
    """
    found: list[Change] = []
    for word in words:
        key, sign, values = word.partition("=")
        if not sign or key not in KEYS:
            raise InputError(
                f"--ablate {word} must be KEY=VALUE,VALUE,... with a key of {', '.join(KEYS)}"
            )
        for text in values.split(","):
            change = (key, _number(text, word))
            if change in found:
                raise InputError(f"--ablate names {key}={text} twice")
            found.append(change)
    return found


def _number(text: str, word: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"--ablate {word}: {text!r} is no number") from error
    if not abs(value) < 1e9:
        raise InputError(f"--ablate {word}: {text} is not a finite number below 1e9")
    return int(value) if value == int(value) else value


def change(configuration: JsonObject, key: str, value: float) -> None:
    """Change a configuration of OctreeNCA's in place.

    Args:
        configuration: with what it inherits.
        key: of KEYS.
        value: which the plans' own rules check afterwards.

    Raises:
        InputError: the image does not have so many levels, or a count is no whole number.
    """
    if key in _WHOLE and (not isinstance(value, int) or value < 1):
        raise InputError(f"--ablate {key}={value:g} must be a whole number of 1 or more")
    KEYS[key](configuration, value)


def _steps(configuration: JsonObject, value: Any) -> None:
    network = configuration["architecture"]["arch_kwargs"]
    network["steps"] = [value] * (len(network["steps"]) - 1) + network["steps"][-1:]


def _levels(configuration: JsonObject, value: Any) -> None:
    network, block = configuration["architecture"]["arch_kwargs"], configuration[BLOCK]
    if value > len(network["steps"]):
        raise InputError(
            f"--ablate levels={value} cannot be had: the plans have {len(network['steps'])} levels"
        )
    context = tuple(configuration["patch_size"])
    network["factors"] = network["factors"][: value - 1]
    for key in ("channels", "hidden"):
        if isinstance(network.get(key), list):
            network[key] = network[key][:value]
    steps = network["steps"][0]
    network["steps"] = level_steps(level_shapes(context, network["factors"]), steps=steps)
    if block.get("crop_levels", 0) >= value:
        crop = speed_crop(context, network["factors"], steps=steps) if value > 1 else None
        block["crop_shape"] = None if crop is None else list(crop.shape)
        block["crop_levels"] = 0 if crop is None else crop.levels


def _alpha0(configuration: JsonObject, value: float) -> None:
    network = configuration["architecture"]["arch_kwargs"]
    shapes = level_shapes(tuple(configuration["patch_size"]), network["factors"])
    network["steps"] = [*network["steps"][:-1], max(1, round(value * max(shapes[-1])))]


def _fire_rate(configuration: JsonObject, value: float) -> None:
    configuration["architecture"]["arch_kwargs"]["fire_rate"] = value


def _channels(configuration: JsonObject, value: Any) -> None:
    network = configuration["architecture"]["arch_kwargs"]
    network.update(channels=value, hidden=HIDDEN_UNITS_PER_CHANNEL * value)


def _block(key: str) -> Callable[[JsonObject, Any], None]:
    def set_key(configuration: JsonObject, value: Any) -> None:
        configuration[BLOCK][key] = value

    return set_key


def _batch(configuration: JsonObject, value: Any) -> None:
    configuration["batch_size"] = value


KEYS: Mapping[str, Callable[[JsonObject, Any], None]] = {
    "steps": _steps,
    "levels": _levels,
    "alpha0": _alpha0,
    "fire_rate": _fire_rate,
    "channels": _channels,
    "lambda": _block("dice_weight"),
    "ema": _block("ema_decay"),
    "lr": _block("initial_lr"),
    "shift": _block("shift"),
    "batch": _batch,
}
"""What can be varied: steps of all levels but the coarsest, levels, steps of the coarsest per cell
of its longest axis (alpha0), probability of an update (fire_rate), channels, weight of the Dice
loss (lambda), decay of the weights' average (ema), learning rate (lr), shift of
contexts and batch size."""

_WHOLE = ("steps", "levels", "channels", "batch")
