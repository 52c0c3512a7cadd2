import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_octreenca.network.level import LevelNCA
from nnunet_octreenca.ops import nca_steps


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_step_of_the_operator_is_the_modules_one_after_the_other(dimension):
    torch.manual_seed(0)
    level = LevelNCA(dimension, channels=7, input_channels=2, hidden=9)
    nn.init.normal_(level.update.weight)
    state = torch.randn(2, 7, *(5, 6, 4)[:dimension])
    perceived = level.perceive(functional.pad(state, (1, 1) * dimension, mode="reflect"))
    cells = torch.cat([state, perceived], 1).movedim(1, -1)
    update = level.update(level.hidden(cells).relu()).movedim(-1, 1)
    expected = torch.cat([state[:, :2], state[:, 2:] + update], 1)
    result = nca_steps(state, level.weights(), 1, fire_rate=1.0)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_a_new_level_updates_nothing_but_learns():
    level = LevelNCA(2, channels=7, input_channels=2, hidden=9)
    state = torch.randn(1, 7, 5, 6)
    result = nca_steps(state, level.weights(), 5)
    assert torch.equal(result, state)
    result.square().sum().backward()
    assert float(level.update.weight.grad.abs().max()) > 0
