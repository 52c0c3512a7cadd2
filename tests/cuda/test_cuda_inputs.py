"""Tensors that the CUDA engine's kernels cannot read as they are: refused, or copied first."""

import shutil

import pytest
import torch
from helpers.host_device import HostDevice
from helpers.oracle import make, make_network

from nnunet_octreenca.ops import FireDraws, Part, cuda_device, cuda_engine, cuda_level
from nnunet_octreenca.ops.cuda_inputs import VECTOR_BYTES, aligned
from nnunet_octreenca.ops.weights import StepWeights

if shutil.which("g++") is None:
    pytest.skip("g++ compiles the kernels for this processor", allow_module_level=True)

DRAWS = FireDraws(0.5, 7, 0, [0, 0])


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return HostDevice(tmp_path_factory.mktemp("kernels"), 90)


@pytest.fixture
def on_host(device, monkeypatch):
    monkeypatch.setattr(cuda_device, "device_of", lambda tensor: device)


def elsewhere(tensor):
    return torch.empty(tensor.shape, device="meta")


@pytest.mark.parametrize("field", StepWeights._fields)
@pytest.mark.parametrize("change", [torch.Tensor.half, torch.Tensor.double, elsewhere])
def test_weights_unlike_the_state_are_refused(field, change, device):
    """Half weights gave NaN, weights elsewhere an address of nothing."""
    state, weights = make((4, 5), 16, 3, 64, 1)
    mixed = weights._replace(**{field: change(getattr(weights, field))})
    with pytest.raises(ValueError, match=f"{field} is .*, but the state is torch.float32 on cpu"):
        cuda_engine.forward(state, mixed, 2, DRAWS, True, device=device)
    trajectory = torch.zeros(2, *state.shape)
    with pytest.raises(ValueError, match=f"{field} is .*, but the gradient is"):
        cuda_engine.backward(state, state, trajectory, mixed, DRAWS, device=device)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (torch.Tensor.double, "the state must be torch.float32 on cpu, but it is torch.float64"),
        (lambda state: state[..., :15], r"the state \(1, 4, 5, 15\) must be \(N, y, x, 16\)"),
        (lambda state: state[0], r"the state \(4, 5, 16\) must be"),
    ],
)
def test_states_that_do_not_fit_are_refused(change, told, device):
    state, weights = make((4, 5), 16, 3, 64, 1)
    with pytest.raises(ValueError, match=told):
        cuda_engine.forward(change(state), weights, 2, DRAWS, True, device=device)


@pytest.mark.parametrize(
    ("trajectory", "told"),
    [
        (torch.zeros(2, 1, 4, 5, 16).half(), "the trajectory must be torch.float32"),
        (torch.zeros(2, 1, 4, 5, 13), r"the trajectory \(2, 1, 4, 5, 13\) must be \(steps, 1, 4"),
        (torch.zeros(0), r"the trajectory \(0,\) must be"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused(trajectory, told, device):
    state, weights = make((4, 5), 16, 3, 64, 1)
    with pytest.raises(ValueError, match=told):
        cuda_engine.backward(state, state, trajectory, weights, DRAWS, device=device)


LABELS = torch.zeros(2, 9, 8, dtype=torch.uint8)
VALUES = torch.zeros(2, 3, 9, 8)


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"labels": LABELS.long()}, "labels must be torch.uint8 or torch.int16 on cpu"),
        ({"labels": elsewhere(LABELS)}, "labels must be .* on meta"),
        ({"labels": LABELS[:1]}, r"labels \(1, 9, 8\), .* must be \(2, 9, 8\)"),
        ({"labels": LABELS.mT.contiguous().mT}, "labels .* and contiguous"),
        ({"values": VALUES.half()}, "values must be torch.float32"),
        ({"values": VALUES[:, :2]}, r"values \(2, 2, 9, 8\), .* must be \(2, 3, 9, 8\)"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs, told, on_host):
    network, image = make_network((9, 8))
    with pytest.raises(ValueError, match=told):
        cuda_engine.octree(image, network.automaton(), 0, **outputs)


@pytest.mark.parametrize("level", [0, 2])
def test_octrees_with_weights_unlike_the_image_are_refused(level, on_host):
    network, image = make_network((9, 8))
    network.levels[level].half()
    with pytest.raises(ValueError, match=f"but the image of level {level} is torch.float32"):
        cuda_engine.octree(image, network.automaton(), 0, labels=LABELS)


def test_images_and_parents_of_another_type_are_refused(on_host):
    network, image = make_network((9, 8))
    automaton = network.automaton()
    with pytest.raises(ValueError, match=r"image of level 0 must be torch\.float32 .*float64"):
        cuda_engine.octree(image.double(), automaton, 0, labels=LABELS)
    with pytest.raises(ValueError, match=r"the image of level 0, .* must have 3 channels"):
        cuda_engine.octree(image[:, :2], automaton, 0, labels=LABELS)
    part = Part(0, (0,), torch.zeros(1, 5, 4, 16).half(), 0)
    with pytest.raises(ValueError, match=r"the parents' state must be torch\.float32"):
        cuda_engine.octree_windows([image[:1]], automaton, 0, part)


# ------------------------------------------------------------------ addresses of vectors


def at_an_odd_address(tensor):
    """The same values in a contiguous view that begins 4 bytes after a multiple of 16."""
    flat = torch.empty(tensor.numel() + 8, dtype=tensor.dtype)
    first = (-flat.data_ptr() // 4) % 4 + 1
    view = flat[first : first + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    assert view.is_contiguous()
    assert view.data_ptr() % VECTOR_BYTES == 4 * bool(view.numel())
    return view


def test_what_is_aligned_is_not_copied():
    tensor = torch.rand(3, 5, 16)
    assert aligned(tensor).data_ptr() == tensor.data_ptr()
    odd = at_an_odd_address(tensor)
    copy = aligned(odd)
    assert copy.data_ptr() % VECTOR_BYTES == 0
    assert torch.equal(copy, tensor)
    assert aligned(torch.empty(0, 16)).shape == (0, 16)


@pytest.fixture
def addresses(monkeypatch):
    """Of what kernels load and store vectors at."""
    seen = []
    step, pack = cuda_level.LevelLaunches.forward, cuda_engine.arguments

    def record_step(self, source, target, *arguments, **options):
        seen.append(source.data_ptr())
        if not options.get("label_bytes"):
            seen.append(target.data_ptr())
        step(self, source, target, *arguments, **options)

    def record(name, *values):
        if name == "BackwardArguments":
            seen.extend(values[-7:-3])  # trajectory, gradient, perceived, packed weights
        return pack(name, *values)

    monkeypatch.setattr(cuda_level.LevelLaunches, "forward", record_step)
    monkeypatch.setattr(cuda_engine, "arguments", record)
    return seen


@pytest.mark.parametrize("steps", [0, 2])
def test_views_at_odd_addresses_give_the_same_bits(steps, device, addresses):
    state, weights = make((4, 5), 16, 3, 64, 2)
    draws = FireDraws(0.5, 7, 0, [0] * 4)
    out, kept = cuda_engine.forward(state, weights, steps, draws, True, device=device)
    grad, grads = cuda_engine.backward(state, out, kept, weights, draws, device=device)
    odd_weights = StepWeights(*map(at_an_odd_address, weights))
    for keep in (True, False):
        odd = at_an_odd_address(state)
        found, _ = cuda_engine.forward(odd, odd_weights, steps, draws, keep, device=device)
        assert torch.equal(found, out)
        assert torch.equal(odd, state)
    odd_kept = at_an_odd_address(kept)
    found, founds = cuda_engine.backward(odd, odd, odd_kept, odd_weights, draws, device=device)
    assert torch.equal(found, grad)
    assert all(torch.equal(a, b) for a, b in zip(founds, grads, strict=True))
    assert len(addresses) == 14 * steps
    assert all(address % VECTOR_BYTES == 0 for address in addresses)


def test_a_parents_state_at_an_odd_address(on_host, addresses, monkeypatch):
    network, image = make_network((8, 8))
    automaton, parent = network.automaton(), torch.rand(1, 4, 4, 16)
    entered = []
    pack = cuda_level.arguments
    monkeypatch.setattr(
        "nnunet_octreenca.ops.cuda_octree.arguments",
        lambda name, *values: entered.append(values[-2]) or pack(name, *values),
    )
    results = [
        cuda_engine.octree_windows([image[:1]], automaton, 0, Part(0, (0,), above, 0))
        for above in (parent, at_an_odd_address(parent))
    ]
    assert torch.equal(*results)
    assert len(entered) == 2
    assert all(address % VECTOR_BYTES == 0 for address in entered)
