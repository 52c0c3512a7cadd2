"""Every rung of the ladder computes the same, and the benchmark runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_ladder import RUNGS, Kernel1Level
from helpers.host_device import HostDevice
from helpers.oracle import LEVEL, SEED, difference, make

from nnunet_octreenca.ops import FireDraws, cuda_level, torch_engine
from nnunet_octreenca.ops.native import cuda_module

if shutil.which("g++") is None or cuda_module() is None:
    pytest.skip("g++ compiles the kernels for this processor", allow_module_level=True)

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu_engine.py"


@pytest.mark.slow
@pytest.mark.parametrize("spatial", [(21, 34), (5, 6, 7)])
def test_rungs_agree(spatial, tmp_path):
    state, weights = make(spatial, 16, 3, 64, 2)
    origin = [3] * (2 * len(spatial))
    draws = FireDraws(0.5, SEED, LEVEL, origin)
    wanted, _ = torch_engine.forward(state, weights, 4, draws, False)
    device = HostDevice(tmp_path)
    for rung in RUNGS:
        precision = rung.precision or "plain"
        run = (Kernel1Level if rung.precision is None else cuda_level.LevelLaunches)(
            device, weights, precision, False, shape=spatial, batch=2, draws=draws,
        )  # fmt: skip
        current = state.to(torch.float16 if precision == "half" else torch.float32)
        for step in range(0, 4, rung.fused):
            target = torch.full_like(current, float("nan"))
            run.forward(current, target, step, rung.fused)
            current = target
        error = difference(current.float(), wanted)
        assert error < (3e-3 if precision == "half" else 3e-6), rung


@pytest.mark.slow
def test_the_benchmark_runs_without_a_gpu():
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--dry-run", "--json"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["device"] == "none (dry run)"
    cases = [row["case"] for row in report["rows"]]
    assert len(cases) == len(set(cases)) >= 28
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
