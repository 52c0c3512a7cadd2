"""Orders, thresholds and temperatures against closed forms and drawn data."""

import numpy as np
import pytest
import torch

from nnunet_octreenca.comparison.calibration import (
    Voxels,
    best_threshold,
    fit_temperatures,
    logits_of,
    rank_scores,
    reliability,
    risk_coverage,
)
from nnunet_octreenca.errors import InputError

DICE = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def test_a_perfect_order_is_the_best_and_the_reverse_the_worst():
    good = [1 - d for d in DICE]
    ranking = rank_scores({"nqm": good, "resilience": good}, DICE, 0.65)
    assert [result.name for result in ranking.scores] == ["nqm", "resilience"]
    first, last = ranking.scores
    assert first.aurc == pytest.approx(ranking.best)
    # 1 - Dice of the surest 1, 2, ... cases: 0.1, 0.15, 0.2, ...
    assert first.curve.tolist() == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert last.aurc == pytest.approx(np.mean([0.6, 0.55, 0.5, 0.45, 0.4, 0.35]))
    assert ranking.chance == pytest.approx(0.35)
    assert ranking.bad == 3
    assert first.threshold == pytest.approx(0.4)  # Dice 0.6 and below
    # Left out, the case of Dice 0.6 is judged by the others' threshold, 0.5, and is missed.
    assert (first.found, first.named) == (2, 2)


def test_resilience_is_turned():
    ranking = rank_scores({"resilience": DICE}, DICE, 0.65)
    assert ranking.scores[0].aurc == pytest.approx(ranking.best)
    assert ranking.scores[0].threshold == pytest.approx(0.6)


def test_equal_scores_are_no_order():
    risk = np.array([0.1, 0.5, 0.3])
    assert risk_coverage(np.zeros(3), risk).tolist() == pytest.approx([0.3] * 3)


def test_a_score_that_lacks_a_case_is_left_out():
    ranking = rank_scores({"nqm": DICE, "resilience": [None, *DICE[1:]]}, DICE, 0.65)
    assert [result.name for result in ranking.scores] == ["nqm"]
    with pytest.raises(InputError, match="no score"):
        rank_scores({"nqm": [None] * 6}, DICE, 0.65)
    with pytest.raises(InputError, match="4 validation cases are too few"):
        rank_scores({"nqm": DICE[:4]}, DICE[:4], 0.65)


@pytest.mark.parametrize("bad", [[False] * 3, [True] * 3])
def test_no_threshold_without_bad_and_good_cases(bad):
    assert best_threshold(np.arange(3.0), np.array(bad)) is None


def drawn(plain, count=60_000):
    """Voxels whose classes are as probable as their logits say."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 3, generator=generator)
    if plain:
        logits[:, 0] = 0
        truth = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0].numpy()
    else:
        truth = (torch.rand(count, 3, generator=generator) < logits.sigmoid()).numpy()
    return logits, truth


@pytest.mark.parametrize("plain", [True, False])
def test_temperatures_undo_what_logits_were_multiplied_by(plain):
    logits, truth = drawn(plain)
    factors = np.array([1.0, 3.0, 0.5], np.float32)
    voxels = Voxels(logits.numpy() * factors, truth)
    found = fit_temperatures(voxels)
    assert found == pytest.approx(factors.tolist(), rel=0.05)
    assert reliability(voxels, found).error < 0.01
    assert reliability(voxels, [1.0] * 3).error > 0.03


def test_a_class_without_voxels_keeps_its_logits():
    logits, truth = drawn(True, 2000)
    found = fit_temperatures(Voxels(logits.numpy(), np.minimum(truth, 1)))
    assert found[2] == 1


def test_reliability_counts_every_class():
    probable = np.array([[0.1, 0.9, 0.0], [0.45, 0.55, 0.0]], np.float32)
    found = reliability(Voxels(logits_of(probable, True), np.array([1, 0])), [1.0] * 3)
    assert found.counts.tolist() == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert found.said[5] == pytest.approx(0.55)
    assert found.there[[5, 9]].tolist() == [0, 1]
    assert found.error == pytest.approx((0.55 + 0.1) / 4)


@pytest.mark.parametrize("plain", [True, False])
def test_logits_come_back_from_probabilities(plain):
    logits, _ = drawn(plain, 500)
    probable = logits.softmax(1) if plain else logits.sigmoid()
    assert np.allclose(logits_of(probable.numpy(), plain), logits.numpy(), atol=1e-3)
