"""One level's kernels: its weights packed, its samples and tiles cut into launches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_octreenca.ops.cuda_device import Device
from nnunet_octreenca.ops.cuda_inputs import aligned
from nnunet_octreenca.ops.cuda_program import (
    MOST_SAMPLES,
    Configuration,
    Schedule,
    arguments,
    level_arguments,
)
from nnunet_octreenca.ops.fire import FireDraws
from nnunet_octreenca.ops.weights import StepWeights

# Of kernels that give a thread a cell: enough to fill any GPU, each thread then has several.
_MOST_BLOCKS = 4096
_THREADS = 128


def configuration_of(weights: StepWeights, precision: str) -> Configuration:
    """What is compiled for a level's weights."""
    hidden = weights.hidden_weight.shape[0]
    return Configuration(
        weights.dimension, weights.channels, weights.input_channels, hidden, precision
    )


def grid(threads: int) -> int:
    """Blocks of a kernel in which a thread has a cell, a word or a number."""
    return max(1, min(-(-threads // _THREADS), _MOST_BLOCKS))


def padded(state: Tensor, channels: int) -> Tensor:
    """Contiguous and aligned, with so many channels; the state itself where it is so already."""
    missing = channels - state.shape[-1]
    return functional.pad(state, (0, missing)) if missing else aligned(state)


class LevelLaunches:
    """The kernels of one level of a batch; its weights are packed when this is made.

    Args:
        precision: "half", "tf32" or "plain".
        backward: for training.
        shape: cells per axis.
        draws: of the samples, batch * dimension numbers in its `origin`.
        schedule: of the forward kernels; the engine's choice if left out.
    """

    def __init__(
        self,
        device: Device,
        weights: StepWeights,
        precision: str,
        backward: bool,
        *,
        shape: Sequence[int],
        batch: int,
        draws: FireDraws,
        schedule: Schedule | None = None,
    ) -> None:
        self.configuration = configuration_of(weights, precision)
        self.loaded = device.load(self.configuration, backward, schedule)
        self.program = self.loaded.program
        self.shape = tuple(shape)
        self.batch = batch
        self.cells = torch.Size(shape).numel()
        self._draws = (draws.threshold, draws.seed, draws.level)
        self._origins = draws.origins(len(shape))
        # Kept for as long as kernels are started that read them.
        self.raw = [weight.detach().contiguous() for weight in weights]
        words = self.configuration.weight_words(backward)
        self.words = torch.empty(words, dtype=torch.int32, device=self.raw[0].device)
        self.loaded.launch(
            "pack",
            grid(words),
            arguments("PackArguments", *self.raw_pointers(), self.words.data_ptr(), words),
        )

    def raw_pointers(self) -> list[int]:
        """Addresses of the weights as PyTorch keeps them."""
        return [weight.data_ptr() for weight in self.raw]

    def groups(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """First sample and `Level` of every launch."""
        for first in range(0, self.batch, MOST_SAMPLES):
            origins = self._origins[first : first + MOST_SAMPLES]
            yield first, level_arguments(self.shape, *self._draws, first, origins)

    def tiles(self, tile: Sequence[int], samples: int) -> int:
        """Tiles that so many samples are cut into."""
        count = samples
        for length, size in zip(reversed(self.shape), tile, strict=False):
            count *= -(-length // size)
        return count

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        first_step: int,
        fused: int = 1,
        *,
        label_bytes: int = 0,
        logits: int = 0,
        background: bool = False,
        counter: int = 0,
        counted: tuple[int, int] = (0, 0),
    ) -> None:
        """`fused` steps from one state to another, or to labels.

        Args:
            counter: address of the int64 that the number of cells that are not finite is added
                to, after a level's last step; 0 for none.
            counted: first row (plane in 3-D) and end of those that are looked at.
        """
        kernel = f"forward_{fused}"
        layout = self.program.forward[fused]
        for first, level in self.groups():
            offset = first * self.cells
            blocks = min(self.tiles(layout.tile, level[3]), self.loaded.resident_blocks(kernel))
            out = offset * (label_bytes or self.configuration.cell_bytes)
            self.loaded.launch(
                kernel,
                blocks,
                arguments(
                    "StepsArguments",
                    *level,
                    source.data_ptr() + offset * self.configuration.cell_bytes,
                    target.data_ptr() + out,
                    self.words.data_ptr(),
                    counter,
                    first_step,
                    label_bytes,
                    logits,
                    int(background),
                    *counted,
                ),
            )
