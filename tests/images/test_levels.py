from pathlib import Path

import pytest

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.levels import Level, choose_level, pyramid

PATH = Path("slide.svs")
LEVELS = pyramid([(4000, 8000), (1000, 2000), (250, 500)], (0.25, 0.25))


@pytest.mark.parametrize(
    ("mpp", "index", "factor"),
    [
        (None, 0, None),
        (0.25, 0, None),
        (0.26, 0, None),
        (0.2381, 0, None),  # 5 % coarser than asked for
        (0.27, 0, 1.08),
        (0.48, 0, 1.92),
        (0.99, 1, None),
        (1.04, 1, None),
        (2.0, 1, 2.0),
        (16.0, 2, 4.0),
    ],
)
def test_the_level_itself_within_5_percent_else_the_next_finer(mpp, index, factor):
    chosen, found = choose_level(LEVELS, mpp, PATH)
    assert chosen == index
    assert found == (None if factor is None else pytest.approx((factor, factor)))


def test_an_axis_may_have_a_factor_of_its_own():
    levels = [Level((10, 10), (0.2, 0.3))]
    assert choose_level(levels, 0.6, PATH) == (0, pytest.approx((3.0, 2.0)))


def test_a_finer_resolution_than_there_is_names_those_there_are():
    with pytest.raises(InputError, match=r"slide\.svs .* fine as 0\.12 .* have 0\.25, 1, 4$"):
        choose_level(LEVELS, 0.12, PATH)


def test_a_slide_without_resolution_is_named():
    with pytest.raises(InputError, match=r"slide\.svs does not say its resolution.*0\.5"):
        choose_level(pyramid([(10, 10)], None), 0.5, PATH)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan")])
def test_no_resolution_at_all(mpp):
    with pytest.raises(InputError, match="must be above 0"):
        choose_level(LEVELS, mpp, PATH)


def test_spacing_is_in_mm():
    assert LEVELS[1].spacing == (0.001, 0.001)
    assert Level((1, 1), None).spacing == (1.0, 1.0)
