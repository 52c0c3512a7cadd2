"""Statistics: published examples, SciPy's own results, closed forms, coverage."""

import numpy as np
import pytest

from nnunet_octreenca.comparison.statistics import Resamples, bca, holm, signed_rank

NAN = float("nan")
# Darwin's maize (Fisher, 1935): crossed minus self-fertilised plants, eighths of an inch.
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], float)


def alone(cases: int, **options) -> Resamples:
    return Resamples([str(number) for number in range(cases)], **options)


def test_interval_agrees_with_scipys_bca():
    from scipy.stats import bootstrap

    found = alone(15, count=20_000).interval(DARWIN)
    theirs = bootstrap(
        (DARWIN,), np.mean, n_resamples=20_000, method="BCa", random_state=1
    ).confidence_interval
    assert found.mean == DARWIN.mean()
    assert found.cases == 15
    assert found.low == pytest.approx(theirs.low, abs=0.6)
    assert found.high == pytest.approx(theirs.high, abs=0.6)


def test_bca_of_a_known_distribution():
    """Without bias and skew it is the percentile interval; with them, its formula."""
    from scipy.stats import norm

    even = np.linspace(-1, 1, 10_001)
    assert bca(0.0, even, np.array([-1.0, 1.0])) == pytest.approx((-0.95, 0.95), abs=1e-3)
    jackknife = np.array([0.0, 0.0, 0.0, 1.0])
    off = jackknife.mean() - jackknife
    a = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    bias = norm.ppf(0.6)
    ends = [norm.cdf(bias + (bias + z) / (1 - a * (bias + z))) for z in norm.ppf([0.025, 0.975])]
    expected = 2 * np.array(ends) - 1
    assert bca(0.2, even, jackknife) == pytest.approx(tuple(expected), abs=1e-3)


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    generator = np.random.default_rng(0)
    resamples = alone(30, count=1000)
    hits = 0
    for _ in range(400):
        found = resamples.interval(generator.standard_normal(30))
        hits += found.low <= 0 <= found.high
    assert 0.91 < hits / 400 < 0.97


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(9)
    assert alone(9).interval(values) == alone(9).interval(values)
    assert alone(9, seed=1).interval(values) != alone(9).interval(values)


def test_groups_are_drawn_together():
    """Ten copies of each of five patients' values: as uncertain as five cases, not as fifty."""
    values = np.array([0.1, 0.5, 0.9, 0.4, 0.8])
    groups = [name for name in "abcde" for _ in range(10)]
    grouped = Resamples(groups).interval(np.repeat(values, 10))
    apart = alone(50).interval(np.repeat(values, 10))
    five = alone(5).interval(values)
    assert grouped.mean == pytest.approx(five.mean)
    assert (grouped.low, grouped.high) == pytest.approx((five.low, five.high))
    assert grouped.high - grouped.low > 2 * (apart.high - apart.low)


def test_missing_values_are_left_out_as_nnunet_does():
    classes = np.array([[0.2, NAN, 0.6], [NAN, 1.0, 0.5]])
    found = alone(3).interval(classes)
    assert found.mean == np.mean([np.nanmean(classes[0]), np.nanmean(classes[1])])
    assert found.cases == 3
    nothing = alone(3).interval(np.full(3, NAN))
    assert nothing.cases == 0
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()
    single = alone(3).interval(np.array([NAN, 0.5, NAN]))
    assert (single.mean, single.cases) == (0.5, 1)
    assert np.isnan([single.low, single.high]).all()


def test_equal_values_have_an_interval_without_width():
    found = alone(4).interval(np.full(4, 0.7))
    assert (found.low, found.high) == (found.mean, found.mean)


def test_signed_rank_of_darwins_maize():
    """W = 24 of 15 pairs; p = 0.0413 (Rosner and others tabulate 25 as the 5 % point)."""
    assert signed_rank(DARWIN) == pytest.approx(0.04126, abs=1e-4)


def test_signed_rank_in_closed_form():
    """All differences of one sign: p = 2 / 2^n."""
    assert signed_rank(np.arange(1.0, 7.0)) == pytest.approx(2 / 2**6)
    assert signed_rank(np.arange(1.0, 11.0)) == pytest.approx(2 / 2**10)
    assert signed_rank(np.arange(1.0, 6.0)) is None
    assert signed_rank(np.zeros(8)) == 1
    assert signed_rank(np.array([1.0, 2, 3, 4, 5, 6, 0, 0])) == pytest.approx(2 / 2**6)


def test_signed_rank_with_ties_is_exact():
    """Against all 2^n signs; six equal differences have p = 2 / 2^6, not the normal 0.014."""
    from itertools import product

    from scipy.stats import rankdata

    assert signed_rank(np.full(6, 0.25)) == pytest.approx(2 / 2**6)
    assert signed_rank(1e6 * np.full(6, 0.25) + 1e-7 * np.arange(6)) == pytest.approx(2 / 2**6)
    generator = np.random.default_rng(0)
    for count in (6, 8, 10):
        values = generator.integers(-3, 5, count).astype(float)
        values[values == 0] = 1
        ranks = rankdata(np.abs(values))
        sums = np.array([np.dot(signs, ranks) for signs in product((0, 1), repeat=count)])
        middle = ranks.sum() / 2
        far = abs(ranks[values > 0].sum() - middle)
        assert signed_rank(values) == pytest.approx((np.abs(sums - middle) >= far - 1e-9).mean())


def test_signed_rank_is_scipys_without_ties():
    from scipy.stats import wilcoxon

    generator = np.random.default_rng(0)
    for count in (12, 40, 150, 250):
        values = generator.standard_normal(count) + 0.15
        method = "exact" if count <= 200 else "approx"
        expected = wilcoxon(values, method=method).pvalue
        assert signed_rank(values) == pytest.approx(expected, rel=1e-6)


def test_holms_published_example():
    """Wright (1992): 0.01, 0.02, 0.03, 0.04 of four tests."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None, 0.02]) == [None, 0.02]


def test_a_paired_comparison():
    first = np.array([0.9, 0.8, 0.7, NAN, 0.6, 0.5, 0.3])
    second = np.array([0.8, 0.7, 0.6, 0.5, 0.6, 0.7, NAN])
    found = alone(7).compare(first, second)
    assert (found.wins, found.ties, found.losses) == (3, 1, 1)
    assert found.difference.mean == pytest.approx((0.1 * 3 + 0 - 0.2) / 5)
    assert found.difference.cases == found.groups == 5
    assert found.p is None  # five pairs cannot tell


def test_differences_by_rounding_are_ties():
    first = np.array([0.1 + 0.2] * 6)
    found = alone(6).compare(first, np.array([0.3] * 6))
    assert found.ties == 6
    assert found.p == 1


def test_tests_count_groups_not_cases():
    """Twelve cases of three patients cannot tell either."""
    groups = [name for name in "abc" for _ in range(4)]
    first = np.linspace(0.5, 0.9, 12)
    found = Resamples(groups).compare(first, first - 0.1 * np.arange(1, 13))
    assert (found.groups, found.p) == (3, None)
    assert found.difference.cases == 12


def test_ranks_of_methods_that_always_order_alike():
    base = np.random.default_rng(0).random(12)
    found = alone(12).rank_stability([base, base + 0.2, base - 0.2], higher_is_better=True)
    assert found.ranks == (2, 1, 3)
    assert found.frequencies.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert found.kendall == 1
    assert alone(12).rank_stability([base, base + 1], higher_is_better=False).ranks == (1, 2)


def test_ranks_of_two_methods_in_closed_form():
    """One of two cases is won: a resample holds case 1 twice, both, or case 2 twice: 1/4, 1/2, 1/4.

    In the middle they tie, and both are first.
    """
    found = alone(2, count=50_000).rank_stability(
        [np.array([1.0, 0.0]), np.array([0.0, 1.0])], higher_is_better=True
    )
    assert found.ranks == (1, 1)
    assert found.frequencies == pytest.approx(np.array([[0.75, 0.25], [0.75, 0.25]]), abs=0.01)


def test_kendalls_tau_is_scipys():
    from scipy.stats import kendalltau

    from nnunet_octreenca.comparison.statistics import _kendall

    generator = np.random.default_rng(0)
    ranks = np.array([1, 2, 2, 4, 5])
    for _ in range(20):
        other = generator.integers(1, 6, 5)
        if np.ptp(other):
            assert _kendall(ranks, other[:, None]) == pytest.approx(
                kendalltau(ranks, other).statistic
            )


def test_a_method_without_values_ranks_last():
    found = alone(3).rank_stability([np.full(3, NAN), np.ones(3)], higher_is_better=True)
    assert found.ranks == (2, 1)
