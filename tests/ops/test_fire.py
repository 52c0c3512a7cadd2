"""Fire draws against an implementation in Python integers, and their statistics."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from nnunet_octreenca.ops import fire_mask
from nnunet_octreenca.ops.fire import draw_key, fire_threshold
from nnunet_octreenca.ops.native import cpu_module, cpu_module_problem

M = 2**32


def lowbias32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D % M
    x = (x ^ (x >> 15)) * 0x846CA68B % M
    return x ^ (x >> 16)


def fold(words):
    key = 0
    for word in words:
        key = lowbias32(((key ^ (word % M)) + 0x9E3779B9) % M)
    return key


def reference(shape, rate, seed, level, step, sample, origin):
    """The draw cell by cell, all in Python integers."""
    flat_shape, flat_origin = (1, *shape)[-3:], (0, *origin)[-3:]
    fired = np.zeros(flat_shape, bool)
    for index in np.ndindex(flat_shape):
        z, y, x = (o + i for o, i in zip(flat_origin, index, strict=True))
        row = fold([seed % 2**64, seed % 2**64 >> 32, level, step, sample, z, y])
        stride = lowbias32((row + 0x9E3779B9) % M) | 1
        fired[index] = lowbias32((row + x * stride) % M) < round(rate * M)
    return torch.from_numpy(fired.reshape(shape))


needs_native = pytest.mark.skipif(
    cpu_module() is None, reason=f"the C++ module is not there: {cpu_module_problem()}"
)

BIG = 2**31 - 8  # coordinates up to the end of int32
CASES = [
    # shape, rate, seed, level, step, sample, origin
    ((5, 7), 0.5, 0, 0, 0, 0, (0, 0)),
    ((1, 1), 0.3, 1, 4, 9, 2, (3, 0)),
    ((1, 33), 0.7, 2**64 - 1, 3, 199, 7, (65_535, 65_531)),
    ((4, 3, 9), 0.5, 0xDEADBEEF_12345678, 2, 5, 1, (0, 0, 0)),
    ((2, 1, 17), 0.1, -3, 0, 1, 0, (17, 1_000_000, 12)),
    ((3, 4, 5), 0.9, 2**63, 1, 0, 1000, (2**20, 2**24 + 1, 2**30)),
    ((2, 3, 4), 0.5, 2**32, 1, 0, 0, (BIG, BIG, BIG)),
    ((6, 7), 1e-9, 5, 0, 0, 0, (0, 0)),
    ((6, 7), 1 - 1e-9, 5, 0, 0, 0, (0, 0)),
]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(case, native):
    shape, rate, seed, level, step, sample, origin = case
    return fire_mask(
        shape,
        fire_rate=rate,
        seed=seed,
        level=level,
        step=step,
        sample=sample,
        origin=origin,
        native=native,
    )


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_equal_python_integers(case, native):
    assert torch.equal(draw(case, native), reference(*case))


@needs_native
@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        # Over 65,536 cells: the native code starts its threads.
        ((301, 517), 0.5, 11, 0, 3, 0, (7, 11)),
        ((40, 56, 40), 0.3, 12, 1, 3, 2, (0, 5, 0)),
        ((1, 1, 70_001), 0.5, 13, 1, 3, 2, (0, 5, 0)),
        ((70_001, 1, 1), 0.5, 2**64 - 13, 1, 3, 2, (0, 5, 0)),
    ],
    ids=str,
)
def test_native_equals_torch_with_any_number_of_threads(case, threads):
    assert torch.equal(draw(case, native=True), draw(case, native=False))


# Frozen: a change here changes every segmentation ever made.
GOLDEN = {
    (0, 0, 0, 0): (0x7C111966, "0011001001111101000000110111000000101010"),
    (1, 0, 0, 0): (0x731DC69B, "1100010011110111100111010001011100010110"),
    (0, 1, 0, 0): (0x58FE238C, "1001001111110110100110110101000100001110"),
    (0, 0, 1, 0): (0x0233C9B4, "0110111001000110100001001000101011010001"),
    (0, 0, 0, 1): (0x70462934, "0100001110010000110011110000011001111101"),
    (2**63 + 12345, 3, 17, 2): (0x848B29A5, "1111011001100001110001100011010000000110"),
}


@pytest.mark.parametrize(("words", "golden"), GOLDEN.items(), ids=str)
def test_draws_are_those_of_the_first_version(words, golden):
    seed, level, step, sample = words
    key, bits = golden
    assert draw_key(seed, level, step, sample) == key
    assert key == fold([seed % 2**64, seed % 2**64 >> 32, level, step, sample])
    mask = draw(((2, 2, 10), 0.5, seed, level, step, sample, (0, 0, 0)), native=True)
    assert "".join(str(int(b)) for b in mask.flatten()) == bits


@pytest.mark.parametrize("native", [False, True])
def test_a_crop_draws_what_the_whole_draws_there(native):
    whole = draw(((9, 10, 11), 0.5, 3, 1, 2, 0, (100, 200, 300)), native)
    for origin in product((0, 3), (0, 1, 7), (0, 2, 5)):
        shape = tuple(min(4, n - o) for n, o in zip(whole.shape, origin, strict=True))
        crop = draw(
            (shape, 0.5, 3, 1, 2, 0, [o + 100 * (a + 1) for a, o in enumerate(origin)]), native
        )
        box = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
        assert torch.equal(crop, whole[box])


def test_2d_draws_are_the_plane_z_0():
    flat = draw(((6, 7), 0.5, 3, 1, 2, 4, (5, 6)), native=True)
    assert torch.equal(flat, draw(((1, 6, 7), 0.5, 3, 1, 2, 4, (0, 5, 6)), native=True)[0])


@pytest.mark.parametrize("native", [False, True])
def test_rates_0_and_1_are_certain(native):
    assert not draw(((50, 50), 0.0, 1, 0, 0, 0, (0, 0)), native).any()
    assert draw(((50, 50), 1.0, 1, 0, 0, 0, (0, 0)), native).all()


@pytest.mark.parametrize("shape", [(1000, 1000), (100, 100, 100)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_the_rate_is_kept(rate, shape):
    mask = draw((shape, rate, 42, 0, 0, 0, (0,) * len(shape)), native=True)
    n = mask.numel()
    assert abs(int(mask.sum()) - rate * n) < 4 * (rate * (1 - rate) * n) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_higher_rate_fires_the_same_cells_and_more(rate):
    """One 32-bit draw a cell, compared with a threshold."""
    low = draw(((200, 200), rate, 4, 0, 0, 0, (0, 0)), native=True)
    high = draw(((200, 200), rate + 0.2, 4, 0, 0, 0, (0, 0)), native=True)
    assert bool((high | ~low).all())


def correlation(a, b):
    """Pearson's r of two masks, in units of its standard deviation 1 / sqrt(n)."""
    a, b = a.double().flatten(), b.double().flatten()
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / (a.std() * b.std())) * a.numel() ** 0.5


@pytest.mark.parametrize("distance", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_neighbours_are_independent(rate, axis, distance):
    mask = draw(((100, 100, 100), rate, 42, 0, 0, 0, (0, 0, 0)), native=True)
    n = 100 - distance
    assert abs(correlation(mask.narrow(axis, 0, n), mask.narrow(axis, distance, n))) < 4


def test_diagonal_neighbours_are_independent():
    mask = draw(((1000, 1000), 0.5, 42, 0, 0, 0, (0, 0)), native=True)
    assert abs(correlation(mask[1:, 1:], mask[:-1, :-1])) < 4
    assert abs(correlation(mask[1:, :-1], mask[:-1, 1:])) < 4


@pytest.mark.parametrize("varied", ["seed", "seed's high half", "level", "step", "sample"])
def test_draws_of_other_seeds_levels_steps_and_samples_are_independent(varied):
    def mask(i):
        seed = i if varied == "seed" else i << 32 if varied == "seed's high half" else 0
        words = [seed, *(i if varied == word else 0 for word in ("level", "step", "sample"))]
        return draw(((300, 300), 0.5, *words, (0, 0)), native=True)

    masks = [mask(i) for i in (0, 1, 2, 3, 10)]
    for a, b in combinations(masks, 2):
        assert abs(correlation(a, b)) < 4


def test_coordinates_are_not_exchangeable():
    mask = draw(((500, 500), 0.5, 0, 0, 0, 0, (0, 0)), native=True)
    upper = torch.ones(500, 500, dtype=torch.bool).triu(1)
    assert abs(correlation(mask[upper], mask.t()[upper])) < 4


def test_no_row_is_a_shifted_copy_of_another():
    """Every shift of every pair of 64 rows agrees in about half of its cells."""
    rows = draw(((64, 1024), 0.5, 7, 0, 0, 0, (0, 0)), native=True).double() * 2 - 1
    spectrum = torch.fft.rfft(rows, 2048)
    for first in range(63):
        products = spectrum[first].conj() * spectrum[first + 1 :]
        agreement = torch.fft.irfft(products, 2048)
        # A copy would reach its overlap, at most 1024; chance has sigma below 32.
        assert float(agreement.abs().max()) < 6 * 32


def test_keys_are_distinct():
    keys = {
        draw_key(seed, level, step, sample)
        for seed, level, step, sample in product(
            (0, 1, 2**32, 2**63), range(6), range(25), range(4)
        )
    }
    assert len(keys) == 4 * 6 * 25 * 4


def test_a_seed_counts_with_its_low_64_bits():
    assert draw_key(-1, 0, 0, 0) == draw_key(2**64 - 1, 0, 0, 0)
    assert draw_key(5, 0, 0, 0) == draw_key(5 + 2**64, 0, 0, 0)
    assert draw_key(5, 0, 0, 0) != draw_key(5 + 2**32, 0, 0, 0)


@pytest.mark.parametrize(
    ("rate", "threshold"), [(0.0, 0), (0.5, 2**31), (1.0, 2**32), (0.25, 2**30), (1e-12, 0)]
)
def test_the_threshold_is_the_rate_of_all_32_bit_numbers(rate, threshold):
    assert fire_threshold(rate) == threshold


@pytest.mark.parametrize("rate", [-0.1, 1.0001, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match=rf"fire_rate \({rate}\) must be within \[0, 1\]"):
        fire_mask((2, 2), fire_rate=rate, seed=0, level=0, step=0)
