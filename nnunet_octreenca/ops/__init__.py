"""`nca_steps`: n steps of the automaton on one level, and the engines that run it."""

from nnunet_octreenca.ops.fire import fire_mask
from nnunet_octreenca.ops.operator import engine_of, nca_steps, nca_steps_channels_last
from nnunet_octreenca.ops.weights import StepWeights

__all__ = ["StepWeights", "engine_of", "fire_mask", "nca_steps", "nca_steps_channels_last"]
