"""One network on an image that is read in bands: the same labels as in one pass, bit for bit.

The image is read twice: once for the coarsest level, whose averages need all of it, once for the
others, which follow one another band by band. A band is a range of rows, in 3-D of planes (bands).

On the C++ engine a wavefront runs through the steps of all levels and computes nothing twice
(cpu/stream.hpp): wavefront temporal blocking (Wellein et al., "Efficient temporal blocking for
stencil computations by multicore-aware wavefront parallelization", COMPSAC 2009). On the others
every level computes a window, as many rows larger than what the finer level needs as it has steps:
what a window's edge gets wrong moves one cell a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.bands import Rows, spans, split_range
from nnunet_octreenca.errors import WorkerError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import image_pyramid, level_shapes
from nnunet_octreenca.ops import Part
from nnunet_octreenca.ops.engine import BandEngine, WindowEngine
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.native import precision
from nnunet_octreenca.planning import Output
from nnunet_octreenca.waiting import advice, wait_for, wait_limit

# (first, end) -> (n_in, end - first, *the other axes) float32
Band = NDArray[np.float32]
Read = Callable[[int, int], Band]
# Where a band begins, and its labels (rows, *axes) or logits (num_classes, rows, *axes).
Values = NDArray[Any]
Result = tuple[int, Values]


def windows_of(
    wanted: Rows, shape: Sequence[int], factors: Sequence[Sequence[int]], steps: Sequence[int]
) -> list[Rows]:
    """What every level but the coarsest computes so that the wanted rows of level 0 are right.

    A window begins at a multiple of the factor to its parents.

    >>> windows_of(Rows(100, 120), (400, 9), [(2, 2), (2, 2)], [10, 10, 20])
    [Rows(first=90, end=130), Rows(first=34, end=75)]
    """
    result = []
    for count, cells, row in zip(steps, level_shapes(shape, factors), factors, strict=False):
        first = max(wanted.first - count, 0)
        result.append(Rows(first - first % row[0], min(wanted.end + count, cells[0])))
        wanted = Rows(result[-1].first // row[0], -(-result[-1].end // row[0]))
    return result


def needed_of(
    wanted: Rows, windows: Sequence[Rows], factors: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """Of every window the first row and the end that the wanted rows of level 0 depend on,
    counted within the window: those wanted, and the parents of the next finer level's window.

    >>> needed_of(Rows(100, 120), [Rows(90, 130), Rows(34, 75)], [(2, 2), (2, 2)])
    [(10, 30), (11, 31)]
    """
    result = []
    for window, row in zip(windows, factors or [(1,)], strict=False):
        result.append((wanted.first - window.first, wanted.end - window.first))
        wanted = Rows(window.first // row[0], -(-window.end // row[0]))
    return result


class _Reading(Thread):
    """A range that is being read.

    No pool of threads: one that the garbage collector ends, in whatever thread it happens to run,
    may wait for a lock that waits for it.
    """

    def __init__(self, band: Rows, read: Read) -> None:
        super().__init__(name="read", daemon=True)
        self.band = band
        self._read = read
        self._values: Band | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._values = self._read(*self.band)
        except BaseException as error:  # raised where they are wanted
            self._error = error

    def result(self) -> tuple[Rows, Band]:
        if not wait_for(self):  # it cannot be interrupted, and is left behind
            raise WorkerError(
                f"rows {self.band.first} to {self.band.end} of the image could not be read for "
                f"{wait_limit():.0f} s. {advice()}"
            )
        if self._error is not None:
            raise self._error
        assert self._values is not None
        return self.band, self._values


def read_ahead(ranges: Iterable[Rows], read: Read) -> Iterator[tuple[Rows, Band]]:
    """Every range with what `read` gives for it; the next one is read meanwhile."""
    upcoming: _Reading | None = None
    try:
        for band in ranges:
            waiting, upcoming = upcoming, _Reading(band, read)
            if waiting is not None:
                yield waiting.result()
        if upcoming is not None:
            yield upcoming.result()
    except WorkerError:
        upcoming = None  # waits for the same storage
        raise
    finally:
        # What is being read may be closed next.
        if upcoming is not None:
            wait_for(upcoming)


def label_dtype(num_classes: int) -> np.dtype[np.integer]:
    """What the labels of so many classes are held in.

    >>> label_dtype(256), label_dtype(257)
    (dtype('uint8'), dtype('int16'))
    """
    return np.dtype(np.uint8 if num_classes <= 256 else np.int16)


class StreamOptions(NamedTuple):
    """How an image is streamed.

    Attributes:
        output: labels or logits.
        seed: of the fire draws.
        state: "float32", or "float16" for states in half the memory; the environment's if None.
    """

    output: Output
    seed: int = 0
    state: str | None = None


class OctreeStream(ABC):
    """One network, one seed, one image.

    Call `pool` with the whole image in bands that begin at multiples of `factor`, then `prepare`,
    then `run` as often as needed.

    Args:
        network: in evaluation mode, where it is to compute.
        shape: cells of the image per axis.

    Attributes:
        factor: rows of the image that a row of the coarsest level covers.

    Raises:
        ValueError: labels of a network for regions, or a precision that the engine has not.
    """

    def __init__(self, network: OctreeNCA, shape: Sequence[int], options: StreamOptions) -> None:
        if options.output is Output.LABELS and not network.constant_background:
            raise ValueError("a network for regions gives logits, not labels")
        self.network = network
        self.shape = tuple(shape)
        self.output, self.seed, self.state = options
        self.factor = spans(network.factors)[-1]

    @property
    def half(self) -> bool:
        """Whether states are in float16."""
        engine = self.network.engine()
        return engine.low_precision and precision(None, self.state)[1] == "float16"

    @abstractmethod
    def pool(self, band: Band, first: int) -> None:
        """Take the next band of the first reading, (n_in, rows, *axes) float32."""

    @abstractmethod
    def prepare(self) -> None:
        """Compute the coarsest level.

        Raises:
            NotFiniteError: its state is NaN or infinite.
        """

    @abstractmethod
    def save(self) -> NDArray[np.uint8]:
        """The coarsest level once it is prepared, as bytes for `restore`."""

    @abstractmethod
    def restore(self, saved: NDArray[np.uint8]) -> None:
        """Take the coarsest level of a stream of the same image, network and options.

        It stands for `pool` and `prepare`; the other stream may be another process'.

        Raises:
            ValueError: it is another image's, or of an engine that lays out states otherwise.
        """

    @abstractmethod
    def run(self, wanted: Rows, read: Read, band_rows: int) -> Generator[Result, None, None]:
        """Results of the wanted rows, in order, without gaps, as they are done.

        Args:
            wanted: rows of the image.
            read: called with ranges within the image, some of them beyond what is wanted.
            band_rows: rows of a band, as many as are read at once.

        Raises:
            NotFiniteError: the state of a level that the rows depend on is NaN or infinite.
        """


class WavefrontStream(OctreeStream):
    """On an engine that takes bands itself (C++)."""

    def __init__(
        self,
        engine: BandEngine,
        network: OctreeNCA,
        shape: Sequence[int],
        options: StreamOptions,
    ) -> None:
        super().__init__(network, shape, options)
        self._engine = engine.octree_stream(
            self.shape, network.automaton(), self.seed, state=self.state
        )

    def pool(self, band: Band, first: int) -> None:
        self._engine.pool(band, first)

    def prepare(self) -> None:
        self._engine.prepare()
        self._check()

    def save(self) -> NDArray[np.uint8]:
        return self._engine.save()

    def restore(self, saved: NDArray[np.uint8]) -> None:
        self._engine.restore(saved)

    def _check(self) -> None:
        non_finite = NonFiniteCells(len(self.network.steps))
        for level, counts in enumerate(self._engine.non_finite()):
            non_finite.add(level, *counts)
        non_finite.check(self.network.steps, half=self.half)

    def run(self, wanted: Rows, read: Read, band_rows: int) -> Generator[Result, None, None]:
        first, end = self._engine.begin(*wanted)
        done = wanted.first
        for band, rows in read_ahead(split_range(first, end, band_rows), read):
            ready = self._engine.ready(band.end)
            shape = (ready - done, *self.shape[1:])
            result: Values
            if self.output is Output.LABELS:
                result = np.empty(shape, label_dtype(self.network.num_classes))
                self._engine.advance(rows, band.first, result, None)
            else:
                result = np.empty((self.network.num_classes, *shape), np.float32)
                self._engine.advance(rows, band.first, None, result)
            self._check()
            if ready > done:
                yield done, result
            done = ready


class WindowStream(OctreeStream):
    """On an engine that computes windows (PyTorch, CUDA), where the network lies.

    On the CUDA engine the bits are those of one pass; PyTorch's matrix products may round
    differently with their sizes.
    """

    def __init__(
        self,
        engine: WindowEngine,
        network: OctreeNCA,
        shape: Sequence[int],
        options: StreamOptions,
    ) -> None:
        super().__init__(network, shape, options)
        self._device = next(network.parameters()).device
        self._engine = engine
        self._automaton = network.automaton()
        if not engine.low_precision and self.state not in (None, "float32"):
            raise ValueError(f"state={self.state!r} needs the C++ engine or the CUDA engine")
        self._spans = spans(network.factors)
        self._shapes = level_shapes(shape, network.factors)
        self._pooled: list[Tensor] = []
        self._coarse: Tensor | None = None
        self._non_finite = NonFiniteCells(len(self._shapes), self._device)

    def pool(self, band: Band, first: int) -> None:
        if len(self._shapes) > 1:
            self._pooled.append(image_pyramid(self._upload(band), self.network.factors)[-1])

    @torch.inference_mode()
    def prepare(self) -> None:
        if len(self._shapes) == 1:
            return
        image = torch.cat(self._pooled, 2)
        self._pooled.clear()
        self._coarse = self._engine.octree_windows(
            [image],
            self._automaton,
            self.seed,
            Part(len(self._shapes) - 1, [0]),
            state=self.state,
            non_finite=self._non_finite,
        )
        self._non_finite.check(self.network.steps, half=self.half)

    def save(self) -> NDArray[np.uint8]:
        if self._coarse is None:
            return np.empty(0, np.uint8)
        return self._coarse.cpu().contiguous().view(torch.uint8).numpy().reshape(-1)

    def restore(self, saved: NDArray[np.uint8]) -> None:
        if len(self._shapes) == 1:
            return
        dtype = torch.float16 if self.half else torch.float32
        values = torch.from_numpy(saved).view(dtype)
        self._coarse = values.reshape(1, *self._shapes[-1], -1).to(self._device)

    def run(self, wanted: Rows, read: Read, band_rows: int) -> Generator[Result, None, None]:
        plan = [(band, self._plan(band)) for band in split_range(*wanted, band_rows)]
        waiting: _Upcoming | None = None
        images = read_ahead((image for _, (_, image) in plan), read)
        for (band, (windows, _)), (image, rows) in zip(plan, images, strict=True):
            # Fetched while the next band is computed.
            upcoming = self._fetched(band.first, self._band(band, windows, image.first, rows))
            if waiting is not None:
                yield self._arrived(waiting)
            waiting = upcoming
        if waiting is not None:
            yield self._arrived(waiting)

    def _plan(self, band: Rows) -> tuple[list[Rows], Rows]:
        """The levels' windows and the rows of the image that they are averages of."""
        if len(self._shapes) == 1:
            steps = self.network.steps[0]
            whole = Rows(max(band.first - steps, 0), min(band.end + steps, self.shape[0]))
            return [whole], whole
        windows = windows_of(band, self.shape, self.network.factors, self.network.steps)
        node = self._spans[len(windows) - 1]
        first = min(w.first * s for w, s in zip(windows, self._spans, strict=False))
        end = max(w.end * s for w, s in zip(windows, self._spans, strict=False))
        return windows, Rows(first // node * node, min(-(-end // node) * node, self.shape[0]))

    @torch.inference_mode()
    def _band(self, band: Rows, windows: list[Rows], first: int, rows: Band) -> Tensor:
        pyramid = image_pyramid(self._upload(rows), self.network.factors[: len(windows) - 1])
        images = [
            level[:, :, window.first - first // span : window.end - first // span]
            for level, window, span in zip(pyramid, windows, self._spans, strict=False)
        ]
        del pyramid
        part = Part(
            0,
            [window.first for window in windows],
            self._coarse,
            0,
            needed_of(band, windows, self.network.factors),
        )
        inside = slice(band.first - windows[0].first, band.end - windows[0].first)
        labels = None
        if self.output is Output.LABELS:
            shape = (1, windows[0].end - windows[0].first, *self.shape[1:])
            labels = torch.empty(shape, dtype=self.network.label_dtype, device=self._device)
        state = self._engine.octree_windows(
            images,
            self._automaton,
            self.seed,
            part,
            labels=labels,
            state=self.state,
            non_finite=self._non_finite,
        )
        if labels is not None:
            return labels[0, inside]
        assert state is not None
        return self._automaton.head(state[:, inside])[0]

    def _upload(self, rows: Band) -> Tensor:
        # A copy, for PyTorch takes no negative strides, which a mirrored row of one may have.
        image = torch.from_numpy(np.array(rows, order="C"))[None]
        if self._device.type == "cuda":
            return image.pin_memory().to(self._device, non_blocking=True)
        return image.to(self._device)

    def _fetched(self, first: int, values: Tensor) -> "_Upcoming":
        """On its way to the host, and what says that it has arrived."""
        found = self._non_finite.found
        if values.device.type != "cuda":
            return _Upcoming(first, values.cpu(), found.cpu(), None)
        hosts = []
        for tensor in (values, found):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            hosts.append(host.copy_(tensor, non_blocking=True))
        event = torch.cuda.current_stream(values.device).record_event()
        return _Upcoming(first, hosts[0], hosts[1], event)

    def _arrived(self, upcoming: "_Upcoming") -> Result:
        if upcoming.event is not None:
            upcoming.event.synchronize()
        self._non_finite.check(self.network.steps, half=self.half, found=upcoming.found)
        return upcoming.first, upcoming.values.numpy()


class _Upcoming(NamedTuple):
    """A band's results on their way to the host."""

    first: int
    values: Tensor
    found: Tensor  # of NonFiniteCells, when the band was computed
    event: torch.cuda.Event | None


def open_stream(
    network: OctreeNCA,
    shape: Sequence[int],
    output: Output,
    *,
    seed: int = 0,
    state: str | None = None,
) -> OctreeStream:
    """The stream of the engine that computes where the network lies.

    Args: as `StreamOptions`.

    Raises:
        ValueError: labels of a network for regions, or a precision that the engine has not.
    """
    options = StreamOptions(output, seed, state)
    engine = network.engine()
    if isinstance(engine, BandEngine):
        return WavefrontStream(engine, network, shape, options)
    assert isinstance(engine, WindowEngine)
    return WindowStream(engine, network, shape, options)
