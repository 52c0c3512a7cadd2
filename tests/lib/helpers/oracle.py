"""What an engine is compared with, and on which cases."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops import FireDraws, StepWeights, torch_engine
from nnunet_octreenca.ops.native import cpu_module

SEED, LEVEL = 2**63 + 5, 2


def make(spatial, channels, n_in, hidden, batch, dtype=torch.float32):
    """A channels-last state and weights, small enough that twenty steps do not explode."""
    draws = torch.Generator().manual_seed(len(spatial) + channels + batch)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=draws, dtype=torch.float64) * scale).to(dtype)

    kernel = (3,) * len(spatial)
    return normal(batch, *spatial, channels), StepWeights(
        normal(channels, *kernel, scale=0.6 / 3 ** len(spatial)),
        normal(channels, scale=0.2),
        normal(hidden, 2 * channels, scale=1 / (2 * channels) ** 0.5),
        normal(hidden, scale=0.2),
        normal(channels - n_in, hidden, scale=0.3 / hidden**0.5),
    )


def difference(result, expected):
    """Largest difference relative to the largest value."""
    return float((result - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def pad(state):
    """Reflect padding; an axis of length 1 repeats its cell."""
    for axis in range(2, state.ndim):
        lines = state.movedim(axis, -1)
        mode = "reflect" if lines.shape[-1] > 1 else "replicate"
        flat = functional.pad(lines.reshape(1, -1, lines.shape[-1]), (1, 1), mode=mode)
        state = flat.view(*lines.shape[:-1], -1).movedim(-1, axis)
    return state


def oracle(state, weights, grad_out, steps, rate, origin):
    """The PyTorch engine in float64: last state, gradient of the first, weights' gradients."""
    exact = StepWeights(*(weight.double() for weight in weights))
    draws = FireDraws(rate, SEED, LEVEL, origin)
    last, trajectory = torch_engine.forward(state.double(), exact, steps, draws, True)
    return last, *torch_engine.backward(grad_out.double(), last, trajectory, exact, draws)


def make_network(shape, n_in=3, classes=3, steps=(5, 4, 6), **options):
    """A network whose weights change the state, and two images."""
    torch.manual_seed(0)
    factors = [[2] * len(shape)] * (len(steps) - 1)
    network = OctreeNCA(
        n_in, classes, dimension=len(shape), factors=factors, steps=steps, **options
    )
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.05)
    return network, torch.randn(2, n_in, *shape)


CASES = [
    # spatial, channels, n_in, hidden, batch, steps, rate
    ((37, 50), 16, 3, 64, 1, 10, 0.5),
    ((64, 48), 16, 1, 64, 3, 3, 0.5),
    ((130, 97), 16, 1, 64, 1, 10, 0.3),
    ((5, 7), 16, 3, 64, 3, 20, 0.5),
    ((1, 19), 16, 1, 64, 1, 4, 0.5),
    ((19, 1), 16, 1, 64, 3, 4, 1.0),
    ((1, 1), 16, 1, 64, 1, 7, 0.5),
    ((2, 2), 16, 0, 64, 1, 7, 0.5),
    ((33, 20), 20, 2, 80, 1, 5, 0.5),
    ((33, 20), 13, 2, 37, 1, 5, 0.5),
    ((33, 20), 5, 1, 3, 3, 5, 0.3),
    ((12, 9), 1, 0, 1, 1, 3, 0.5),
    ((12, 9), 52, 5, 208, 1, 3, 1.0),
    ((21, 30), 16, 15, 64, 1, 2, 0.5),
    ((16, 16), 16, 3, 64, 1, 1, 0.0),
    ((16, 16), 16, 3, 64, 1, 0, 0.5),
    ((12, 13, 14), 16, 1, 64, 1, 10, 0.5),
    ((40, 6, 24), 16, 1, 64, 1, 3, 0.5),
    ((5, 7, 6), 16, 3, 64, 3, 20, 0.5),
    ((1, 9, 8), 16, 1, 64, 3, 4, 0.3),
    ((8, 1, 9), 16, 1, 64, 1, 4, 1.0),
    ((8, 9, 1), 16, 1, 64, 1, 4, 0.5),
    ((1, 1, 1), 16, 1, 64, 1, 7, 0.5),
    ((2, 2, 2), 16, 1, 64, 1, 7, 0.5),
    ((7, 8, 9), 20, 2, 72, 1, 5, 0.5),
    ((7, 8, 9), 11, 2, 19, 3, 5, 0.5),
    ((6, 5, 4), 3, 1, 2, 1, 5, 0.3),
    ((6, 5, 4), 16, 3, 64, 1, 3, 0.0),
]
each_case = pytest.mark.parametrize(
    ("spatial", "channels", "n_in", "hidden", "batch", "steps", "rate"), CASES, ids=str
)


def native_kernels() -> list[str]:
    """Kernels of the C++ engine that run here; none where it was not built."""
    module = cpu_module()
    return [] if module is None else module.kernels()
