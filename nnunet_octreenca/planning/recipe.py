"""Recipes: what the plans say of training where the user does not."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.octree import Shape
from nnunet_octreenca.planning.context import Crops, crops_for_memory, crops_for_speed
from nnunet_octreenca.planning.rules import equal_channels, widening_channels


class Recipe(NamedTuple):
    """How a network is trained.

    Attributes:
        batch_size: samples per training step.
        crops: which crops of the finest levels are tried, the best first.
        channels: (image channels, logits, shapes and steps of all levels) -> C of every level.
        settings: keys of the `octreenca` block that differ from the defaults.
        standardizes: whether the network standardizes intensities that nnU-Net leaves raw.
        reuses_contexts: whether several steps use a context that takes long to load.
    """

    batch_size: int
    crops: Crops
    channels: Callable[[int, int, Sequence[Shape], Sequence[int]], list[int]]
    settings: JsonMapping
    standardizes: bool
    reuses_contexts: bool


_DEFAULT = Recipe(
    batch_size=1,
    crops=crops_for_speed,
    channels=equal_channels,
    settings={"initial_lr": 4e-3, "warm_up": 0.05, "loss_on_levels": 0.5},
    standardizes=True,
    reuses_contexts=True,
)
RECIPES = {
    "default": _DEFAULT,
    # As published: three contexts a step, cropped only where they do not fit.
    "paper": Recipe(
        batch_size=3,
        crops=crops_for_memory,
        channels=equal_channels,
        settings={"lr_schedule": "exponential", "gradient_clip": None},
        standardizes=False,
        reuses_contexts=False,
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
