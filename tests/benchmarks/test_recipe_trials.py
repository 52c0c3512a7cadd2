"""Trials of recipes: each still takes a step of training, on other weights than it began with."""

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from recipe_trials import (
    SkeletonRecallLoss,
    Trial,
    TrialLoss,
    TrialNetwork,
    TrialTrainer,
    skeleton_tubes,
)
from recipes import RECIPES

from nnunet_octreenca.octree import Crop
from nnunet_octreenca.planning.settings import Settings
from nnunet_octreenca.training import SegmentationLoss

TRIALS = {
    name: trial
    for name, recipe in RECIPES.items()
    if "trial" in recipe and (trial := Trial(**recipe["trial"])).changes_network
}


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("cropped", [False, True])
def test_a_trial_teaches_every_parameter(name, cropped):
    torch.manual_seed(0)
    trial = TRIALS[name]
    network = TrialNetwork(
        1, 3, trial=trial, dimension=2, factors=[[2, 2]] * 2, steps=[4, 4, 4], channels=8
    )
    for level in network.levels:
        torch.nn.init.normal_(level.update.weight, std=0.1)  # zeros teach only themselves
    crops = trial.crops if cropped else 1
    loss = TrialLoss(trial, Settings(loss_on_levels=0.5), batch_dice=True)
    loss.network = [network]
    heads = network(
        torch.randn(2, 1, 16, 20),
        seed=1,
        crop=Crop((8, 8), 1) if cropped else None,
        origins=[(0, 0), (4, 6), (8, 12), (8, 0)][: 2 * crops] if cropped else None,
        every_level=True,
    )
    shapes = [tuple(logits.shape) for logits in heads]
    assert shapes[0] == ((2 * crops, 3, 8, 8) if cropped else (2, 3, 16, 20))
    assert shapes[1:] == [(2, 3, 8, 10), (2, 3, 4, 5)]
    loss(heads, torch.randint(0, 3, (2, 1, 16, 20))).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_contexts_are_turned_and_scaled_as_often_as_asked(monkeypatch):
    trainer = TrialTrainer.__new__(TrialTrainer)
    arguments = ((8, 16, 16), (-0.1, 0.1), None, (0, 1, 2), True)
    for turned, expected in ((None, 0.2), (0.7, 0.7)):
        monkeypatch.setattr(TrialTrainer, "trial", Trial(turned=turned))
        made = trainer.get_training_transforms(*arguments)
        (spatial,) = (each for each in made.transforms if isinstance(each, SpatialTransform))
        assert (spatial.p_rotation, spatial.p_scaling) == (expected, expected)
    (stock,) = (
        each
        for each in nnUNetTrainer.get_training_transforms(*arguments).transforms
        if isinstance(each, SpatialTransform)
    )
    assert stock.p_rotation == 0.2


def test_skeleton_recall_asks_for_thin_vessels():
    """A vessel three pixels wide counts as a whole, the rim of a disk not at all."""
    target = torch.zeros(1, 1, 40, 60)
    target[0, 0, 5:8, :] = 1
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    disk = (rows - 25) ** 2 + (columns - 30) ** 2 <= 12**2
    target[0, 0][disk] = 1
    tube = skeleton_tubes(target)[0, 0]
    assert tube[5:8, 3:-3].all()
    assert tube[disk].mean() < 0.6
    assert not tube[target[0, 0] == 0].any()

    plain = SegmentationLoss()
    logits = torch.zeros(1, 2, 40, 60, requires_grad=True)
    found = SkeletonRecallLoss(plain, 1.0)(logits, target)
    assert found.item() == pytest.approx(plain(logits, target).item() + 0.5)  # sigmoid(0)
    found.backward()
    assert logits.grad is not None
    blind = logits.detach().clone()
    blind[:, 1] = torch.where(tube > 0, -20.0, 20.0)
    assert SkeletonRecallLoss(plain, 1.0)(blind, target) > plain(blind, target) + 0.99


def test_updates_are_scaled_where_a_prediction_fires_more_often():
    """With steps whose update does not depend on the state, the expectation is met exactly."""
    trial = Trial(predict_fire_rate=1.0)
    network = TrialNetwork(
        1, 2, trial=trial, dimension=2, factors=[], steps=[6], channels=4, fire_rate=0.5
    ).eval()
    (level,) = network.levels
    with torch.no_grad():
        for parameter in level.parameters():
            parameter.zero_()
        level.hidden.bias.fill_(1.0)
        level.update.weight.fill_(0.25)
        units = level.update.weight.shape[1]
        logits = network(torch.randn(1, 1, 5, 7))
    assert torch.allclose(logits[:, 1], torch.full((1, 5, 7), 6 * 0.5 * 0.25 * units))
