import copy
import gc

import pytest
import torch
from torch import nn

from nnunet_octreenca.training import WeightAverage


def make():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def set_to(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_recursion(decay):
    """average <- d average + (1 - d) weights with d = min(decay, i / (i + 10)), i from 0."""
    module = make()
    set_to(module, 100.0)
    average = WeightAverage(module, decay)
    expected = 100.0
    for i in range(2000):
        value = (i * 37 % 101) / 7
        set_to(module, value)
        average.update(module)
        d = min(decay, i / (i + 10))
        expected = d * expected + (1 - d) * value
        if i == 0:
            assert float(average.average["weight"][0, 0]) == 0.0, "the start is forgotten"
        if i in (1, 2, 10, 100, 989, 990, 1999):
            for tensor in average.average.values():
                torch.testing.assert_close(
                    tensor, torch.full_like(tensor, expected), rtol=1e-4, atol=1e-5
                )
    assert average.updates == 2000


def test_it_begins_as_a_copy():
    module = make()
    average = WeightAverage(module, 0.9)
    before = module.weight.detach().clone()
    set_to(module, 5.0)
    assert torch.equal(average.average["weight"], before)


@pytest.mark.parametrize("fails", [False, True])
def test_applied_carries_the_average_and_restores_the_raw_weights(fails):
    module = make()
    average = WeightAverage(module, 0.9)
    set_to(module, 1.0)
    average.update(module)
    set_to(module, 2.0)
    average.update(module)
    expected = 1 / 11 * 1.0 + 10 / 11 * 2.0

    def use():
        with average.applied(module):
            for parameter in module.parameters():
                torch.testing.assert_close(parameter.data, torch.full_like(parameter, expected))
            set_to(module, 77.0)  # what is done within is lost
            if fails:
                raise KeyError("within")

    if fails:
        with pytest.raises(KeyError, match="within"):
            use()
    else:
        use()
    for parameter in module.parameters():
        assert torch.equal(parameter.data, torch.full_like(parameter, 2.0))
    torch.testing.assert_close(average.average["bias"], torch.full((2,), expected))


def test_a_dropped_context_copies_no_weights():
    """Collected at any moment, even while another network is compiled."""
    module = make()
    average = WeightAverage(module, 0.9)
    context = average.applied(module)
    context.__enter__()
    set_to(module, 5.0)
    del context
    gc.collect()
    assert all((parameter == 5.0).all() for parameter in module.parameters())


def test_parameters_stay_the_optimizers():
    module = make()
    parameters = list(module.parameters())
    average = WeightAverage(module, 0.9)
    with average.applied(module):
        assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert all(not tensor.requires_grad for tensor in average.average.values())


def test_a_resumed_average_goes_on_as_if_never_stopped():
    module = make()
    straight = WeightAverage(module, 0.9)
    for value in (3.0, 1.0, 4.0):
        set_to(module, value)
        straight.update(module)
    saved = copy.deepcopy(straight.state_dict())
    resumed = WeightAverage(make(), 0.9)
    resumed.load_state_dict(saved)
    for value in (1.0, 5.0):
        set_to(module, value)
        straight.update(module)
        resumed.update(module)
    assert resumed.updates == straight.updates == 5
    for key in straight.average:
        assert torch.equal(resumed.average[key], straight.average[key])
    # The checkpoint's own tensors are not written to.
    assert not torch.equal(saved["average"]["weight"], resumed.average["weight"])
