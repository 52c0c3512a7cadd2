"""Networks whose levels differ in channels on the CUDA engine, on this processor.

The kernels run as in test_cuda_engine.py; what they are compared with is PyTorch in float64.
"""

import shutil

import numpy as np
import pytest
import torch
from helpers.host_device import HostDevice
from helpers.lost_cells import by_pytorch
from helpers.oracle import difference, make_network
from helpers.streams import segmented

from nnunet_octreenca.inference.stream import WindowStream, open_stream
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.network.walk import walk
from nnunet_octreenca.octree import image_pyramid
from nnunet_octreenca.ops import Part, cuda_device, cuda_engine, cuda_level, cuda_octree
from nnunet_octreenca.ops.cuda_program import KernelLaunch, Program
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.planning import Output

if shutil.which("g++") is None:
    pytest.skip("g++ compiles the kernels for this processor", allow_module_level=True)

# Within a group of 16 channels and beyond it; levels that widen, shrink, and do not differ.
NETWORKS = {
    "2-D": ((37, 50), {"channels": [16, 24, 40]}),
    "2-D, shrinking": ((21, 18), {"channels": [20, 20, 9], "hidden": [48, 80, 33]}),
    "3-D": ((6, 13, 10), {"n_in": 1, "channels": [16, 16, 24], "hidden": 64}),
}
each_network = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "2-D" else pytest.mark.nightly) for case in NETWORKS],
)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return HostDevice(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def network_on_host(device, monkeypatch):
    """Everything that takes CPU tensors goes to the CUDA engine."""
    monkeypatch.setattr(cuda_device, "device_of", lambda tensor: device)
    monkeypatch.setattr(cuda_engine, "supports", lambda tensor, weights: True)
    monkeypatch.setattr("nnunet_octreenca.ops.cpu_engine.supports", lambda tensor, weights: False)
    return device


def network_of(case):
    shape, options = NETWORKS[case]
    return make_network(shape, **options)


def exact(network):
    """The same network in float64, which PyTorch computes."""
    twin = OctreeNCA(
        network.input_channels, network.num_classes, dimension=network.dimension,
        factors=network.factors, steps=network.steps, channels=network.level_channels,
        hidden=network.level_hidden,
    ).double()  # fmt: skip
    twin.load_state_dict(network.state_dict())
    return twin


def on_pytorch(work):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_engine, "supports", lambda tensor, weights: False)
        return work()


MAP = """
#include "octree.cuh"
using namespace octreenca;
using N = Network<2, {own}, {n_in}, 16, {precision}>;
OCTREENCA_KERNEL(map, 128, 0, MapArguments, map_parents<N>)
"""


@pytest.mark.parametrize(
    ("above", "own", "n_in", "precision"),
    [(24, 16, 3, "tf32"), (13, 37, 1, "half"), (5, 4, 0, "tf32"), (40, 8, 5, "half")],
)
def test_parents_are_mapped(above, own, n_in, precision, device):
    """Whatever the image of the parents holds; the same bits level by level."""
    name = {"half": "Float16", "tf32": "Tf32"}[precision]
    source = MAP.format(own=own, n_in=n_in, precision=name)
    loaded = device.load_program(Program("map.cu", source, {"map": KernelLaunch(128, 0)}, {}, None))
    kind = torch.float16 if precision == "half" else torch.float32
    draws = torch.Generator().manual_seed(1)
    state = torch.randn(2, 7, 10, above, generator=draws).to(kind)
    state[..., :n_in] = float("inf")
    matrix = torch.randn(own - n_in, above - n_in, generator=draws)
    parent = cuda_level.padded(state, cuda_engine.padded_channels(above))
    found = cuda_octree.map_parents(loaded, parent, matrix, n_in)
    assert found.shape == (2, 7, 10, cuda_engine.padded_channels(own))
    assert not found[..., own:].any()
    wanted = state[..., n_in:].double() @ matrix.double().t()
    error = difference(found[..., n_in:own].double(), wanted)
    assert error < (1e-3 if precision == "half" else 1e-6)
    if precision == "tf32":
        alone = cuda_engine.hand_down(state[..., n_in:], matrix, device=device)
        assert torch.equal(alone, found[..., n_in:own])


@pytest.mark.parametrize(
    ("others", "matrix", "told"),
    [
        (torch.zeros(1, 2, 3, 5), torch.zeros(4, 6), r"map \(4, 6\) must have a column for .* 5\)"),
        (torch.zeros(1, 2, 3, 5).half(), torch.zeros(4, 5), "hand down must be torch.float32"),
        (torch.zeros(1, 2, 3, 5), torch.zeros(4, 5).double(), "the map must be torch.float32"),
    ],
)
def test_what_cannot_be_handed_down_is_refused(others, matrix, told, device):
    with pytest.raises(ValueError, match=told):
        cuda_engine.hand_down(others, matrix, device=device)
    nothing = cuda_engine.hand_down(torch.zeros(0, 2, 3, 5), torch.zeros(4, 5), device=device)
    assert nothing.shape == (0, 2, 3, 4)


@pytest.mark.slow
@each_network
def test_a_network_trains_and_predicts_as_with_pytorch(case, network_on_host):
    """Logits, gradients of all parameters, those of the maps among them; labels."""
    network, image = network_of(case)
    values = network(image, seed=3, every_level=True)
    towards = [torch.randn(head.shape) for head in values]
    sum((head * to).sum() for head, to in zip(values, towards, strict=True)).backward()
    twin = exact(network)

    def wanted():
        heads = twin(image.double(), seed=3, every_level=True)
        sum((head * to.double()).sum() for head, to in zip(heads, towards, strict=True)).backward()
        return [head.detach() for head in heads]

    for ours, theirs in zip(values, on_pytorch(wanted), strict=True):
        assert difference(ours.detach().double(), theirs) < 3e-6
    theirs = dict(twin.named_parameters())
    assert any(name.startswith("from_parent") for name in theirs)
    for name, ours in network.named_parameters():
        assert difference(ours.grad.double(), theirs[name].grad) < 1e-5, name
    with torch.no_grad():
        whole = network(image, seed=3)
        assert difference(whole.double(), on_pytorch(lambda: twin(image.double(), seed=3))) < 3e-6
    labels = network.segment(image, seed=3)
    assert torch.equal(labels, whole.argmax(1).to(torch.uint8))
    assert len(labels.unique()) > 1
    last = [moment.state for moment in walk(network, image, seed=3, every=None)][-1]
    assert torch.equal(network.automaton().head(last), whole)


@each_network
def test_the_fast_mode_is_as_near_as_its_digits_allow(case, network_on_host, monkeypatch):
    monkeypatch.setenv("OCTREENCA_STATE", "float16")
    network, image = network_of(case)
    with torch.no_grad():
        values = network(image, seed=3)
        wanted = on_pytorch(lambda: exact(network)(image.double(), seed=3))
    assert 1e-6 < difference(values.double(), wanted) < 1e-2
    assert torch.equal(network.segment(image, seed=3), values.argmax(1).to(torch.uint8))


@pytest.mark.parametrize(
    ("channels", "maps"),
    [([16, 24, 40], 2), pytest.param([20, 20, 9], 1, marks=pytest.mark.slow), (16, 0)],
    ids=str,
)
@pytest.mark.nightly
def test_only_levels_that_differ_are_mapped(channels, maps, network_on_host):
    """In one launch each; every level runs kernels of its own sizes."""
    network, image = make_network((9, 8), channels=channels)
    programs = [
        network_on_host.load(cuda_level.configuration_of(weights, "half"), False)
        for weights in network.automaton().weights
    ]
    assert len(set(programs)) == len(set(network.level_channels))
    for program in programs:
        program.launches.clear()
    network.segment(image, state="float16")
    launched = [kernel for program in set(programs) for kernel in program.launches]
    assert (launched.count("map"), launched.count("enter")) == (maps, 3)
    assert all("forward_2" in program.launches for program in programs)


@pytest.mark.parametrize("state", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_bands_give_the_labels_of_one_pass(state, network_on_host):
    network, image = make_network((61, 20), channels=[16, 24, 40])
    whole = network.segment(image[:1], state=state)[0].numpy()
    stream = open_stream(network, (61, 20), Output.LABELS, state=state)
    assert isinstance(stream, WindowStream)
    assert np.array_equal(segmented(stream, image[0].numpy(), 24), whole)


@pytest.mark.slow
def test_lost_cells_are_counted_on_every_level(network_on_host):
    network, image = make_network((40, 70), steps=(3, 1, 2), channels=[16, 24, 40])
    image[1, 0, 7, 3] = float("inf")
    wanted = by_pytorch(network, image)
    assert min(wanted[0]) > 0
    cells = NonFiniteCells(3)
    labels = torch.empty(2, 40, 70, dtype=torch.uint8)
    cuda_octree.octree(image, network.automaton(), 3, labels=labels, non_finite=cells)
    assert (cells.found.tolist(), cells.checked) == wanted


@pytest.mark.slow
def test_wide_parents_are_not_held_beside_the_finest_states(network_on_host, monkeypatch):
    """64 channels on 1/4 of the cells are as much as 16 here: two states at most, as always."""
    network, image = make_network((96, 128), steps=(1, 2), channels=[16, 64], hidden=64)
    alive, peak = {}, [0]

    def counted(make):
        import weakref

        def made(*arguments, **options):
            tensor = make(*arguments, **options)
            alive[id(tensor)] = tensor.numel() * tensor.element_size()
            weakref.finalize(tensor, alive.pop, id(tensor), None)
            peak[0] = max(peak[0], sum(alive.values()))
            return tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    network.segment(image[:1], state="float32")
    assert 128 < peak[0] / (96 * 128) < 141  # with the packed weights; held, they make it 147


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda matrix: None, r"map to level 1 is missing: .* \(21, 37\)"),
        (lambda matrix: matrix.t(), r"map to level 1 \(37, 21\): .* \(21, 37\)"),
        (torch.Tensor.double, r"map to level 1 must be torch.float32 on cpu, but it is .*float64"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(change, told, network_on_host):
    """A kernel would read what is not there."""
    network, image = make_network((9, 8), channels=[16, 24, 40])
    automaton = network.automaton()
    first, second = automaton.from_parent
    wrong = automaton._replace(from_parent=[first, change(second.detach())])
    with pytest.raises(ValueError, match=told):
        cuda_octree.run_levels(
            image_pyramid(image, network.factors), wrong, 0, Part(0, [0] * 3), None,
            torch.empty(2, 3, 9, 8), None, None, None,
        )  # fmt: skip


def test_a_level_that_does_not_fit_the_gpu_leaves_all_to_pytorch(network_on_host, monkeypatch):
    monkeypatch.setattr(cuda_engine, "supports", lambda tensor, weights: weights.channels < 40)
    network, _ = make_network((9, 8), channels=[16, 24, 40])
    assert network.engine().name == "torch"
    assert make_network((9, 8), channels=[16, 24, 32])[0].engine() is cuda_engine
