"""What a training step sees of a slide: a window of every level, each from the slide's pyramid.

The finest level is a patch. On every coarser level the window has as many cells and so twice the
field of view, around the window below: a patch of 320 pixels is seen amid 5,120 on level 4. The
windows nest as octree.windows says.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import read_json
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.octree import Crop, Factors, Shape, total_factors, windows

# As nnU-Net's transforms have it: how often, and by how much at most.
CHANGE_PROBABILITY = 0.15
CHANGE_RANGE = (0.75, 1.25)


@dataclass(frozen=True)
class SlideCase:
    """A training slide: where it lies, and at which resolution it is worked at.

    Attributes:
        name: of the case.
        image: the slide.
        label: a TIFF of its labels at that resolution.
        downsample: pixels of the slide's finest level that a cell of level 0 spans.
        shape: cells of level 0, (rows, columns).
        locations: (y, x) of some cells of every foreground label that is there.
    """

    name: str
    image: Path
    label: Path
    downsample: float
    shape: tuple[int, int]
    locations: dict[int, list[tuple[int, int]]]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = {**asdict(self), "image": str(self.image), "label": str(self.label)}
        Path(path).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "SlideCase":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or damaged.
        """
        again = "convert the slides again"
        content = read_json(path, again)
        try:
            return cls(
                content["name"],
                Path(content["image"]),
                Path(content["label"]),
                float(content["downsample"]),
                (int(content["shape"][0]), int(content["shape"][1])),
                {int(label): places for label, places in content["locations"].items()},
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"{path} describes no slide ({error!r}); {again}") from error


class Sample(NamedTuple):
    """The windows of one place.

    Attributes:
        images: of every level, finest first, (channels, rows, columns), 0 to 1.
        origins: each window's first cell in its whole level.
        target: labels of the finest window, (rows, columns).
    """

    images: list[NDArray[np.float32]]
    origins: list[Shape]
    target: NDArray[np.int16]


def draw_origin(
    case: SlideCase, patch: Sequence[int], foreground: bool, generator: np.random.Generator
) -> Shape:
    """The first cell of a patch: anywhere, or around a cell of a foreground label.

    Labels are drawn equally often, however large they are. Without foreground: anywhere.
    """
    room = [n - p for n, p in zip(case.shape, patch, strict=True)]
    if foreground and case.locations:
        places = case.locations[int(generator.choice(sorted(case.locations)))]
        cell = places[int(generator.integers(len(places)))]
        return tuple(
            min(max(at - p // 2, 0), r) for at, p, r in zip(cell, patch, room, strict=True)
        )
    return tuple(int(generator.integers(r + 1)) for r in room)


def read_sample(
    case: SlideCase,
    slide: SlideRegions,
    labels: SlideRegions,
    *,
    factors: Factors,
    patch: Sequence[int],
    origin: Sequence[int],
) -> Sample:
    """Read the windows of all levels around a patch.

    Args:
        case: the slide's description.
        slide, labels: its files.
        factors: L - 1 rows of (2, 2).
        patch: cells of every level's window; a level that has fewer is seen whole.
        origin: the patch's first cell of level 0.

    Raises:
        InputError: a file is damaged.
    """
    boxes = windows(case.shape, factors, Crop(tuple(patch), len(factors) + 1), [origin])
    images = []
    for level, box in enumerate(boxes):
        window = slide.scaled(case.downsample * 2**level, *box.origins[0], *box.shape)
        images.append(np.ascontiguousarray(np.moveaxis(window, -1, 0)) / np.float32(255))
    target = labels.region(0, *boxes[0].origins[0], *boxes[0].shape)[..., 0]
    return Sample(images, [box.origins[0] for box in boxes], target.astype(np.int16))


def mirror(sample: Sample, axes: Sequence[int], shape: Sequence[int], factors: Factors) -> Sample:
    """Mirror all levels' windows and the target, and the windows' places with them.

    A cell's parent stays its parent, which holds for a level of even length: places are mirrored
    in the slide's size rounded up to a multiple of the coarsest cell.

    Args:
        sample: as read.
        axes: 0 for rows, 1 for columns.
        shape: cells of the slide's level 0.
        factors: L - 1 rows of (2, 2).
    """
    if not axes:
        return sample
    multiple = total_factors(factors, 2)
    length = [-(-n // m) * m for n, m in zip(shape, multiple, strict=True)]
    origins = [
        tuple(
            length[axis] // 2**level - first - image.shape[axis + 1] if axis in axes else first
            for axis, first in enumerate(origin)
        )
        for level, (image, origin) in enumerate(zip(sample.images, sample.origins, strict=True))
    ]
    images = [np.flip(image, tuple(axis + 1 for axis in axes)).copy() for image in sample.images]
    return Sample(images, origins, np.flip(sample.target, tuple(axes)).copy())


def change_colours(sample: Sample, generator: np.random.Generator) -> Sample:
    """Now and then change brightness and contrast, in the same way on every level."""
    scale, shift = np.ones((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32)
    if generator.random() < CHANGE_PROBABILITY:
        scale *= np.float32(generator.uniform(*CHANGE_RANGE))
    if generator.random() < CHANGE_PROBABILITY:
        contrast = generator.uniform(*CHANGE_RANGE, (3, 1, 1)).astype(np.float32)
        mean = sample.images[0].mean((1, 2), keepdims=True)
        shift = scale * mean * (1 - contrast)
        scale = scale * contrast
    return sample._replace(images=[image * scale + shift for image in sample.images])


class WindowBatch:
    """The windows of a batch, in parts whose windows are of one size.

    Attributes:
        parts: images of every level (N, channels, rows, columns), and origins of every level, a
            row for each sample.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.parts: list[tuple[list[Tensor], list[list[Shape]]]] = []
        for _, alike in groupby(samples, lambda one: [image.shape for image in one.images]):
            part = list(alike)
            levels = range(len(part[0].images))
            self.parts.append(
                (
                    [torch.from_numpy(np.stack([s.images[n] for s in part])) for n in levels],
                    [[s.origins[n] for s in part] for n in levels],
                )
            )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "WindowBatch":
        """The same on a device."""
        moved = WindowBatch([])
        moved.parts = [
            ([image.to(device, non_blocking=non_blocking) for image in images], origins)
            for images, origins in self.parts
        ]
        return moved
