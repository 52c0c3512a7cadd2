"""Every rung of the ladder computes the same, and the benchmark runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_ladder import RUNGS, enter_1_program
from helpers.host_device import HostDevice
from helpers.oracle import LEVEL, SEED, difference, make

from nnunet_octreenca.ops import FireDraws, cuda_level, cuda_octree, torch_engine
from nnunet_octreenca.ops.native import cuda_module

if shutil.which("g++") is None or cuda_module() is None:
    pytest.skip("g++ compiles the kernels for this processor", allow_module_level=True)

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu_engine.py"


@pytest.mark.nightly  # the package's own kernels are compared with PyTorch at every push
@pytest.mark.slow
@pytest.mark.parametrize("spatial", [(21, 34), (5, 6, 7)])
def test_rungs_agree(spatial, tmp_path):
    state, weights = make(spatial, 16, 3, 64, 2)
    origin = [3] * (2 * len(spatial))
    draws = FireDraws(0.5, SEED, LEVEL, origin)
    wanted, _ = torch_engine.forward(state, weights, 4, draws, False)
    device = HostDevice(tmp_path)
    for rung in RUNGS:
        if not rung.exists(len(spatial)):
            continue
        precision = rung.precision or "plain"
        run = rung.level(device, weights, shape=spatial, batch=2, draws=draws)
        current = state.to(torch.float16 if precision == "half" else torch.float32)
        for step in range(0, 4, rung.steps(len(spatial))):
            target = torch.full_like(current, float("nan"))
            run.forward(current, target, step, rung.steps(len(spatial)))
            current = target
        error = difference(current.float(), wanted)
        assert error < (3e-3 if precision == "half" else 3e-6), rung


@pytest.mark.slow
def test_states_are_entered_as_at_first(tmp_path):
    """Odd rows, a batch, and a parent whose last cells have one child only."""
    device = HostDevice(tmp_path)
    for shape, factor in (((5, 261), (2, 3)), ((3, 4, 130), (1, 2, 2))):
        _, weights = make(shape, 16, 3, 64, 2)
        for precision, kind in (("half", torch.float16), ("tf32", torch.float32)):
            level = cuda_level.LevelLaunches(
                device, weights, precision, False, shape=shape, batch=2,
                draws=FireDraws(0.5, SEED, LEVEL, [0] * (2 * len(shape))),
            )  # fmt: skip
            above = tuple(-(-a // b) for a, b in zip(shape, factor, strict=True))
            image, parent = torch.randn(2, 3, *shape), torch.randn(2, *above, 16).to(kind)
            first = device.load_program(enter_1_program(level.configuration))
            for given in (parent, None):
                states = []
                for loaded in (level.loaded, first):
                    level.loaded = loaded
                    states.append(torch.full((2, *shape, 16), float("nan"), dtype=kind))
                    cuda_octree._enter(level, image, states[-1], given, above, [factor], 0)
                level.loaded = device.load(level.configuration, False)
                assert torch.equal(*states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "rows"),
    [
        pytest.param(("levels", "training", "layerwise", "unet"), 10, id="some"),
        # Three minutes, in which nearly all is g++'s.
        pytest.param((), 28, id="all", marks=pytest.mark.nightly),
    ],
)
def test_the_benchmark_runs_without_a_gpu(cases, rows):
    only = [word for case in cases for word in ("--only", case)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--dry-run", "--json", *only],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["device"] == "none (dry run)"
    found = [row["case"] for row in report["rows"]]
    assert len(found) == len(set(found)) >= rows
    assert not any("value" in row for row in report["rows"])  # nothing was measured


@pytest.mark.slow
def test_the_benchmark_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, str(BENCHMARK)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no GPU here; --dry-run" in done.stderr
