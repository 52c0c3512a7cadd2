"""Contexts that are moved in training."""

import pytest
import torch

from nnunet_octreenca.training.shift import draw_offsets, moved


def test_every_offset_occurs_and_none_is_too_far():
    generator = torch.Generator().manual_seed(0)
    offsets = draw_offsets(2000, (10, 3, 24), 0.2, generator)
    assert {offset[0] for offset in offsets} == set(range(-2, 3))
    assert {offset[1] for offset in offsets} == {0}
    assert {offset[2] for offset in offsets} == set(range(-4, 5))
    assert draw_offsets(3, (8, 8), 0.0, generator) == [(0, 0)] * 3


def test_each_sample_is_moved_by_its_own():
    values = torch.arange(1, 17).view(2, 1, 2, 4)
    result = moved(values, [(0, -1), (1, 2)])
    assert result.tolist() == [
        [[[2, 3, 4, 0], [6, 7, 8, 0]]],
        [[[0, 0, 0, 0], [0, 0, 9, 10]]],
    ]


def test_what_leaves_the_context_comes_back_no_more():
    values = torch.ones(1, 3, 4, 5, dtype=torch.bool)
    assert moved(values, [(4, 0)]).sum() == moved(values, [(0, -5)]).sum() == 0
    assert moved(values, [(7, -9)]).sum() == 0
    assert moved(values, [(0, 0)]).equal(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bool])
def test_the_kind_of_values_stays(dtype):
    values = torch.ones(1, 2, 3, 4, 5).to(dtype)
    result = moved(values, [(1, 1, -1)])
    assert result.dtype == dtype
    assert result.sum() == 2 * 2 * 3 * 4
