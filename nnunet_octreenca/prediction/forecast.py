"""The memory that a case will take, from its header: before it is given to anyone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from nnunet_octreenca.errors import InputError, OutOfMemoryError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.header import ImageHeader, read_header
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.inference.memory_plan import Memory, memory_limit
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.prediction.memory import planned
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.preprocessing.crop import volume_shape
from nnunet_octreenca.preprocessing.geometry import CaseGeometry, oriented
from nnunet_octreenca.resources import resident_memory

_ADVICE = "Give workers more memory (`dask worker --memory-limit`)"


@dataclass(frozen=True)
class Forecast:
    """What a case takes.

    Attributes:
        bytes: of memory, on top of what an idle process holds.
        band_rows: with which it takes that.
        cells: of the image.
    """

    bytes: int
    band_rows: int
    cells: int


def forecast(case: Case, model: Model, options: Options, shares: Sequence[int]) -> Forecast:
    """Plan a case as `Segmentation` will, of an image in which nothing is cropped away.

    Args:
        case: its files.
        model: the networks.
        options: how they segment.
        shares: bytes that a case may take on the machines there are; the smallest share that is
            enough is planned with.

    Raises:
        InputError: the image, or what its header says, cannot be used.
        OutOfMemoryError: it does not fit even the largest share.
    """
    header = read_header(
        case.files, channels=model.channels, mpp=options.mpp, series=options.series
    )
    layout, kept = _layout(header, model)
    for share in sorted(set(shares)):
        before = resident_memory()
        on_device = memory_limit(options.memory, model.device).device
        limit = Memory(before + share - kept, on_device, "a worker's share of its memory", _ADVICE)
        try:
            plan, _ = planned(layout, header.shape, model, options, limit)
        except OutOfMemoryError as error:
            refused = error
            continue
        # Reserve what measuring the resilience takes wherever it will be measured.
        if options.quality is not None:
            most = replace(limit, host=before + max(shares) - kept)
            plan, _ = planned(layout, header.shape, model, options, most)
        taken = max(plan.host - before, 0) + kept
        return Forecast(taken, plan.band_rows, prod(header.shape))
    raise OutOfMemoryError(f"{case.files[0]}: {refused}")


def _layout(header: ImageHeader, model: Model) -> tuple[CaseGeometry, int]:
    """The geometry without a crop, and bytes that the open image holds."""
    spacing = (1.0,) * len(header.shape) if model.natural else header.spacing
    # An array of the image's shape that has a single cell in memory.
    empty = np.broadcast_to(np.zeros((), header.dtype), (header.channels, *header.shape))
    preprocessing, kept = model.preprocessing, header.kept_bytes
    if len(header.shape) == 3 and preprocessing.transpose_forward[0] != 0:
        kept += empty.nbytes  # read whole, to be read along another axis
    if header.channels != model.channels:
        raise InputError(
            f"the image has {header.channels} channels and the model takes {model.channels}"
        )
    source = oriented(ArraySource(empty, spacing), preprocessing.transpose_forward)
    box = tuple((0, cells) for cells in volume_shape(source))
    return CaseGeometry.of(source, preprocessing, box), kept
