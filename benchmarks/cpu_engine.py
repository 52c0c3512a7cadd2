"""The C++ engine against PyTorch on this processor: speed, memory, part of the peak.

    python benchmarks/cpu_engine.py
    python benchmarks/cpu_engine.py --json
    python benchmarks/cpu_engine.py --case "forward 2-D, 2048 x 2048" --rounds 9

Ratios are medians of rounds in which A and B take turns, two threads, after a warm-up. The
process restarts itself with PyTorch's allocator tuned: with glibc's defaults PyTorch faults
in every temporary page by page and is 2 to 4 times slower, which would flatter us.

`ratio` is PyTorch's time over ours (for "kernels" rows: of two sets of kernels), `cpu_ratio` the
same of the processor time that all threads used, which other programs disturb less.
`percent_of_peak` relates the multiplications and additions that the automaton needs for the cells
that fire to what the processor does in registers in the same run, by processor time.
`labels_that_differ` is a percentage of the voxels. `bytes_per_cell` is the growth of the resident
peak of a separate process, without the image (forward) or the state and the incoming gradient
(training). A row whose hardware is not there says so in `missing`.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
    # Threads that wait must not spin on the cores that the other engine is timed on.
    "OMP_WAIT_POLICY": "passive",
}
PLANE, SLAB, CUBE = (2048, 2048), (24, 160, 160), (128, 128, 128)
FORWARD = {
    "2-D, 2048 x 2048": (PLANE, 3),
    "3-D, 160 x 160 x 24": (SLAB, 1),
    "3-D, 128^3": (CUBE, 1),
}
TRAINING = {"2-D, 256 x 256": ((256, 256), 3, 5.5), "3-D, 64^3": ((64, 64, 64), 1, 10.0)}


def make_network(shape: tuple[int, ...], n_in: int, **options: Any) -> Any:
    """The planner's octree over `shape`, with weights that change the state.

    Args:
        options: of `OctreeNCA`.
    """
    import torch

    from nnunet_octreenca.network import OctreeNCA
    from nnunet_octreenca.octree import level_shapes
    from nnunet_octreenca.planning import level_factors, level_steps

    torch.manual_seed(0)
    factors = level_factors(shape)
    steps = level_steps(level_shapes(shape, factors))
    network = OctreeNCA(n_in, 2, dimension=len(shape), factors=factors, steps=steps, **options)
    for level in network.levels:
        torch.nn.init.normal_(level.update.weight, std=0.02)
    return network


def step_operations(dimension: int, n_in: int) -> int:
    """Multiplications and additions of one fired cell in one step, C = 16 and H = 64."""
    return 2 * (3**dimension * 16 + 32 * 64 + 64 * (16 - n_in))


def fired_steps(network: Any, shape: tuple[int, ...]) -> float:
    """Cell-steps of a pass in which the cell fires."""
    from math import prod

    from nnunet_octreenca.octree import level_shapes

    levels = zip(network.steps, level_shapes(shape, network.factors), strict=True)
    return sum(0.5 * steps * prod(cells) for steps, cells in levels)


class Layerwise:
    """OctreeNCA as one writes it in PyTorch: a layer at a time, every cell, every step."""

    def __init__(self, network: Any, channels_last: bool = False, compiled: bool = False) -> None:
        import torch

        self.network = network
        self.memory_format = torch.contiguous_format
        if channels_last:
            self.memory_format = (
                torch.channels_last if network.dimension == 2 else torch.channels_last_3d
            )
        self.step: Callable[[Any, Any], Any] = self._step
        if compiled:
            torch._dynamo.reset()  # else it gives up after eight levels, of all networks together
            self.step = torch.compile(self._step, dynamic=False)

    def _step(self, state: Any, level: Any) -> Any:
        import torch
        from torch.nn import functional

        n_in, dimension = self.network.input_channels, self.network.dimension
        perceived = level.perceive(functional.pad(state, (1, 1) * dimension, mode="reflect"))
        convolve = functional.conv2d if dimension == 2 else functional.conv3d
        ones = (1,) * dimension
        inputs = torch.cat([state, perceived], 1)
        hidden = convolve(inputs, level.hidden.weight.view(-1, 32, *ones), level.hidden.bias)
        update = convolve(hidden.relu(), level.update.weight.view(-1, 64, *ones))
        draws = torch.rand(state.shape[0], 1, *state.shape[2:], device=state.device)
        fired = (draws < 0.5).to(state.dtype)
        return torch.cat([state[:, :n_in], state[:, n_in:] + update * fired], 1)

    def steps(self, state: Any, level: Any, count: int) -> Any:
        """`count` steps of one level, (N, C, *spatial)."""
        for _ in range(count):
            state = self.step(state, level)
        return state

    def labels(self, image: Any) -> Any:
        """The whole octree."""
        import torch
        from torch.nn import functional

        from nnunet_octreenca.octree import image_pyramid

        network, state = self.network, None
        pyramid = image_pyramid(image, network.factors)
        for index in reversed(range(len(network.steps))):
            here = pyramid[index]
            if state is None:
                rest = here.new_zeros(1, 16 - network.input_channels, *here.shape[2:])
            else:
                rest = functional.interpolate(
                    state[:, network.input_channels :], size=here.shape[2:], mode="nearest"
                )
            state = torch.cat([here, rest], 1).contiguous(memory_format=self.memory_format)
            state = self.steps(state, network.levels[index], network.steps[index])
        return (state[:, network.input_channels] > 0).to(torch.uint8)


class Seconds(NamedTuple):
    """Median times of a task: by the clock, and of the processor summed over all threads."""

    wall: float
    cpu: float


def alternate(rounds: int, *tasks: Callable[[], Any]) -> list[Seconds]:
    """Median seconds of every task, taking turns."""
    times: list[list[Seconds]] = [[] for _ in tasks]
    for task in tasks:
        task()
    for _ in range(rounds):
        for own, task in zip(times, tasks, strict=True):
            begun = Seconds(time.perf_counter(), time.process_time())
            task()
            own.append(Seconds(time.perf_counter() - begun.wall, time.process_time() - begun.cpu))
    return [
        Seconds(*(statistics.median(column) for column in zip(*own, strict=True))) for own in times
    ]


def peak(kernels: str, threads: int) -> float:
    """Floating point operations per second of one thread's processor time, in registers."""
    from nnunet_octreenca.ops.native import cpu_module

    module: Any = cpu_module()
    module.burn(kernels, threads, 1_000_000)
    rates = []
    for _ in range(3):
        begun = time.process_time()
        operations = module.burn(kernels, threads, 20_000_000)
        rates.append(operations / (time.process_time() - begun))
    return max(rates)


def compared(ours: Seconds, theirs: Seconds) -> dict[str, float]:
    """What a row says of two tasks: how many times as fast `ours` is."""
    return {
        "ratio": theirs.wall / ours.wall,
        "cpu_ratio": theirs.cpu / ours.cpu,
        "seconds": ours.wall,
        "cpu_seconds": ours.cpu,
    }


def row(case: str, goal: float | None, ratio: float | None = None, **more: Any) -> dict[str, Any]:
    """A row of the report. Memory goals are upper bounds, all others lower bounds."""
    size = more.get("bytes_per_cell")
    value = size if size is not None else ratio
    met = None
    if goal is not None and value is not None:
        met = value <= goal if size is not None else value >= goal
    known = {"bytes_per_cell": None, "percent_of_peak": None, **more}
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in known.items()}
    return {
        "case": case,
        "ratio": None if ratio is None else round(ratio, 2),
        **rounded,
        "goal": goal,
        "met": met,
    }


def forward_rows(name: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Whole octrees, labels out."""
    import torch

    from nnunet_octreenca.ops.native import cpu_kernels, cpu_module

    shape, n_in = FORWARD[name]
    kernels = cpu_kernels()
    module: Any = cpu_module()
    network = make_network(shape, n_in).eval()
    image = torch.rand(1, n_in, *shape)
    operations = fired_steps(network, shape) * step_operations(len(shape), n_in)
    eager, last = Layerwise(network), Layerwise(network, channels_last=True)
    rows = []
    with torch.no_grad():
        ours, theirs, best = alternate(
            rounds,
            lambda: network.segment(image),
            lambda: eager.labels(image),
            lambda: last.labels(image),
        )
        share = 100 * operations / ours.cpu / peak(kernels, threads)
        rows.append(row(f"forward {name}", 11.0, percent_of_peak=share, **compared(ours, theirs)))
        compiled = Layerwise(network, channels_last=True, compiled=True)
        ours, theirs = alternate(
            rounds, lambda: network.segment(image), lambda: compiled.labels(image)
        )
        goal = 6.5 if len(shape) == 2 else None
        form = "torch.compile" if theirs < best else "channels_last"
        case = f"forward {name}, against PyTorch's best form ({form})"
        rows.append(row(case, goal, **compared(ours, min(theirs, best))))
        goal = 18.0 if len(shape) == 2 else 15.0
        case = f"forward {name}, bfloat16 products"
        if module.native_bf16(kernels):
            fast, theirs = alternate(
                rounds,
                lambda: network.segment(image, multiply="bfloat16"),
                lambda: eager.labels(image),
            )
            rows.append(row(case, goal, **compared(fast, theirs)))
        else:
            rows.append(row(case, goal, missing="this processor has no AVX512_BF16"))
    return rows


def training_rows(name: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Ten steps of one level, forward and backward."""
    import torch

    from nnunet_octreenca.ops import nca_steps
    from nnunet_octreenca.ops.native import cpu_kernels

    shape, n_in, goal = TRAINING[name]
    network = make_network(shape, n_in)
    level = network.levels[0]
    state = torch.rand(1, 16, *shape)
    grad = torch.randn(1, 16, *shape)
    parameters = list(level.parameters())
    layerwise = Layerwise(network)

    def ours() -> None:
        out = nca_steps(state.requires_grad_(), level.weights(), 10)
        torch.autograd.grad(out, [state, *parameters], grad)

    def theirs() -> None:
        out = layerwise.steps(state.requires_grad_(), level, 10)
        torch.autograd.grad(out, [state, *parameters], grad)

    fast, slow = alternate(rounds, ours, theirs)
    # Forward once; backward recomputes it and needs twice as much.
    operations = 0.5 * 10 * state[0, 0].numel() * step_operations(len(shape), n_in) * 4
    share = 100 * operations / fast.cpu / peak(cpu_kernels(), threads)
    return [row(f"training step, {name}", goal, percent_of_peak=share, **compared(fast, slow))]


def kernel_rows(rounds: int) -> list[dict[str, Any]]:
    """One set of kernels against another: speed, and voxels whose labels differ."""
    import torch

    from nnunet_octreenca.ops.native import KERNELS_VARIABLE, cpu_module

    module: Any = cpu_module()
    names = module.kernels()
    shape, n_in = FORWARD["2-D, 2048 x 2048"]
    network = make_network(shape, n_in).eval()
    image = torch.rand(1, n_in, *shape)

    def run(kernels: str, multiply: str = "float32") -> Any:
        os.environ[KERNELS_VARIABLE] = kernels
        labels = network.segment(image, multiply=multiply)
        del os.environ[KERNELS_VARIABLE]
        return labels

    rows = []
    case, goal = "AVX2 kernels against AVX-512, speed", 0.88
    if "avx512" in names:
        wide, narrow = alternate(rounds, lambda: run("avx512"), lambda: run("avx2"))
        rows.append(row(case, goal, **compared(narrow, wide)))
    else:
        rows.append(row(case, goal, missing="this processor has no AVX-512"))
    if names[0] != "plain":
        best, plain = alternate(rounds, lambda: run(names[0]), lambda: run("plain"))
        rows.append(
            row(f"{names[0]} kernels against plain ones, speed", None, **compared(best, plain))
        )
    exact = run("plain")
    for kernels in names:
        if kernels != "plain":
            differ = 100 * float((run(kernels) != exact).float().mean())
            case = f"{kernels} kernels against plain ones, labels"
            rows.append(row(case, None, labels_that_differ=differ))
    if module.native_bf16(names[0]):
        differ = 100 * float((run(names[0], "bfloat16") != exact).float().mean())
        rows.append(row("bfloat16 products, labels", None, labels_that_differ=differ))
    return rows


def status(key: str) -> int:
    """A size of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def memory_here(what: str) -> float:
    """Bytes a cell by which this process grew, in a single task."""
    import torch

    from nnunet_octreenca.ops import nca_steps

    def grow(task: Callable[[], Any], cells: int) -> float:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        result = task()
        grown = status("VmHWM") - before
        del result
        return grown / cells

    if what.startswith("forward"):
        network = make_network(PLANE, 3).eval()
        image = torch.rand(1, 3, *PLANE)
        network.segment(image[..., :64, :64])
        return grow(lambda: network.segment(image), PLANE[0] * PLANE[1])
    shape, n_in, _ = TRAINING[what.removeprefix("training ")]
    network = make_network(shape, n_in)
    level = network.levels[0]

    def step(state: Any, grad: Any) -> Any:
        out = nca_steps(state, level.weights(), 10)
        return torch.autograd.grad(out, [state, *level.parameters()], grad)

    def tensors(cells: tuple[int, ...]) -> tuple[Any, Any]:
        # In the layout that the network carries: channels last.
        state = torch.rand(1, *cells, 16).movedim(-1, 1).requires_grad_()
        return state, torch.randn(1, *cells, 16).movedim(-1, 1)

    step(*tensors((8,) * len(shape)))
    large = tensors(shape)
    return grow(lambda: step(*large), large[0][0, 0].numel())


def memory_rows() -> list[dict[str, Any]]:
    """Each in a process of its own, whose allocator gives memory back."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= {
        "MALLOC_MMAP_THRESHOLD_": "1000000",
        "MALLOC_TRIM_THRESHOLD_": "1000000",
        "OCTREENCA_BENCHMARK_TUNED": "1",
    }
    rows = []
    goals = {"forward 2-D, 2048 x 2048": 25.0, **{f"training {name}": 480.0 for name in TRAINING}}
    for what, goal in goals.items():
        done = subprocess.run(
            [sys.executable, __file__, "--memory", what],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows.append(row(f"memory, {what}", goal, bytes_per_cell=float(done.stdout)))
    return rows


def processor() -> str:
    """Its name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        family = f"family {fields.get('cpu family')} model {fields.get('model')}"
        return f"{fields.get('model name', platform.machine())} ({family})"
    return platform.processor() or platform.machine()


def main() -> None:
    """Print a table, or JSON."""
    cases = [f"forward {name}" for name in FORWARD]
    cases += [f"training {name}" for name in TRAINING] + ["kernels", "memory"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=cases, help="only this one")
    parser.add_argument("--rounds", type=int, default=5, help="turns of A and B (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if sys.platform == "linux" and "OCTREENCA_BENCHMARK_TUNED" not in os.environ:
        tuned = {**os.environ, **TUNED, "OCTREENCA_BENCHMARK_TUNED": "1"}
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], tuned)

    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(memory_here(arguments.memory))
        return
    from nnunet_octreenca.ops.native import cpu_kernels, cpu_module

    if cpu_module() is None:
        sys.exit("the C++ engine is not there; `nnunet_octreenca doctor` says why")
    rows: list[dict[str, Any]] = []

    def add(new: list[dict[str, Any]]) -> None:
        rows.extend(new)
        if not arguments.json:
            for one in new:
                size, share = one["bytes_per_cell"], one["percent_of_peak"]
                value = f"{one['ratio']} x" if size is None else f"{size} bytes a cell"
                if "cpu_ratio" in one:
                    value = f"{one['ratio']} x (CPU {one['cpu_ratio']} x)"
                if "labels_that_differ" in one:
                    value = f"{one['labels_that_differ']} % differ"
                if "missing" in one:
                    value = one["missing"]
                peak_text = "" if share is None else f"{share:.0f} % of peak"
                verdict = {None: "", True: "met", False: "MISSED"}[one["met"]]
                goal = "" if one["goal"] is None else f"goal {one['goal']}"
                print(
                    f"{one['case']:66} {value:>26} {peak_text:14} {goal:10} {verdict}", flush=True
                )

    for case in arguments.case or cases:
        kind, _, name = case.partition(" ")
        if kind == "forward":
            add(forward_rows(name, arguments.rounds, arguments.threads))
        elif kind == "training":
            add(training_rows(name, arguments.rounds, arguments.threads))
        elif kind == "kernels":
            add(kernel_rows(arguments.rounds))
        elif sys.platform == "linux":
            add(memory_rows())
    if arguments.json:
        report = {
            "processor": processor(),
            "threads": arguments.threads,
            "kernels": cpu_kernels(),
            "peak_gflops_per_thread": round(peak(cpu_kernels(), arguments.threads) / 1e9, 1),
            "torch": torch.__version__,
            "rows": rows,
        }
        print(json.dumps(report, indent=4))


if __name__ == "__main__":
    main()
