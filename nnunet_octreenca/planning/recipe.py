"""Recipes: what the plans say of the network and its training where the user does not."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.octree import Shape
from nnunet_octreenca.planning.context import Crops, crops_for_memory, crops_for_speed
from nnunet_octreenca.planning.rules import (
    STEPS,
    equal_channels,
    level_steps,
    widening_channels,
)

# Of levels whose cells always fire: as much work as ten of which half fires, and as far a reach.
STEPS_OF_ALL_CELLS = 5


class Recipe(NamedTuple):
    """The network, and how it is trained.

    Attributes:
        batch_size: samples per training step.
        crops: which crops of the finest levels are tried, the best first.
        channels: (image channels, logits, shapes and steps of all levels) -> C of every level.
        steps: of every level but the coarsest.
        fire_rate: probability that a cell applies its update.
        settings: keys of the `octreenca` block that differ from the defaults.
        standardizes: whether the network standardizes intensities that nnU-Net leaves raw.
        reuses_contexts: whether several steps use a context that takes long to load.
        shifts: whether contexts are moved where cases are few.
    """

    batch_size: int
    crops: Crops
    channels: Callable[[int, int, Sequence[Shape], Sequence[int]], list[int]]
    steps: int
    fire_rate: float
    settings: JsonMapping
    standardizes: bool
    reuses_contexts: bool
    shifts: bool

    def level_steps(self, shapes: Sequence[Shape]) -> list[int]:
        """Steps of every level, as `rules.level_steps`."""
        return level_steps(shapes, steps=self.steps)


_DEFAULT = Recipe(
    batch_size=1,
    crops=partial(crops_for_speed, steps=STEPS_OF_ALL_CELLS),
    channels=equal_channels,
    steps=STEPS_OF_ALL_CELLS,
    fire_rate=1.0,
    settings={"optimizer": "soap", "initial_lr": 4e-3, "warm_up": 0.05, "loss_on_levels": 0.5},
    standardizes=True,
    reuses_contexts=True,
    shifts=True,
)
RECIPES = {
    "default": _DEFAULT,
    # As published: three contexts a step, cropped only where they do not fit.
    "paper": Recipe(
        batch_size=3,
        crops=crops_for_memory,
        channels=equal_channels,
        steps=STEPS,
        fire_rate=0.5,
        settings={"lr_schedule": "exponential", "gradient_clip": None},
        standardizes=False,
        reuses_contexts=False,
        shifts=False,
    ),
    # The published rule, half of the cells fire in a step, at random; trained with Adam.
    "stochastic": _DEFAULT._replace(
        crops=crops_for_speed,
        steps=STEPS,
        fire_rate=0.5,
        settings={**_DEFAULT.settings, "optimizer": "adam"},
    ),
    # Measured with three seeds on three data sets (docs/explanation/recipes.md).
    "wide": _DEFAULT._replace(channels=widening_channels),
}


def recipe_named(name: str) -> Recipe:
    """One of RECIPES.

    Raises:
        PlansError: there is none of this name.
    """
    if name not in RECIPES:
        raise PlansError(f"there is no recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]
