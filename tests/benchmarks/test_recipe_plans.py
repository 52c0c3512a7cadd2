"""What a recipe changes in the plans."""

import pytest
from recipe_run import changed
from recipes import recipe_named
from untrained_model import stock_plans

from nnunet_octreenca.planning import RECIPES, extend_plans


def plans_of(shape, recipe="default"):
    return extend_plans(
        stock_plans(shape, channels=1), input_channels=1, num_classes=3, foreground_labels=2,
        has_regions=False, recipe=RECIPES[recipe],
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(960, 960), (40, 56, 40), (32, 240, 432)])
def test_the_stochastic_recipe_is_the_preset(shape):
    plans, preset = plans_of(shape), plans_of(shape, "stochastic")
    (name,) = plans["configurations"]
    changed(plans, name, recipe_named("stochastic"), seed=0)
    assert plans == preset


def test_the_stochastic_recipe_joins_another_preset():
    joined = recipe_named("stochastic + wide")
    assert joined["extend"] == ["--preset", "wide"]
    plans = plans_of((40, 56, 40), "wide")
    (name,) = plans["configurations"]
    changed(plans, name, joined, seed=0)
    network = plans["configurations"][name]["architecture"]["arch_kwargs"]
    assert (network["channels"], network["fire_rate"]) == ([16, 16, 32, 48], 0.5)
    assert network["steps"] == [10, 10, 10, 7]
