"""Networks whose levels differ in channels, against their parts composed by hand in float64."""

import pytest
import torch
from torch import nn

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.network.walk import walk
from nnunet_octreenca.octree import Crop, image_pyramid, upsample, windows
from nnunet_octreenca.ops import nca_steps
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, cpu_module

# Channels that grow, shrink and stay between levels; no multiples of a vector among them.
CASES = {
    "2-D": ((37, 50), [(2, 2)] * 3, [9, 16, 16, 22], None),
    "2-D, shrinking, hidden units per level": ((13, 7), [(2, 2)] * 2, [20, 12, 17], [30, 24, 7]),
    "3-D": ((7, 11, 13), [(1, 2, 2), (2, 2, 1)], [16, 24, 12], None),
    "one cell": ((1, 1), [(2, 2)], [8, 12], 20),
}


def make(factors, channels, hidden=None, dtype=torch.float64, **options):
    """A network with two image channels and weights that change the state."""
    torch.manual_seed(0)
    network = OctreeNCA(
        2,
        3,
        dimension=len(factors[0]),
        factors=factors,
        steps=[2] * len(factors) + [3],
        channels=channels,
        hidden=hidden,
        **options,
    )
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.05)
    return network.to(dtype)


def composed(network, image, seed):
    """Logits of every level, finest first."""
    pyramid, state, heads = image_pyramid(image, network.factors), None, []
    for level in reversed(range(len(network.steps))):
        here = pyramid[level]
        if state is None:
            beside = network.level_channels[level] - 2
            rest = here.new_zeros(len(here), beside, *here.shape[2:])
        else:
            rest = upsample(state[:, 2:], network.factors[level], here.shape[2:])
            if str(level) in network.from_parent:  # on the children: the order must not matter
                matrix = network.from_parent[str(level)].weight
                rest = torch.einsum("oi,ni...->no...", matrix, rest)
        state = nca_steps(
            torch.cat([here, rest], 1),
            network.levels[level].weights(),
            network.steps[level],
            0.5,
            seed,
            level,
        )
        heads.insert(0, torch.cat([torch.zeros_like(state[:, :1]), state[:, 2:4]], 1))
    return heads


@pytest.fixture(params=["torch", *(["cpu"] if cpu_module() is not None else [])], autouse=True)
def engine(request, monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, request.param)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_the_parts(case):
    shape, factors, channels, hidden = CASES[case]
    network = make(factors, channels, hidden)
    image = torch.randn(2, 2, *shape, dtype=torch.float64)
    results = []
    for heads in (network(image, seed=5, every_level=True), composed(network, image, 5)):
        network.zero_grad()
        sum((h * torch.arange(h.numel()).view_as(h)).sum() for h in heads).backward()
        results.append([*(h.detach() for h in heads), *(p.grad for p in network.parameters())])
    for ours, wanted in zip(*results, strict=True):
        scale = wanted.abs().max().clamp_min(1e-9)
        torch.testing.assert_close(ours / scale, wanted / scale, rtol=0, atol=1e-12)
    assert all(float(linear.weight.grad.abs().max()) > 0 for linear in network.from_parent.values())
    with torch.no_grad():
        torch.testing.assert_close(network(image, seed=5), results[0][0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_labels_are_the_logits_largest(case):
    shape, factors, channels, hidden = CASES[case]
    network = make(factors, channels, hidden, torch.float32)
    image = torch.randn(2, 2, *shape)
    with torch.no_grad():
        logits = network(image, seed=5)
    torch.testing.assert_close(logits, composed(network, image, 5)[0].detach(), rtol=0, atol=1e-5)
    assert torch.equal(network.infer(image, seed=5), logits)
    assert torch.equal(network.segment(image, seed=5), logits.argmax(1).to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_crop_that_covers_the_whole_is_the_whole(dtype):
    network = make([(2, 2)] * 2, [9, 16, 21], dtype=dtype)
    image = torch.randn(2, 2, 21, 18, dtype=dtype)
    whole = network(image, seed=3)
    assert torch.equal(network(image, 3, Crop((21, 18), 2), [(0, 0)] * 2), whole)


@pytest.mark.parametrize("same", [True, False])
def test_windows_given_by_level_are_the_crop(same):
    """Also where the samples' windows lie at other places."""
    network = make([(2, 2)] * 2, [9, 16, 21], dtype=torch.float32)
    image, crop = torch.randn(2, 2, 40, 37), Crop((12, 11), 2)
    origins = [(16, 15)] * 2 if same else [(28, 26), (3, 0)]
    boxes = windows((40, 37), network.factors, crop, origins)
    cut = [
        torch.stack(
            [
                level[s, :, y : y + box.shape[0], x : x + box.shape[1]]
                for s, (y, x) in enumerate(box.origins)
            ]
        )
        for level, box in zip(image_pyramid(image, network.factors), boxes, strict=True)
    ]
    given = network.forward_windows(cut, [box.origins for box in boxes], seed=3)
    assert torch.equal(given, network(image, 3, crop, origins))


def test_a_list_of_equal_numbers_is_the_number():
    one, listed = make([(2, 2)], 20, 48), make([(2, 2)], [20, 20], (48, 48))
    assert list(one.state_dict()) == list(listed.state_dict())
    image = torch.randn(1, 2, 9, 10, dtype=torch.float64)
    assert torch.equal(one(image), listed(image))
    assert repr(one) == repr(listed)


def test_maps_lie_where_channels_differ_and_begin_as_copies():
    network = make([(2, 2)] * 3, [12, 16, 16, 10])
    maps = {name: linear.weight for name, linear in network.from_parent.items()}
    assert {name: tuple(weight.shape) for name, weight in maps.items()} == {
        "0": (10, 14),
        "2": (14, 8),
    }
    assert [name for name in network.state_dict() if "parent" in name] == [
        "from_parent.0.weight",
        "from_parent.2.weight",
    ]
    for weight in maps.values():
        noise = weight - torch.eye(*weight.shape)
        assert 0.01 < float(noise.detach().std()) < 0.03
    again = make([(2, 2)] * 3, [12, 16, 16, 10])
    assert all(torch.equal(again.from_parent[n].weight, weight) for n, weight in maps.items())
    assert "channels=(12, 16, 16, 10), hidden=(48, 64, 64, 40)" in repr(network)


def test_every_way_through_a_network_agrees():
    """Compiled, exported, watched and under autocast."""
    network = make([(2, 2)] * 2, [9, 16, 21], dtype=torch.float32).eval()
    image = torch.randn(1, 2, 13, 18)
    with torch.no_grad():
        logits = network(image)
    last = list(walk(network, image))[-1]
    assert torch.equal(network.automaton().head(last.state), logits)
    assert torch.equal(network(image).detach(), logits), "with gradients, level by level"
    exported = torch.export.export(network, (image,)).module()(image)
    torch.testing.assert_close(exported.detach(), logits, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(image).detach(), logits)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": [16, 24]}, r"channels \(\[16, 24\]\).*one for each of the 3 levels"),
        ({"hidden": [64]}, r"hidden \(\[64\]\).*one for each of the 3 levels"),
        ({"channels": [16, 3, 24]}, r"channels \(3\) must hold 2 .*on level 1 of \[16, 3, 24\]"),
        ({"hidden": [8, 8, 0]}, r"hidden \(0\) must be at least 1 on level 2 of \[8, 8, 0\]"),
    ],
)
def test_numbers_that_do_not_fit_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        make([(2, 2)] * 2, **{"channels": 16, **arguments})
