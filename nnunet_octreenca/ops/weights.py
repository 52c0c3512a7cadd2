"""The weights of one level."""

from typing import NamedTuple

import torch
from torch import Tensor


class StepWeights(NamedTuple):
    """What one level's step multiplies with. C channels, n_in of them image, H hidden units.

    Attributes:
        perceive_weight: (C, 3, 3) or (C, 3, 3, 3), one kernel a channel.
        perceive_bias: (C,).
        hidden_weight: (H, 2 C), columns [state | perceived].
        hidden_bias: (H,).
        update_weight: (C - n_in, H); no bias.

    >>> import torch
    >>> weights = StepWeights(
    ...     perceive_weight=torch.zeros(16, 3, 3),
    ...     perceive_bias=torch.zeros(16),
    ...     hidden_weight=torch.zeros(64, 32),
    ...     hidden_bias=torch.zeros(64),
    ...     update_weight=torch.zeros(13, 64),
    ... )
    >>> weights.dimension, weights.channels, weights.input_channels
    (2, 16, 3)
    """

    perceive_weight: Tensor
    perceive_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    update_weight: Tensor

    @property
    def dimension(self) -> int:
        """2 or 3 spatial axes."""
        return self.perceive_weight.ndim - 1

    @property
    def channels(self) -> int:
        """C."""
        return self.perceive_weight.shape[0]

    @property
    def input_channels(self) -> int:
        """n_in: leading channels of the state that no step changes."""
        return self.channels - self.update_weight.shape[0]

    def of_raw_input(self, mean: Tensor, std: Tensor) -> "StepWeights":
        """The weights that do to an image what these do to (image - mean) / std.

        Perceive and the first layer are linear and the padding repeats cells, so both take the
        shift and the scale; differentiable.

        Args:
            mean: (n_in,), of the image's channels.
            std: (n_in,).
        """
        n = self.input_channels
        scale, shift = 1 / std, -mean / std
        kernel = self.perceive_weight[:n]
        sums = kernel.flatten(1).sum(1)
        kernel = kernel * scale.view(-1, *[1] * self.dimension)
        columns = self.hidden_weight[:, :n]
        return StepWeights(
            torch.cat([kernel, self.perceive_weight[n:]]),
            torch.cat([self.perceive_bias[:n] + shift * sums, self.perceive_bias[n:]]),
            torch.cat([columns * scale, self.hidden_weight[:, n:]], 1),
            self.hidden_bias + columns @ shift,
            self.update_weight,
        )

    def mismatch(self, tensor: Tensor, what: str = "state") -> str | None:
        """Which weight has another type or device than a tensor; None where all agree.

        Args:
            what: the tensor's name in the sentence.
        """
        for name, weight in zip(StepWeights._fields, self, strict=True):
            if weight.dtype != tensor.dtype or weight.device != tensor.device:
                return (
                    f"{name} is {weight.dtype} on {weight.device}, but the {what} is "
                    f"{tensor.dtype} on {tensor.device}: convert them to one type and move them "
                    f"to one device"
                )
        return None

    def check_like(self, tensor: Tensor, what: str = "state") -> None:
        """Compare the weights' types and devices with a tensor's.

        Raises:
            ValueError: they differ; the sentence of `mismatch`.
        """
        problem = self.mismatch(tensor, what)
        if problem is not None:
            raise ValueError(problem)

    def check(self) -> None:
        """Compare the five shapes.

        Raises:
            ValueError: they do not fit one another; the message names them.
        """
        # Not `self.channels`: PyTorch 2.6 cannot compile a named tuple's properties.
        channels, hidden = self.perceive_weight.shape[0], self.hidden_weight.shape[0]
        changing = self.update_weight.shape[0]
        kernel = tuple(self.perceive_weight.shape[1:])
        wrong = (
            (kernel not in ((3, 3), (3, 3, 3)), f"kernel {kernel} must be (3, 3) or (3, 3, 3)"),
            (
                self.perceive_bias.shape != (channels,),
                f"perceive_bias {tuple(self.perceive_bias.shape)} must be ({channels},)",
            ),
            (
                self.hidden_weight.shape[1] != 2 * channels,
                f"hidden_weight {tuple(self.hidden_weight.shape)} must have {2 * channels} columns",
            ),
            (
                self.hidden_bias.shape != (hidden,),
                f"hidden_bias {tuple(self.hidden_bias.shape)} must be ({hidden},)",
            ),
            (
                self.update_weight.shape[1] != hidden,
                f"update_weight {tuple(self.update_weight.shape)} must have {hidden} columns",
            ),
            (
                not 0 < changing <= channels,
                f"update_weight has {changing} rows for {channels} channels",
            ),
        )
        for is_wrong, sentence in wrong:
            if is_wrong:
                raise ValueError(sentence)
