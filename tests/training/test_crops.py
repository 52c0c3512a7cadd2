import pytest
import torch

from nnunet_octreenca.training import crop_origins, cut


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("batch", "oversample", "forced"), [(3, 0.33, 1), (2, 0.5, 1), (4, 1.0, 4)]
)
def test_the_last_samples_crops_hold_foreground(batch, oversample, forced):
    """nnU-Net's rule: sample i is forced where i >= round(batch * (1 - oversample))."""
    target = torch.zeros(batch, 1, 40, 50)
    target[:, :, 3, 47] = 2  # in a corner, where a crop by chance hardly ever is
    target[:, :, 30, 5] = 1
    held = torch.zeros(batch)
    found = set()
    for seed in range(100):
        origins = crop_origins(target, (8, 6), oversample, generator(seed))
        crops = cut(target, (8, 6), origins)
        assert crops.shape == (batch, 1, 8, 6)
        held += (crops > 0).flatten(1).any(1)
        found |= set(crops[-1].unique().tolist())
    assert held[batch - forced :].tolist() == [100] * forced
    assert bool((held[: batch - forced] < 30).all())
    assert found == {0, 1, 2}, "every foreground cell can be drawn"


def test_a_single_samples_crop_holds_foreground_with_that_probability():
    target = torch.zeros(1, 1, 60, 70)
    target[0, 0, 3, 67] = 1
    held = 0
    for seed in range(600):
        crop = cut(target, (8, 6), crop_origins(target, (8, 6), 0.25, generator(seed)))
        held += int(crop.any())
    assert 0.2 < held / 600 < 0.32  # by chance some 2 % more


@pytest.mark.parametrize("regions", [False, True])
def test_a_rare_label_is_drawn_as_often_as_a_frequent_one(regions):
    target = torch.zeros(1, 1, 40, 50)
    target[:, :, 20:] = 1
    target[:, :, 3, 5:7] = 2
    if regions:
        target = torch.cat([target == 1, target == 2], 1)
    rare = sum(
        origin[0] < 10
        for seed in range(400)
        for origin in crop_origins(target, (8, 6), 1.0, generator(seed))
    )
    assert 150 < rare < 250


def test_a_foreground_cell_is_the_middle_as_far_as_the_context_allows():
    target = torch.zeros(3, 1, 40, 50)
    for sample, cell in enumerate([(20, 25), (1, 49), (39, 2)]):
        target[(sample, 0, *cell)] = 1
    assert crop_origins(target, (8, 6), 1.0, generator()) == [(16, 22), (0, 44), (32, 0)]


def test_background_and_what_nnunet_marks_with_minus_1_are_no_foreground():
    target = torch.zeros(1, 1, 1, 100)
    target[..., 50:] = -1
    origins = {crop_origins(target, (1, 10), 1.0, generator(seed))[0] for seed in range(400)}
    assert min(origins) == (0, 0)
    assert max(origins) == (0, 90)


def test_any_region_is_foreground():
    target = torch.zeros(1, 3, 40, 50, dtype=torch.bool)
    target[0, 2, 20, 25] = True
    assert crop_origins(target, (8, 6), 1.0, generator()) == [(16, 22)]


def test_the_draw_is_repeatable():
    target = (torch.rand(4, 1, 20, 30, 25, generator=generator(1)) > 0.99).float()

    def draw(seed):
        return crop_origins(target, (5, 6, 7), 0.5, generator(seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_without_oversampling_every_place_is_as_likely():
    """20,000 draws over 5 x 7 places: each count within 5 sigma of its expectation."""
    target = torch.ones(1000, 1, 8, 10)
    draws = generator(3)
    counts = torch.zeros(5, 7)
    for _ in range(20):
        for y, x in crop_origins(target, (4, 4), 0.0, draws):
            counts[y, x] += 1
    expected = 20_000 / 35
    assert float((counts - expected).abs().max()) < 5 * expected**0.5


@pytest.mark.parametrize("oversample", [0.0, 1.0])
def test_crops_stay_in_bounds_and_a_large_crop_is_the_whole_axis(oversample):
    target = (torch.rand(3, 1, 9, 1, 30, generator=generator(1)) > 0.9).float()
    for seed in range(50):
        origins = crop_origins(target, (4, 5, 100), oversample, generator(seed))
        for z, y, x in origins:
            assert 0 <= z <= 5
            assert (y, x) == (0, 0)
        assert cut(target, (4, 5, 100), origins).shape == (3, 1, 4, 1, 30)


def test_cut_takes_each_samples_box():
    target = torch.arange(2 * 2 * 6 * 7).view(2, 2, 6, 7)
    crops = cut(target, (2, 3), [(0, 4), (3, 1)])
    assert torch.equal(crops[0], target[0, :, 0:2, 4:7])
    assert torch.equal(crops[1], target[1, :, 3:5, 1:4])
