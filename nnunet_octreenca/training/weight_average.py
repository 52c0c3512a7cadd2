"""Exponential moving average (EMA) of the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnunet_octreenca.files import JsonObject


class WeightAverage:
    """Exponential moving average of a module's state.

    The decay of update number i is min(decay, i / (i + 10)): the average forgets the random
    start quickly and is as long as `decay` says from then on. torch's AveragedModel gives the same
    averages but holds a copy of the whole module, needs this schedule as a function of ours, and
    has other keys in its state.

    Args:
        module: whose state is averaged; the average begins as a copy of it.
        decay: of the old average in every update, 0 to 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average with the module's current state."""
        decay = min(self.decay, self.updates / (self.updates + 10))
        self.updates += 1
        for key, value in module.state_dict().items():
            self.average[key].lerp_(value, 1 - decay)

    def applied(self, module: nn.Module) -> "AppliedAverage":
        """Context in which the module holds the average; its own state is restored afterwards."""
        return AppliedAverage(self.average, module)

    def state_dict(self) -> JsonObject:
        """State for a checkpoint, on the CPU, for `load_state_dict`."""
        average = {key: value.cpu() for key, value in self.average.items()}
        return {"updates": self.updates, "average": average}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a saved average.

        Raises:
            ValueError: it is another network's.
        """
        updates, average = state["updates"], state["average"]
        assert isinstance(updates, int)
        assert isinstance(average, dict)
        if {key: value.shape for key, value in average.items()} != {
            key: value.shape for key, value in self.average.items()
        }:
            raise ValueError("the average is of weights of other names or shapes")
        self.updates = updates
        for key, value in average.items():
            assert isinstance(value, Tensor)
            self.average[key].copy_(value)


class AppliedAverage:
    """Context in which a module holds an average of its state instead of its own.

    A class and not a generator: a training that is dropped in the middle of a validation must not
    copy weights whenever Python happens to collect it.

    Args:
        average: key of the module's state to value.
        module: whose state is exchanged.
    """

    def __init__(self, average: Mapping[str, Tensor], module: nn.Module) -> None:
        self._average, self._module = average, module
        self._own: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        self._own = {key: value.clone() for key, value in self._module.state_dict().items()}
        self._module.load_state_dict(self._average)

    def __exit__(self, *_: object) -> None:
        self._module.load_state_dict(self._own)
