"""Trials of recipes: each still takes a step of training, on other weights than it began with."""

import pytest
import torch
from recipe_trials import Trial, TrialLoss, TrialNetwork
from recipes import RECIPES

from nnunet_octreenca.octree import Crop
from nnunet_octreenca.planning.settings import Settings

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
