"""Whole octrees in the C++ engine: the same bits as level by level, labels, lower precisions."""

import itertools

import pytest
import torch
from helpers.oracle import pad
from torch import nn
from torch.nn import functional

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import image_pyramid, level_shapes
from nnunet_octreenca.ops import cpu_engine, fire_mask
from nnunet_octreenca.ops.native import KERNELS_VARIABLE, cpu_module, cpu_module_problem
from nnunet_octreenca.planning import level_factors, level_steps

if cpu_module() is None:
    pytest.skip(f"the C++ module is not there: {cpu_module_problem()}", allow_module_level=True)
KERNELS = cpu_module().kernels()


# Of as many levels as there are: growing, equal, shrinking; no multiples of a vector among them.
UNEQUAL = (13, 20, 20, 35, 17, 9, 30)


def make(shape, n_in=1, classes=3, steps=None, **options):
    """A network with weights that change the state; of lists, a number for every level."""
    torch.manual_seed(0)
    factors = level_factors(shape)[: None if steps is None else len(steps) - 1]
    steps = steps or level_steps(level_shapes(shape, factors))
    if options.get("channels") is UNEQUAL:
        options["channels"] = UNEQUAL[: len(steps)]
    network = OctreeNCA(
        n_in, classes, dimension=len(shape), factors=factors, steps=steps, **options
    )
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.05)
    return network, torch.randn(1, n_in, *shape)


def run(network, image, seed=3, labels=False, **options):
    """One pass of the engine."""
    if labels:
        result = torch.empty(1, *image.shape[2:], dtype=torch.uint8)
        cpu_engine.octree(image, network.automaton(), seed, labels=result, **options)
    else:
        result = torch.empty(1, network.num_classes, *image.shape[2:])
        cpu_engine.octree(image, network.automaton(), seed, values=result, **options)
    return result


@pytest.fixture
def threads():
    """Set the number of threads; it is put back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SHAPES = [(200, 70), (37, 50), (131, 6), (1, 40), (40, 1), (7, 7), (1, 1)]
SHAPES += [(70, 9, 11), (24, 21, 25), (1, 9, 30), (9, 1, 30), (13, 12, 1), (1, 1, 1)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("n_in", "classes", "options"),
    [
        (3, 2, {}),
        (1, 4, {"channels": 20}),
        (2, 3, {"constant_background": False, "channels": 13, "hidden": 21}),
        (2, 3, {"channels": UNEQUAL}),
    ],
    ids=str,
)
def test_the_same_bits_as_level_by_level(
    shape, n_in, classes, options, kernels, monkeypatch, threads
):
    """Over threads (more than steps too) and schedules (with a ring and without)."""
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    network, image = make(shape, n_in, classes, **options)
    wanted = network(image.requires_grad_(), seed=3).detach()  # with gradients: level by level
    image = image.detach()
    for count, schedule in itertools.product((1, 2, 3, 24), ("auto", "wavefront", "sweep")):
        threads(count)
        assert torch.equal(run(network, image, schedule=schedule), wanted), (count, schedule)
    threads(2)
    with torch.no_grad():
        assert torch.equal(network(image, seed=3), wanted)
    assert wanted.any() or image[0, 0].numel() == 1
    if network.constant_background:
        for schedule in ("wavefront", "sweep"):
            found = run(network, image, labels=True, schedule=schedule)
            assert torch.equal(found, wanted.argmax(1).to(torch.uint8))
        assert torch.equal(network.segment(image, seed=3), wanted.argmax(1).to(torch.uint8))


def test_many_waves_side_by_side_change_no_bit(threads):
    """More threads than steps: the level is cut into bands that overlap by the steps."""
    torch.manual_seed(0)
    network = OctreeNCA(1, 2, dimension=2, factors=[[2, 2]], steps=[2, 3])
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.1)
    image = torch.randn(1, 1, 300, 40)
    results = []
    for count in (1, 8, 16):
        threads(count)
        results.append(run(network, image, schedule="wavefront"))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("layout", ["channels last", "every other pixel", "mirrored by hand"])
def test_the_image_is_read_where_it_lies(layout):
    network, image = make((30, 40), n_in=3)
    wanted = network.segment(image)
    if layout == "channels last":
        image = image.contiguous(memory_format=torch.channels_last)
    elif layout == "every other pixel":
        image = image.repeat_interleave(2, -1)[..., ::2]
    else:
        image = torch.from_numpy(image.numpy()[..., ::-1].copy()[..., ::-1].copy())
    assert torch.equal(network.segment(image), wanted)


def test_every_sample_has_its_own_draws():
    network, image = make((30, 40))
    pair = network.segment(image.expand(2, -1, -1, -1), seed=4)
    assert torch.equal(pair[0], network.segment(image, seed=4)[0])
    assert not torch.equal(pair[0], pair[1])


def test_many_classes_need_wider_labels():
    network, image = make((9, 8), classes=300, channels=304, hidden=16)
    labels = network.segment(image)
    assert labels.dtype == torch.int16
    assert torch.equal(labels, network(image).argmax(1).to(torch.int16))


def test_regions_have_no_single_label():
    network, image = make((9, 8), constant_background=False)
    with pytest.raises(ValueError, match="for regions"):
        network.segment(image)


def test_without_the_engine_labels_are_the_same(monkeypatch):
    network, image = make((30, 40))
    ours = network.segment(image)
    monkeypatch.setenv("OCTREENCA_ENGINE", "torch")
    assert (network.segment(image) == ours).float().mean() > 0.999
    with pytest.raises(ValueError, match=r"need the C\+\+ engine"):
        network.segment(image, multiply="bfloat16")


def test_a_precision_that_is_not_there_is_named():
    network, image = make((9, 8))
    with pytest.raises(ValueError, match="multiply is 'float8'; it can be 'float32' or 'bfloat16'"):
        network.segment(image, multiply="float8")
    with pytest.raises(ValueError, match="state is 'bfloat16'; it can be 'float32' or 'float16'"):
        network.segment(image, state="bfloat16")


def test_the_environment_chooses_the_precision(monkeypatch):
    """Which is how nnU-Net's own commands are told."""
    network, image = make((30, 40), steps=[3, 2])
    with torch.no_grad():
        exact = network(image)
        monkeypatch.setenv("OCTREENCA_STATE", "float16")
        half = network(image)
        assert torch.equal(half, run(network, image, seed=0, state="float16"))
        assert not torch.equal(half, exact)
        assert torch.equal(run(network, image, seed=0, state="float32"), exact)
        monkeypatch.setenv("OCTREENCA_STATE", "int8")
        with pytest.raises(EnvironmentMismatchError, match="OCTREENCA_STATE is 'int8'"):
            network(image)


# ---------------------------------------------------------------------- lower precisions


def rounded(tensor):
    """To bfloat16 and back."""
    return tensor.bfloat16().float()


def one_step(state, weights, seed, level, step, multiply, keep):
    """A step with rounded operands: what goes into a product is bfloat16, sums are float32."""
    n_in = weights.input_channels
    convolve = functional.conv2d if weights.dimension == 2 else functional.conv3d
    perceived = convolve(pad(state), weights.perceive_weight[:, None], groups=weights.channels)
    inputs = torch.cat([state, perceived], 1).movedim(1, -1)
    bias = weights.hidden_bias + (
        weights.hidden_weight[:, weights.channels :] @ weights.perceive_bias
    )
    hidden = torch.relu(multiply(inputs) @ multiply(weights.hidden_weight).T + bias)
    update = (multiply(hidden) @ multiply(weights.update_weight).T).movedim(-1, 1)
    fired = fire_mask(state.shape[2:], fire_rate=0.5, seed=seed, level=level, step=step)
    new = keep(state[:, n_in:] + update * fired)
    return torch.cat([state[:, :n_in], new], 1)


def reference(network, image, seed, multiply=lambda t: t, keep=lambda t: t):
    """The octree with rounded products or a rounded state; maps between levels are in float."""
    from nnunet_octreenca.octree import upsample

    state = None
    pyramid = image_pyramid(image, network.factors)
    for level in reversed(range(len(network.steps))):
        here = keep(pyramid[level])
        if state is None:
            rest = here.new_zeros(
                1, network.level_channels[level] - network.input_channels, *here.shape[2:]
            )
        else:
            rest = state[:, network.input_channels :]
            matrix = network.automaton().from_parent[level]
            if matrix is not None:
                rest = keep(torch.einsum("oi,ni...->no...", matrix, rest))
            rest = upsample(rest, network.factors[level], here.shape[2:])
        state = torch.cat([here, rest], 1)
        for step in range(network.steps[level]):
            weights = network.levels[level].weights()
            state = one_step(state, weights, seed, level, step, multiply, keep)
    return state[:, network.input_channels : network.input_channels + network.logits]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("shape", "options"), [
    ((45, 52), {}), ((14, 15, 16), {}), ((20, 21), {"channels": 13, "hidden": 19}),
    ((20, 21), {"channels": UNEQUAL}),
])  # fmt: skip
@torch.no_grad()
def test_bfloat16_products(shape, options, kernels, monkeypatch):
    """Emulated where the processor has none: the same packing, the same micro-kernel."""
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    network, image = make(shape, steps=[3, 2], **options)
    exact = run(network, image)[:, 1:]
    result = run(network, image, multiply="bfloat16", emulate=True)[:, 1:]
    wanted = reference(network, image, 3, multiply=rounded)
    scale = exact.abs().max()
    # Rounding differs where two sums differ in the last bit; it must not differ on the whole.
    assert (result - wanted).abs().mean() < 0.1 * (exact - wanted).abs().mean()
    assert 1e-5 * scale < (result - exact).abs().max() < 0.1 * scale
    assert torch.equal(result, run(network, image, multiply="bfloat16", emulate=True,
                                   schedule="sweep")[:, 1:])  # fmt: skip


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("channels", [16, UNEQUAL], ids=["16", "unequal"])
@pytest.mark.parametrize("shape", [(200, 52), (14, 15, 16)])
@torch.no_grad()
def test_states_in_float16(shape, channels, kernels, monkeypatch):
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    network, image = make(shape, steps=[3, 2], channels=channels)
    exact = run(network, image)[:, 1:]
    wanted = reference(network, image, 3, keep=lambda t: t.half().float())
    for schedule in ("wavefront", "sweep"):
        result = run(network, image, state="float16", schedule=schedule)[:, 1:]
        assert (result - wanted).abs().mean() < 0.1 * (exact - wanted).abs().mean()
    assert (result - exact).abs().max() < 0.05 * exact.abs().max()


def test_bfloat16_that_the_processor_has_not_is_said_once():
    network, image = make((9, 8))
    if cpu_module().native_bf16(KERNELS[0]):
        pytest.skip("this processor multiplies bfloat16")
    cpu_engine.warn_no_bf16.cache_clear()
    with pytest.warns(UserWarning, match="no such instruction: float32 is used"):
        labels = network.segment(image, multiply="bfloat16")
    assert torch.equal(labels, network.segment(image, multiply="bfloat16"))
    assert torch.equal(labels, network.segment(image))
