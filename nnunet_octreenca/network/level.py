"""One level's automaton."""

from torch import nn

from nnunet_octreenca.ops import StepWeights


class LevelNCA(nn.Module):
    """The weights of one level: perceive, hidden, update (DESIGN section 1).

    Args:
        dimension: 2 or 3 spatial axes.
        channels: C, the channels of a cell's state.
        input_channels: n_in, how many of them are the image's.
        hidden: H, hidden units of the update.
    """

    def __init__(self, dimension: int, channels: int, input_channels: int, hidden: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dimension == 2 else nn.Conv3d
        self.perceive = convolution(channels, channels, 3, groups=channels)
        self.hidden = nn.Linear(2 * channels, hidden)
        self.update = nn.Linear(hidden, channels - input_channels, bias=False)
        # A new automaton changes nothing: training begins at the identity.
        nn.init.zeros_(self.update.weight)

    def weights(self) -> StepWeights:
        """The weights in the form that `nca_steps` takes."""
        assert self.perceive.bias is not None
        return StepWeights(
            self.perceive.weight[:, 0],
            self.perceive.bias,
            self.hidden.weight,
            self.hidden.bias,
            self.update.weight,
        )
