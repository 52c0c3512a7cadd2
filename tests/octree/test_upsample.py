from itertools import product

import pytest
import torch

from nnunet_octreenca.octree import upsample

CASES = [
    ((4, 6), (2, 2)),
    ((5, 7), (2, 2)),
    ((5, 6), (1, 2)),
    ((1, 1), (2, 2)),
    ((3, 5, 7), (2, 2, 2)),
    ((3, 5, 4), (1, 2, 1)),
]


def make_parent(shape, factor, batch=2):
    """Every parent has a value of its own."""
    coarse = [-(-n // f) for n, f in zip(shape, factor, strict=True)]
    size = torch.Size((batch, 3, *coarse))
    return torch.arange(size.numel(), dtype=torch.float32).view(size)


@pytest.mark.parametrize(("shape", "factor"), CASES)
def test_a_child_takes_the_parent_at_its_index_over_the_factor(shape, factor):
    parent = make_parent(shape, factor)
    child = upsample(parent, factor, shape)
    assert child.shape == (2, 3, *shape)
    for cell in product(*map(range, shape)):
        above = tuple(i // f for i, f in zip(cell, factor, strict=True))
        assert torch.equal(child[(..., *cell)], parent[(..., *above)])


@pytest.mark.parametrize(("shape", "factor"), CASES)
def test_a_crop_equals_the_same_crop_of_the_whole(shape, factor):
    parent = make_parent(shape, factor)
    whole = upsample(parent, factor, shape)
    for origin in product(*(range(n) for n in shape)):
        end = tuple(min(o + 3, n) for o, n in zip(origin, shape, strict=True))
        parent_origin = tuple(o // f for o, f in zip(origin, factor, strict=True))
        part = parent[
            (
                ...,
                *(
                    slice(p, (e - 1) // f + 1)
                    for p, e, f in zip(parent_origin, end, factor, strict=True)
                ),
            )
        ]
        size = tuple(e - o for o, e in zip(origin, end, strict=True))
        child = upsample(part, factor, size, origin, parent_origin)
        box = (..., *(slice(o, e) for o, e in zip(origin, end, strict=True)))
        assert torch.equal(child, whole[box])


def test_gradients_add_up_over_the_children():
    parent = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    upsample(parent, (2, 2), (3, 4)).sum().backward()
    assert parent.grad.tolist() == [[[[4.0, 4.0], [2.0, 2.0]]]]


@pytest.mark.parametrize(
    ("shape", "origin", "parent_origin", "named"),
    [
        ((4, 7), None, None, r"axis 1: cells 0 to 6 have parents 0 to 3, outside the 3"),
        ((2, 2), (0, 0), (1, 0), r"axis 0: cells 0 to 1 have parents -1 to -1"),
        ((2, 2), (0, 5), None, r"axis 1: cells 5 to 6 have parents 2 to 3"),
    ],
)
def test_errors_name_the_cells_and_the_parents(shape, origin, parent_origin, named):
    with pytest.raises(ValueError, match=named):
        upsample(torch.zeros(1, 1, 3, 3), (2, 2), shape, origin, parent_origin)
