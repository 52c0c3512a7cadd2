"""The optimizers that plans name."""

import copy

import pytest
import torch

from nnunet_octreenca.training.optimizers import load_state, make_optimizer
from nnunet_octreenca.training.soap import SOAP


def gradients(shape, steps=25, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def trained(start, given, make):
    """The weights after steps with given gradients."""
    weights = torch.nn.Parameter(start.clone())
    optimizer = make([weights])
    for gradient in given:
        weights.grad = gradient.clone()
        optimizer.step()
    return weights.detach()


def test_a_vector_takes_adams_steps():
    start, given = torch.ones(7, dtype=torch.float64), gradients((7,))
    options = {"lr": 0.03, "betas": (0.8, 0.95)}
    expected = trained(start, given, lambda weights: torch.optim.Adam(weights, **options))
    result = trained(start, given, lambda weights: SOAP(weights, **options))
    assert torch.allclose(result, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(5, 5), (3, 2, 2), (4, 1, 2, 2)])
def test_no_direction_is_special(shape):
    """Gradients in turned coordinates give the same weights in turned coordinates."""
    turn = torch.linalg.qr(gradients((shape[0],) * 2, 1, seed=1)[0])[0]
    start, given = torch.zeros(shape, dtype=torch.float64), gradients(shape)

    def turned(values):
        return (turn @ values.flatten(1)).view(shape)

    result = trained(start, [turned(each) for each in given], SOAP)
    assert torch.allclose(result, turned(trained(start, given, SOAP)), atol=1e-10)
    adams = trained(start, [turned(each) for each in given], torch.optim.Adam)
    assert not torch.allclose(adams, turned(trained(start, given, torch.optim.Adam)), atol=1e-4)


def valley(optimizer_of, steps=300):
    """What is left of a quadratic whose axes lie across the weights'."""
    turn = torch.linalg.qr(gradients((8, 8), 1, seed=2)[0])[0]
    steep = turn @ torch.diag(torch.logspace(-3, 0, 8, dtype=torch.float64)) @ turn.mT
    weights = torch.nn.Parameter(gradients((8, 5), 1, seed=3)[0])
    optimizer = optimizer_of([weights])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        loss = (weights * (steep @ weights)).sum()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_it_learns_what_adam_is_slow_at():
    assert valley(SOAP) < valley(torch.optim.Adam) / 5


@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_gradients_of_zero_change_nothing(shape):
    start = torch.ones(shape, dtype=torch.float64)
    assert torch.equal(trained(start, [torch.zeros_like(start)] * 12, SOAP), start)


def test_weights_decay_apart_from_the_gradient():
    start = torch.ones(3, 4, dtype=torch.float64)
    given = [torch.zeros_like(start)] * 2
    result = trained(start, given, lambda weights: SOAP(weights, 0.1, weight_decay=0.5))
    assert torch.allclose(result, start * 0.95**2)


def training(name):
    """A small network and its optimizer."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    options = {"betas": (0.9, 0.99), "weight_decay": 0.0}
    return network, make_optimizer(name, network.parameters(), 1.6e-3, **options)


def go_on(network, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        (network(torch.full((5, 3), 1.0 + step)) - 1).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("name", ["adam", "soap"])
def test_a_training_that_goes_on_is_the_one_that_was_not_ended(name, tmp_path):
    network, optimizer = training(name)
    go_on(network, optimizer, 13)
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "kept.pt")
    again, other = training(name)
    weights, state = torch.load(tmp_path / "kept.pt", weights_only=True)
    again.load_state_dict(weights)
    load_state(other, state, name)
    assert torch.equal(go_on(network, optimizer, 13), go_on(again, other, 13))


@pytest.mark.parametrize(("before", "now"), [("adam", "soap"), ("soap", "adam")])
def test_the_state_of_another_optimizer(before, now):
    network, optimizer = training(before)
    go_on(network, optimizer, 1)
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"no state of the plans' optimizer, '{now}'"):
        load_state(training(now)[1], state, now)
