"""The image on every level: averages from the fine to the coarse."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_octreenca.octree.shapes import Factors


def pool(image: Tensor, factor: Sequence[int]) -> Tensor:
    """Average over the cells that each node of the next coarser level covers.

    At the border a node averages the cells that exist, so an odd axis is not padded.

    Args:
        image: (N, channels, *spatial).
        factor: 1 or 2 per spatial axis.

    Returns:
        (N, channels, *ceil(spatial / factor)).
    """
    # avg_pool3d refuses a kernel longer than its axis: a single cell is its own average.
    kernel = tuple(min(f, n) for f, n in zip(factor, image.shape[2:], strict=True))
    if all(k == 1 for k in kernel):
        return image
    average = functional.avg_pool2d if len(factor) == 2 else functional.avg_pool3d
    return average(image, kernel, kernel, ceil_mode=True, count_include_pad=False)


def image_pyramid(image: Tensor, factors: Factors) -> list[Tensor]:
    """The image of every level, finest first (the image itself is level 0).

    Args:
        image: (N, channels, *spatial).
        factors: L - 1 rows with 1 or 2 per axis.
    """
    levels = [image]
    with torch.autocast(image.device.type, enabled=False):
        for factor in factors:
            levels.append(pool(levels[-1], factor))
    return levels
