"""Variants of OctreeNCA change what they name, and nothing else."""

import untrained_model
from helpers.compared_methods import jobs_of

from nnunet_octreenca.comparison.trained.variants import change
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning import RECIPES, extend_plans


def test_variants_change_what_they_name(prepared):
    _, jobs = jobs_of(
        "OctreeNCA", ablate=("steps=3", "levels=1", "alpha0=2", "ema=0.5", "shift=0.1", "batch=3")
    )
    found = {job.name: job.plans["configurations"]["3d_fullres"] for job in jobs}
    network = {name: own["architecture"]["arch_kwargs"] for name, own in found.items()}
    assert network["OctreeNCA"]["steps"] == [5, 8]
    assert network["OctreeNCA steps=3"]["steps"] == [3, 8]
    assert network["OctreeNCA levels=1"]["factors"] == []
    assert network["OctreeNCA levels=1"]["steps"] == [12]
    assert network["OctreeNCA alpha0=2"]["steps"] == [5, 16]
    assert found["OctreeNCA ema=0.5"]["octreenca"]["ema_decay"] == 0.5
    assert found["OctreeNCA shift=0.1"]["octreenca"]["shift"] == 0.1
    assert found["OctreeNCA batch=3"]["batch_size"] == 3
    for key in ("seed", "num_epochs"):
        assert len({own["octreenca"][key] for own in found.values()}) == 1


def test_fewer_levels_keep_the_steps_of_their_plans():
    for recipe, steps in (("default", [5, 16]), ("stochastic", [10, 16])):
        plans = extend_plans(
            untrained_model.stock_plans((32, 32)), input_channels=1, num_classes=2,
            foreground_labels=1, has_regions=False, recipe=RECIPES[recipe],
        )  # fmt: skip
        configuration = plans["configurations"]["2d"]
        change(configuration, "levels", 2)
        arguments = configuration["architecture"]["arch_kwargs"]
        assert arguments["steps"] == steps
        change(configuration, "fire_rate", 0.25)
        assert OctreeNCA(1, 2, **arguments).fire_rate == 0.25


def test_fewer_levels_keep_their_channels():
    plans = extend_plans(
        untrained_model.stock_plans((32, 32)), input_channels=1, num_classes=2,
        foreground_labels=1, has_regions=False, settings={"channels": [16, 24, 20]},
    )  # fmt: skip
    configuration = plans["configurations"]["2d"]
    change(configuration, "levels", 2)
    arguments = configuration["architecture"]["arch_kwargs"]
    assert (arguments["channels"], arguments["hidden"]) == ([16, 24], [64, 96])
    assert OctreeNCA(1, 2, **arguments).level_channels == (16, 24)
    change(configuration, "channels", 20)
    assert OctreeNCA(1, 2, **arguments).level_hidden == (80, 80)
