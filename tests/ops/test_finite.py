"""Cells that are NaN or infinite are counted on every level, by every engine, and refused."""

import itertools

import numpy as np
import pytest
import torch
from helpers.lost_cells import by_pytorch
from helpers.oracle import make_network
from helpers.streams import segmented

from nnunet_octreenca.errors import InputError, NotFiniteError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.inference.ensemble import Ensemble
from nnunet_octreenca.inference.stream import open_stream
from nnunet_octreenca.ops import cpu_engine
from nnunet_octreenca.ops.finite import NonFiniteCells, sentence
from nnunet_octreenca.ops.native import KERNELS_VARIABLE, cpu_module
from nnunet_octreenca.planning import Output

BAD = (float("nan"), float("inf"), -float("inf"))
needs_module = pytest.mark.skipif(cpu_module() is None, reason="the C++ module is not there")
ENGINES = ["torch", pytest.param("cpu", marks=needs_module)]
KERNELS = cpu_module().kernels() if cpu_module() else []


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    monkeypatch.setenv("OCTREENCA_ENGINE", request.param)
    return request.param


def counted(network, image, seed=3, **options):
    """Numbers of every level by the C++ engine in one call."""
    cells = NonFiniteCells(len(network.steps))
    values = torch.empty(image.shape[0], network.num_classes, *image.shape[2:])
    cpu_engine.octree(image, network.automaton(), seed, values=values, non_finite=cells, **options)
    return cells.found.tolist(), cells.checked


# ------------------------------------------------------------------ counting


@needs_module
@pytest.mark.parametrize("state", ["float32", "float16"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shape", [(37, 50), (1, 3), (6, 9, 11)], ids=str)
def test_every_kind_of_bad_number_in_every_channel(shape, kernels, state, monkeypatch):
    """Without steps a state is its image: the numbers are known. 13 channels are padded."""
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    network, image = make_network(shape, n_in=9, steps=(0, 0), classes=2, channels=13, hidden=21)
    assert counted(network, image, state=state) == ([0, 0], [2 * n for n in cells_of(shape)])
    places = list(itertools.product(*(range(n) for n in shape)))[:: max(1, np.prod(shape) // 40)]
    parents = {tuple(at // 2 for at in place) for place in places}
    for number, place in enumerate(places):
        image[(1, number % 9, *place)] = BAD[number % 3]
    image[0, 2, ...] = 65504.0  # the largest there is in float16
    wanted = [len(places), len(parents)]
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert counted(network, image, state=state)[0] == wanted


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cells_of(shape):
    return [int(np.prod(shape)), int(np.prod([-(-n // 2) for n in shape]))]


@needs_module
@pytest.mark.parametrize("schedule", ["auto", "sweep", "wavefront"])
@pytest.mark.parametrize("shape", [(150, 20), (20, 21, 9)], ids=str)
def test_the_same_numbers_as_pytorch(shape, schedule):
    """What a lost cell spreads to, from level to level and step by step, in every order of work."""
    network, image = make_network(shape, steps=(5, 4, 3))
    image[1, 0, 7, 3] = float("nan")
    wanted = by_pytorch(network, image)
    assert all(0 < found < checked / 2 for found, checked in zip(*wanted, strict=True))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert counted(network, image, schedule=schedule) == wanted


def test_a_network_that_is_well_is_not_refused(engine):
    network, image = make_network((37, 50))
    image *= 1e30
    network.requires_grad_(False)
    assert torch.equal(network.segment(image), network.infer(image).argmax(1).to(torch.uint8))
    assert torch.equal(network.infer(image, 5), network(image, 5))


@pytest.mark.parametrize("band_rows", [4, 24, 1000])
@pytest.mark.parametrize("shape", [(61, 20), (23, 6, 5)], ids=str)
def test_margins_are_not_counted(shape, band_rows, engine):
    """A band's margin may be lost for want of neighbours; every needed cell is looked at once."""
    network, image = make_network(shape)
    stream = open_stream(network.requires_grad_(False), shape, Output.LABELS)
    segmented(stream, image[0].numpy(), band_rows)
    if engine == "cpu":
        found, checked = zip(*stream._engine.non_finite(), strict=True)
        wanted = [int(np.prod([-(-n // 2**level) for n in shape])) for level in range(3)]
        assert list(checked) == wanted
        assert sum(found) == 0
    else:
        assert stream._non_finite.found.sum() == 0
        assert stream._non_finite.checked[0] == np.prod(shape)


def test_the_share_that_is_said_is_right():
    text = sentence(2, 25, 200, [10, 10, 20, 7, 40], half=False)
    assert text.startswith(
        "12.5 % of the cells on level 2 (0 is the full resolution, 4 the coarsest) are NaN or "
        "infinite after 20 steps: no segmentation was written. Look for extreme values"
    )
    assert "float16" not in text
    assert "less than 0.001 %" in sentence(0, 1, 10**9, [3], half=True)
    assert "on level 0 are NaN" in sentence(0, 1, 10**9, [3], half=True)


# ------------------------------------------------------------------ faults


def times(network, factor):
    for weight in network.parameters():
        weight.data *= factor


def too_large(network, image):
    times(network, 100)


def twelve_digits(network, image):
    times(network, 10)
    network.steps = tuple(40 for _ in network.steps)


def a_thousand_steps(network, image):
    times(network, 1.5)
    network.steps = (1000, *network.steps[1:])


def bright(network, image):
    image *= 3e38 / image.abs().max()


FAULTS = [too_large, twelve_digits, a_thousand_steps, bright]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_on_every_path(fault, engine):
    network, image = make_network((40, 24))
    image = image[:1]
    fault(network, image)
    network.requires_grad_(False)
    source = ArraySource(image[0].numpy())
    words = r"% of the cells on level \d \(0 is the full .*: no segmentation was written"
    for run in (
        lambda: network.segment(image),
        lambda: network.infer(image),
        lambda: list(Ensemble([network], band_rows=8).segment(source)),
        lambda: list(Ensemble([network], band_rows=1000).segment(source)),
        lambda: list(Ensemble([network], band_rows=8).logits(source)),
        lambda: list(Ensemble([network], mirror_axes=(0, 1)).segment(source)),
    ):
        with pytest.raises(NotFiniteError, match=words):
            run()
    assert issubclass(NotFiniteError, InputError)
    assert not issubclass(NotFiniteError, RuntimeError)  # which nnU-Net would catch


@needs_module
def test_float16_is_named_as_the_way_out():
    network, image = make_network((40, 24))
    times(network, 3)
    network.requires_grad_(False)
    network.segment(image)
    source = ArraySource(image[0].numpy())
    for run in (
        lambda: network.segment(image, state="float16"),
        lambda: list(Ensemble([network], state="float16").segment(source)),
    ):
        with pytest.raises(NotFiniteError, match="float32 instead of float16"):
            run()


def coarse_only(network, image):
    """Level 1's average of the image overflows; level 0 and all labels stay as they should be."""
    image[:] = 1.0
    image[..., :2, :2] = 3e38
    with torch.no_grad():  # no hidden unit is ever above 0: nothing is updated
        for level in network.levels:
            level.perceive.weight.fill_(0.1)
            level.hidden.weight.fill_(-0.1)
            level.hidden.bias.fill_(-1.0)


def test_a_coarse_level_is_found_though_labels_look_fine(engine):
    network, image = make_network((40, 24), steps=(3, 2))
    coarse_only(network, image)
    network.requires_grad_(False)
    logits = network(image)
    assert torch.equal(logits, torch.zeros_like(logits))
    source = ArraySource(image[0].numpy())
    for run in (
        lambda: network.segment(image),
        lambda: network.infer(image),
        lambda: list(Ensemble([network], band_rows=8).segment(source)),
    ):
        with pytest.raises(NotFiniteError, match=r"on level 1 \(0 is the full.*after 2 steps"):
            run()


@needs_module
def test_finite_logits_whose_sum_is_not(monkeypatch):
    """The mean of several passes adds up what may be near the end of float32."""
    network, image = make_network((16, 16), steps=(1,), classes=2)
    with torch.no_grad():
        network.levels[0].update.weight.zero_()
    source = ArraySource(image[0].numpy())
    ensemble = Ensemble([network, network])
    taken = np.full((2, 16, 16), 3e38, np.float32)
    monkeypatch.setattr(
        "nnunet_octreenca.inference.passes.Pass.take", lambda *arguments: taken.copy()
    )
    with np.errstate(over="ignore"), pytest.raises(NotFiniteError, match="logits are not finite"):
        list(ensemble.segment(source))
