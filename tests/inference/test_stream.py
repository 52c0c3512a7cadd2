"""Streams against one pass over the whole image in memory."""

import time
from itertools import pairwise
from threading import Event

import numpy as np
import pytest
import torch
from helpers.oracle import make_network
from helpers.streams import segmented

from nnunet_octreenca import OctreeNCA
from nnunet_octreenca.bands import Rows
from nnunet_octreenca.errors import WorkerError
from nnunet_octreenca.inference.stream import (
    WavefrontStream,
    WindowStream,
    open_stream,
    read_ahead,
    windows_of,
)
from nnunet_octreenca.ops.native import cpu_module
from nnunet_octreenca.planning import Output
from nnunet_octreenca.waiting import LIMIT_VARIABLE

needs_cpp = pytest.mark.skipif(cpu_module() is None, reason="the C++ engine is not built")
CASES = [  # shape, factors, steps
    ((131, 37), [[2, 2]] * 4, [10, 10, 10, 10, 20]),
    ((400, 7), [[2, 2]] * 3, [6, 5, 4, 9]),
    ((50, 33), [[2, 2]], [3, 7]),
    ((40, 20), [], [5]),
    ((61, 9), [[2, 2], [2, 2]], [0, 3, 2]),
    ((1, 9), [[2, 2], [2, 2]], [3, 0, 2]),
    ((67, 10, 13), [[2, 2, 2]] * 3, [6, 4, 3, 9]),
    ((40, 17, 9), [[1, 2, 2], [2, 2, 2]], [4, 5, 6]),
    ((30, 1, 6), [[2, 1, 2], [1, 2, 2]], [4, 5, 6]),
]
CHANNELS = [16, (13, 20, 20, 9, 30)]  # of all levels, or of each


def network_for(shape, factors, steps, classes=3, **options):
    torch.manual_seed(0)
    if isinstance(options.get("channels"), tuple):
        options["channels"] = options["channels"][: len(steps)]
    network = OctreeNCA(
        2, classes, dimension=len(shape), factors=factors, steps=steps, **options
    ).eval()
    for parameter in network.levels.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    return network.requires_grad_(False)


@needs_cpp
@pytest.mark.parametrize("state", ["float32", "float16"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("shape", "factors", "steps"), CASES)
def test_wave_gives_the_bits_of_one_pass(shape, factors, steps, channels, state):
    network = network_for(shape, factors, steps, channels=channels)
    image = torch.rand(1, 2, *shape)
    whole = network.segment(image, seed=5, state=state)[0].numpy()
    assert len(np.unique(whole)) > 1 or whole.size < 10
    for band_rows in (1, 24, 1000):
        stream = open_stream(network, shape, Output.LABELS, seed=5, state=state)
        assert isinstance(stream, WavefrontStream)
        assert np.array_equal(segmented(stream, image[0].numpy(), band_rows), whole)


@needs_cpp
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("shape", "factors", "steps"), CASES)
def test_wave_ranges_in_any_order(shape, factors, steps, threads):
    network = network_for(shape, factors, steps)
    image = torch.rand(1, 2, *shape)
    expected = network(image, seed=5)[0].numpy()
    end = shape[0]
    cuts = sorted({0, end // 3, end // 2, end})
    ranges = list(pairwise(cuts))[::-1]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stream = open_stream(network, shape, Output.LOGITS, seed=5)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(segmented(stream, image[0].numpy(), 24, ranges), expected)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("shape", "factors", "steps"), CASES)
def test_windows_give_the_logits_of_one_pass(shape, factors, steps, channels, monkeypatch):
    """PyTorch's products round differently with their sizes; everything else is the same."""
    monkeypatch.setenv("OCTREENCA_ENGINE", "torch")
    network = network_for(shape, factors, steps, channels=channels)
    image = torch.rand(1, 2, *shape)
    expected = network(image, seed=5)[0].numpy()
    for band_rows in (5, 24):
        stream = open_stream(network, shape, Output.LOGITS, seed=5)
        assert isinstance(stream, WindowStream)
        logits = segmented(stream, image[0].numpy(), band_rows)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    labels = segmented(open_stream(network, shape, Output.LABELS, seed=5), image[0].numpy(), 24)
    assert np.array_equal(labels, logits.argmax(0))


@pytest.mark.parametrize("engine", [pytest.param("cpu", marks=needs_cpp), "torch"])
def test_a_network_for_regions_gives_logits(engine, monkeypatch):
    monkeypatch.setenv("OCTREENCA_ENGINE", engine)
    network = network_for((40, 11), [[2, 2]], [3, 4], classes=2, constant_background=False)
    image = torch.rand(1, 2, 40, 11)
    with pytest.raises(ValueError, match="regions"):
        open_stream(network, (40, 11), Output.LABELS)
    stream = open_stream(network, (40, 11), Output.LOGITS)
    expected = network(image)[0].numpy()
    np.testing.assert_allclose(segmented(stream, image[0].numpy(), 8), expected, atol=1e-5)


def test_windows_hold_what_the_wanted_cells_come_from():
    """Level by level: every parent and every neighbour that a step could reach."""
    factors, steps = [(2, 2), (1, 2), (2, 2)], [3, 2, 4, 9]
    windows = windows_of(Rows(50, 60), (200, 9), factors, steps)
    wanted = Rows(50, 60)
    for window, count, (factor, _) in zip(windows, steps, factors, strict=False):
        assert window.first <= wanted.first - count
        assert window.end >= wanted.end + count
        assert window.first % factor == 0
        wanted = Rows(window.first // factor, -(-window.end // factor))


def test_reading_ends_where_it_fails():
    def read(first, end):
        if first == 2:
            raise OSError("damaged")
        return np.zeros((1, end - first))

    ranges = [Rows(0, 1), Rows(1, 2), Rows(2, 3), Rows(3, 4)]
    seen = []
    with pytest.raises(OSError, match="damaged"):
        seen.extend(band for band, _ in read_ahead(ranges, read))
    assert seen == ranges[:2]


def test_a_storage_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0.6")
    answer = Event()

    def read(first: int, end: int) -> np.ndarray:
        if first == 4:
            answer.wait()
        return np.zeros((1, end - first, 1), np.float32)

    begun = time.monotonic()
    with pytest.raises(WorkerError, match="rows 4 to 8 of the image could not be read"):
        list(read_ahead([Rows(0, 4), Rows(4, 8), Rows(8, 9)], read))
    assert time.monotonic() - begun < 60
    answer.set()


def test_reading_that_takes_its_time_is_waited_for(monkeypatch):
    """While this process computes, nothing hangs."""
    monkeypatch.setenv(LIMIT_VARIABLE, "0.6")

    def read(first: int, end: int) -> np.ndarray:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            np.zeros(1000).sum()
        return np.zeros((1, end - first, 1), np.float32)

    ((band, values),) = read_ahead([Rows(0, 4)], read)
    assert (band, values.shape) == (Rows(0, 4), (1, 4, 1))


@needs_cpp
def test_engine_refuses_calls_out_of_order():
    network, image = make_network((40, 9))
    engine = network.engine().octree_stream((40, 9), network.automaton(), 0)
    rows = image[0].numpy()
    with pytest.raises(ValueError, match="prepare"):
        engine.begin(0, 4)
    with pytest.raises(ValueError, match="in order"):
        engine.pool(rows[:, 4:8], 4)
    with pytest.raises(ValueError, match="multiples"):
        engine.pool(rows[:, :5], 0)
    with pytest.raises(ValueError, match="whole image"):
        engine.prepare()
    engine.pool(rows, 0)
    engine.prepare()
    assert engine.begin(0, 40) == (0, 40)
    with pytest.raises(ValueError, match="not the next"):
        engine.advance(rows[:, 8:], 8, None, None)
    with pytest.raises(ValueError, match="axes"):
        engine.advance(rows, 0, np.empty((3, 9), np.uint8), None)
    with pytest.raises(ValueError, match="no such rows"):
        engine.begin(4, 41)
