"""The automaton watched on one case: what is seen of every state on the way, small enough to draw.

Logits are shown on the levels whose logits training looked at: all of them, or the finest alone. On
the others they are hidden channels like the rest, and no segmentation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.errors import OutOfMemoryError
from nnunet_octreenca.images.open_image import open_channels
from nnunet_octreenca.inference.memory_plan import GIB, memory_limit
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.network.walk import Moment, walk
from nnunet_octreenca.octree import level_shapes, reach
from nnunet_octreenca.planning import inference_bytes
from nnunet_octreenca.prediction.segmentation import named, only_case, readable
from nnunet_octreenca.prediction.watched_image import rows_at_a_time
from nnunet_octreenca.preprocessing.case import PreprocessedCase
from nnunet_octreenca.resources import resident_memory

LONGEST = 256  # pixels kept of a plane's longer side; every n-th where there are more

Plane = NDArray[np.float32]
"""(channels, y, x)."""


@dataclass(frozen=True)
class View:
    """What is seen of one state.

    Attributes:
        level, step: as of `Moment`.
        image: the level's image on the middle planes, one of a picture, three of a volume.
        hidden: the other channels without the logits, on the first of these planes.
        probabilities: of every head on the planes; None where logits were not trained.
    """

    level: int
    step: int
    image: tuple[Plane, ...]
    hidden: Plane
    probabilities: tuple[Plane, ...] | None


@dataclass(frozen=True)
class Watched:
    """One pass of one network over one case.

    Attributes:
        title: the case, and the plane where a 2-D network looks at a volume.
        names: of the labels.
        heads: the label of each head; 0 the background's.
        steps: of all levels, finest first.
        shapes: cells of all levels, finest first.
        spacing: mm per axis of a cell of level 0; pixels of pictures.
        unit: "mm" or "pixels".
        reach: cells of level 0 that each level sees in each direction (`octree.reach`).
        views: from the coarsest level to the finest.
    """

    title: str
    names: dict[int, str]
    heads: tuple[int, ...]
    steps: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    spacing: tuple[float, ...]
    unit: str
    reach: tuple[tuple[int, ...], ...]
    views: tuple[View, ...]


def moments(network: OctreeNCA, every: int | None) -> int:
    """How many states `walk` yields."""
    each = [1 + (-(-count // (every or count)) if count else 0) for count in network.steps]
    return sum(each)


def watch(
    source: Path,
    model: Model,
    *,
    every: int | None = 1,
    memory: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Watched:
    """Watch the first network of a model on one case, which is held whole.

    A 2-D network looks at the middle plane of a volume.

    Args:
        source: the image's file, or a folder that holds one case.
        model: of one fold; the first of several is watched.
        every: steps between two views; None for the beginning and the end of every level.
        memory: bytes that the process may use in all; None for what is free.
        progress: called with 1 for every view.

    Raises:
        InputError: there is no case, or several, or the model cannot take it.
        OutOfMemoryError: its states do not fit the memory.
        NotFiniteError: a state became NaN or infinite.
    """
    case = only_case(source, model)
    network = model.networks[0]
    opened = open_channels(case.files, channels=model.channels)
    try:
        with named(opened):
            prepared = PreprocessedCase(
                readable(opened, model), model.preprocessing, band=rows_at_a_time(opened)
            )
            part = prepared.parts // 2
            image = prepared.image(part)
            _require_memory(network, image.shape, memory, model.device)
            values = torch.from_numpy(image.read(0, image.shape[0]))[None].to(model.device)
    finally:
        opened.close()
    title = case.name
    if prepared.parts > 1:
        title += f", plane {prepared.statistics.box[0][0] + part}"
    order = model.preprocessing.regions_class_order
    return watch_image(
        network,
        values,
        title=title,
        names=model.names,
        heads=None if order is None else tuple(order),
        spacing=prepared.layout.target[3 - network.dimension :],
        unit="pixels" if model.natural else "mm",
        taught_levels=model.taught_levels,
        seed=model.seed,
        every=every,
        progress=progress,
    )


def watch_image(
    network: OctreeNCA,
    image: Tensor,
    *,
    title: str,
    names: dict[int, str],
    heads: tuple[int, ...] | None = None,
    spacing: Sequence[float],
    unit: str,
    taught_levels: bool = False,
    seed: int = 0,
    every: int | None = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> Watched:
    """Watch a network on an image as it takes it.

    Args:
        network: in evaluation mode.
        image: (1, n_in, *spatial), normalized, where the network lies.
        title, names, spacing, unit: for the pictures; see `Watched`.
        heads: the label of each head; None for plain labels.
        taught_levels: training looked at the logits of all levels.
        seed: of the fire draws.
        every, progress: as for `watch`.

    Raises:
        NotFiniteError: a state became NaN or infinite.
    """
    views = []
    for moment in walk(network, image, seed, every=every):
        views.append(_view(network, moment, taught_levels))
        progress(1)
    return Watched(
        title=title,
        names=names,
        heads=tuple(range(network.num_classes)) if heads is None else heads,
        steps=network.steps,
        shapes=tuple(level_shapes(image.shape[2:], network.factors)),
        spacing=tuple(spacing),
        unit=unit,
        reach=tuple(reach(network.steps, network.factors, network.dimension)),
        views=tuple(views),
    )


def _require_memory(
    network: OctreeNCA, shape: tuple[int, ...], asked: int | None, device: torch.device
) -> None:
    """Refuse an image whose states do not fit: PyTorch's pass, and a state to begin from."""
    limit = memory_limit(asked, device)
    needed = inference_bytes(shape, **network.sizes, engine="torch")
    free = limit.device if device.type == "cuda" else limit.host - resident_memory()
    if needed > free:
        raise OutOfMemoryError(
            f"states of {' x '.join(map(str, shape))} cells need some {needed / GIB:.1f} GiB, and "
            f"{max(free, 0) / GIB:.1f} GiB may be used ({limit.source}); explain holds them whole: "
            f"give a smaller image, such as a part of a slide"
        )


def _view(network: OctreeNCA, moment: Moment, taught_levels: bool) -> View:
    first = network.input_channels + network.logits
    image = _planes(moment.state[..., : network.input_channels])
    hidden = _planes(moment.state[..., first:])[0]
    probabilities = None
    if moment.level == 0 or taught_levels:
        logits = network.automaton().head(moment.state)
        shares = logits.softmax(1) if network.constant_background else logits.sigmoid()
        probabilities = _planes(shares.movedim(1, -1))
    return View(moment.level, moment.step, image, hidden, probabilities)


def _planes(state: Tensor) -> tuple[Plane, ...]:
    """The middle planes of (1, *spatial, C), across each axis of a volume in turn."""
    return tuple(_small(plane) for plane in _middle(state[0]))


def _middle(cells: Tensor) -> Iterator[Tensor]:
    if cells.ndim == 3:
        yield cells
        return
    for axis in range(3):
        yield cells.select(axis, cells.shape[axis] // 2)


def _small(plane: Tensor) -> Plane:
    step = max(1, -(-max(plane.shape[:2]) // LONGEST))
    small: Plane = plane[::step, ::step].movedim(-1, 0).float().cpu().numpy().copy()
    return small
