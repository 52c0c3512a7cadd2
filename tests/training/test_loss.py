"""The loss against its formula written out in numpy, sample by sample and label by label."""

import numpy as np
import pytest
import torch

from nnunet_octreenca.octree import Crop, windows
from nnunet_octreenca.training import SegmentationLoss

SMOOTH = 1e-5


def formula(logits, wanted, mask, dice_weight, batch_dice):
    """(2 - lambda) BCE + lambda (1 - Dice); logits, wanted (N, K, cells), mask (N, cells)."""
    p = 1 / (1 + np.exp(-logits))
    cross_entropy = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p))
    kept = np.broadcast_to(mask[:, None], p.shape)
    bce = cross_entropy[kept].mean() if kept.any() else 0.0
    quotients = []
    for k in range(p.shape[1]):
        groups = [range(len(p))] if batch_dice else [[n] for n in range(len(p))]
        for samples in groups:
            inside = mask[samples]
            a, b = p[samples, k][inside], wanted[samples, k][inside]
            quotients.append((2 * (a * b).sum() + SMOOTH) / (a.sum() + b.sum() + SMOOTH))
    return (2 - dice_weight) * bce + dice_weight * (1 - np.mean(quotients))


def random_heads(channels, spatial=(5, 6), batch=3, seed=0):
    return np.random.default_rng(seed).normal(scale=2, size=(batch, channels, *spatial))


def flat(array):
    return array.reshape(*array.shape[:2], -1)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dice_weight", [0, 0.5, 1, 2])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("foreground", [1, 3, 40])
@pytest.mark.parametrize("spatial", [(5, 6), (3, 4, 2)])
def test_label_maps(foreground, ignore, dice_weight, batch_dice, spatial):
    heads = random_heads(foreground + 1, spatial)
    draws = np.random.default_rng(1)
    target = draws.integers(0, foreground + 1 + ignore, size=(3, 1, *spatial))
    ignore_label = foreground + 1 if ignore else None
    loss = SegmentationLoss(
        ignore_label=ignore_label, dice_weight=dice_weight, batch_dice=batch_dice
    )
    # nnU-Net's data loader hands labels over as int16.
    result = loss(torch.from_numpy(heads).float(), torch.from_numpy(target).short())
    wanted = flat(np.concatenate([target == k for k in range(1, foreground + 1)], 1))
    mask = flat(target)[:, 0] != (foreground + 1 if ignore else -5)
    expected = formula(flat(heads)[:, 1:], wanted, mask, dice_weight, batch_dice)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("regions", [1, 3])
def test_regions(regions, ignore, batch_dice):
    """Regions overlap; what to ignore is the target's last channel."""
    heads = random_heads(regions)
    target = np.random.default_rng(2).random((3, regions + ignore, 5, 6)) < 0.4
    loss = SegmentationLoss(regions=True, ignore_label=7 if ignore else None, batch_dice=batch_dice)
    result = loss(torch.from_numpy(heads), torch.from_numpy(target))
    mask = ~flat(target)[:, -1] if ignore else np.ones((3, 30), bool)
    expected = formula(flat(heads), flat(target)[:, :regions], mask, 1.0, batch_dice)
    assert result.item() == pytest.approx(expected, rel=2e-6)


def averaged(values, counts, factors):
    """Means of blocks of cells, (N, K, rows, columns), each cell weighted by `counts`."""
    rows, columns = (-(-n // f) for n, f in zip(values.shape[2:], factors, strict=True))
    means = np.zeros((*values.shape[:2], rows, columns))
    parts = np.zeros((len(values), rows, columns))
    for row in range(rows):
        for column in range(columns):
            block = (
                slice(row * factors[0], (row + 1) * factors[0]),
                slice(column * factors[1], (column + 1) * factors[1]),
            )
            weight = counts[(slice(None), *block)]
            parts[:, row, column] = weight.mean((1, 2))
            total = (values[(..., *block)] * weight[:, None]).sum((2, 3))
            means[:, :, row, column] = total / np.maximum(weight.sum((1, 2)), 1e-9)[:, None]
    return means, parts


@pytest.mark.parametrize("crop", [None, Crop((4, 3), 1), Crop((3, 3), 2)])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_a_loss_on_every_level_takes_averaged_truth(regions, ignore, crop):
    """Weighted averages of the truth, level by level, in numpy; odd shapes, nested crops."""
    generator = np.random.default_rng(4)
    factors, context, weight = [(2, 2), (1, 2)], (7, 5), 0.4
    boxes = windows(context, factors, crop, [(0, 0), (3, 2)] if crop else [(0, 0)] * 2)
    heads = [generator.normal(size=(2, 3 - regions, *box.shape)) for box in boxes]
    labels = generator.integers(0, 3 + ignore, size=(2, 1, *context))
    target = np.concatenate([labels == k for k in (1, 2, 3)[: 2 + ignore]], 1)
    loss = SegmentationLoss(regions=regions, ignore_label=3 if ignore else None)
    result = loss.on_levels(
        [torch.from_numpy(each) for each in heads],
        torch.from_numpy(target) if regions else torch.from_numpy(labels).short(),
        boxes,
        factors,
        weight,
    )
    wanted = target[:, :2].astype(float)
    counts = (labels[:, 0] != 3).astype(float)
    total = 0.0
    for level, (logits, box) in enumerate(zip(heads, boxes, strict=True)):
        if level:
            wanted, counts = averaged(wanted, counts, factors[level - 1])
        own = [
            (slice(None), *(slice(o, o + n) for o, n in zip(origin, box.shape, strict=True)))
            for origin in box.origins
        ]
        truth = np.stack([wanted[sample][at] for sample, at in enumerate(own)])
        mask = np.stack([counts[sample][at[1:]] for sample, at in enumerate(own)])
        total += weight**level * soft_formula(logits[:, 0 if regions else 1 :], truth, mask)
    assert result.item() == pytest.approx(total / (1 + weight + weight**2), rel=3e-6)


def soft_formula(logits, truth, mask):
    """`formula` for truth and masks between 0 and 1, lambda 1."""
    p = 1 / (1 + np.exp(-logits))
    cross_entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)) * mask[:, None]
    bce = cross_entropy.sum() / max(mask.sum() * p.shape[1], 1.0)
    overlap = (p * truth * mask[:, None]).sum((2, 3))
    both = ((p + truth) * mask[:, None]).sum((2, 3))
    return bce + 1 - ((2 * overlap + SMOOTH) / (both + SMOOTH)).mean()


def test_worked_example():
    """One logit 0 on two cells, one of them foreground: BCE ln 2, Dice 2 * 0.5 / (1 + 1)."""
    heads, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1, 0]]]])
    assert SegmentationLoss(dice_weight=0)(heads, target).item() == pytest.approx(2 * np.log(2))
    assert SegmentationLoss(dice_weight=2)(heads, target).item() == pytest.approx(1, abs=1e-5)
    assert SegmentationLoss()(heads, target).item() == pytest.approx(np.log(2) + 0.5, abs=1e-5)


def test_a_perfect_segmentation_costs_nothing():
    target = torch.tensor([[[[1, 0, 2, 2]]]])
    heads = torch.cat([torch.zeros(1, 1, 1, 4), (target == 1) * 200.0 - 100], 1)
    heads = torch.cat([heads, (target == 2) * 200.0 - 100], 1)
    assert SegmentationLoss()(heads, target).item() == pytest.approx(0, abs=1e-6)


def test_the_background_head_does_not_count():
    heads = torch.from_numpy(random_heads(3)).float().requires_grad_()
    target = torch.randint(0, 3, (3, 1, 5, 6))
    SegmentationLoss()(heads, target).backward()
    assert not heads.grad[:, 0].any()
    assert bool((heads.grad[:, 1:] != 0).all())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_with_everything_ignored_loss_and_gradients_are_0(regions, batch_dice):
    heads = torch.from_numpy(random_heads(3)).float().requires_grad_()
    loss = SegmentationLoss(regions=regions, ignore_label=3, batch_dice=batch_dice)
    target = torch.ones(3, 4, 5, 6, dtype=torch.bool) if regions else torch.full((3, 1, 5, 6), 3)
    result = loss(heads, target)
    result.backward()
    assert result.item() == pytest.approx(0, abs=1e-6)
    assert not heads.grad.any()


def test_ignored_cells_get_no_gradient_and_the_others_do():
    heads = torch.from_numpy(random_heads(3)).float().requires_grad_()
    target = torch.randint(0, 4, (3, 1, 5, 6))
    SegmentationLoss(ignore_label=3)(heads, target).backward()
    reached = (heads.grad[:, 1:] != 0).any(1, keepdim=True)
    assert torch.equal(reached, target != 3)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_heads_are_computed_in_float32(autocast):
    heads = torch.from_numpy(random_heads(3, (20, 20))).half()
    target = torch.randint(0, 3, (3, 1, 20, 20))
    expected = SegmentationLoss()(heads.float(), target)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = SegmentationLoss()(heads, target)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_extreme_logits_stay_finite():
    """BCE of a wrong logit of 1,000 is 1,000."""
    heads, target = torch.tensor([[[[0.0]], [[1000.0]]]]), torch.zeros(1, 1, 1, 1)
    assert SegmentationLoss(dice_weight=0)(heads, target).item() == 2000


def test_gradcheck():
    """In float64 the loss casts to float32: the gradient is compared with differences there."""
    heads = torch.from_numpy(random_heads(3, (2, 2), 2)).float().requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 3, 1, 1, 0]).view(2, 1, 2, 2)
    loss = SegmentationLoss(ignore_label=3, batch_dice=True)
    loss(heads, target).backward()
    wanted = flat(np.concatenate([target.numpy() == k for k in (1, 2)], 1))
    mask = flat(target.numpy())[:, 0] != 3

    def value(moved):
        return formula(flat(moved)[:, 1:], wanted, mask, 1.0, True)

    base = heads.detach().double().numpy()
    for index in np.ndindex(base.shape):
        up, down = base.copy(), base.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        slope = (value(up) - value(down)) / 2e-6
        assert heads.grad[index].item() == pytest.approx(slope, abs=1e-6)
