"""One network on an image that is read in bands: the same labels as in one pass, bit for bit.

The image is read twice: once for the coarsest level, whose averages need all of it, once for the
others, which follow one another band by band. A band is a number of rows (2-D) or planes (3-D): of
units of the first spatial axis.

On the C++ engine a wave runs through all levels and computes nothing twice (cpu/stream.hpp). On the
others every level computes a window, as many units larger than what the finer level needs as it has
steps: what a window's edge gets wrong moves one cell a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import image_pyramid, level_shapes, upsample
from nnunet_octreenca.ops import cpu_engine, cuda_engine, nca_steps_channels_last

# (first, end) -> (n_in, end - first, *the other axes) float32
Read = Callable[[int, int], NDArray]
# Where a band begins, and its labels (units, *axes) or logits (num_classes, units, *axes).
Result = tuple[int, NDArray]


class Units(NamedTuple):
    """Rows or planes of a level, the last one excluded."""

    first: int
    end: int


def spans(factors: Sequence[Sequence[int]]) -> list[int]:
    """Units of the image that a unit of each level covers, finest first.

    >>> spans([(1, 2, 2), (2, 2, 2)])
    [1, 1, 2]
    """
    result = [1]
    for row in factors:
        result.append(result[-1] * row[0])
    return result


def windows_of(
    wanted: Units, shape: Sequence[int], factors: Sequence[Sequence[int]], steps: Sequence[int]
) -> list[Units]:
    """What every level but the coarsest computes so that the wanted units of level 0 are right.

    A window begins at a multiple of the factor to its parents.

    >>> windows_of(Units(100, 120), (400, 9), [(2, 2), (2, 2)], [10, 10, 20])
    [Units(first=90, end=130), Units(first=34, end=75)]
    """
    result = []
    for count, cells, row in zip(steps, level_shapes(shape, factors), factors, strict=False):
        first = max(wanted.first - count, 0)
        result.append(Units(first - first % row[0], min(wanted.end + count, cells[0])))
        wanted = Units(result[-1].first // row[0], -(-result[-1].end // row[0]))
    return result


def aligned(units: int, factor: int) -> int:
    """Units of a band, at least one node of the coarsest level.

    >>> aligned(100, 16), aligned(3, 16)
    (96, 16)
    """
    return max(units // factor, 1) * factor


def bands(first: int, end: int, units: int) -> list[Units]:
    """Bands of `units` units, the last one what is left."""
    return [Units(a, min(a + units, end)) for a in range(first, end, units)]


class _Reading(Thread):
    """A range that is being read.

    No pool of threads: one that the garbage collector ends, in whatever thread it happens to run,
    may wait for a lock that waits for it.
    """

    def __init__(self, units: Units, read: Read) -> None:
        super().__init__(name="read", daemon=True)
        self.units = units
        self._read = read
        self._rows: NDArray | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._rows = self._read(*self.units)
        except BaseException as error:  # raised where the rows are wanted
            self._error = error

    def result(self) -> tuple[Units, NDArray]:
        self.join()
        if self._error is not None:
            raise self._error
        assert self._rows is not None
        return self.units, self._rows


def read_ahead(ranges: Iterable[Units], read: Read) -> Iterator[tuple[Units, NDArray]]:
    """Every range with what `read` gives for it; the next one is read meanwhile."""
    upcoming: _Reading | None = None
    try:
        for units in ranges:
            waiting, upcoming = upcoming, _Reading(units, read)
            if waiting is not None:
                yield waiting.result()
        if upcoming is not None:
            yield upcoming.result()
    finally:
        # What is being read may be closed next.
        if upcoming is not None:
            upcoming.join()


def label_dtype(num_classes: int) -> np.dtype:
    """What the labels of so many classes are held in.

    >>> label_dtype(256), label_dtype(257)
    (dtype('uint8'), dtype('int16'))
    """
    return np.dtype(np.uint8 if num_classes <= 256 else np.int16)


class OctreeStream(ABC):
    """One network, one seed, one image.

    Call `pool` with the whole image in bands that begin at multiples of `factor`, then `prepare`,
    then `run` as often as needed.

    Args:
        network: in evaluation mode, where it is to compute.
        shape: cells of the image per axis.
        seed: of the fire draws.
        state: "float32", or "float16" for states in half the memory; the environment's if None.
        labels: results are labels; else logits.

    Attributes:
        factor: units of the image that a unit of the coarsest level covers.

    Raises:
        ValueError: labels of a network for regions, or a precision that the engine has not.
    """

    def __init__(
        self,
        network: OctreeNCA,
        shape: Sequence[int],
        *,
        seed: int = 0,
        state: str | None = None,
        labels: bool = True,
    ) -> None:
        if labels and not network.constant_background:
            raise ValueError("a network for regions gives logits, not labels")
        self.network = network
        self.shape = tuple(shape)
        self.seed = seed
        self.state = state
        self.labels = labels
        self.factor = spans(network.factors)[-1]

    @abstractmethod
    def pool(self, band: NDArray, first: int) -> None:
        """Take the next band of the first reading, (n_in, units, *axes) float32."""

    @abstractmethod
    def prepare(self) -> None:
        """Compute the coarsest level."""

    @abstractmethod
    def run(self, wanted: Units, read: Read, units: int) -> Generator[Result, None, None]:
        """Results of the wanted units, in order, without gaps, as they are done.

        Args:
            wanted: units of the image.
            read: called with ranges within the image, some of them beyond what is wanted.
            units: of a band, as many as are read at once.
        """


class WaveStream(OctreeStream):
    """On the C++ engine."""

    def __init__(self, network: OctreeNCA, shape: Sequence[int], **options: Any) -> None:
        super().__init__(network, shape, **options)
        self._engine = cpu_engine.octree_stream(
            self.shape,
            [level.weights() for level in network.levels],  # type: ignore[operator]
            network.steps,
            network.factors,
            fire_rate=network.fire_rate,
            seed=self.seed,
            logits=network.logits,
            background=network.constant_background,
            state=self.state,
        )

    def pool(self, band: NDArray, first: int) -> None:
        self._engine.pool(band, first)

    def prepare(self) -> None:
        self._engine.prepare()

    def run(self, wanted: Units, read: Read, units: int) -> Generator[Result, None, None]:
        first, end = self._engine.begin(*wanted)
        done = wanted.first
        for band, rows in read_ahead(bands(first, end, units), read):
            ready = self._engine.ready(band.end)
            shape = (ready - done, *self.shape[1:])
            if self.labels:
                result = np.empty(shape, label_dtype(self.network.num_classes))
            else:
                result = np.empty((self.network.num_classes, *shape), np.float32)
            given = (result, None) if self.labels else (None, result)
            self._engine.advance(rows, band.first, *given)
            if ready > done:
                yield done, result
            done = ready


class WindowStream(OctreeStream):
    """On PyTorch's and the CUDA engine, where the network lies.

    On the CUDA engine the bits are those of one pass; PyTorch's matrix products may round
    differently with their sizes.
    """

    def __init__(self, network: OctreeNCA, shape: Sequence[int], **options: Any) -> None:
        super().__init__(network, shape, **options)
        self._device = next(network.parameters()).device
        self._cuda = network.engine() == "cuda"
        if not self._cuda and self.state not in (None, "float32"):
            raise ValueError(f"state={self.state!r} needs the C++ engine or the CUDA engine")
        self._spans = spans(network.factors)
        self._shapes = level_shapes(shape, network.factors)
        self._pooled: list[Tensor] = []
        self._coarse: Tensor | None = None

    def pool(self, band: NDArray, first: int) -> None:
        if len(self._shapes) > 1:
            self._pooled.append(image_pyramid(self._upload(band), self.network.factors)[-1])

    @torch.inference_mode()
    def prepare(self) -> None:
        if len(self._shapes) == 1:
            return
        image = torch.cat(self._pooled, 2)
        self._pooled.clear()
        self._coarse = self._compute([image], len(self._shapes) - 1, [0], None, 0)

    def run(self, wanted: Units, read: Read, units: int) -> Generator[Result, None, None]:
        plan = [(band, self._plan(band)) for band in bands(*wanted, units)]
        waiting: tuple[int, Tensor, Any] | None = None
        images = read_ahead((image for _, (_, image) in plan), read)
        for (band, (windows, _)), (image, rows) in zip(plan, images, strict=True):
            # Fetched while the next band is computed.
            upcoming = (band.first, *self._fetched(self._band(band, windows, image.first, rows)))
            if waiting is not None:
                yield self._arrived(*waiting)
            waiting = upcoming
        if waiting is not None:
            yield self._arrived(*waiting)

    def _plan(self, band: Units) -> tuple[list[Units], Units]:
        """The levels' windows and the units of the image that they are averages of."""
        if len(self._shapes) == 1:
            steps = self.network.steps[0]
            whole = Units(max(band.first - steps, 0), min(band.end + steps, self.shape[0]))
            return [whole], whole
        windows = windows_of(band, self.shape, self.network.factors, self.network.steps)
        node = self._spans[len(windows) - 1]
        first = min(w.first * s for w, s in zip(windows, self._spans, strict=False))
        end = max(w.end * s for w, s in zip(windows, self._spans, strict=False))
        return windows, Units(first // node * node, min(-(-end // node) * node, self.shape[0]))

    @torch.inference_mode()
    def _band(self, band: Units, windows: list[Units], first: int, rows: NDArray) -> Tensor:
        network = self.network
        pyramid = image_pyramid(self._upload(rows), network.factors[: len(windows) - 1])
        images = [
            level[:, :, window.first - first // span : window.end - first // span]
            for level, window, span in zip(pyramid, windows, self._spans, strict=False)
        ]
        del pyramid
        origins = [window.first for window in windows]
        labels = None
        inside = slice(band.first - origins[0], band.end - origins[0])
        if self._cuda and self.labels:
            dtype = self.network.label_dtype
            shape = (1, windows[0].end - windows[0].first, *self.shape[1:])
            labels = torch.empty(shape, dtype=dtype, device=self._device)
        state = self._compute(images, 0, origins, self._coarse, 0, labels)
        if labels is not None:
            return labels[0, inside]
        heads = slice(network.input_channels, network.input_channels + network.logits)
        values = state[0, inside, ..., heads].movedim(-1, 0).float()
        if network.constant_background:
            values = torch.cat([torch.zeros_like(values[:1]), values])
        if not self.labels:
            return values.contiguous()
        return values.argmax(0).to(self.network.label_dtype)

    def _compute(
        self,
        images: list[Tensor],
        finest: int,
        origins: list[int],
        parent: Tensor | None,
        parent_origin: int,
        labels: Tensor | None = None,
    ) -> Any:
        """Levels from `finest` on, down from the parent's; the finest one's state."""
        network = self.network
        weights = [level.weights() for level in network.levels]  # type: ignore[operator]
        if self._cuda:
            part = cuda_engine.Part(finest, origins, parent, parent_origin)
            return cuda_engine.octree(
                images,
                weights,
                network.steps,
                network.factors,
                fire_rate=network.fire_rate,
                seed=self.seed,
                logits=network.logits,
                background=network.constant_background,
                labels=labels,
                state=self.state,
                part=part,
            )
        rest = (0,) * (network.dimension - 1)
        for number in reversed(range(finest, finest + len(images))):
            image, origin = images.pop().movedim(1, -1), origins[number - finest]
            if parent is None:
                hidden = network.channels - network.input_channels
                others = image.new_zeros((*image.shape[:-1], hidden))
            else:
                others = upsample(
                    parent[..., network.input_channels :],
                    network.factors[number],
                    image.shape[1:-1],
                    (origin, *rest),
                    (parent_origin, *rest),
                    first_axis=1,
                )
            parent, parent_origin = (
                nca_steps_channels_last(
                    torch.cat([image, others], -1),
                    weights[number],
                    network.steps[number],
                    fire_rate=network.fire_rate,
                    seed=self.seed,
                    level=number,
                    origin=(origin, *rest),
                    full_shape=self._shapes[number],
                ),
                origin,
            )
        return parent

    def _upload(self, rows: NDArray) -> Tensor:
        # A copy, for PyTorch takes no negative strides, which a mirrored row of one may have.
        image = torch.from_numpy(np.array(rows, order="C"))[None]
        if self._device.type == "cuda":
            return image.pin_memory().to(self._device, non_blocking=True)
        return image.to(self._device)

    def _fetched(self, values: Tensor) -> tuple[Tensor, Any]:
        """On its way to the host, and what says that it has arrived."""
        if values.device.type != "cuda":
            return values.cpu(), None
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    @staticmethod
    def _arrived(first: int, values: Tensor, event: Any) -> Result:
        if event is not None:
            event.synchronize()
        return first, values.numpy()


def open_stream(network: OctreeNCA, shape: Sequence[int], **options: Any) -> OctreeStream:
    """The stream of the engine that computes where the network lies.

    Args, raises: as `OctreeStream`.
    """
    kind = WaveStream if network.engine() == "cpu" else WindowStream
    return kind(network, shape, **options)
