"""The trainer in one process: steps, average, schedule, checkpoints, errors."""

import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch

from nnunet_octreenca.errors import CheckpointError, PlansError, TrainingError
from nnunet_octreenca.integration.trainer import AVERAGE, RAW_WEIGHTS
from nnunet_octreenca.integration.trainer_variants import EPOCHS, VARIANTS
from nnunet_octreenca.octree import window_shapes
from nnunet_octreenca.training.soap import SOAP

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "inner": 2}, "regions": [1, 2]}
IGNORED = {"labels": {"background": 0, "first": 1, "second": 2, "ignore": 3}}
BOTH = {
    "labels": {"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3},
    "regions": [1, 2],
}
FORTY = {"labels": {"background": 0, **{f"label {n}": n for n in range(1, 41)}}}


def train(trainer, batch, iterations: int) -> list[float]:
    return [float(trainer.train_step(batch(trainer))["loss"]) for _ in range(iterations)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        REGIONS,
        IGNORED,
        BOTH,
        {"channels": 5, "labels": {"background": 0, "only": 1}},
        {"shape": (17, 13)},
        {"shape": (1, 7, 3)},
        {"crop_shape": [4, 6, 5], "crop_levels": 1},
        FORTY | {"shape": (6, 7)},
    ],
    ids=["labels", "regions", "ignore", "both", "5 channels", "2-D", "thin", "crop", "40 labels"],
)
def test_loss_falls_on_one_batch(make_trainer, batch, options):
    """Thirty iterations on noise that can be learnt by heart lower the loss."""
    trainer = make_trainer(**options, num_epochs=20)
    trainer.initialize()
    losses = train(trainer, batch, 30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.01


def test_first_loss_is_that_of_an_undecided_network(make_trainer, batch):
    """All logits are 0: BCE is log 2, and Dice that of a probability of one half."""
    trainer = make_trainer()
    trainer.initialize()
    one = batch(trainer)
    wanted = torch.cat([one["target"] == 1, one["target"] == 2], 1).float().flatten(2).sum(2)
    cells = math.prod(trainer.configuration_manager.patch_size)
    dice = ((2 * 0.5 * wanted + 1e-5) / (0.5 * cells + wanted + 1e-5)).mean()
    expected = math.log(2) + 1 - float(dice)
    assert float(trainer.train_step(one)["loss"]) == pytest.approx(expected, abs=1e-5)


def test_the_plans_recipe_is_trained(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    assert isinstance(trainer.optimizer, SOAP)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (4e-3, (0.9, 0.99))
    assert (trainer.average.decay, trainer.loss.dice_weight) == (0.99, 1.0)
    assert trainer.probabilistic_oversampling == (trainer.configuration_manager.batch_size == 1)


def test_same_seed_same_training_other_seed_other(make_trainer, batch):
    def weights(seed: int) -> torch.Tensor:
        trainer = make_trainer(seed=seed)
        trainer.initialize()
        train(trainer, batch, 3)
        return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_contexts_are_shifted_with_their_truth(make_trainer, batch):
    """By another offset in every iteration, the same ones in another process."""

    def trained_on(shift):
        trainer, seen = make_trainer(shift=shift, crop_shape=None, crop_levels=0), []
        trainer.initialize()
        loss = trainer._training_loss

        def watched(data, target, *others):
            seen.append((data.clone(), target.clone()))
            return loss(data, target, *others)

        trainer._training_loss = watched
        given = batch(trainer)
        given["target"] = (given["data"][:, :1] > 0).to(given["target"].dtype)
        for _ in range(5):
            trainer.train_step(given)
        return given["data"], seen

    data, seen = trained_on(0.3)
    assert len({image.numpy().tobytes() for image, _ in seen}) > 2
    for image, truth in seen:
        assert torch.equal((image[:, :1] > 0).to(truth.dtype), truth)
        assert 0.3 * data.count_nonzero() < image.count_nonzero() <= data.count_nonzero()
    assert all(torch.equal(*pair) for pair in zip(seen[3], trained_on(0.3)[1][3], strict=True))
    assert all(torch.equal(image, data) for image, _ in trained_on(0.0)[1])


def test_every_iteration_draws_anew(make_trainer, monkeypatch):
    """And every process: their number on one machine, the same on all of them, says nothing."""
    trainer = make_trainer()
    seeds = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for trainer.iteration in range(50):
        for rank in (0, 1):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            seeds.append(trainer._iteration_seed())
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.parametrize("schedule", ["poly", "exponential"])
def test_learning_rate_of_every_iteration(make_trainer, batch, schedule):
    trainer = make_trainer(lr_schedule=schedule, lr_decay=0.5, warm_up=0.0)
    trainer.initialize()
    rates = []
    for epoch in range(4):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(5):
            trainer.train_step(batch(trainer))
            rates.append(trainer.optimizer.param_groups[0]["lr"])
    if schedule == "poly":
        expected = [4e-3 * (1 - i / 20) ** 0.9 for i in range(20)]
    else:
        expected = [4e-3 * 0.5 ** (i // 5) for i in range(20)]
    assert rates == pytest.approx(expected)
    assert all(a >= b for a, b in pairwise(rates))


def test_average_is_validated_and_raw_weights_go_on(make_trainer, batch):
    trainer = make_trainer()
    trainer.initialize()
    trainer.on_train_epoch_start()
    train(trainer, batch, 5)
    raw = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.on_validation_epoch_start()
    carried = trainer.network.state_dict()
    for key, value in trainer.average.average.items():
        assert torch.equal(carried[key], value)
    assert any(not torch.equal(carried[key], raw[key]) for key in raw)
    trainer.on_train_epoch_start()
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, raw[key])


@pytest.mark.parametrize(("before", "now"), [("adam", "soap"), ("soap", "adam")])
def test_a_checkpoint_of_another_optimizer(make_trainer, batch, tmp_path, before, now):
    """Plans that were made again, as by an upgrade between a kill and `--c`."""
    trainer = make_trainer(optimizer=before)
    trainer.initialize()
    train(trainer, batch, 1)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    with pytest.raises(CheckpointError, match=f"no state of the plans' optimizer, '{now}'"):
        make_trainer(optimizer=now).load_checkpoint(str(tmp_path / "checkpoint.pth"))


def test_checkpoint_resumes_to_the_same_bits(make_trainer, batch, tmp_path):
    """Ten iterations equal five, a checkpoint, and five more in a new trainer."""
    whole = make_trainer()
    whole.initialize()
    train(whole, batch, 10)

    first = make_trainer()
    first.initialize()
    train(first, batch, 5)
    first.on_validation_epoch_start()  # saving while the network carries the average
    first.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    second = make_trainer()
    second.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert second.current_epoch == 1
    left = 15 / 20 / 0.95  # of what follows the warm-up
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(4e-3 * left**0.9)
    train(second, batch, 5)

    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key]), key
        assert torch.equal(whole.average.average[key], second.average.average[key]), key


def test_checkpoint_holds_the_average_as_network_weights(make_trainer, batch, tmp_path):
    trainer = make_trainer()
    trainer.initialize()
    train(trainer, batch, 3)
    path = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    checkpoint = torch.load(path, weights_only=False)
    for key, value in checkpoint["network_weights"].items():
        assert torch.equal(value, trainer.average.average[key])
        assert torch.equal(checkpoint[RAW_WEIGHTS][key], trainer.network.state_dict()[key])
    assert checkpoint["trainer_name"] == "OctreeNCATrainer"
    assert checkpoint[AVERAGE]["updates"] == 3


def test_interrupted_save_keeps_the_old_checkpoint(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    trainer.initialize()
    path = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*.tmp")] + [p.name for p in tmp_path.glob(".*")] == []


def test_non_finite_step_is_skipped_and_named(make_trainer, batch, capsys):
    trainer = make_trainer()
    trainer.initialize()
    train(trainer, batch, 2)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    bad = batch(trainer)
    bad["data"][0, 0, 0, 0, 0] = float("nan")
    assert math.isnan(float(trainer.train_step(bad)["loss"]))
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, before[key])
    assert trainer.average.updates == 2
    printed = capsys.readouterr().out
    assert "iteration 2 skipped" in printed
    assert "case_0, case_1" in printed
    assert math.isfinite(float(trainer.train_step(batch(trainer))["loss"]))
    assert trainer.skipped_in_a_row == 0


def test_training_stops_after_many_non_finite_steps(make_trainer, batch):
    trainer = make_trainer(max_skipped_steps=3)
    trainer.initialize()
    bad = batch(trainer)
    bad["data"][:] = float("inf")
    trainer.train_step(bad)
    trainer.train_step(bad)
    with pytest.raises(TrainingError, match=r"3 training steps in a row.*case_0"):
        trainer.train_step(bad)


def test_skipped_steps_do_not_spoil_the_logged_loss(make_trainer, batch):
    trainer = make_trainer()
    trainer.initialize()
    trainer.on_train_epoch_end(
        [{"loss": np.array(1.0)}, {"loss": np.array(np.nan)}, {"loss": np.array(3.0)}]
    )
    assert trainer.logger.get_value("train_losses", step=-1) == 2.0


@pytest.mark.parametrize("described", [IGNORED, BOTH], ids=["labels", "regions"])
def test_crops_are_not_drawn_to_what_is_ignored(make_trainer, described):
    """One annotated foreground cell among ignored ones is what every forced crop holds."""
    trainer = make_trainer(
        **described,
        crop_shape=[3, 3, 3],
        crop_levels=1,
        oversample_foreground_percent=1.0,
        loss_on_levels=0.0,  # whose loss takes what is cut
    )
    trainer.initialize()
    shape = trainer.configuration_manager.patch_size
    if trainer.label_manager.has_regions:
        target = torch.zeros(2, 3, *shape, dtype=torch.bool)
        target[:, 2] = True
        target[:, :, 1, 1, 1] = torch.tensor([True, False, False])
    else:
        target = torch.full((2, 1, *shape), 3, dtype=torch.int16)
        target[:, :, 1, 1, 1] = 2
    cropped = []
    loss = trainer.loss
    trainer.loss = lambda heads, part: cropped.append(part) or loss(heads, part)
    for trainer.iteration in range(5):
        trainer.train_step({"data": torch.zeros(2, 1, *shape), "target": target})
    annotated = [trainer._annotated(part) > 0 for part in cropped]
    assert all(part.flatten(1).any(1).all() for part in annotated)


@pytest.mark.parametrize(
    "options",
    [IGNORED, BOTH, {"crop_shape": [4, 6, 5], "crop_levels": 1}, {"crop_shape": None}],
    ids=["ignore", "regions", "crop", "whole"],
)
def test_every_level_is_taught(make_trainer, batch, options, monkeypatch):
    """The loss is of all levels' windows, against the truth of the whole context."""
    options = {"crop_shape": None, "crop_levels": 0, **options}
    trainer = make_trainer(**options, loss_on_levels=0.25)
    trainer.initialize()
    data, network = batch(trainer), trainer.bare_network
    calls = []
    on_levels = trainer.loss.on_levels
    monkeypatch.setattr(trainer.loss, "on_levels", lambda *given: calls.append(given) or
                        on_levels(*given))  # fmt: skip
    result = trainer.train_step(data)["loss"]
    [(heads, target, boxes, factors, weight)] = calls
    assert (target.shape, factors, weight) == (data["target"].shape, network.factors, 0.25)
    crop = trainer.settings.crop
    assert [tuple(each.shape[2:]) for each in heads] == [box.shape for box in boxes]
    assert [box.shape for box in boxes] == window_shapes(target.shape[2:], factors, crop)
    assert all(each.requires_grad for each in heads)
    assert float(on_levels([each.detach() for each in heads], target, boxes, factors, weight)) == (
        pytest.approx(float(result), rel=1e-6)
    )


def test_gradients_are_clipped(make_trainer, batch):
    trainer = make_trainer(gradient_clip=1e-4)
    trainer.initialize()
    trainer.train_step(batch(trainer))
    norm = torch.stack([p.grad.norm() for p in trainer.network.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-4, rel=1e-2)


def test_validation_step_counts_what_the_network_says(make_trainer, batch):
    """A network that says nothing has no true positives, and misses all foreground."""
    trainer = make_trainer()
    trainer.initialize()
    one = batch(trainer)
    with torch.no_grad():
        counted = trainer.validation_step({**one, "target": one["target"].clone()})
    assert counted["tp_hard"].tolist() == [0, 0]
    assert counted["fn_hard"].tolist() == [int((one["target"] == c).sum()) for c in (1, 2)]


def test_variants_train_as_long_as_they_say(make_trainer):
    assert len(VARIANTS) == len(EPOCHS)
    trainer = make_trainer(trainer="OctreeNCATrainer_5epochs")
    assert trainer.num_epochs == 5
    assert trainer.output_folder_base.endswith(
        "OctreeNCATrainer_5epochs__nnUNetOctreeNCAPlans__3d_fullres"
    )


def test_plans_of_another_network_are_refused(make_trainer, stock_plans, tmp_path):

    with pytest.raises(PlansError, match=r"PlainConvUNet, not OctreeNCA.*extend_plans"):
        make_trainer(plans=stock_plans((8, 12, 10)))
    assert not any((tmp_path / "results").iterdir())


def test_checkpoint_of_another_trainer_is_refused(make_trainer, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"trainer_name": "nnUNetTrainer", "network_weights": {}}, path)
    with pytest.raises(CheckpointError, match="written by nnUNetTrainer"):
        make_trainer().load_checkpoint(str(path))


def test_damaged_checkpoint_is_refused(make_trainer, tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth cannot be read"):
        make_trainer().load_checkpoint(str(path))


def test_checkpoint_of_other_plans_is_refused(make_trainer, tmp_path):
    path = tmp_path / "checkpoint.pth"
    small = make_trainer()
    small.initialize()
    small.save_checkpoint(str(path))
    with pytest.raises(CheckpointError, match="another network than the plans"):
        make_trainer(channels=2).load_checkpoint(str(path))


def test_no_more_threads_and_processes_than_may_run(make_trainer, monkeypatch):
    """nnU-Net takes as many threads as the machine has, whatever part of it this job has."""
    from nnunet_octreenca.integration import batches
    from nnunet_octreenca.integration import trainer as module

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr(module, "processors", lambda: 3)
        make_trainer()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(batches, "get_allowed_n_proc_DA", lambda: 12)
    monkeypatch.setattr(batches, "processors", lambda: 3)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    assert batches.batch_processes() == 3
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")  # the user's word
    assert batches.batch_processes() == 12
