"""Med-NCA and M3D-NCA (Kalkhof et al. 2023): an automaton at quarter resolution, then a finer one.

Both are an OctreeNCA of two levels four cells apart, and run on its engines. The way there has two
rows of factors of 2; the level in between takes no step and has no weights of its own. What is
published differs from OctreeNCA's step in three ways that the engines do not compute, which is why
these networks are smaller:

| | Med-NCA, 2-D | M3D-NCA, 3-D |
|---|---|---|
| published, 16 channels, 64 hidden units | 7,488 | 12,480 |
| the coarse level perceives 7 cells an axis, not 3 | -640 | -5,056 |
| batch normalisation of the hidden units | -256 | -256 |
| the update also computes an image channel that is then overwritten (of 1) | -128 | -128 |
| here, for an image of one channel | 6,464 | 7,040 |

The coarse level of M3D-NCA takes 30 steps, which reach as far as 10 with a kernel of 7.
"""

from nnunet_octreenca.integration.two_level_trainer import TwoLevelTrainer


class MedNCATrainer(TwoLevelTrainer):
    """Med-NCA (Kalkhof, González, Mukhopadhyay, IPMI 2023): 2-D, 64 steps a level."""

    dimension, fine_steps, coarse_steps, other = 2, 64, 64, "M3DNCATrainer"


class M3DNCATrainer(TwoLevelTrainer):
    """M3D-NCA (Kalkhof, Mukhopadhyay, MICCAI 2023): 3-D, see the module's table."""

    dimension, fine_steps, coarse_steps, other = 3, 10, 30, "MedNCATrainer"
