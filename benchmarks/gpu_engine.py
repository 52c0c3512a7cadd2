"""The CUDA engine on a GPU: checked against PyTorch, then timed against its own kernel 1.

    pip install --no-deps .
    python benchmarks/gpu_engine.py --part correctness --rows rows.jsonl
    python benchmarks/gpu_engine.py --part timing --rows rows.jsonl --json > gpu_engine.json
    python benchmarks/gpu_engine.py --part timing --only slide --only ladder
    python benchmarks/gpu_engine.py --part profile --rows rows.jsonl
    python benchmarks/gpu_engine.py --dry-run       no GPU: that it runs, tiny, nothing measured

Each part fits into eight minutes. `correctness` runs tests/cuda/test_on_a_gpu.py (all modes, odd
shapes, over 2^31 numbers, compute-sanitizer where it is installed); `timing` measures; `profile`
asks Nsight Compute, where it is installed, what the forward kernel waits for. Without `--part`,
correctness and timing run. A test that fails is recorded and timing goes on: the rows timed after
it, and those of a run that skipped the tests, say so in `checked`. Every row is appended to the
file of `--rows` and flushed as it is measured, so that a time-out loses only the row in progress.

Times are medians of CUDA events after a warm-up, A and B alternating. `device_bytes_per_cell` is
PyTorch's peak without the image and what was allocated before. A row whose goal cannot be tried
here says why in `missing`.

The core needs torch and numpy; the row of the U-Net also dynamic_network_architectures, as a
wheel (`pip install --no-deps dynamic_network_architectures`).
"""

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import torch
from cpu_engine import Layerwise, fired_steps, make_network
from cuda_ladder import RUNGS, Kernel1Level, enter_1_program
from torch import Tensor

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Crop, level_shapes
from nnunet_octreenca.ops import FireDraws, cuda_device, cuda_engine, cuda_level, cuda_octree
from nnunet_octreenca.ops.native import CELLS_VARIABLE, ENGINE_VARIABLE

ROOT = Path(__file__).parents[1]
CASES = (
    "ceilings", "slide", "levels", "widths", "fire", "ladder", "video", "training", "labels",
    "layerwise", "unet",
)  # fmt: skip
PARTS = ("correctness", "timing", "profile")
TESTS = ROOT / "tests" / "cuda" / "test_on_a_gpu.py"


class Bench:
    """Where things run, and how they are timed."""

    def __init__(self, dry_run: bool, rounds: int) -> None:
        self.dry_run = dry_run
        self.rounds = 1 if dry_run else rounds
        self.device = torch.device("cpu" if dry_run else "cuda:0")

    def seconds(self, *tasks: Callable[[], Any]) -> list[float]:
        """Median seconds of every task, taking turns."""
        times: list[list[float]] = [[] for _ in tasks]
        for number in range(self.rounds + 1):
            for own, task in zip(times, tasks, strict=True):
                seconds = self._once(task)
                if number or self.dry_run:  # the first round compiles and warms up
                    own.append(seconds)
        return [statistics.median(own) for own in times]

    def _once(self, task: Callable[[], Any]) -> float:
        if self.dry_run:
            begun = time.perf_counter()
            task()
            return time.perf_counter() - begun
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        task()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def peak(self, task: Callable[[], Any]) -> int | None:
        """Bytes on the device beyond what was there; None where there is no device."""
        if self.dry_run:
            task()
            return None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


Row = dict[str, Any]


class Report:
    """The rows so far; each is also appended to a file as it comes, so that a kill keeps them.

    Args:
        file: where to append a line of JSON a row; None for nowhere.
        measured: False for a dry run, whose seconds mean nothing.
    """

    def __init__(self, file: TextIO | None, measured: bool) -> None:
        self.rows: list[Row] = []
        self.checked: bool | None = None  # what the tests said; None where they did not run
        self._file = file
        self._measured = measured

    def add(self, new: Row, *, timed: bool = True) -> None:
        """Keep a row; `timed` ones say whether the tests had passed."""
        if not self._measured:
            new = {key: new[key] for key in ("case", "goal", "missing") if key in new}
        elif timed:
            new = {**new, "checked": self.checked}
        self.rows.append(new)
        if self._file is not None:
            self._file.write(json.dumps(new) + "\n")
            self._file.flush()


def row(
    case: str, goal: float | None, value: float | None, *, most: bool = False, **more: Any
) -> Row:
    """A row of the report; `most`: the goal is an upper bound."""
    met = None
    if goal is not None and value is not None:
        met = value <= goal if most else value >= goal
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in more.items()}
    shown = None if value is None else float(f"{value:.4g}")
    return {"case": case, "value": shown, "goal": goal, "met": met, **rounded}


def copy_bandwidth(bench: Bench) -> float:
    """Bytes read and written a second by a copy."""
    numbers = torch.empty(1000 if bench.dry_run else 1 << 30, device=bench.device)
    other = torch.empty_like(numbers)
    (seconds,) = bench.seconds(lambda: other.copy_(numbers))
    return 2 * 4 * numbers.numel() / seconds


def tensor_rate(bench: Bench) -> float:
    """Floating point operations a second of a product of float16 matrices."""
    size = 32 if bench.dry_run else 8192
    a = torch.randn(size, size, device=bench.device, dtype=torch.float16)
    (seconds,) = bench.seconds(lambda: a @ a)
    return 2 * size**3 / seconds


def kernel_1_labels(network: OctreeNCA, image: Tensor, seed: int = 0) -> Tensor:
    """The whole octree with rung 1 of the ladder; logits, then labels, as its caller would."""
    values = torch.empty(image.shape[0], network.num_classes, *image.shape[2:], device=image.device)
    with mock.patch.object(cuda_octree, "LevelLaunches", Kernel1Level), torch.no_grad():
        cuda_engine.octree(
            image,
            network.automaton(),
            seed,
            values=values,
            state="float32",
            fused=1,
        )
    return values.argmax(1).to(torch.uint8)


def whole(
    bench: Bench, name: str, shape: tuple[int, ...], goals: dict[str, float]
) -> Iterator[Row]:
    """A whole image in the fast mode, in float32 and with kernel 1."""
    network = make_network(shape, 3).to(bench.device).eval()
    image = torch.rand(1, 3, *shape, device=bench.device)
    fast, single, first = bench.seconds(
        lambda: network.segment(image, state="float16"),
        lambda: network.segment(image, state="float32"),
        lambda: kernel_1_labels(network, image),
    )
    cells, unit = prod(shape), "cell"
    if "speed" in goals:
        for kind, seconds in (("fast", fast), ("float32", single)):
            case = f"{name}, {kind}: megapixels a second"
            yield row(case, goals["speed" if kind == "fast" else "single speed"],
                      cells / seconds / 1e6, seconds=seconds)  # fmt: skip
        unit = "pixel"
    yield row(f"{name}, fast over kernel 1", goals["fast"], first / fast, seconds=fast)
    yield row(f"{name}, float32 over kernel 1", goals.get("single"), first / single, seconds=single)
    for state, goal in (("float16", 70.0), ("float32", 135.0)):
        size = bench.peak(lambda state=state: network.segment(image, state=state))
        per_cell = None if size is None else size / cells
        case = f"{name}, {state}: device bytes per {unit} without the image"
        yield row(case, goal, per_cell, most=True)
    yield roofline(bench, name, network, shape, fast)


def roofline(bench: Bench, name: str, network: Any, shape: tuple[int, ...], seconds: float) -> Row:
    """Part of what the hardware allows: memory or tensor cores, whichever takes longer."""
    steps = zip(network.steps, level_shapes(shape, network.factors), strict=True)
    fused = 2 if len(shape) == 2 else 1
    # A launch reads and writes 32 bytes a cell; the image is read and the labels are written once.
    moved = sum(-(-count // fused) * 64 * prod(cells) for count, cells in steps) + 13 * prod(shape)
    operations = fired_steps(network, shape) * 2 * (32 * 64 + 64 * 16)
    memory, tensor = moved / copy_bandwidth(bench), operations / tensor_rate(bench)
    part = 100 * max(memory, tensor) / seconds
    more = {"memory_seconds": memory, "tensor_seconds": tensor, "seconds": seconds}
    return row(f"{name}, fast: percent of the roofline", 40.0, part, **more)


def clocks() -> dict[str, Any]:
    """Megahertz of the multiprocessors and of the memory, as nvidia-smi reports them now."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"clocks": "nvidia-smi is not installed"}
    query = "clocks.sm,clocks.mem,power.draw"
    done = subprocess.run(
        [program, f"--query-gpu={query}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {"clocks": done.stdout.strip() or done.stderr.strip()}


def ceilings(bench: Bench) -> Iterator[Row]:
    """What this GPU reaches at most: a copy, and a product of matrices."""
    now = {} if bench.dry_run else clocks()
    yield row("copy, read and written: GB/s", None, copy_bandwidth(bench) / 1e9, **now)
    now = {} if bench.dry_run else clocks()
    yield row("product of float16 matrices: TFLOP/s", None, tensor_rate(bench) / 1e12, **now)


def levels(bench: Bench) -> Iterator[Row]:
    """Where the slide's time goes: every level's steps alone, in the fast mode."""
    shape = (40, 40) if bench.dry_run else (13600, 13600)
    network = make_network(shape, 3).to(bench.device).eval()
    shapes = level_shapes(shape, network.factors)
    for number, (cells, steps) in enumerate(zip(shapes, network.steps, strict=True)):
        weights = network.levels[number].weights()
        run = cuda_level.LevelLaunches(
            cuda_device.device_of(weights.hidden_weight), weights, "half", False, shape=cells,
            batch=1, draws=FireDraws(0.5, 0, number, (0, 0)),
        )  # fmt: skip
        a = torch.rand(1, *cells, 16, device=bench.device, dtype=torch.float16)
        b = torch.empty_like(a)

        def all_steps(run: Any = run, a: Tensor = a, b: Tensor = b, steps: int = steps) -> None:
            for step in range(0, steps, 2):
                run.forward(a, b, step, min(2, steps - step))
                a, b = b, a

        (seconds,) = bench.seconds(all_steps)
        case = f"13,600 x 13,600 RGB, fast, level {number}: seconds of its steps"
        yield row(case, None, seconds, cells=prod(cells), steps=steps)


def widths(bench: Bench) -> Iterator[Row]:
    """What wider coarse levels cost: 16, 24, 32 and from there on 48 channels, over 16 on all."""
    shape = (40, 40) if bench.dry_run else (13600, 13600)
    image = torch.rand(1, 3, *shape, device=bench.device)
    same = make_network(shape, 3).to(bench.device).eval()
    channels = [16, 24, 32, *[48] * len(same.steps)][: len(same.steps)]
    wider = make_network(shape, 3, channels=channels).to(bench.device).eval()
    for state in ("float16",) if bench.dry_run else ("float16", "float32"):
        wide, narrow = bench.seconds(
            partial(wider.segment, image, state=state), partial(same.segment, image, state=state)
        )
        case = f"13,600 x 13,600 RGB, {state}: time of wider coarse levels over 16 channels on all"
        yield row(case, None, wide / narrow, seconds=wide, channels=channels)


def fire(bench: Bench) -> Iterator[Row]:
    """What the random draw saves with lists: every cell fires, against half of them."""
    shape = (40, 40) if bench.dry_run else (8192, 8192)
    image = torch.rand(1, 3, *shape, device=bench.device)
    half, every = (make_network(shape, 3).to(bench.device).eval() for _ in range(2))
    every.fire_rate = 1.0
    for state in ("float16", "float32"):
        with mock.patch.dict(os.environ, {CELLS_VARIABLE: "lists"}):
            all_fire, half_fire = bench.seconds(
                partial(every.segment, image, state=state),
                partial(half.segment, image, state=state),
            )
        case = f"{state}: time at fire rate 1.0 over 0.5"
        yield row(case, None, all_fire / half_fire, seconds=half_fire)


def slide(bench: Bench) -> Iterator[Row]:
    """184.9 megapixels RGB."""
    shape = (40, 40) if bench.dry_run else (13600, 13600)
    goals = {"speed": 2500.0, "single speed": 1000.0, "fast": 10.0, "single": 4.0}
    yield from whole(bench, "13,600 x 13,600 RGB", shape, goals)
    network = make_network(shape, 3).to(bench.device).eval()
    image = torch.rand(1, 3, *shape, device=bench.device)
    labels = torch.empty(1, *shape, dtype=torch.uint8, device=bench.device)
    for state in ("float16", "float32"):
        one, two = bench.seconds(
            *(
                partial(
                    cuda_engine.octree, image, network.automaton(), 0,
                    labels=labels, state=state, fused=fused,
                )
                for fused in (1, 2)
            )
        )  # fmt: skip
        case = f"13,600 x 13,600 RGB, {state}: two steps a launch over one"
        yield row(case, None, one / two, seconds=two, one_step_seconds=one)


def video(bench: Bench) -> Iterator[Row]:
    """76 s of surgical video as one volume."""
    shape = (6, 10, 12) if bench.dry_run else (1905, 240, 432)
    yield from whole(bench, "video 240 x 432 x 1,905 RGB", shape, {"fast": 10.0})


def layerwise(bench: Bench) -> Iterator[Row]:
    """The largest slide that layer-wise PyTorch can hold."""
    for side in (40,) if bench.dry_run else (13600, 11200, 9600, 8000, 6400, 4800, 3200):
        network = make_network((side, side), 3).to(bench.device).eval()
        image = torch.rand(1, 3, side, side, device=bench.device)
        pytorch = partial(Layerwise(network).labels, image)
        fast = partial(network.segment, image, state="float16")
        try:
            with torch.no_grad():
                theirs, ours = bench.seconds(pytorch, fast)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        case = f"fast over layer-wise PyTorch, {side} x {side}"
        yield row(case, 40.0, theirs / ours, seconds=ours, pytorch_seconds=theirs)
        return
    yield {"case": "fast over layer-wise PyTorch", "missing": "it fits at no size"}


def ladder(bench: Bench) -> Iterator[Row]:
    """Picoseconds a cell-step of every rung, ten steps of one level."""
    for shape in ((40, 40), (6, 10, 12)) if bench.dry_run else ((8192, 8192), (256, 512, 512)):
        network = make_network(shape, 3).to(bench.device)
        weights = network.levels[0].weights()
        device = cuda_device.device_of(weights.hidden_weight)
        for rung in RUNGS:
            precision = rung.precision or "plain"
            known = device.architecture >= 80 or not precision.startswith("tf32")
            if not (known and rung.exists(len(shape))):
                continue
            draws = FireDraws(0.5, 0, 0, (0,) * len(shape))
            run = rung.level(device, weights, shape=shape, batch=1, draws=draws)
            kind = torch.float16 if precision == "half" else torch.float32
            a = torch.rand(1, *shape, 16, device=bench.device, dtype=kind)
            b = torch.empty_like(a)

            fused = rung.steps(len(shape))

            def ten_steps(run: Any = run, a: Tensor = a, b: Tensor = b, fused: int = fused) -> None:
                for step in range(0, 10, 2 * fused):
                    run.forward(a, b, step, fused)
                    run.forward(b, a, step, fused)

            (seconds,) = bench.seconds(ten_steps)
            count = 2 * len(range(0, 10, 2 * fused)) * fused
            yield row(
                f"ladder {len(shape)}-D, {rung.number}: {rung.name}",
                None,
                1e12 * seconds / (count * prod(shape)),
                unit="ps a cell and step",
            )
            del a, b, run
        yield from enter(bench, shape, weights, device)


def enter(bench: Bench, shape: tuple[int, ...], weights: Any, device: Any) -> Iterator[Row]:
    """A level's states from its image and its parents, at first and now."""
    level = cuda_level.LevelLaunches(
        device, weights, "half", False, shape=shape, batch=1,
        draws=FireDraws(0.5, 0, 0, (0,) * len(shape)),
    )  # fmt: skip
    now, first = level.loaded, device.load_program(enter_1_program(level.configuration))
    halved = tuple(-(-length // 2) for length in shape)
    image = torch.rand(1, 3, *shape, device=bench.device)
    parent = torch.rand(1, *halved, 16, device=bench.device).to(torch.float16)
    state = torch.empty(1, *shape, 16, device=bench.device, dtype=torch.float16)

    def by(loaded: Any) -> None:
        level.loaded = loaded
        cuda_octree._enter(level, image, state, parent, halved, [[2] * len(shape)], 0)

    times = bench.seconds(partial(by, first), partial(by, now))
    for name, seconds in zip(("a thread a cell", "16 bytes a lane"), times, strict=True):
        case = f"ladder {len(shape)}-D, enter: {name}"
        yield row(case, None, 1e12 * seconds / prod(shape), unit="ps a cell")


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """`OCTREENCA_ENGINE` for a while."""
    with mock.patch.dict(os.environ, {ENGINE_VARIABLE: name}):
        yield


def training(bench: Bench) -> Iterator[Row]:
    """One step of the paper's set-ups: forward, loss, backward, Adam."""
    from nnunet_octreenca.planning import load_preset

    for name, n_in, classes, faster, most in (
        ("radiology", 1, 2, 6.0, 0.35),
        ("surgery", 3, 6, None, 0.40),
    ):
        preset = load_preset(name)
        shape, batch = list(preset["patch_size"]), preset["batch_size"]
        block, arguments = preset["octreenca"], dict(preset["architecture"]["arch_kwargs"])
        crop_shape, steps = block["crop_shape"], arguments.pop("steps")
        if bench.dry_run:
            shape, crop_shape, steps = [8, 16, 16], [2, 8, 8], [1] * len(steps)
        torch.manual_seed(0)
        network = OctreeNCA(n_in, classes, steps=steps, **arguments).to(bench.device)
        crop = Crop(crop_shape, block["crop_levels"])
        image = torch.rand(batch, n_in, *shape, device=bench.device)
        truth = torch.randint(classes, (batch, *crop_shape), device=bench.device)
        optimizer = torch.optim.Adam(network.parameters(), fused=not bench.dry_run)

        def step(
            network: Any = network, image: Tensor = image, truth: Tensor = truth,
            crop: Any = crop, optimizer: Any = optimizer,
        ) -> None:  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            origins = [(0,) * 3] * image.shape[0]
            values = network(image, seed=0, crop=crop, origins=origins)
            torch.nn.functional.cross_entropy(values, truth).backward()
            optimizer.step()

        def pytorch(step: Callable[[], None] = step) -> None:
            with engine("torch"):
                step()

        ours, theirs = bench.seconds(step, pytorch)
        yield row(f"training step, {name}, over PyTorch", faster, theirs / ours, seconds=ours)
        # The weights' gradients and Adam's moments are there already.
        size = bench.peak(step)
        gib = None if size is None else (size + image.numel() * 4) / 2**30
        case = f"training step, {name}: peak GiB, including the images"
        yield row(case, most, gib, most=True)


def labels(bench: Bench) -> Iterator[Row]:
    """How many labels the fast mode changes, of a network trained for a moment on blobs."""
    from torch.nn.functional import avg_pool2d, cross_entropy

    side, iterations = (40, 2) if bench.dry_run else (256, 400)
    large = 40 if bench.dry_run else 4096

    def blobs(batch: int, size: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(batch, 1, size, size, device=bench.device)
        for _ in range(3):
            noise = avg_pool2d(noise, 9, 1, 4)
        truth = (noise[:, 0] > 0.25 * noise.std()).long()
        image = torch.randn(batch, 3, size, size, device=bench.device) + truth[:, None]
        return image, truth

    torch.manual_seed(0)
    network = make_network((side, side), 3).to(bench.device)
    optimizer = torch.optim.Adam(network.parameters(), 1.6e-3)
    for number in range(iterations):
        image, truth = blobs(4 if not bench.dry_run else 1, side)
        optimizer.zero_grad()
        loss = cross_entropy(network(image, seed=number), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    image, truth = blobs(1, large)
    single, fast = (network.segment(image, state=state) for state in ("float32", "float16"))
    equal = 100 * float((single == fast).double().mean())
    right = 100 * float((single == truth).double().mean())
    yield row("percent of labels equal, fast and float32", 99.7, equal, percent_right=right)


def unet(bench: Bench) -> Iterator[Row]:
    """The U-Net of the stock 2-D plan with its sliding window on the same slide."""
    case = "U-Net of the stock plan, sliding window"
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
    except ImportError as error:
        yield {"case": case, "missing": str(error)}
        return
    side, patch = (64, 64) if bench.dry_run else (13600, 512)
    stages = 4 if bench.dry_run else 8
    features = [min(32 * 2**i, 512) for i in range(stages)]
    unet = PlainConvUNet(
        3, stages, features, torch.nn.Conv2d, 3, [1] + [2] * (stages - 1), [2] * stages, 2,
        [2] * (stages - 1), conv_bias=True, norm_op=torch.nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).to(bench.device).eval()  # fmt: skip
    image = torch.rand(1, 3, side, side, device=bench.device)

    def sliding() -> Tensor:
        # nnU-Net: windows overlap by half, sums in float16, weights of a Gaussian.
        sums = torch.zeros(2, side, side, device=bench.device, dtype=torch.float16)
        counts = torch.zeros(side, side, device=bench.device, dtype=torch.float16)
        gauss = torch.ones(patch, patch, device=bench.device, dtype=torch.float16)
        starts = sorted({min(s, side - patch) for s in range(0, side, patch // 2)})
        with torch.no_grad(), torch.autocast(bench.device.type, enabled=not bench.dry_run):
            for y in starts:
                for x in starts:
                    here = (..., slice(y, y + patch), slice(x, x + patch))
                    sums[here] += unet(image[here])[0].half() * gauss
                    counts[here] += gauss
        return (sums / counts).argmax(0).to(torch.uint8)

    network = make_network((side, side), 3).to(bench.device).eval()
    theirs, ours = bench.seconds(sliding, lambda: network.segment(image, state="float16"))
    size = bench.peak(sliding)
    per_pixel = None if size is None else size / side**2
    yield row(
        f"{case}: its time over the fast mode's", None, theirs / ours, seconds=theirs,
        megapixels_a_second=side**2 / theirs / 1e6, device_bytes_per_pixel=per_pixel,
    )  # fmt: skip


def installed(folder: Path) -> str | None:
    """Why a Python that starts in `folder` does not import the installed `_cuda`; None if it does.

    The sources lack it: found first, they would make every test fail.
    """
    code = "import nnunet_octreenca._cuda as module; print(module.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"_cuda cannot be imported ({done.stderr.strip().splitlines()[-1]})"
    if Path(done.stdout.strip()).is_relative_to(ROOT / "nnunet_octreenca"):
        return f"_cuda was imported from the sources ({done.stdout.strip()})"
    return None


def correctness(report: Report, seconds: float) -> None:
    """Run the tests on the GPU; a row each as it ends, and one that counts them.

    They run in an empty folder, where the installation is found and not the sources.
    """
    with tempfile.TemporaryDirectory() as folder:
        problem = installed(Path(folder))
        if problem is not None:
            sys.exit(f"{problem}: run `pip install --no-deps .`")
        command = [
            sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no",
            "--rootdir", str(ROOT), "-c", str(ROOT / "setup.cfg"),
            "-o", "filterwarnings=default", str(TESTS),
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        counted: Counter[str] = Counter()
        for line in process.stdout:
            print(line, end="", file=sys.stderr)
            outcome = re.match(r"\S*::(.+?) (PASSED|FAILED|ERROR|SKIPPED)", line)
            if outcome:
                counted[outcome[2]] += 1
                report.add({"case": f"test {outcome[1]}", "outcome": outcome[2]}, timed=False)
        code = process.wait()
        timer.cancel()
    report.checked = code == 0
    ended = {0: "all passed", 1: "some failed", -9: f"stopped after {seconds:g} s"}
    case = {"case": "tests on the GPU", "ended": ended.get(code, f"exit code {code}")}
    report.add({**case, **counted}, timed=False)


METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_mio_throttle_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio",
)
PROFILED = """\
import torch
from cpu_engine import make_network
network = make_network((4096, 4096), 3).cuda().eval()
image = torch.rand(1, 3, 4096, 4096, device="cuda")
for state in ("float16", "float32"):
    network.segment(image, state=state)
torch.cuda.synchronize()
"""


def profile(report: Report, seconds: float) -> None:
    """Nsight Compute's figures of the forward kernel, fast and in float32; a row a metric."""
    program = shutil.which("ncu") or next(map(str, Path("/usr/local").glob("cuda*/bin/ncu")), None)
    if program is None:
        report.add({"case": "profile", "missing": "ncu is not installed"}, timed=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "profiled.py"
        script.write_text(PROFILED)
        command = [
            program, "--clock-control", "none", "--csv", "--kernel-name", "regex:forward",
            "--launch-skip", "8", "--launch-count", "30", "--metrics", ",".join(METRICS),
            sys.executable, str(script),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True,
                check=False, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            why = f"ncu did not end within {seconds:g} s"
            report.add({"case": "profile", "missing": why}, timed=False)
            return
    lines = done.stdout.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        why = (done.stderr.strip() or done.stdout.strip())[-500:]
        report.add({"case": "profile", "missing": f"ncu: {why}"}, timed=False)
        return
    for measured in csv.DictReader(lines[start:]):
        case = f"{measured['Kernel Name']} {measured['Grid Size']}: {measured['Metric Name']}"
        value = measured["Metric Value"]
        report.add({"case": case, "value": value, "unit": measured["Metric Unit"]}, timed=False)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """CPU tensors go to the CUDA engine's templates, compiled as C++."""
    sys.path.insert(0, str(ROOT / "tests" / "lib"))
    from helpers.host_device import HostDevice

    with tempfile.TemporaryDirectory() as folder:
        device = HostDevice(Path(folder))
        with contextlib.ExitStack() as patches:
            for target, name, value in (
                (cuda_device, "device_of", lambda tensor: device),
                (cuda_engine, "supports", lambda tensor, weights: True),
                (cuda_engine.torch.cuda, "is_available", lambda: False),
            ):
                patches.enter_context(mock.patch.object(target, name, value))
            patches.enter_context(
                mock.patch("nnunet_octreenca.ops.cpu_engine.supports", return_value=False)
            )
            yield


def timing(bench: Bench, names: Sequence[str], report: Report) -> None:
    """All rows of these cases, in this order."""
    with pretended_gpu() if bench.dry_run else contextlib.nullcontext():
        for name in names:
            try:
                for new in globals()[name](bench):
                    report.add(new)
            except torch.OutOfMemoryError as error:
                report.add({"case": name, "missing": f"out of memory: {error}"})
                torch.cuda.empty_cache()


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--part", action="append", choices=PARTS,
        help="what to run (repeatable; default: correctness and timing)",
    )  # fmt: skip
    parser.add_argument("--only", action="append", choices=CASES, help="time these (repeatable)")
    parser.add_argument("--rounds", type=int, default=5, help="of timing (default: 5)")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE",
        help="append every row to this file as it comes (default: rows.jsonl in $OUT, if set)",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=float, default=450, metavar="SECONDS",
        help="of the tests and of the profile each (default: 450)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="no GPU: tiny, nothing measured")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit("no GPU here; --dry-run shows that the benchmark runs")
    parts = arguments.part or PARTS[:2]
    bench = Bench(arguments.dry_run, arguments.rounds)
    rows_file = arguments.rows
    if rows_file is None and os.environ.get("OUT"):
        rows_file = Path(os.environ["OUT"]) / "rows.jsonl"
    with contextlib.ExitStack() as stack:
        file = rows_file and stack.enter_context(rows_file.open("a", encoding="utf-8"))
        report = Report(file, measured=not bench.dry_run)
        if "correctness" in parts and not bench.dry_run:
            correctness(report, arguments.limit)
        if "timing" in parts:
            timing(bench, arguments.only or CASES, report)
        if "profile" in parts and not bench.dry_run:
            profile(report, arguments.limit)
    result = {
        "device": "none (dry run)" if bench.dry_run else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "rows": report.rows,
    }
    if arguments.json:
        print(json.dumps(result, indent=4))
    else:
        print(f"{result['device']}, torch {result['torch']}")
        for line in report.rows:
            print("  ".join(f"{key} {value}" for key, value in line.items()))
    if report.checked is False:
        sys.exit("tests on the GPU failed: see the rows above")


if __name__ == "__main__":
    main()
