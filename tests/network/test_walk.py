"""The walk through the steps against the plain forward pass."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from nnunet_octreenca.errors import InputError, NotFiniteError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.network.walk import run_level, walk
from nnunet_octreenca.octree import level_shapes, reach
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, cpu_module

ENGINES = ["torch", *(["cpu"] if cpu_module() is not None else [])]


def make(dimension=2, n_in=2, classes=3, **options):
    torch.manual_seed(0)
    options = {"factors": [(2,) * dimension] * 2, "steps": [3, 2, 4]} | options
    network = OctreeNCA(n_in, classes, dimension=dimension, **options)
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.05)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dimension", "constant_background"), [(2, True), (3, True), (2, False)])
def test_the_walk_ends_with_the_bits_of_the_forward_pass(
    engine, dimension, constant_background, monkeypatch
):
    monkeypatch.setenv(ENGINE_VARIABLE, engine)
    network = make(dimension, constant_background=constant_background)
    image = torch.randn(1, 2, *(19, 14, 9)[:dimension])
    moments = list(walk(network, image, seed=5))
    expected = network(image, seed=5)
    assert torch.equal(network.automaton().head(moments[-1].state), expected)
    assert expected.abs().max() > 0.01
    assert [(m.level, m.step) for m in moments] == [
        *((2, step) for step in range(5)),
        *((1, step) for step in range(3)),
        *((0, step) for step in range(4)),
    ]
    shapes = level_shapes(image.shape[2:], network.factors)
    assert all(
        m.state.shape == (1, *shapes[m.level], network.level_channels[m.level]) for m in moments
    )


def test_of_a_network_that_standardizes_its_image():
    network = make(input_mean=[3.0, -1.0], input_std=[2.0, 0.5])
    image = torch.randn(1, 2, 17, 12)
    last = list(walk(network, image, every=None))[-1]
    assert torch.equal(network.automaton().head(last.state), network(image))


@pytest.mark.parametrize("every", [2, 3, 100, None])
def test_fewer_moments_are_the_same_states(every):
    network, image = make(), torch.randn(1, 2, 17, 12)
    all_ = {(m.level, m.step): m.state for m in walk(network, image)}
    some = list(walk(network, image, every=every))
    for moment in some:
        assert torch.equal(moment.state, all_[moment.level, moment.step])
    ends = {(level, step) for level, count in enumerate(network.steps) for step in (0, count)}
    assert ends <= {(m.level, m.step) for m in some}


def test_a_step_changes_what_fires_and_leaves_the_image():
    network, image = make(), torch.randn(1, 2, 17, 12)
    moments = [m for m in walk(network, image, seed=1) if m.level == 0]
    for before, after in pairwise(moments):
        changed = (before.state != after.state).any(-1)
        assert 0.3 < changed.float().mean() < 0.7
        assert torch.equal(after.state[..., :2].movedim(-1, 1), image)


def test_a_level_without_steps_hands_its_state_on():
    network, image = make(steps=[3, 0, 4]), torch.randn(1, 2, 17, 12)
    last = list(walk(network, image, every=None))[-1]
    assert torch.equal(network.automaton().head(last.state), network(image))


def test_more_steps_go_on_from_a_state():
    network, image = make(), torch.randn(1, 2, 17, 12)
    moments = [m for m in walk(network, image, seed=3) if m.level == 0]
    assert torch.equal(run_level(network, moments[0].state, 0, 2, 3), moments[2].state)


def test_refused():
    network = make()
    with pytest.raises(InputError, match="2 channel"):
        list(walk(network, torch.zeros(1, 1, 8, 8)))
    with pytest.raises(ValueError, match="every"):
        list(walk(network, torch.zeros(1, 2, 8, 8), every=0))
    network.levels[1].hidden.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="level 1"):
        list(walk(network, torch.ones(1, 2, 8, 8)))


def test_reach_is_how_far_a_change_of_the_image_shows():
    """Fired every step, the furthest change is within the reach, and within a node of it."""
    network = make(n_in=1, fire_rate=1.0)
    image = torch.randn(1, 1, 1, 201, dtype=torch.float64)
    network.double()
    changed = image.clone()
    changed[..., 100] += 1
    seen = (network(changed) != network(image))[0].any(0)[0].nonzero().flatten()
    furthest = int((seen - 100).abs().max())
    total = sum(each[1] for each in reach(network.steps, network.factors, 2))
    assert total == 3 + 2 * 2 + 4 * 4
    assert total - 4 <= furthest <= total + 4
