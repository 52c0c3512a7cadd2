"""Memory of one pass against the image's size, until an image no longer fits a limit.

No weights are needed but untrained ones. Every method takes the whole image at once, without
nnU-Net's windows: what the paper's Figure 6 and Table 2 compare.
"""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from nnunet_octreenca.child_process import ends_like_ctrl_c
from nnunet_octreenca.comparison.tables import MISSING, Cell, Table
from nnunet_octreenca.comparison.trained.jobs import Job, Request
from nnunet_octreenca.comparison.trained.paper import LARGEST, LARGEST_BYTES
from nnunet_octreenca.comparison.trained.running import Say, environment
from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.files import JsonMapping, JsonObject, read_json
from nnunet_octreenca.integration import memory_job
from nnunet_octreenca.planning.plans_faults import inherited

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_POLL_SECONDS = 0.02  # at some GB a second that are allocated at the most
_KILLED = -9  # by the system, as its memory was full

SECONDS = 600.0
"""That one image may take in `compare`, its network's making included."""

SHAPES: Mapping[int, Sequence[tuple[int, ...]]] = {
    2: [(n,) * 2 for n in (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)],
    3: [(n,) * 3 for n in (64, 96, 128, 192, 256, 384, 512, 768)],
}
"""By the number of axes, from small to large: squares and cubes."""


class MemoryMeasuringError(OctreeNCAError):
    """A process whose memory was measured has failed for another reason than memory."""


@dataclass(frozen=True)
class Sizes:
    """What a method took.

    Attributes:
        parameters: of its network at the first size; transformers have more for larger images.
        rows: `shape`, `voxels` and `bytes` of each image that fitted.
        too_large: the shape of the first that did not; None where none was too large.
        too_slow: the shape of the first that took too long; its memory is not known.
    """

    parameters: int
    rows: tuple[JsonObject, ...]
    too_large: tuple[int, ...] | None
    too_slow: tuple[int, ...] | None = None

    def curve(self) -> JsonObject:
        """Of a method record."""
        return {
            "x": "Image (million voxels)",
            "y": "Memory of one pass (GB)",
            "scale": "log",
            "points": [[row["voxels"] / 1e6, row["bytes"] / 1e9] for row in self.rows],
        }


def measure_all(
    jobs: Sequence[Job], request: Request, folder: Path, device: str, limit: int, say: Say
) -> dict[str, Sizes]:
    """`Sizes` of each method.

    Args:
        jobs: one of each method.
        request: of the comparison.
        folder: for logs.
        device: to predict on.
        limit: bytes that a pass may take.
        say: told what is done.

    Raises:
        MemoryMeasuringError: a network cannot be made or used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dataset = read_json(request.preprocessed / "dataset.json", "preprocess it again")
    found = {}
    for job in jobs:
        say(f"memory against size: {job.name}")
        configuration = inherited(job.plans["configurations"], request.configuration)
        own = {
            "trainer": job.method.trainer,
            "plans": job.plans,
            "dataset": dataset,
            "configuration": request.configuration,
            "device": device,
        }
        shapes = SHAPES[len(configuration["patch_size"])]
        log = folder / f"{job.model.name}_memory.log"
        found[job.name] = measure_sizes(own, shapes, limit, log, seconds=SECONDS)
    return found


def sizes_table(sizes: Mapping[str, Sizes], limit: int) -> Table:
    """A row of each method with the largest image that fitted; the paper's below."""
    rows = []
    axes = 2
    for name, one in sizes.items():
        if not one.rows:
            rows.append((Cell(name), *(Cell(MISSING),) * 4))
            continue
        last = one.rows[-1]
        axes = len(last["shape"])
        rows.append(
            (
                Cell(name),
                Cell(" x ".join(map(str, last["shape"])) + _open_end(one)),
                Cell(f"{last['voxels'] / 1e6:.2f}", last["voxels"] / 1e6),
                Cell(f"{last['bytes'] / 1e9:.2f}", last["bytes"] / 1e9),
                Cell(f"{last['bytes'] / last['voxels']:,.0f}", last["bytes"] / last["voxels"]),
            )
        )
    for name, (million, each) in LARGEST[axes].items():
        rows.append(
            (
                Cell(f"paper: {name}"),
                Cell(MISSING),
                Cell(f"{million:.1f}", million),
                Cell(f"{LARGEST_BYTES / 1e9:.1f}", LARGEST_BYTES / 1e9),
                Cell(MISSING) if each is None else Cell(f"{each:,.0f}", each),
            )
        )
    return Table(
        "Memory against size",
        f"The largest image of noise, of those tried, that a method takes in one pass with "
        f"{limit / 1e9:.1f} GB beside the program and its libraries: weights, image, network and "
        f"labels, without nnU-Net's windows, which need less. The paper's rows (Lemke et al. 2025) "
        f"are of a GPU with {LARGEST_BYTES >> 30} GiB, and not measured here.",
        ("Method", "Image", "Million voxels", "GB", "Bytes per voxel"),
        tuple(rows),
        2,
    )


def _open_end(sizes: Sizes) -> str:
    """What is said of a largest image that memory did not end."""
    if sizes.too_large is not None:
        return ""
    return " or more" if sizes.too_slow is None else " or more (time ended it)"


def measure_sizes(
    job: JsonMapping,
    shapes: Sequence[tuple[int, ...]],
    limit: int,
    log: Path,
    *,
    seconds: float | None = None,
    variables: Mapping[str, str] | None = None,
) -> Sizes:
    """Take larger and larger images through a method's network.

    Args:
        job: `trainer`, `plans`, `dataset`, `configuration` and `device` of `memory_job.measured`.
        shapes: of the images, from small to large.
        limit: bytes that a pass may take beside the program and its libraries.
        log: file for what the process prints.
        seconds: that one image may take; None for as long as it takes.
        variables: of its environment, beside the usual.

    Raises:
        MemoryMeasuringError: the network cannot be made or used.
    """
    context = _context()
    received, sent = context.Pipe(duplex=False)
    asked = {**job, "shapes": [list(one) for one in shapes], "limit": limit}
    process = context.Process(
        target=memory_job.answer,
        args=(asked, sent, str(log), {**environment(), **(variables or {})}),
    )
    log.touch()
    with ends_like_ctrl_c():
        process.start()
        sent.close()
        try:
            answers, ended_by = _watched(process, received, limit, seconds)
        finally:
            process.kill()
            process.join()
            received.close()
    rows = [answer for answer in answers if "bytes" in answer]
    if ended_by is None and process.exitcode not in (0, _KILLED):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("ERROR: ") if lines else "it printed nothing"
        raise MemoryMeasuringError(
            f"the memory of {job['trainer']} cannot be measured: {last} (all is in {log}); "
            f"--memory 0 leaves it out"
        )
    fitted = [row for row in rows if row["bytes"] <= limit]
    next_one = tuple(shapes[len(fitted)]) if len(fitted) < len(shapes) else None
    slow = ended_by == "time" and len(fitted) == len(rows)
    return Sizes(
        int(rows[0]["parameters"]) if rows else 0,
        tuple({key: row[key] for key in ("shape", "voxels", "bytes")} for row in fitted),
        None if slow else next_one,
        next_one if slow else None,
    )


@lru_cache
def _context() -> Any:
    """Processes that do not import everything anew for each method, where the system can fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([memory_job.__name__])
    return context


def _watched(
    process: Any, received: "Connection", limit: int, seconds: float | None
) -> tuple[list[JsonObject], Literal["memory", "time"] | None]:
    """What a process answers until its end, and what it was ended for."""
    watched, before = psutil.Process(process.pid), None
    answers: list[JsonObject] = []
    since = time.monotonic()
    while True:
        try:
            while received.poll(_POLL_SECONDS):
                answers.append(received.recv())
                since = time.monotonic()
        except (EOFError, OSError):  # it has ended
            process.join()
            return answers, None
        if before is None and answers:
            before = answers[0]["resident"]
        try:
            taken = watched.memory_info().rss
        except psutil.Error:  # it is ending
            continue
        if before is not None and taken - before > limit:
            return answers, "memory"
        # The first answer comes when libraries are imported, which counts for no image.
        if before is not None and seconds is not None and time.monotonic() - since > seconds:
            return answers, "time"
