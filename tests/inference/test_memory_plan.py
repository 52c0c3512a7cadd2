"""What is chosen for which memory."""

import pytest
from helpers.oracle import make_network

from nnunet_octreenca.errors import InputError, OutOfMemoryError
from nnunet_octreenca.inference import memory_plan
from nnunet_octreenca.inference.memory_plan import (
    GIB,
    Memory,
    memory_limit,
    parse_memory,
    plan_memory,
)
from nnunet_octreenca.ops import engine_named
from nnunet_octreenca.ops.native import cpu_module
from nnunet_octreenca.planning import stream_bytes

needs_cpp = pytest.mark.skipif(cpu_module() is None, reason="the C++ engine is not built")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4G", 4 << 30), ("512M", 512 << 20), ("2.5 GiB", int(2.5 * GIB)), ("1000", 1000),
     ("3kb", 3 << 10), ("1T", 1 << 40)],
)  # fmt: skip
def test_sizes(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-3G", "0G", "4X"])
def test_no_sizes(text):
    with pytest.raises(InputError, match="4G"):
        parse_memory(text)


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(memory_plan, "resident_memory", lambda: 0)
    return make_network((20, 20), steps=(5, 4, 4, 4, 6))[0]


def plan(network, shape, gib, **options):
    return plan_memory(network, shape, Memory(int(gib * GIB), 0, "--memory"), **options)


@needs_cpp
def test_a_small_image_is_taken_whole_and_a_large_one_in_bands(network):
    assert plan(network, (900, 900), 8).whole
    large = plan(network, (50_000, 20_000), 8)
    assert not large.whole
    assert large.band_rows % 16 == 0
    assert large.band_rows * 20_000 <= 4_000_000
    assert f"bands of {large.band_rows}" in large.sentence()
    assert "8.0 GiB, --memory" in large.sentence()


@needs_cpp
def test_what_is_held_for_each_row_of_a_band_makes_bands_smaller(network):
    alone = plan(network, (50_000, 20_000), 2)
    row = 1 << 24
    beside = plan(network, (50_000, 20_000), 2, beside_row=row)
    assert beside.band_rows < alone.band_rows
    rest = plan(network, (50_000, 20_000), 2, band_rows=beside.band_rows)
    assert beside.host == rest.host + beside.band_rows * row <= 2 * GIB


@needs_cpp
def test_less_memory_means_smaller_bands_and_at_last_an_error(network):
    roomy = plan(network, (50_000, 20_000), 8)
    needed = roomy.host / GIB
    tight = plan(network, (50_000, 20_000), needed * 0.8)
    assert tight.band_rows < roomy.band_rows
    assert tight.host <= needed * 0.8 * GIB
    with pytest.raises(OutOfMemoryError, match=r"50000 x 20000 cells needs .* bands of 16"):
        plan(network, (50_000, 20_000), 0.01)


@needs_cpp
def test_float16_is_never_taken_unasked_but_named(network):
    least = plan(network, (50_000, 20_000), 8, band_rows=16)
    half = plan(network, (50_000, 20_000), 8, band_rows=16, half=True)
    between = (least.host + half.host) / 2 / GIB
    with pytest.raises(OutOfMemoryError, match="--precision float16"):
        plan(network, (50_000, 20_000), between)
    assert plan(network, (50_000, 20_000), between, half=True).half


@needs_cpp
def test_what_lies_beside_counts(network):
    assert plan(network, (900, 900), 8, beside=GIB).host == plan(network, (900, 900), 8).host + GIB


def test_a_gpu_takes_the_whole_where_it_fits_else_the_largest_band(network, monkeypatch):
    monkeypatch.setattr(type(network), "engine", lambda self: engine_named("cuda"))
    large, shape = Memory(8 * GIB, 40 * GIB, "test"), (8_000, 8_000)
    assert plan_memory(network, shape, large).whole
    small = Memory(8 * GIB, 2 * GIB, "test")
    banded = plan_memory(network, shape, small)
    assert not banded.whole
    assert banded.device <= small.device
    assert "on the GPU" in banded.sentence()
    twice = stream_bytes(
        shape, factors=network.factors, steps=network.steps, channels=network.level_channels,
        hidden=network.level_hidden, input_channels=3, num_classes=3,
        band_rows=2 * banded.band_rows, engine="cuda",
    )  # fmt: skip
    assert twice.device > small.device
    with pytest.raises(OutOfMemoryError, match="of the GPU"):
        plan_memory(network, shape, Memory(8 * GIB, 1 << 20, "test"))


def test_without_a_limit_of_the_users_most_of_what_is_available_is_planned_with(monkeypatch):
    monkeypatch.setattr(memory_plan, "available_memory", lambda: (2 * GIB, "free memory"))
    monkeypatch.setattr(memory_plan, "resident_memory", lambda: GIB)
    assert memory_limit() == Memory(int(0.8 * 2 * GIB) + GIB, 0, "80% of free memory")
    assert memory_limit(5) == Memory(5, 0, "--memory")
    # More than there is counts as what there is: a container ends a process that takes more.
    monkeypatch.setattr(memory_plan, "total_memory", lambda: 4 * GIB)
    assert memory_limit(4 * GIB) == Memory(4 * GIB, 0, "--memory")
    assert memory_limit(9 * GIB).host == 4 * GIB
