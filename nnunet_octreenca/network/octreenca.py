"""OctreeNCA: the automaton run from the coarsest level of an octree to the finest."""

from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from math import isfinite
from typing import TypedDict

import torch
from torch import Tensor, nn

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.network.channels import brief, channel_map, check_levels, of_levels
from nnunet_octreenca.network.level import LevelNCA
from nnunet_octreenca.octree import (
    Crop,
    Factors,
    Window,
    image_pyramid,
    total_factors,
    upsample,
    windows,
)
from nnunet_octreenca.ops import (
    Automaton,
    Engine,
    engine_for,
    nca_steps_channels_last,
    torch_engine,
)
from nnunet_octreenca.ops.automaton import state_logits
from nnunet_octreenca.ops.engine import ENGINES, DescentEngine, OctreeEngine
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.fire import fire_threshold
from nnunet_octreenca.ops.hand_down import hand_down
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, only_pytorch_wanted, precision
from nnunet_octreenca.ops.weights import StepWeights


class NetworkSizes(TypedDict):
    """What the memory models ask of a network; as the arguments of `OctreeNCA`."""

    factors: Factors
    steps: tuple[int, ...]
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    input_channels: int
    num_classes: int


class OctreeNCA(nn.Module):
    """Neural cellular automaton on an octree (Lemke et al., BMVC 2025, section 3).

    The constructor is what nnU-Net calls: `OctreeNCA(input_channels, num_classes,
    **arch_kwargs)` with `arch_kwargs` from the plans.

    Args:
        input_channels: n_in, channels of the image.
        num_classes: segmentation heads as nnU-Net counts them, the background among them for
            plain labels.
        dimension: 2 or 3 spatial axes.
        factors: L - 1 rows with 1 or 2 per axis, finest first; L levels.
        steps: steps of each of the L levels, finest first.
        channels: C, channels of a cell's state: n_in image, K logits, the rest hidden. One number
            for all levels (the paper), or one for each, finest first: coarse levels have few cells,
            so that their channels cost little. Between levels that differ, logits and hidden
            channels pass a linear map.
        hidden: H, hidden units of the update, of all levels or of each; 4 C if left out.
        fire_rate: probability that a cell applies its update.
        constant_background: True for plain labels: the network emits num_classes - 1 logits
            and the background's is the constant 0, so that the label is the largest logit
            above 0. False for regions: every head is a logit.
        input_mean: n_in numbers; with `input_std`, the automaton sees (image - mean) / std. The
            parameters are those of the standardized image, `level_weights` has both in it, so
            that nothing else knows of them. None: the image as it is (the paper).
        input_std: n_in numbers above 0.

    Attributes:
        level_channels: C of every level, finest first.
        level_hidden: H of every level.
        from_parent: the maps from level l + 1 to l by the name of l, where the channels differ.

    Raises:
        ValueError: arguments that do not fit one another; the message names the values.

    >>> network = OctreeNCA(3, 2, dimension=2, factors=[[2, 2]] * 4, steps=[10, 10, 10, 10, 20])
    >>> sum(p.numel() for p in network.parameters())
    15520
    >>> network(torch.zeros(1, 3, 37, 50)).shape
    torch.Size([1, 2, 37, 50])
    """

    # nnU-Net's predictor sends networks that carry this mark through one pass over the whole
    # image (integration.predictor).
    segments_whole_images = True

    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        dimension: int,
        factors: Sequence[Sequence[int]],
        steps: Sequence[int],
        channels: int | Sequence[int] = 16,
        hidden: int | Sequence[int] | None = None,
        fire_rate: float = 0.5,
        constant_background: bool = True,
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.input_channels = int(input_channels)
        self.num_classes = int(num_classes)
        self.constant_background = bool(constant_background)
        self.logits = self.num_classes - self.constant_background
        self.dimension = int(dimension)
        self.factors = tuple(tuple(int(f) for f in row) for row in factors)
        self.steps = tuple(int(s) for s in steps)
        self.fire_rate = float(fire_rate)
        self._check()
        self.level_channels = of_levels("channels", channels, len(self.steps))
        units = [4 * own for own in self.level_channels] if hidden is None else hidden
        self.level_hidden = of_levels("hidden", units, len(self.steps))
        check_levels(self.level_channels, self.level_hidden, self.input_channels, self.logits)
        self.standardizes = input_mean is not None or input_std is not None
        if self.standardizes:
            mean, std = self._statistics(input_mean or (), input_std or ())
            self.register_buffer("input_mean", mean, persistent=False)
            self.register_buffer("input_std", std, persistent=False)
        # Of the fire draws where a call gives none; the predictor sets it.
        self.seed = 0
        self.levels = nn.ModuleList(
            LevelNCA(self.dimension, own, self.input_channels, hidden_units)
            for own, hidden_units in zip(self.level_channels, self.level_hidden, strict=True)
        )
        self.from_parent = nn.ModuleDict(
            {
                str(level): channel_map(above - self.input_channels, own - self.input_channels)
                for level, (own, above) in enumerate(pairwise(self.level_channels))
                if own != above
            }
        )

    def _check(self) -> None:
        if self.dimension not in (2, 3):
            raise ValueError(f"dimension ({self.dimension}) must be 2 or 3")
        if self.input_channels < 1 or self.logits < 1:
            raise ValueError(
                f"input_channels ({self.input_channels}) and logits ({self.logits}, of "
                f"{self.num_classes} classes) must be at least 1"
            )
        total_factors(self.factors, self.dimension)
        if len(self.steps) != len(self.factors) + 1:
            raise ValueError(
                f"steps ({list(self.steps)}) must name one number for each of the "
                f"{len(self.factors) + 1} levels that {len(self.factors)} rows of factors make"
            )
        if any(s < 0 for s in self.steps):
            raise ValueError(f"steps ({list(self.steps)}) must be at least 0")
        fire_threshold(self.fire_rate)

    def _statistics(self, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Both as tensors."""
        if not len(mean) == len(std) == self.input_channels or not all(
            isfinite(m) and isfinite(s) and s > 0 for m, s in zip(mean, std, strict=True)
        ):
            raise ValueError(
                f"input_mean ({list(mean)}) and input_std ({list(std)}) must be finite numbers for "
                f"each of the {self.input_channels} image channels, the latter above 0"
            )
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)

    def forward(
        self,
        image: Tensor,
        seed: int | None = None,
        crop: Crop | None = None,
        origins: Sequence[Sequence[int]] | None = None,
        every_level: bool = False,
    ) -> Tensor | list[Tensor]:
        """Logits of an image of any size.

        Args:
            image: (N, n_in, *spatial), any floating type; computed in float32, or in float64
                where the network is.
            seed: of the fire draws; `self.seed` if left out.
            crop: compute the finest levels on crops only (training); None computes all.
            origins: with `crop`, the first cell of each sample's crop on level 0.
            every_level: logits of all levels, for a loss on each.

        Returns:
            (N, num_classes, *spatial), with `crop` (N, num_classes, *crop shape); with
            `every_level` a list of such, of each level's window (`octree.windows`), finest first.

        Raises:
            InputError: the image has other channels or axes than the network.
        """
        image = self.checked(image)
        seed = self.seed if seed is None else seed
        if crop is None and not every_level and self._is_inference(image):
            values = image.new_empty(image.shape[0], self.num_classes, *image.shape[2:])
            self._octree_engine().octree(image, self.automaton(), seed, values=values)
            return values
        batch, spatial = image.shape[0], image.shape[2:]
        if origins is None:
            origins = [(0,) * self.dimension] * batch
        boxes = windows(spatial, self.factors, crop, origins)
        images = image_pyramid(image, self.factors)
        heads = self._descend(images, boxes, seed, every_level=every_level)
        return heads if every_level else heads[0]

    @torch.no_grad()
    def infer(self, image: Tensor, seed: int | None = None) -> Tensor:
        """`forward` for logits that become a segmentation: a state that was lost is refused.

        Args:
            image: (N, n_in, *spatial), any floating type.
            seed: of the fire draws; `self.seed` if left out.

        Returns:
            (N, num_classes, *spatial).

        Raises:
            InputError: the image has other channels or axes than the network.
            NotFiniteError: cells of some level are NaN or infinite after its steps.
        """
        image = self.checked(image)
        seed = self.seed if seed is None else seed
        non_finite = NonFiniteCells(len(self.steps), image.device)
        half = False
        if self._is_inference(image):
            values = image.new_empty(image.shape[0], self.num_classes, *image.shape[2:])
            self._octree_engine().octree(
                image, self.automaton(), seed, values=values, non_finite=non_finite
            )
            half = precision()[1] == "float16"
        else:
            origins = [(0,) * self.dimension] * image.shape[0]
            boxes = windows(image.shape[2:], self.factors, None, origins)
            images = image_pyramid(image, self.factors)
            values = self._descend(images, boxes, seed, non_finite=non_finite)[0]
        non_finite.check(self.steps, half=half)
        return values

    def forward_windows(
        self,
        images: Sequence[Tensor],
        origins: Sequence[Sequence[Sequence[int]]],
        seed: int | None = None,
    ) -> Tensor:
        """Logits of a window of level 0, for images whose every level is given as a window.

        For images too large to be held: the coarse levels see more than the fine ones. With windows
        cut from an image's levels as `octree.windows` places them, this is `forward` of the image
        with that crop.

        Args:
            images: of every level, finest first, (N, n_in, *window).
            origins: of every level, for each sample the window's first cell in the whole level. A
                window lies within the children of the next coarser level's.
            seed: of the fire draws; `self.seed` if left out.

        Returns:
            (N, num_classes, *window of level 0).

        Raises:
            InputError: an image has other channels or axes than the network.
            ValueError: another number of levels than the network's, or windows that do not nest.
        """
        if not len(images) == len(origins) == len(self.steps):
            raise ValueError(
                f"{len(images)} images and {len(origins)} rows of origins were given for "
                f"{len(self.steps)} levels"
            )
        images = [self.checked(image) for image in images]
        boxes = [
            Window(tuple(image.shape[2:]), tuple(tuple(int(c) for c in first) for first in firsts))
            for image, firsts in zip(images, origins, strict=True)
        ]
        return self._descend(images, boxes, self.seed if seed is None else seed)[0]

    def _descend(
        self,
        images: Sequence[Tensor],
        boxes: list[Window],
        seed: int,
        *,
        every_level: bool = False,
        non_finite: NonFiniteCells | None = None,
    ) -> list[Tensor]:
        """Logits of the finest level, or of every level, finest first.

        The images are the levels' or their windows'.
        """
        engine = self._descent_engine(images) if non_finite is None else None
        if engine is not None:
            return engine.descend(
                images,
                [box.shape for box in boxes],
                [box.origins for box in boxes],
                self.automaton(),
                seed,
                every_level,
            )
        state: Tensor | None = None
        heads: list[Tensor] = []
        for level in reversed(range(len(self.steps))):
            state = nca_steps_channels_last(
                self.enter_level(level, images[level], boxes, state),
                self.level_weights(level),
                self.steps[level],
                fire_rate=self.fire_rate,
                seed=seed,
                level=level,
                origin=boxes[level].origins,
            )
            if non_finite is not None:
                non_finite.add_state(level, state)
            if every_level or level == 0:
                heads.append(self._heads(state))
        return heads[::-1]

    def _heads(self, state: Tensor) -> Tensor:
        """Logits of a state (N, *spatial, C), with the background's where it is constant."""
        return state_logits(state, self.input_channels, self.logits, self.constant_background)

    def segment(
        self,
        image: Tensor,
        seed: int | None = None,
        *,
        multiply: str | None = None,
        state: str | None = None,
    ) -> Tensor:
        """Labels of an image of any size, in one pass; for plain labels.

        The last step ends in the label: logits are never held. A 2-D image needs some 20 bytes a
        pixel besides itself on a CPU, on a GPU 129, or 65 with state="float16".

        Args:
            image: (N, n_in, *spatial).
            seed: of the fire draws; `self.seed` if left out.
            multiply: "float32", or "bfloat16" for products of bfloat16 numbers summed in float32
                where the processor has them (C++ engine; labels of some cells change).
            state: "float32", or "float16" for half the memory. On a GPU this is the fast mode,
                whose products are float16 too. Where left out, `OCTREENCA_MULTIPLY` and
                `OCTREENCA_STATE` decide, else float32.

        Returns:
            (N, *spatial) uint8, int16 for more than 256 classes.

        Raises:
            InputError: the image has other channels or axes than the network.
            NotFiniteError: cells of some level are NaN or infinite after its steps, so that their
                labels would mean nothing.
            ValueError: the network was made for regions, or there is no such precision.
        """
        if not self.constant_background:
            raise ValueError(
                "a network for regions has no single label a cell; call the network and compare "
                "every logit with 0"
            )
        image = self.checked(image)
        dtype = self.label_dtype
        with torch.no_grad():
            if self._is_inference(image):
                shape = (image.shape[0], *image.shape[2:])
                labels = torch.empty(shape, dtype=dtype, device=image.device)
                seed = self.seed if seed is None else seed
                non_finite = NonFiniteCells(len(self.steps), image.device)
                self._octree_engine().octree(
                    image,
                    self.automaton(),
                    seed,
                    labels=labels,
                    multiply=multiply,
                    state=state,
                    non_finite=non_finite,
                )
                half = precision(multiply, state)[1] == "float16"
                non_finite.check(self.steps, half=half)
                return labels
            if (multiply or "float32", state or "float32") != ("float32", "float32"):
                raise ValueError(
                    f"multiply={multiply!r} and state={state!r} need the C++ engine or the "
                    f"CUDA engine, and a float32 image; {self._no_octree_reason(image)}"
                )
            return self.infer(image, seed).argmax(1).to(dtype)

    def checked(self, image: Tensor) -> Tensor:
        """The image (N, n_in, *spatial) in the type that the network computes in.

        Raises:
            InputError: it has other channels or axes than the network.
        """
        if image.ndim != self.dimension + 2 or image.shape[1] != self.input_channels:
            raise InputError(
                f"the network takes {self.input_channels} channel(s) and {self.dimension} spatial "
                f"axes, but the image is {tuple(image.shape)} (samples, channels, axes). Give "
                f"every channel of the data set (files _0000, _0001, ...) in its order."
            )
        return image.double() if self._is_double() else image.float()

    def _is_double(self) -> bool:
        return self._parameters_of(0).hidden_weight.dtype == torch.float64

    def _is_inference(self, image: Tensor) -> bool:
        """Whether an engine of our own can do the whole octree in one call."""
        if torch.compiler.is_compiling() or type(image) is not Tensor:
            return False
        tensors = (image, *self.parameters())
        return (
            not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
            and all(t.dtype == torch.float32 and t.device == image.device for t in tensors)
            and isinstance(self.engine(), OctreeEngine)
        )

    def _no_octree_reason(self, image: Tensor) -> str:
        """Why PyTorch computes on an image."""
        for engine in ENGINES:
            if isinstance(engine, OctreeEngine) and engine.on_gpu == image.is_cuda:
                for level in range(len(self.steps)):
                    reason = engine.unsupported_reason(image, self._parameters_of(level))
                    if reason is not None:
                        return reason
        if image.dtype != torch.float32:
            return f"this image is {image.dtype}"
        if only_pytorch_wanted():
            return f"{ENGINE_VARIABLE} turns both off"
        return "the network's weights are of another type or on another device than the image"

    @property
    def label_dtype(self) -> torch.dtype:
        """Of the labels that `segment` gives."""
        return torch.uint8 if self.num_classes <= 256 else torch.int16

    @property
    def sizes(self) -> NetworkSizes:
        """Arguments of the memory models in `planning`."""
        return {
            "factors": self.factors,
            "steps": self.steps,
            "channels": self.level_channels,
            "hidden": self.level_hidden,
            "input_channels": self.input_channels,
            "num_classes": self.num_classes,
        }

    def engine(self) -> Engine:
        """What computes on tensors where the network lies."""
        weights = [self._parameters_of(level) for level in range(len(self.steps))]
        return engine_for(weights[0].hidden_weight, *weights)

    def _descent_engine(self, images: Sequence[Tensor]) -> DescentEngine | None:
        """What takes a training step through all levels in one call, if anything does."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None
        weights = [self._parameters_of(level) for level in range(len(self.steps))]
        if any(type(image) is not Tensor or image.requires_grad for image in images) or any(
            own.mismatch(image, "image") for own, image in zip(weights, images, strict=True)
        ):
            return None
        engine = self.engine()
        return engine if isinstance(engine, DescentEngine) else None

    def _octree_engine(self) -> OctreeEngine:
        engine = self.engine()
        assert isinstance(engine, OctreeEngine)
        return engine

    def at_fire_rate(self, fire_rate: float) -> "OctreeNCA":
        """A network of the same weights, shared, whose cells fire with another probability.

        Raises:
            ValueError: `fire_rate` is not within [0, 1].
        """
        fire_threshold(fire_rate)
        other = copy(self)
        other.fire_rate = float(fire_rate)
        return other

    def level_weights(self, level: int) -> StepWeights:
        """The weights of a level, 0 the finest, for the image as it is given."""
        weights = self._parameters_of(level)
        return (
            weights.of_raw_input(self.input_mean, self.input_std) if self.standardizes else weights
        )

    def _parameters_of(self, level: int) -> StepWeights:
        """Those of a level, for the standardized image."""
        automaton = self.levels[level]
        assert isinstance(automaton, LevelNCA)
        return automaton.weights()

    def _map_to(self, level: int) -> Tensor | None:
        """The matrix from a level's parents, (C - n_in, C of the parents - n_in)."""
        if str(level) not in self.from_parent:
            return None
        linear = self.from_parent[str(level)]
        assert isinstance(linear, nn.Linear)
        return linear.weight

    def automaton(self) -> Automaton:
        """All levels in the form that engines run."""
        return Automaton(
            [self.level_weights(level) for level in range(len(self.steps))],
            self.steps,
            self.factors,
            [self._map_to(level) for level in range(len(self.factors))],
            self.fire_rate,
            self.logits,
            self.constant_background,
        )

    def enter_level(
        self, level: int, image: Tensor, boxes: list[Window], parent: Tensor | None
    ) -> Tensor:
        """The state a level begins with: its image and what the parents hand down.

        Args:
            level: 0 for the finest.
            image: of that level or of its window, (N, n_in, *spatial).
            boxes: what every level computes, finest first (`octree.windows`).
            parent: last state of the next coarser level, (N, *spatial, C of that level); None on
                the coarsest, which starts from zeros.

        Returns:
            (N, *spatial, C).
        """
        here = boxes[level]
        image = _cut(image, here).movedim(1, -1)
        if parent is None:
            rest = self.level_channels[level] - self.input_channels
            others = image.new_zeros((*image.shape[:-1], rest))
        else:
            above = boxes[level + 1]
            parent = self._handed_down(level, parent[..., self.input_channels :])
            # Samples with the same origins are upsampled together.
            places = list(zip(here.origins, above.origins, strict=True))
            together = [slice(None)] if len(set(places)) == 1 else range(len(places))
            others = torch.cat(
                [
                    upsample(
                        parent[which if isinstance(which, slice) else slice(which, which + 1)],
                        self.factors[level],
                        here.shape,
                        *places[0 if isinstance(which, slice) else which],
                        first_axis=1,
                    )
                    for which in together
                ]
            )
        return torch.cat([image, others], -1)

    def _handed_down(self, level: int, others: Tensor) -> Tensor:
        """What a level takes of its parents' logits and hidden channels (N, *spatial, channels)."""
        matrix = self._map_to(level)
        if matrix is None:
            return others
        if torch.compiler.is_compiling():  # which cannot look for an engine
            return torch_engine.hand_down(others, matrix)
        return hand_down(others, matrix, self.engine())

    def extra_repr(self) -> str:
        """What `print(network)` shows besides the levels."""
        return (
            f"input_channels={self.input_channels}, num_classes={self.num_classes}, "
            f"channels={brief(self.level_channels)}, hidden={brief(self.level_hidden)}, "
            f"factors={self.factors}, steps={self.steps}, fire_rate={self.fire_rate}"
        )


def _cut(image: Tensor, window: Window) -> Tensor:
    """Each sample's box of a level's image."""
    if tuple(image.shape[2:]) == window.shape:
        return image
    boxes = [
        (
            slice(s, s + 1),
            slice(None),
            *(slice(o, o + n) for o, n in zip(origin, window.shape, strict=True)),
        )
        for s, origin in enumerate(window.origins)
    ]
    return torch.cat([image[box] for box in boxes])
