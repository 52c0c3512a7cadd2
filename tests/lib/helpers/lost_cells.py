"""How many cells of a network's states are NaN or infinite, counted in the plainest way."""

import numpy as np
import pytest
import torch

from nnunet_octreenca.octree import image_pyramid, windows
from nnunet_octreenca.ops.finite import NonFiniteCells


class _EveryCell(NonFiniteCells):
    def add_state(self, level, state):
        wrong = ~np.isfinite(state.detach().numpy()).all(-1)
        self.add(level, int(wrong.sum()), wrong.size)


def by_pytorch(network, image, seed=3):
    """Of every level, finest first: cells that are not finite, and cells that there are.

    Each cell of the PyTorch engine's states is looked at.
    """
    cells = _EveryCell(len(network.steps))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("OCTREENCA_ENGINE", "torch")
        boxes = windows(
            image.shape[2:], network.factors, None, [(0,) * network.dimension] * image.shape[0]
        )
        network._descend(image_pyramid(image, network.factors), boxes, seed, non_finite=cells)
    return cells.found.tolist(), cells.checked
