"""How often a training step uses a context, where loading it takes longer than the step."""

from collections.abc import Sequence
from math import ceil, prod

from nnunet_octreenca.octree import Crop, Factors, window_shapes
from nnunet_octreenca.planning.rules import of_levels

# Seconds of one core: nnU-Net's loading and augmentation of a number, between the 25e-9 and 143e-9
# of six data sets (benchmarks/context_loading.py); a cell's multiply-add, forward and backward.
_LOADING = 100e-9
_MULTIPLY_ADD = 150e-9 / 3072  # 150 ns for the update of a cell of C = 16, H = 64
MOST_STEPS = 8  # a context's crops repeat one another with more


def steps_per_context(
    context: Sequence[int],
    crop: Crop | None,
    *,
    factors: Factors,
    steps: Sequence[int],
    channels: int | Sequence[int],
    hidden: int | Sequence[int],
    input_channels: int,
    fire_rate: float,
) -> int:
    """As many steps as last as long as loading the next context, 1 to 8.

    Args:
        context: cells of level 0 per axis.
        crop: of the finest levels; without one a step sees all there is, and none is repeated.
        factors, steps, channels, hidden, input_channels, fire_rate: the network's; channels and
            hidden of all levels or of each.

    >>> network = {"factors": [(2, 2)] * 4, "steps": [10] * 4 + [20], "channels": 16, "hidden": 64}
    >>> network |= {"input_channels": 3, "fire_rate": 0.5}
    >>> steps_per_context((2048, 2048), Crop((256, 256), 3), **network)
    6
    >>> steps_per_context((320, 320), None, **network)
    1
    """
    if crop is None:
        return 1
    shapes = window_shapes(context, factors, crop)
    levels = len(steps)
    products = sum(
        count * prod(box) * 3 * own * units
        for count, box, own, units in zip(
            steps, shapes, of_levels(channels, levels), of_levels(hidden, levels), strict=True
        )
    )
    step = products * fire_rate * _MULTIPLY_ADD
    return min(MOST_STEPS, max(1, ceil(_LOADING * input_channels * prod(context) / step)))
