"""What an engine is, which ones there are, and which one computes on a tensor.

An engine is a module: `torch_engine`, `cpu_engine` (C++) or `cuda_engine`. All run the steps of one
level; some also run whole octrees, on a whole image, on windows of it or on bands. Nothing else
in the package tells engines apart: code that needs more than `Engine` checks with `isinstance`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from nnunet_octreenca.ops import cpu_engine, cuda_engine, torch_engine
from nnunet_octreenca.ops.automaton import Automaton, Part
from nnunet_octreenca.ops.cpu_engine import BandStream
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.fire import FireDraws
from nnunet_octreenca.ops.weights import StepWeights


@runtime_checkable
class Engine(Protocol):
    """The steps of one level, forward and backward, on channels-last states (N, *spatial, C)."""

    @property
    def name(self) -> str:
        """As `OCTREENCA_ENGINE` and reports spell it."""

    @property
    def backward_needs_out(self) -> bool:
        """Whether `backward` takes the last state besides the trajectory."""

    @property
    def low_precision(self) -> bool:
        """Whether states and products of whole octrees can be narrower than float32."""

    @property
    def on_gpu(self) -> bool:
        """Whether it computes in a GPU's memory only."""

    def supports(self, tensor: Tensor, weights: StepWeights) -> bool:
        """Whether the engine computes on such a tensor, with weights of these sizes.

        Raises:
            EnvironmentMismatchError: `OCTREENCA_ENGINE` names this engine, which cannot be used.
        """

    def unsupported_reason(self, tensor: Tensor, weights: StepWeights) -> str | None:
        """Why the engine cannot, whatever `OCTREENCA_ENGINE` says; None if it can."""

    def padded_channels(self, channels: int) -> int:
        """Channels from one cell of a state to the next, in whole octrees."""

    def trajectory_channels(self, channels: int, changing: int) -> int:
        """Channels of a cell in the trajectory that `forward` keeps.

        Args:
            channels: C.
            changing: C - n_in, those that steps change.
        """

    def forward(
        self,
        state: Tensor,
        weights: StepWeights,
        steps: int,
        draws: FireDraws,
        keep_trajectory: bool,
    ) -> tuple[Tensor, Tensor]:
        """The state after all steps, and what `backward` needs (empty where it is not to be kept).

        Args:
            state: (N, *spatial, C), any strides; not changed.
        """

    def backward(
        self,
        grad_out: Tensor,
        out: Tensor,
        trajectory: Tensor,
        weights: StepWeights,
        draws: FireDraws,
    ) -> tuple[Tensor, StepWeights]:
        """Gradients of `forward` with respect to the first state and the weights.

        Args:
            grad_out: gradient of the last state, (N, *spatial, C), any strides.
            out, trajectory: what `forward` returned; `out` may be empty unless
                `backward_needs_out`.
        """

    def hand_down(self, others: Tensor, from_parent: Tensor) -> Tensor:
        """What children take of their parents' logits and hidden channels, on the parents' grid:
        the bits of the engine's whole octrees, not differentiable.

        Args:
            others: (N, *spatial, C of the parents - n_in), any strides.
            from_parent: (C of the children - n_in, C of the parents - n_in).
        """


@runtime_checkable
class OctreeEngine(Engine, Protocol):
    """An engine that runs all levels of whole images in one call (C++, CUDA)."""

    def octree(
        self,
        image: Tensor,
        automaton: Automaton,
        seed: int,
        *,
        labels: Tensor | None = None,
        values: Tensor | None = None,
        multiply: str | None = None,
        state: str | None = None,
        non_finite: NonFiniteCells | None = None,
    ) -> None:
        """Labels or logits of a batch of images (N, n_in, *spatial) float32.

        Args:
            labels: (N, *spatial) uint8 or int16, to be filled.
            values: (N, K or K + 1, *spatial) float32, to be filled instead.
            multiply, state: see `ops.native.precision`.
            non_finite: counts the cells that are not finite after their level's steps.
        """


@runtime_checkable
class DescentEngine(Engine, Protocol):
    """An engine that takes a training step through all levels in one call (C++)."""

    def descend(
        self,
        images: Sequence[Tensor],
        shapes: Sequence[Sequence[int]],
        origins: Sequence[Sequence[Sequence[int]]],
        automaton: Automaton,
        seed: int,
        every_level: bool = False,
    ) -> list[Tensor]:
        """Logits, differentiable with respect to the weights (ops.cpu_training).

        Those of level 0 only, or of every level, finest first.
        """


@runtime_checkable
class WindowEngine(Engine, Protocol):
    """An engine that runs levels of an octree on windows of an image (PyTorch, CUDA)."""

    def octree_windows(
        self,
        images: list[Tensor],
        automaton: Automaton,
        seed: int,
        part: Part,
        *,
        labels: Tensor | None = None,
        state: str | None = None,
        non_finite: NonFiniteCells | None = None,
    ) -> Tensor | None:
        """The finest level's state, (1, *spatial, C padded), or None where labels were filled.

        Args:
            images: window of every level, finest first, (1, n_in, *spatial); emptied on the way.
            part: where the windows lie.
            labels: (1, *spatial), to be filled.
            non_finite: counts the cells that are not finite after their level's steps.
        """


@runtime_checkable
class BandEngine(Engine, Protocol):
    """An engine that takes an image in bands and computes nothing twice (C++)."""

    def octree_stream(
        self,
        shape: Sequence[int],
        automaton: Automaton,
        seed: int,
        *,
        multiply: str | None = None,
        state: str | None = None,
    ) -> BandStream:
        """All levels of an image of that shape (without channels), which comes in bands."""


# The first that supports a tensor computes on it; PyTorch takes all.
ENGINES: tuple[Engine, ...] = (cpu_engine, cuda_engine, torch_engine)
_BY_NAME = {engine.name: engine for engine in ENGINES}


def engine_named(name: str) -> Engine:
    """The engine of a name.

    Raises:
        ValueError: there is no such engine.

    >>> engine_named("torch").low_precision
    False
    """
    if name not in _BY_NAME:
        raise ValueError(f"engine {name!r} must be one of {', '.join(map(repr, _BY_NAME))}")
    return _BY_NAME[name]


def engine_for(tensor: Tensor, *weights: StepWeights) -> Engine:
    """The engine that computes on such a tensor with weights of these sizes, of one level or more.

    Raises:
        EnvironmentMismatchError: `OCTREENCA_ENGINE` names one that cannot be used.
    """
    for engine in ENGINES:
        if all(engine.supports(tensor, own) for own in weights):
            return engine
    raise AssertionError("the PyTorch engine takes every tensor")
