"""A label map that travels where nnU-Net sends logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class LabelPrediction:
    """A label map in the place of logits: what nnU-Net calls on a tensor of those does nothing.

    Args:
        labels: (z, y, x).
        heads: how many logits each cell had.
    """

    def __init__(self, labels: NDArray, heads: int) -> None:
        self.labels = labels
        self.heads = heads

    def cpu(self) -> "LabelPrediction":
        """Nothing to do."""
        return self

    detach = numpy = cpu

    def as_logits(self) -> NDArray:
        """An array (heads, z, y, x) whose `argmax(0)` is the label map; it takes no memory."""
        shape = (self.heads, *self.labels.shape)
        return np.broadcast_to(self.labels, shape).view(_LabelsAsLogits)


class _LabelsAsLogits(np.ndarray):
    """What nnU-Net's LabelManager takes the largest of."""

    def argmax(self, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        if (axis, out, keepdims) != (0, None, False):
            raise TypeError(f"these logits stand for a label map: argmax({axis}) must be argmax(0)")
        return np.asarray(self)[0]
