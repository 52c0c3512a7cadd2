"""What it costs to count the cells that are NaN or infinite at the end of every level.

    python benchmarks/finite_check.py
    python benchmarks/finite_check.py --json
    python benchmarks/finite_check.py --case "whole, 2-D" --rounds 301

The same call with and without the count takes turns, first one and then the other first. `cost` is
the median over the rounds of (with - without) / without, in percent, of the processor time that
all threads used, which other programs disturb less than the time on the clock; `low` and `high`
are the quartiles. A negative cost is noise. `doubtful` says that the quartiles are more than 2
points apart.

Cases: whole images and bands of rows on the C++ engine with every set of kernels that this
processor has, and the PyTorch engine. On a GPU the count is part of a level's last launch: 16
multiplications more in one of its ten steps. It was not timed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from cpu_engine import make_network

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import image_pyramid
from nnunet_octreenca.ops import Part, cpu_engine, torch_engine
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.native import cpu_module

THREADS = 1  # threads that wait for one another would add their own noise
SHAPES = {"2-D": ((384, 256), 3), "3-D": ((24, 40, 40), 1)}
TORCH_SHAPES = {"2-D": ((256, 256), 3), "3-D": ((16, 48, 48), 1)}


class Case(NamedTuple):
    """Something to time, with the count or without it."""

    name: str
    kernels: str
    run: Callable[[bool], object]


def network_for(shape: tuple[int, ...], n_in: int) -> OctreeNCA:
    """The network of `cpu_engine.py`'s figures, without gradients."""
    return make_network(shape, n_in).requires_grad_(False)


def whole(network: OctreeNCA, image: torch.Tensor, kernels: str, half: bool) -> Callable[..., Any]:
    """Labels of an image in memory."""
    labels = torch.empty(image.shape[2:], dtype=torch.uint8)
    arguments = (
        image[0].numpy(), *cpu_engine._levels(network.automaton(), 0), 0, network.logits, True,
        labels.numpy(), None, kernels, THREADS, "auto", False, half,
    )  # fmt: skip
    return lambda count: cpu_module().octree_forward(*arguments, count)


def bands(network: OctreeNCA, image: torch.Tensor, kernels: str) -> Callable[..., Any]:
    """Labels of an image that is handed over at once to a stream."""
    pixels, rows = image[0].numpy(), image.shape[2]
    labels = torch.empty(image.shape[2:], dtype=torch.uint8).numpy()

    def run(count: bool) -> None:
        stream = cpu_module().OctreeStream(
            list(image.shape[2:]), *cpu_engine._levels(network.automaton(), 0), 0, network.logits,
            True, kernels, THREADS, False, False, count,
        )  # fmt: skip
        stream.pool(pixels, 0)
        stream.prepare()
        stream.begin(0, rows)
        stream.advance(pixels, 0, labels, None)

    return run


def by_pytorch(network: OctreeNCA, image: torch.Tensor) -> Callable[..., Any]:
    """Labels by the PyTorch engine."""
    labels = torch.empty(1, *image.shape[2:], dtype=torch.uint8)

    def run(count: bool) -> None:
        torch_engine.octree_windows(
            image_pyramid(image, network.factors),
            network.automaton(),
            0,
            Part(0, [0] * len(network.steps)),
            labels=labels,
            non_finite=NonFiniteCells(len(network.steps)) if count else None,
        )

    return run


def cases() -> Iterator[Case]:
    """All of them; nothing is allocated before a case is asked for."""
    module = cpu_module()
    for kernels in module.kernels() if module is not None else ():
        for name, (shape, n_in) in SHAPES.items():
            network, image = network_for(shape, n_in), torch.rand(1, n_in, *shape)
            yield Case(f"whole, {name}", kernels, whole(network, image, kernels, False))
            yield Case(f"whole, {name}, float16", kernels, whole(network, image, kernels, True))
            yield Case(f"bands, {name}", kernels, bands(network, image, kernels))
    for name, (shape, n_in) in TORCH_SHAPES.items():
        network, image = network_for(shape, n_in), torch.rand(1, n_in, *shape)
        yield Case(f"PyTorch, {name}", "", by_pytorch(network, image))


def seconds(run: Callable[[bool], object], count: bool) -> float:
    """Processor time of one call."""
    begun = time.process_time()
    run(count)
    return time.process_time() - begun


def cost(run: Callable[[bool], object], rounds: int) -> dict[str, Any]:
    """Percent that the count adds: the median and the quartiles over the rounds."""
    run(True)
    run(False)
    ratios = []
    for number in range(rounds):
        order = (True, False) if number % 2 else (False, True)
        took = {count: seconds(run, count) for count in order}
        ratios.append(100 * (took[True] / took[False] - 1))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "cost": round(middle, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "doubtful": high - low > 2,
        "seconds": round(took[False], 3),
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--kernels", default="", help="only kernels whose name holds this")
    parser.add_argument("--rounds", type=int, default=101, help="pairs of calls (default 101)")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = []
    for case in cases():
        if given.case not in case.name or (case.kernels and given.kernels not in case.kernels):
            continue
        row = {"case": case.name, "kernels": case.kernels, **cost(case.run, given.rounds)}
        rows.append(row)
        if not given.json:
            print(
                f"{row['case']:22} {row['kernels']:12} {row['cost']:+6.2f} %  "
                f"({row['low']:+.2f} to {row['high']:+.2f})  {row['seconds']:.3f} s",
                flush=True,
            )
    if given.json:
        about = {"machine": platform.machine(), "threads": THREADS, "rounds": given.rounds}
        print(json.dumps({**about, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
