"""`nca_steps`: n steps of the automaton on one level, and the engines that run it."""

from nnunet_octreenca.ops.automaton import Automaton, Part
from nnunet_octreenca.ops.engine import Engine, engine_for, engine_named
from nnunet_octreenca.ops.fire import FireDraws, fire_mask
from nnunet_octreenca.ops.operator import nca_steps, nca_steps_channels_last
from nnunet_octreenca.ops.weights import StepWeights

__all__ = [
    "Automaton",
    "Engine",
    "FireDraws",
    "Part",
    "StepWeights",
    "engine_for",
    "engine_named",
    "fire_mask",
    "nca_steps",
    "nca_steps_channels_last",
]
