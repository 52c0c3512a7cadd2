"""A training step's way through all levels on the C++ engine, against the PyTorch engine."""

import pytest
import torch

from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Crop
from nnunet_octreenca.ops import cpu_training
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, cpu_module

MODULE = cpu_module()
pytestmark = pytest.mark.skipif(MODULE is None, reason="the C++ module was not built")

CASES = {
    "odd 3-D": ((11, 13, 10), [[2, 2, 2], [1, 2, 2]], {}, None, None),
    "odd 3-D, cropped": (
        (11, 13, 10), [[2, 2, 2], [1, 2, 2]], {}, Crop((5, 6, 4), 2), [(1, 3, 2), (6, 7, 6)],
    ),
    "2-D, cropped": ((21, 17), [[2, 2], [2, 2]], {}, Crop((9, 8), 1), [(12, 9), (3, 5)]),
    "one cell": ((1, 1), [[2, 2]], {}, None, None),
    "one level, regions": ((6, 7), [], {"constant_background": False}, None, None),
    "24 channels": ((9, 8, 7), [[2, 2, 2]], {"channels": 24}, None, None),
    "unequal, cropped": (
        (11, 13, 10), [[2, 2, 2], [1, 2, 2]], {"channels": [16, 21, 9]}, Crop((5, 6, 4), 2),
        [(1, 3, 2), (6, 7, 6)],
    ),
    "unequal 2-D, hidden units per level": (
        (21, 17), [[2, 2], [2, 2]], {"channels": [24, 8, 32], "hidden": [20, 50, 33]}, None, None,
    ),
    "all fire": ((9, 8, 7), [[2, 2, 2]], {"fire_rate": 1.0}, None, None),
    "none fires": ((9, 8), [[2, 2]], {"fire_rate": 0.0}, None, None),
}  # fmt: skip


def make(factors, dimension, options, dtype=torch.float32):
    torch.manual_seed(0)
    network = OctreeNCA(
        2, 4, dimension=dimension, factors=factors, steps=[3] * (len(factors) + 1), **options
    )
    for level in network.levels:
        torch.nn.init.normal_(level.update.weight, std=0.05)
    return network.to(dtype)


def run(network, image, crop, origins, engine, monkeypatch):
    """Logits and gradients of all weights."""
    monkeypatch.setenv(ENGINE_VARIABLE, engine)
    network.zero_grad()
    logits = network(image, seed=5, crop=crop, origins=origins)
    assert (logits.grad_fn.name() == "_DescendBackward") == (engine == "cpu")
    up = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    logits.backward(up)
    return logits.detach(), [p.grad for p in network.parameters()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_gradients_are_the_oracles(case, dtype, monkeypatch):
    shape, factors, options, crop, origins = CASES[case]
    network = make(factors, len(shape), options, dtype)
    image = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    ours, grads = run(network, image, crop, origins, "cpu", monkeypatch)
    wanted, wanted_grads = run(network, image, crop, origins, "torch", monkeypatch)
    rounding = 3e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(ours, wanted, rtol=rounding, atol=rounding)
    for grad, other in zip(grads, wanted_grads, strict=True):
        scale = other.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(grad / scale, other / scale, rtol=0, atol=3 * rounding)


@pytest.mark.parametrize("case", [name for name in CASES if CASES[name][1]])
def test_every_levels_logits_and_their_gradients_are_the_oracles(case, monkeypatch):
    shape, factors, options, crop, origins = CASES[case]
    network = make(factors, len(shape), options, torch.float64)
    image = torch.randn(2, 2, *shape, dtype=torch.float64)
    results = []
    for engine in ("cpu", "torch"):
        monkeypatch.setenv(ENGINE_VARIABLE, engine)
        network.zero_grad()
        heads = network(image, seed=5, crop=crop, origins=origins, every_level=True)
        assert len(heads) == len(factors) + 1
        # Another weight for each cell, so that no level's gradient can stand in for another's.
        sum((logits * torch.arange(logits.numel()).view_as(logits)).sum() for logits in heads
            ).backward()  # fmt: skip
        results.append([*(h.detach() for h in heads), *(p.grad for p in network.parameters())])
    for ours, wanted in zip(*results, strict=True):
        scale = wanted.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(ours / scale, wanted / scale, rtol=0, atol=1e-12)


def test_images_of_any_strides(monkeypatch):
    network = make([[2, 2]], 2, {})
    image = torch.randn(2, 2, 14, 18)
    strided = image.movedim(1, -1).contiguous().movedim(-1, 1)
    ours, _ = run(network, strided, None, None, "cpu", monkeypatch)
    assert torch.equal(ours, run(network, image, None, None, "cpu", monkeypatch)[0])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_step_again_gives_the_same_bits(threads, monkeypatch):
    """In memory that an earlier step used, and where a backward pass is done twice."""
    monkeypatch.setenv(ENGINE_VARIABLE, "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = make([[2, 2, 2]] * 2, 3, {})
        image = torch.randn(3, 2, 40, 24, 24)
        cpu_training.release_memory()
        results = []
        for _ in range(2):
            logits = network(image, seed=1)
            for again in (True, False):
                network.zero_grad()
                logits.square().sum().backward(retain_graph=again)
                results.append([p.grad for p in network.parameters()] + [logits.detach().clone()])
            image.mul_(2).div_(2)
        for other in results[1:]:
            assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_logits_are_the_same_for_any_number_of_threads(monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "cpu")
    network, before, results = make([[2, 2, 2]] * 2, 3, {}), torch.get_num_threads(), []
    image = torch.randn(4, 2, 24, 20, 24)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(network(image, seed=1).detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_two_graphs_at_once_do_not_share_memory(monkeypatch):
    """The second forward pass must not take what the first one's backward pass still needs."""
    monkeypatch.setenv(ENGINE_VARIABLE, "cpu")
    network = make([[2, 2, 2]], 3, {})
    one, other = torch.randn(2, 1, 2, 32, 32, 32)

    def gradients(logits):
        network.zero_grad()
        logits.square().sum().backward()
        return [p.grad.clone() for p in network.parameters()]

    alone = gradients(network(one, seed=3))
    first = network(one, seed=3)
    second = network(other, seed=4)
    gradients(second)
    assert all(torch.equal(*pair) for pair in zip(alone, gradients(first), strict=True))


def test_kept_memory_is_bounded_and_given_back(monkeypatch):
    memory = cpu_training._Memory()
    monkeypatch.setattr(cpu_training, "_MOST_KEPT", 3 << 20)
    for _ in range(5):
        memory.give(torch.empty(1 << 18))  # 1 MiB each
    memory.give(torch.empty(10))
    assert [each.numel() for each in memory._kept] == [1 << 18] * 3
    taken = memory.take((2, 1 << 16), torch.float32)
    assert taken.shape == (2, 1 << 16)
    assert len(memory._kept) == 2
    memory.take((1 << 18,), torch.float64)  # no other type's
    memory.take((100,), torch.float32)  # not a large buffer for a small tensor
    assert len(memory._kept) == 2
    memory.clear()
    assert not memory._kept


ENTER = {
    "image": torch.zeros(1, 2, 8, 8),
    "image_origins": [[0, 0]],
    "state": torch.zeros(1, 8, 8, 6),
    "origins": [[0, 0]],
    "parent": torch.zeros(1, 4, 4, 6),
    "parent_origins": [[0, 0]],
    "factor": [2, 2],
    "from_parent": None,
    "kernels": "plain",
    "threads": 1,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": torch.zeros(2, 2, 8, 8)}, "image must be"),
        ({"image": torch.zeros(1, 6, 8, 8)}, "fewer channels"),
        ({"parent": torch.zeros(1, 4, 4, 9)}, "parents of 9 and children of 6 channels need a mat"),
        ({"from_parent": torch.zeros(4, 6)}, "from_parent has a shape"),
        ({"kernels": "abacus"}, "no kernels 'abacus'"),
        ({"image_origins": [[1, 0]]}, "reaches beyond the image"),
        ({"origins": [[-1, 0]]}, "origin is at -1"),
        ({"origins": [[0, 0], [0, 0]]}, "one origin a sample"),
        ({"parent": torch.zeros(1, 4, 3, 6)}, "axis 1: cells 0 to 7 have parents 0 to 3, outside"),
        ({"parent_origins": [[1, 0]]}, "axis 0: cells 0 to 7 have parents -1 to 2"),
        ({"factor": [3, 2]}, "factor must be 1 or 2, got 3"),
        ({"factor": [2]}, "factor has a wrong length"),
        ({"threads": 0}, "threads must be 1 to 4096, got 0"),
    ],
)
def test_the_binding_refuses_what_does_not_fit(change, named):
    arguments = {
        key: value.numpy() if isinstance(value, torch.Tensor) else value
        for key, value in {**ENTER, **change}.items()
    }
    with pytest.raises(ValueError, match=named):
        MODULE.enter(*arguments.values())


@pytest.mark.parametrize("heads", [1, 7])
def test_heads_that_do_not_fit(heads):
    values, state = torch.zeros(1, heads, 3, 3).numpy(), torch.zeros(1, 3, 3, 6).numpy()
    for function, arrays in (
        (MODULE.heads, (state, values)),
        (MODULE.heads_backward, (values, state)),
    ):
        with pytest.raises(ValueError, match=f"{heads - 1} logits do not fit the 6 channels"):
            function(arrays[0], 1, True, arrays[1], 1)


def test_a_map_between_levels_needs_what_its_gradient_needs():
    """Its values and gradients are compared above, with those of the whole network."""
    matrix, parents = torch.zeros(4, 1).numpy(), torch.zeros(1, 2, 2, 3).numpy()
    gradient = torch.zeros(1, 4, 4, 6).numpy()
    arguments = (gradient, [[0, 0]], parents.copy(), [[0, 0]], 2, [2, 2])
    for given in ((None, matrix, matrix.copy()), (parents, matrix, None)):
        with pytest.raises(ValueError, match="its gradient and the parents' states are needed"):
            MODULE.enter_backward(*arguments, *given, "plain", 1)
    with pytest.raises(ValueError, match="from_parent_gradient has a shape"):
        MODULE.enter_backward(*arguments, parents, matrix, matrix[:2].copy(), "plain", 1)
    with pytest.raises(ValueError, match="inputs must be at least 0 and below the 6 and 3"):
        MODULE.enter_backward(*arguments[:4], 3, [2, 2], None, matrix, None, "plain", 1)


@pytest.mark.parametrize("arguments", [(3, 4, 5), (1, 3, 4), (5000, 13, 40)])
def test_handing_down_alone(arguments):
    """Of any number of cells: the product."""
    cells, parents, children = arguments
    draws = torch.Generator().manual_seed(0)
    others, matrix = (
        torch.randn(shape, generator=draws, dtype=torch.float64)
        for shape in ((2, cells, parents), (children, parents))
    )
    to = torch.empty(2, cells, children, dtype=torch.float64)
    MODULE.hand_down(others.numpy(), matrix.numpy(), to.numpy(), "plain", 2)
    torch.testing.assert_close(to, others @ matrix.T, rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="to has a shape"):
        MODULE.hand_down(others.numpy(), matrix.numpy(), others.numpy(), "plain", 1)
