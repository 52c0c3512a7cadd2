"""The planner's memory model against what the operating system saw.

    python benchmarks/memory_model.py
    python benchmarks/memory_model.py --json --case hippocampus --case pathology

Each case runs in a process of its own: after a warm-up on a small image, a training step
(forward, loss, backward) or a whole-image prediction, and the growth of the resident set's
peak. glibc is told to give freed memory back, as CUDA's allocator would reuse it. Linux only.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20


class Case(NamedTuple):
    """A configuration to measure."""

    task: str  # "training", "inference" or "stream"
    shape: tuple[int, ...]
    input_channels: int = 1
    num_classes: int = 3
    batch_size: int = 3  # of a stream: seeds, one if left out
    crop: tuple[tuple[int, ...], int] | None = None
    mirror_axes: tuple[int, ...] = ()
    engine: str = "torch"
    band_rows: int = 0
    every_level: bool = False  # whether each level has a loss
    steps: tuple[int, ...] = ()  # another number than planned, to measure memory in less time
    channels: tuple[int, ...] = ()  # of every level, instead of the planned


CASES = {
    "hippocampus": Case("training", (40, 56, 40)),
    "pathology": Case("training", (320, 320), input_channels=3, num_classes=2),
    "radiology, cropped": Case(
        "training", (24, 320, 320), num_classes=2, batch_size=1, crop=((6, 80, 80), 2)
    ),
    "20 classes": Case("training", (48, 48, 48), num_classes=20, batch_size=1),
    "150 classes": Case("training", (24, 32, 24), num_classes=150, batch_size=1),
    "large slide": Case("training", (512, 512), input_channels=3, num_classes=2),
    "one volume": Case("inference", (48, 64, 64)),
    "one slide": Case("inference", (1536, 1536), input_channels=3, num_classes=2),
    "hippocampus, C++": Case("training", (40, 56, 40), engine="cpu"),
    "pathology, C++": Case("training", (320, 320), input_channels=3, num_classes=2, engine="cpu"),
    "20 classes, C++": Case("training", (48, 48, 48), num_classes=20, batch_size=1, engine="cpu"),
    "20 classes, a loss on every level, C++": Case(
        "training",
        (48, 48, 48),
        num_classes=20,
        batch_size=1,
        crop=((24, 24, 24), 1),
        engine="cpu",
        every_level=True,
    ),
    "radiology, cropped, a loss on every level": Case(
        "training",
        (24, 320, 320),
        num_classes=2,
        batch_size=1,
        crop=((6, 80, 80), 2),
        every_level=True,
    ),
    "one volume, C++": Case("inference", (96, 96, 96), engine="cpu"),
    "one slide, C++": Case(
        "inference", (1536, 1536), input_channels=3, num_classes=2, engine="cpu"
    ),
    "streamed slide, C++": Case(
        "stream", (512, 30000), 3, 2, engine="cpu", band_rows=32, steps=(6, 4, 4, 4, 4)
    ),
    "streamed slide, logits of two": Case(
        "stream",
        (512, 12000),
        3,
        2,
        batch_size=2,
        engine="cpu",
        band_rows=32,
        steps=(6, 4, 4, 4, 4),
    ),
    "streamed volume, C++": Case(
        "stream", (64, 320, 320), engine="cpu", band_rows=8, steps=(4, 2, 2, 2, 2)
    ),
    "streamed slide": Case(
        "stream", (256, 6000), 3, 2, engine="torch", band_rows=64, steps=(3, 2, 2, 2, 2)
    ),
    "hippocampus, wide coarse levels, C++": Case(
        "training",
        (40, 56, 40),
        crop=((22, 30, 22), 1),
        engine="cpu",
        every_level=True,
        channels=(16, 32, 48, 64),
    ),
    "hippocampus, wide coarse levels": Case(
        "training", (40, 56, 40), crop=((22, 30, 22), 1), channels=(16, 32, 48, 64)
    ),
    "streamed slide, wide coarse levels, C++": Case(
        "stream",
        (512, 30000),
        3,
        2,
        engine="cpu",
        band_rows=32,
        steps=(6, 4, 4, 4, 4),
        channels=(16, 24, 32, 48, 64),
    ),
    "40 classes, mirrored": Case("inference", (48, 64, 64), num_classes=40, mirror_axes=(0, 1)),
}


def plan(case: Case) -> dict[str, Any]:
    """What the planner's rules make of a case."""
    from nnunet_octreenca.octree import level_shapes
    from nnunet_octreenca.planning import cell_channels, level_factors, level_steps

    # A stream's image is larger than what its network was planned for.
    factors = level_factors([min(n, 320) if case.task == "stream" else n for n in case.shape])
    planned = cell_channels(case.input_channels, case.num_classes - 1)
    channels = case.channels or (planned,) * (len(factors) + 1)
    return {
        "factors": factors,
        "steps": case.steps[: len(factors) + 1] or level_steps(level_shapes(case.shape, factors)),
        "channels": channels,
        "hidden": tuple(4 * own for own in channels),
    }


def predicted_bytes(case: Case) -> int:
    """What the memory model says."""
    from nnunet_octreenca.octree import Crop
    from nnunet_octreenca.planning import (
        Output,
        inference_bytes,
        stream_bytes,
        training_bytes,
    )

    network = plan(case) | {
        "input_channels": case.input_channels,
        "num_classes": case.num_classes,
        "engine": case.engine,
    }
    if case.task == "inference":
        return inference_bytes(case.shape, **network)
    if case.task == "stream":
        alone = case.batch_size == 1 or case.batch_size == 3
        return stream_bytes(
            case.shape, **network, band_rows=case.band_rows, passes=1 if alone else case.batch_size,
            output=Output.LABELS if alone else Output.LOGITS,
        ).host  # fmt: skip
    crop = Crop(*case.crop) if case.crop else None
    return training_bytes(
        case.shape,
        **network,
        batch_size=case.batch_size,
        crop=crop,
        every_level=case.every_level,
    )


def status(key: str) -> int:
    """A size of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


class Procedural:
    """An image that is made while it is read."""

    spacing, dtype = (), np.dtype(np.float32)

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        self.channels, self.shape = channels, shape

    def read(self, first: int, end: int) -> NDArray:
        """Ones, but for their rows' numbers."""
        rows = np.ones((self.channels, end - first, *self.shape[1:]), np.float32)
        rows *= (np.arange(first, end) % 7).reshape(1, -1, *(1,) * (len(self.shape) - 1)) / 7
        return rows

    def close(self) -> None:
        """Nothing is open."""


def work(case: Case, shape: tuple[int, ...]) -> None:
    """One training step or one prediction."""
    import torch

    from nnunet_octreenca.inference import predict_logits
    from nnunet_octreenca.inference.ensemble import Ensemble, Member
    from nnunet_octreenca.network import OctreeNCA
    from nnunet_octreenca.octree import Crop, windows
    from nnunet_octreenca.training import SegmentationLoss

    network = OctreeNCA(
        case.input_channels, case.num_classes, dimension=len(case.shape), **plan(case)
    )
    if case.task == "inference":
        image = torch.rand(case.input_channels, *(1,) * (3 - len(shape)), *shape)
        predict_logits(network.eval(), image, mirror_axes=case.mirror_axes)
        return
    if case.task == "stream":
        seeds = range(1 if case.batch_size == 3 else case.batch_size)
        ensemble = Ensemble(
            [Member(network.eval(), seed) for seed in seeds], band_rows=case.band_rows
        )
        for _ in ensemble.segment(Procedural(case.input_channels, shape)):
            pass
        return
    crop = Crop(*case.crop) if case.crop else None
    origins = [(0,) * len(shape)] * case.batch_size
    image = torch.rand(case.batch_size, case.input_channels, *shape)
    if not case.every_level:
        heads = network(image, 0, crop, origins)
        target = torch.zeros(case.batch_size, 1, *heads.shape[2:], dtype=torch.int16)
        SegmentationLoss()(heads, target).backward()
        return
    target = torch.zeros(case.batch_size, 1, *shape, dtype=torch.int16)
    boxes = windows(shape, network.factors, crop, origins)
    heads = network(image, 0, crop, origins, every_level=True)
    SegmentationLoss().on_levels(heads, target, boxes, network.factors, 0.5).backward()


def measure_here(case: Case) -> int:
    """Growth of this process' resident peak, in bytes."""
    work(case, (8,) * len(case.shape))
    gc.collect()
    # Begins the peak anew at what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work(case, case.shape)
    return status("VmHWM") - before


def measured_bytes(name: str) -> int:
    """`measure_here` in a fresh process whose allocator gives memory back.

    glibc raises its threshold for mapping a block of its own with every such block freed, and
    the heap then fragments: the peak would say more about malloc than about the tensors.
    """
    threshold = str(1_000_000)
    done = subprocess.run(
        [sys.executable, __file__, "--here", name],
        env={
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": threshold,
            "MALLOC_TRIM_THRESHOLD_": threshold,
            "OCTREENCA_ENGINE": CASES[name].engine,
        },
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(done.stdout)


def measure(name: str) -> dict[str, Any]:
    """Predicted and measured bytes of a case, and their ratio."""
    predicted, measured = predicted_bytes(CASES[name]), measured_bytes(name)
    return {
        "case": name,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "ratio": round(predicted / measured, 3),
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="only this one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--here", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(measure_here(CASES[arguments.here]))
        return
    rows = [measure(name) for name in arguments.case or CASES]
    if arguments.json:
        print(json.dumps(rows, indent=4))
        return
    print(f"{'case':24} {'task':9} {'predicted':>10} {'measured':>10}  ratio")
    for row in rows:
        print(
            f"{row['case']:24} {CASES[row['case']].task:9} {row['predicted_bytes'] / MIB:6.0f} MiB "
            f"{row['measured_bytes'] / MIB:6.0f} MiB  {row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
