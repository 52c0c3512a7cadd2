from itertools import product

import pytest

from nnunet_octreenca.octree import Crop, level_shapes, window_shapes, windows

FACTORS_3D = [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize(
    ("shape", "factors", "crop", "shapes"),
    [
        # The paper's crops (Table 1 and "Training").
        (
            (24, 320, 320),
            FACTORS_3D,
            Crop((6, 80, 80), 2),
            [(6, 80, 80), (6, 80, 80), (6, 80, 80), (6, 40, 40), (6, 20, 20)],
        ),
        (
            (80, 240, 432),
            [(2, 2, 2)] * 4,
            Crop((20, 60, 106), 2),
            [(20, 60, 106), (20, 60, 106), (20, 60, 108), (10, 30, 54), (5, 15, 27)],
        ),
        ((9, 8), [(2, 2)], None, [(9, 8), (5, 4)]),
        # A crop larger than a level is the level.
        ((9, 30), [(2, 2)] * 2, Crop((6, 100), 2), [(6, 30), (5, 15), (3, 8)]),
        ((9, 30), [(2, 2)] * 2, Crop((4, 4), 3), [(4, 4), (4, 4), (3, 4)]),
        ((9, 30), [(2, 2)] * 2, Crop((4, 4), 0), [(9, 30), (5, 15), (3, 8)]),
    ],
)
def test_window_shapes(shape, factors, crop, shapes):
    assert window_shapes(shape, factors, crop) == shapes


@pytest.mark.parametrize(
    ("shape", "factors", "crop"),
    [
        ((16, 16), [(2, 2)] * 3, Crop((4, 6), 2)),
        ((13, 17), [(2, 2)] * 3, Crop((5, 3), 3)),
        ((13, 17), [(1, 2), (2, 1)], Crop((1, 1), 3)),
        ((11, 6), [(2, 2)] * 2, Crop((2, 2), 2)),
        ((5, 7, 6), [(2, 2, 2), (1, 2, 2)], Crop((3, 4, 2), 2)),
    ],
)
def test_windows_hold_all_parents_and_stay_within_the_image(shape, factors, crop):
    whole = level_shapes(shape, factors)
    first = window_shapes(shape, factors, crop)[0]
    origins = list(product(*(range(n - c + 1) for n, c in zip(shape, first, strict=True))))
    boxes = windows(shape, factors, crop, origins)
    assert boxes[0].origins == tuple(origins)
    assert [box.shape for box in boxes] == window_shapes(shape, factors, crop)
    for level, box in enumerate(boxes):
        for sample, origin in enumerate(box.origins):
            for axis, o in enumerate(origin):
                end = o + box.shape[axis]
                assert o >= 0
                assert end <= whole[level][axis]
                if level:
                    factor = factors[level - 1][axis]
                    child, cells = boxes[level - 1].origins[sample][axis], boxes[level - 1].shape
                    assert o <= child // factor
                    assert (child + cells[axis] - 1) // factor < end


def test_windows_are_centred_on_the_parents_and_clamped_at_the_border():
    boxes = windows((64,) * 2, [(2, 2)], Crop((8, 8), 2), [(28, 28), (0, 56), (3, 40)])
    # Parents of 28..35 are 14..17: centred among eight they are 12..19.
    assert boxes[1].origins == ((12, 12), (0, 24), (0, 18))


def test_without_a_crop_every_window_is_its_level():
    boxes = windows((9, 8), [(2, 2)], None, [(3, 3), (0, 0)])
    assert [tuple(box) for box in boxes] == [
        ((9, 8), ((0, 0), (0, 0))),
        ((5, 4), ((0, 0), (0, 0))),
    ]


@pytest.mark.parametrize("origin", [(-1, 0), (0, 5)])
def test_a_crop_beyond_the_image_is_refused(origin):
    with pytest.raises(ValueError, match=rf"\(4, 4\) at \({origin[0]}, {origin[1]}\).*\(8, 8\)"):
        windows((8, 8), [(2, 2)], Crop((4, 4), 1), [(0, 0), origin])
