"""From a data set's fingerprint and an existing plan to OctreeNCA's plan."""

from nnunet_octreenca.planning.configuration import octreenca_configuration
from nnunet_octreenca.planning.context import Context, plan_context
from nnunet_octreenca.planning.memory import inference_bytes, training_bytes
from nnunet_octreenca.planning.plans import PLANS_NAME, extend_plans, octreenca_settings
from nnunet_octreenca.planning.presets import load_preset, preset_names
from nnunet_octreenca.planning.recipe import RECIPES, Recipe, recipe_named
from nnunet_octreenca.planning.rules import (
    cell_channels,
    level_factors,
    level_steps,
    round_up,
)
from nnunet_octreenca.planning.stream_memory import Output, StreamBytes, stream_bytes

__all__ = [
    "PLANS_NAME",
    "RECIPES",
    "Context",
    "Output",
    "Recipe",
    "StreamBytes",
    "cell_channels",
    "extend_plans",
    "inference_bytes",
    "level_factors",
    "level_steps",
    "load_preset",
    "octreenca_configuration",
    "octreenca_settings",
    "plan_context",
    "preset_names",
    "recipe_named",
    "round_up",
    "stream_bytes",
    "training_bytes",
]
