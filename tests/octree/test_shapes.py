import pytest

from nnunet_octreenca.octree import level_shapes, total_factors


@pytest.mark.parametrize(
    ("shape", "factors", "shapes"),
    [
        ((320, 320), [(2, 2)] * 4, [(320, 320), (160, 160), (80, 80), (40, 40), (20, 20)]),
        ((7, 9), [(2, 2)] * 3, [(7, 9), (4, 5), (2, 3), (1, 2)]),
        ((1, 1, 1), [(2, 2, 2)] * 2, [(1, 1, 1)] * 3),
        ((1, 5, 6), [(1, 2, 2), (2, 1, 2)], [(1, 5, 6), (1, 3, 3), (1, 3, 2)]),
        ((13,) * 3, [(1, 1, 1)], [(13,) * 3] * 2),
        ((4, 4), [], [(4, 4)]),
    ],
)
def test_a_level_has_the_ceiling_of_shape_over_factor(shape, factors, shapes):
    assert level_shapes(shape, factors) == shapes


@pytest.mark.parametrize(
    ("shape", "factors", "named"),
    [
        ((4, 0), [(2, 2)], r"\(4, 0\)"),
        ((4, 4), [(2, 3)], r"\[2, 3\]"),
        ((4, 4), [(0, 2)], r"\[0, 2\]"),
        ((4, 4), [(2, 2), (2, 2, 2)], r"2 axes, got \[2, 2, 2\]"),
    ],
)
def test_errors_name_the_values(shape, factors, named):
    with pytest.raises(ValueError, match=named):
        level_shapes(shape, factors)


@pytest.mark.parametrize(
    ("factors", "dimension", "total"),
    [
        ([], 2, (1, 1)),
        ([(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)], 3, (4, 16, 16)),
        ([(2, 1), (2, 2)], 2, (4, 2)),
    ],
)
def test_total_factors_are_the_product_of_the_rows(factors, dimension, total):
    assert total_factors(factors, dimension) == total


def test_total_factors_refuse_a_row_of_the_wrong_length():
    with pytest.raises(ValueError, match="shorter"):
        total_factors([(2, 2)], 3)
