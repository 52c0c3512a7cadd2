"""The engine without Python: under sanitizers, with AVX-512's code shape, and on an Arm."""

import importlib.util
import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops import FireDraws, StepWeights, torch_engine

HERE = Path(__file__).parent
SEED = 12345

spec = importlib.util.spec_from_file_location("build_replay", HERE / "build_replay.py")
assert spec
assert spec.loader
_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_module)
build_replay = _module.build_replay


class Writer:
    """The format that replay.cpp reads: int64 numbers, and arrays as their length and floats."""

    def __init__(self, path):
        self.file = path.open("wb")

    def numbers(self, *values):
        self.file.write(struct.pack(f"<{len(values)}q", *values))

    def array(self, tensor):
        data = tensor.detach().contiguous().numpy().astype("<f4")
        self.numbers(data.size)
        self.file.write(np.ascontiguousarray(data).tobytes())

    def weights(self, weights):
        self.numbers(
            weights.dimension,
            weights.channels,
            weights.input_channels,
            weights.hidden_weight.shape[0],
        )
        for weight in weights:
            self.array(weight)


def three(values, fill):
    """(z, y, x) of 2-D or 3-D values."""
    return (fill,) * (3 - len(values)) + tuple(values)


def write_steps(writer, spatial, channels, n_in, hidden, batch, steps, rate):
    """One level, forward and backward, by the oracle in float64."""
    draws = torch.Generator().manual_seed(channels + steps)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=draws) * scale

    kernel = (3,) * len(spatial)
    weights = StepWeights(
        normal(channels, *kernel, scale=0.6 / 3 ** len(spatial)),
        normal(channels, scale=0.2),
        normal(hidden, 2 * channels, scale=1 / (2 * channels) ** 0.5),
        normal(hidden, scale=0.2),
        normal(channels - n_in, hidden, scale=0.3 / hidden**0.5),
    )
    state, grad_out = normal(batch, *spatial, channels), normal(batch, *spatial, channels)
    origins = [[3 * s + a for a in range(len(spatial))] for s in range(batch)]
    flat = [c for origin in origins for c in origin]
    exact = StepWeights(*(w.double() for w in weights))
    draws = FireDraws(rate, SEED, 2, flat)
    out, kept = torch_engine.forward(state.double(), exact, steps, draws, True)
    grad, grads = torch_engine.backward(grad_out.double(), out, kept, exact, draws)
    writer.numbers(0)
    writer.weights(weights)
    writer.numbers(*three(spatial, 1), batch, steps, SEED, 2, round(rate * 2**32))
    for origin in origins:
        writer.numbers(*three(origin, 0))
    for tensor in (state, grad_out, out, grad, *grads):
        writer.array(tensor)


def write_octree(writer, shape, n_in, classes, background, steps, channels=16, hidden=64):
    """A whole octree by the oracle."""
    torch.manual_seed(0)
    factors = [[2] * len(shape)] * (len(steps) - 1)
    network = OctreeNCA(
        n_in, classes, dimension=len(shape), factors=factors, steps=steps, channels=channels,
        hidden=hidden, constant_background=background,
    )  # fmt: skip
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.05)
    image = torch.randn(1, n_in, *shape)
    expected = network.double()(image.double(), seed=SEED)
    network.float()
    writer.numbers(1, len(steps))
    for level in network.levels:
        writer.weights(level.weights())
    for index, count in enumerate(steps):
        writer.numbers(count, *three(factors[index] if index < len(factors) else [], 1))
    for matrix in network.automaton().from_parent:
        writer.array(torch.empty(0) if matrix is None else matrix)
    writer.numbers(*three(shape, 1), SEED, 2**31, network.logits, int(background))
    writer.array(image)
    writer.array(expected)


# Small cases that reach every branch of the kernels.
STEPS = (
    ((70, 9), 16, 1, 64, 2, 3, 0.3),
    ((12, 13), 20, 2, 80, 1, 3, 1.0),
    ((9, 8), 13, 2, 37, 1, 3, 0.5),
    ((5, 6), 3, 1, 2, 3, 4, 0.5),
    ((1, 7), 16, 1, 64, 1, 2, 0.5),
    ((1, 1), 16, 1, 64, 1, 3, 1.0),
    ((6, 1, 7), 11, 2, 19, 1, 3, 0.5),
    ((2, 2, 2), 16, 1, 64, 3, 5, 0.5),
    ((23, 31), 16, 3, 64, 1, 10, 0.5),
    ((9, 10, 11), 16, 1, 64, 2, 4, 0.5),
)
OCTREES = (
    ((20, 7, 9), 1, 3, True, [3, 4], [24, 16], [40, 9]),
    ((13, 10), 1, 4, False, [4, 5], 20, 24),
    ((40, 7, 9), 1, 3, True, [3, 4]),
    ((150, 21), 3, 3, True, [3, 3, 4]),
    ((150, 21), 3, 3, True, [3, 3, 4, 2], [11, 24, 24, 17], None),
)


def write_cases(path, steps, octrees):
    writer = Writer(path)
    writer.numbers(len(steps) + len(octrees))
    for case in steps:
        write_steps(writer, *case)
    for case in octrees:
        write_octree(writer, *case)
    writer.file.close()
    return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("cases") / "all", STEPS, OCTREES)


@pytest.fixture(scope="module")
def few_cases(tmp_path_factory):
    """What an emulator computes in some seconds."""
    return write_cases(tmp_path_factory.mktemp("cases") / "few", STEPS[:8], OCTREES[:2])


def needs(*programs):
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def replay(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert ": 0 wrong" in output
    return output


@needs("g++")
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no flags for it")
@pytest.mark.nightly  # two minutes of a compiler
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_see_nothing(sanitizer, cases, tmp_path):
    flags = ("-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    program = build_replay(tmp_path, flags=flags)
    output = replay(program, cases)
    assert "wide" in output


@needs("aarch64-linux-gnu-g++", "qemu-aarch64")
@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_neon_under_emulation(every, cases, few_cases, tmp_path):
    """Debian packages g++-aarch64-linux-gnu and qemu-user."""
    program = build_replay(
        tmp_path, compiler="aarch64-linux-gnu-g++", machine="aarch64", flags=("-O1", "-static")
    )
    output = replay("qemu-aarch64", program, cases if every else few_cases)
    assert re.search(r"with neon plain wide: 0 wrong", output), output


@needs("g++")
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no flags for it")
@pytest.mark.nightly
def test_a_wrong_result_would_be_seen(cases, tmp_path):
    """The comparison itself: one changed number in the file must fail."""
    program = build_replay(tmp_path, flags=("-O1",))
    replay(program, cases)
    data = bytearray(cases.read_bytes())
    position = len(data) - 40  # within the last expected values
    data[position : position + 4] = struct.pack("<f", 1e3)
    (tmp_path / "damaged").write_bytes(data)
    done = subprocess.run([str(program), str(tmp_path / "damaged")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "WRONG" in done.stdout
