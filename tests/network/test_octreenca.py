"""OctreeNCA against its parts composed by hand, and the paper's figures."""

import io

import pytest
import torch
from torch import nn

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Crop, image_pyramid, upsample, windows
from nnunet_octreenca.ops import nca_steps


def make(n_in=1, classes=3, dimension=2, levels=3, steps=None, **options):
    """A network with weights that change the state."""
    torch.manual_seed(0)
    network = OctreeNCA(
        n_in,
        classes,
        dimension=dimension,
        factors=options.pop("factors", [(2,) * dimension] * (levels - 1)),
        steps=steps or [2] * (levels - 1) + [3],
        **options,
    )
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.05)
    return network


def composed(network, image, seed):
    """DESIGN section 1, "Levels" and "Output"."""
    n_in, logits = network.input_channels, network.logits
    pyramid = image_pyramid(image, network.factors)
    state = None
    for level in reversed(range(len(network.steps))):
        here = pyramid[level]
        if state is None:
            rest = here.new_zeros(len(here), network.level_channels[level] - n_in, *here.shape[2:])
        else:
            rest = upsample(state[:, n_in:], network.factors[level], here.shape[2:])
        nca = network.levels[level]
        state = nca_steps(
            torch.cat([here, rest], 1), nca.weights(), network.steps[level], 0.5, seed, level
        )
    learned = state[:, n_in : n_in + logits]
    if network.constant_background:
        return torch.cat([torch.zeros_like(learned[:, :1]), learned], 1)
    return learned


@pytest.mark.parametrize(
    ("dimension", "n_in", "parameters"), [(2, 3, 15_520), (3, 1, 17_600), (3, 3, 16_960)]
)
def test_parameter_counts_are_the_papers(dimension, n_in, parameters):
    network = OctreeNCA(
        n_in, 2, dimension=dimension, factors=[[2] * dimension] * 4, steps=[10] * 4 + [20]
    )
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_new_network_says_background_everywhere(dimension):
    network = OctreeNCA(1, 4, dimension=dimension, factors=[[2] * dimension], steps=[5, 5])
    logits = network(torch.randn(2, 1, *[9] * dimension))
    assert logits.shape == (2, 4, *[9] * dimension)
    assert not logits.any()
    assert not logits.argmax(1).any()


@pytest.mark.parametrize("spatial", [(16, 12), (37, 50), (13, 7), (1, 1), (1, 7), (2, 3), (5, 1)])
@pytest.mark.parametrize(
    ("n_in", "classes", "constant_background", "channels"),
    [(1, 2, True, 16), (5, 3, True, 16), (3, 1, False, 16), (1, 40, True, 48), (2, 40, False, 52)],
)
def test_forward_2d(spatial, n_in, classes, constant_background, channels):
    network = make(n_in, classes, constant_background=constant_background, channels=channels)
    image = torch.randn(2, n_in, *spatial)
    logits = network(image, seed=5)
    assert logits.shape == (2, classes, *spatial)
    assert torch.equal(logits, composed(network, image, 5))
    learned = logits[:, constant_background:]
    assert bool((learned.abs().amax((2, 3)) > 1e-4).all())
    if constant_background:
        assert not logits[:, 0].any()


@pytest.mark.parametrize(
    "spatial", [(8, 12, 8), (7, 11, 13), (1, 1, 1), (1, 7, 3), (2, 3, 5), (6, 1, 1), (17, 2, 1)]
)
@pytest.mark.parametrize(
    "factors", [[(2, 2, 2)] * 2, [(1, 2, 2), (2, 2, 1)], []], ids=["halved", "mixed", "one level"]
)
def test_forward_3d(spatial, factors):
    network = make(2, 3, dimension=3, factors=factors, levels=len(factors) + 1)
    image = torch.randn(2, 2, *spatial)
    assert torch.equal(network(image, seed=5), composed(network, image, 5))


def test_every_sample_is_computed_as_if_alone_but_for_its_draws():
    network = make(fire_rate=1.0)
    images = torch.randn(3, 1, 9, 10)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-6, atol=1e-6)


def test_the_seed_decides_the_bits():
    network, image = make(), torch.randn(1, 1, 19, 23)
    first = network(image, seed=1)
    assert torch.equal(network(image, seed=1), first)
    assert not torch.equal(network(image, seed=2), first)
    network.seed = 1
    assert torch.equal(network(image), first)
    network.eval()
    assert torch.equal(network(image), first), "one draw, in training and in inference"


def test_image_types_are_computed_in_float32_and_float64_stays():
    network, image = make(), torch.randn(1, 1, 9, 10).half()
    for dtype in (torch.float16, torch.bfloat16):
        low = image.to(dtype)
        assert network(low).dtype == torch.float32
        assert torch.equal(network(low), network(low.float()))
    precise = network.double()(image.double())
    assert precise.dtype == torch.float64
    torch.testing.assert_close(make()(image).double(), precise, rtol=1e-5, atol=1e-5)


def test_autocast_changes_nothing():
    network, image = make(), torch.randn(1, 1, 9, 10)
    plain = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(image), plain)


def test_state_dict_round_trip():
    network = make()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = OctreeNCA(1, 3, dimension=2, factors=[(2, 2)] * 2, steps=[2, 2, 3])
    other.load_state_dict(torch.load(file, weights_only=True))
    image = torch.randn(1, 1, 9, 10)
    assert torch.equal(other(image), network(image))


@pytest.mark.parametrize("spatial", [(16, 20), (13, 11)])
def test_a_crop_that_covers_the_whole_is_the_whole(spatial):
    network, image = make(), torch.randn(2, 1, *spatial)
    whole = network(image, seed=3)
    assert torch.equal(network(image, 3, Crop(spatial, 2), [(0, 0)] * 2), whole)
    assert torch.equal(network(image, 3, Crop((99, 99), 1), [(0, 0)] * 2), whole)


def test_a_crop_equals_windows_computed_level_by_level():
    """Each level: its window of the image beside the parents' window brought down."""
    network, image = make(levels=4, steps=[2, 2, 2, 3]), torch.randn(3, 1, 24, 27)
    crop, origins = Crop((8, 6), 2), [(0, 0), (16, 21), (7, 5)]
    result = network(image, 3, crop, origins)
    boxes = windows((24, 27), network.factors, crop, origins)
    pyramid = image_pyramid(image, network.factors)
    state = None
    for level in (3, 2, 1, 0):
        cells, at = boxes[level]
        here = torch.stack(
            [
                pyramid[level][s, :, y : y + cells[0], x : x + cells[1]]
                for s, (y, x) in enumerate(at)
            ]
        )
        rest = here.new_zeros(3, 15, *cells)
        for s in range(3 if state is not None else 0):
            above = boxes[level + 1].origins[s]
            for y in range(cells[0]):
                for x in range(cells[1]):
                    parent = (at[s][0] + y) // 2 - above[0], (at[s][1] + x) // 2 - above[1]
                    rest[s, :, y, x] = state[s, 1:, parent[0], parent[1]]
        state = nca_steps(
            torch.cat([here, rest], 1),
            network.levels[level].weights(),
            network.steps[level],
            0.5,
            3,
            level,
            origin=at,
        )
    assert result.shape == (3, 3, 8, 6)
    assert torch.equal(result[:, 1:], state[:, 1:3])


def test_a_crop_sees_the_whole_context_through_the_coarse_levels():
    network = make(levels=4, steps=[1, 1, 4, 4], fire_rate=1.0)
    image = torch.randn(1, 1, 32, 32, requires_grad=True)
    network(image, 0, Crop((4, 4), 2), [(0, 0)])[:, 1:].square().sum().backward()
    reached = image.grad[0, 0] != 0
    assert bool(reached[31, 31])
    assert bool(reached.all())
    # With everything on the finest levels alone, the far corner is out of reach.
    near = torch.randn(1, 1, 32, 32, requires_grad=True)
    make(levels=1, steps=[4], fire_rate=1.0)(near, 0, Crop((4, 4), 1), [(0, 0)])[
        :, 1:
    ].sum().backward()
    assert not near.grad[0, 0, 4:].any()


def test_gradients_reach_every_weight():
    network = make(fire_rate=1.0)
    network(torch.randn(2, 1, 9, 10))[:, 1:].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.slow
def test_compiled_equals_eager():
    network, image = make(), torch.randn(2, 1, 9, 10)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    eager, traced = network(image, seed=2), compiled(image, seed=2)
    assert torch.equal(eager, traced)
    expected = torch.autograd.grad(eager.square().sum(), network.parameters())
    for grad, wanted in zip(
        torch.autograd.grad(traced.square().sum(), network.parameters()), expected, strict=True
    ):
        # Without compilation, one call goes through all levels and adds up in another order.
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dimension", [2, 3])
def test_exported_equals_eager(dimension):
    network = make(dimension=dimension).eval()
    image = torch.randn(1, 1, *(9, 10, 7)[:dimension])
    exported = torch.export.export(network, (image,)).module()
    other = torch.randn_like(image)
    assert torch.equal(exported(other), network(other))


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1, 2, 8, 8), r"takes 3 channel\(s\) and 2 spatial axes.*\(1, 2, 8, 8\)"),
        ((1, 4, 8, 8), r"\(1, 4, 8, 8\)"),
        ((1, 3, 8, 8, 8), r"\(1, 3, 8, 8, 8\)"),
        ((3, 8, 8), r"\(3, 8, 8\)"),
    ],
)
def test_an_image_of_other_channels_or_axes_is_refused(shape, named):
    with pytest.raises(InputError, match=named):
        make(n_in=3)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dimension": 4}, r"dimension \(4\)"),
        ({"num_classes": 1}, r"logits \(0, of 1 classes\)"),
        ({"input_channels": 0}, r"input_channels \(0\)"),
        ({"hidden": 0}, r"hidden \(0\)"),
        ({"channels": 5}, r"channels \(5\) must hold 3 image channels and 3 logits"),
        ({"steps": [1, 1]}, r"steps \(\[1, 1\]\).*3 levels that 2 rows of factors"),
        ({"steps": [1, -1, 1]}, r"steps \(\[1, -1, 1\]\)"),
        ({"fire_rate": 1.1}, r"fire_rate \(1.1\)"),
        ({"factors": [(2, 2), (2, 2, 2)]}, "longer"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, named):
    good = {
        "input_channels": 3,
        "num_classes": 4,
        "dimension": 2,
        "factors": [(2, 2)] * 2,
        "steps": [1, 1, 1],
    }
    with pytest.raises(ValueError, match=named):
        OctreeNCA(**{**good, **arguments})


def test_print_shows_the_plan():
    text = repr(make(channels=20, levels=2, steps=[10, 17]))
    assert "channels=20, hidden=80, factors=((2, 2),), steps=(10, 17), fire_rate=0.5" in text


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("crop", [False, True])
def test_a_standardizing_network_is_a_plain_one_on_the_standardized_image(dimension, crop):
    """Forward and backward in float64, odd shapes; the image's own borders are no exception."""
    mean, std = [0.3, -2.0], [0.05, 30.0]
    options = {"n_in": 2, "dimension": dimension, "levels": 3}
    raw = make(**options, input_mean=mean, input_std=std).double()
    plain = make(**options).double()
    plain.load_state_dict(raw.state_dict())
    image = torch.randn(2, 2, *(9, 7, 1)[:dimension], dtype=torch.float64)
    scale, shift = (torch.tensor(x).double().view(2, *[1] * dimension) for x in (std, mean))
    box = {"crop": Crop((4,) * dimension, 1), "origins": [(1,) + (0,) * (dimension - 1)] * 2}
    results = []
    for network, given in ((plain, image), (raw, image * scale + shift)):
        logits = network(given, seed=3, **(box if crop else {}))
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in network.parameters())])
    for ours, wanted in zip(*results, strict=True):
        largest = wanted.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(ours / largest, wanted / largest, rtol=0, atol=1e-7)


def test_every_way_through_a_standardizing_network_agrees():
    """Training's pass, inference's and labels all see the same weights."""
    network = make(n_in=3, input_mean=[0.5] * 3, input_std=[0.1] * 3)
    image = torch.rand(1, 3, 37, 29)
    logits = network(image, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(network(image, seed=1), logits.detach(), rtol=0, atol=1e-4)
        labels = network.segment(image, seed=1)
    assert (labels == logits.argmax(1)).float().mean() > 0.999
    assert "input_mean" not in network.state_dict()


@pytest.mark.parametrize(
    "statistics",
    [
        {"input_mean": [0.5]},
        {"input_std": [0.5]},
        {"input_mean": [0.5, 0.5], "input_std": [1.0, 1.0]},
        {"input_mean": [0.5], "input_std": [0.0]},
        {"input_mean": [float("nan")], "input_std": [1.0]},
    ],
)
def test_statistics_that_do_not_fit_are_named(statistics):
    with pytest.raises(ValueError, match=r"input_mean .* input_std .* 1 image channels"):
        make(**statistics)
