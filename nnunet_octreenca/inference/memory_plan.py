"""How an image is taken through memory: whole or in bands, decided before anything is allocated."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from nnunet_octreenca.bands import aligned, spans
from nnunet_octreenca.errors import InputError, OutOfMemoryError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops import Engine
from nnunet_octreenca.ops.engine import BandEngine
from nnunet_octreenca.planning import Output, StreamBytes, stream_bytes
from nnunet_octreenca.resources import available_memory, resident_memory, total_memory

GIB = 1 << 30
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# Of what is free, this much is planned with: other programs live too.
_SHARE = 0.8
# Cells of a band on the CPU: reading and starting threads are then below a hundredth of the work.
_BAND_CELLS = 4_000_000


@dataclass(frozen=True)
class Memory:
    """What may be used, in bytes, who says so, and what to do where it is too little."""

    host: int
    device: int
    source: str
    advice: str = "Close other programs, or give more with --memory"


@dataclass(frozen=True)
class MemoryPlan:
    """How one image is segmented.

    Attributes:
        band_rows: rows (2-D) or planes (3-D) of a band.
        whole: the band is the image.
        half: states in float16.
        host: bytes the process will hold at its peak, with what it holds now.
        device: bytes on the GPU.
        limit: what it was fitted to.
    """

    band_rows: int
    whole: bool
    half: bool
    host: int
    device: int
    limit: Memory

    def sentence(self) -> str:
        """The line that is printed."""
        how = "whole image in memory" if self.whole else f"streamed in bands of {self.band_rows}"
        states = "float16 states" if self.half else "float32"
        gpu = f" and {self.device / GIB:.2f} GiB on the GPU" if self.device else ""
        return (
            f"{how}, {states}: about {self.host / GIB:.2f} GiB at the peak{gpu} "
            f"(limit {self.limit.host / GIB:.1f} GiB, {self.limit.source})"
        )


def parse_memory(text: str) -> int:
    """Bytes of "4G", "512M", "2.5GiB".

    Raises:
        InputError: it is no size.

    >>> parse_memory("1.5G") == 1_610_612_736
    True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if match is None or float(match[1]) == 0:
        raise InputError(f"{text!r} is not an amount of memory; write 4G or 800M")
    return int(float(match[1]) * _SUFFIXES[match[2]])


def memory_limit(asked: int | None = None, device: torch.device | str = "cpu") -> Memory:
    """What a prediction may use in all, with what the process holds already.

    Args:
        asked: the user's limit in bytes; more than the process may use counts as that.
        device: whose free memory counts beside the host's.
    """
    on_device = 0
    if torch.device(device).type == "cuda":
        on_device = int(torch.cuda.mem_get_info(torch.device(device))[0] * _SHARE)
    if asked is not None:
        total = total_memory()
        if asked > total:
            return Memory(total, on_device, "--memory is more than this process may use")
        return Memory(asked, on_device, "--memory")
    free, source = available_memory()
    return Memory(int(free * _SHARE) + resident_memory(), on_device, f"{_SHARE:.0%} of {source}")


def plan_memory(
    network: OctreeNCA,
    shape: Sequence[int],
    limit: Memory,
    *,
    passes: int = 1,
    output: Output = Output.LABELS,
    half: bool = False,
    beside: int = 0,
    beside_row: int = 0,
    band_rows: int | None = None,
) -> MemoryPlan:
    """The fastest way that fits.

    On the C++ engine bands are as fast as the whole and need less, so that only an image of one
    band is taken whole. Elsewhere bands have margins that are computed twice: the whole comes
    first, then the largest bands. Precision is the caller's choice: it would change labels.

    Args:
        network: of the passes; all are alike.
        shape: cells of the image per axis, as the network sees it.
        limit: what may be used.
        passes: networks times seeds times mirrored copies.
        output: of a single pass; several passes give logits.
        half: states in float16.
        beside: bytes that are held for the image and the result, on top of what is held now.
        beside_row: bytes that are held for each row or plane of a band besides.
        band_rows: rows or planes of a band, where the caller insists.

    Raises:
        OutOfMemoryError: nothing fits; the sentence says how much is needed at least.
    """
    engine = network.engine()
    step = spans(network.factors)[-1]

    def needed(count: int, half: bool = half) -> StreamBytes:
        return stream_bytes(
            shape,
            **network.sizes,
            fire_rate=network.fire_rate,
            band_rows=count,
            engine=engine.name,
            half=half,
            passes=passes,
            output=output if passes == 1 else Output.LOGITS,
        )

    held = resident_memory() + beside
    smallest = None
    for count in [band_rows] if band_rows else _candidates(shape, step, engine):
        found = needed(count)
        rows = min(count, shape[0])
        host = held + found.host + rows * beside_row
        plan = MemoryPlan(rows, count >= shape[0], half, host, found.device, limit)
        if plan.host <= limit.host and plan.device <= limit.device:
            return plan
        smallest = plan
    assert smallest is not None
    advice = limit.advice
    if engine.low_precision and not half:
        less = needed(smallest.band_rows, True)
        least = held + less.host + smallest.band_rows * beside_row
        if least <= limit.host and less.device <= limit.device:
            advice += ", or take --precision float16, which fits and changes some cells' labels"
    needs, have = f"{smallest.host / GIB:.2f} GiB", limit.host
    if smallest.device > limit.device:
        needs, have = f"{smallest.device / GIB:.2f} GiB of the GPU", limit.device
    raise OutOfMemoryError(
        f"an image of {' x '.join(map(str, shape))} cells needs {needs} even in bands of "
        f"{smallest.band_rows}, and {have / GIB:.2f} GiB may be used ({limit.source}). {advice}"
    )


def _candidates(shape: Sequence[int], step: int, engine: Engine) -> list[int]:
    """Bands to try, the best first."""
    usual = aligned(max(_BAND_CELLS // prod(shape[1:]), 1), step)
    free = isinstance(engine, BandEngine)  # bands cost no time
    counts = [shape[0]] if not free or usual >= shape[0] else []
    count = usual if free else aligned(shape[0] // 2, step)
    while count < shape[0]:
        counts.append(count)
        if count == step:
            break
        count = aligned(count // 2, step)
    return counts or [shape[0]]
