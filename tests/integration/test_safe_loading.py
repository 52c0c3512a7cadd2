"""Opening a model runs nothing in it, whichever of our commands or nnU-Net's opens it."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers.bombs import bomb
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import run_training
from PIL import Image
from untrained_model import model_folder

import nnunet_octreenca
from nnunet_octreenca.cli.demo_report import count_parameters
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import CheckpointError, PlansError
from nnunet_octreenca.integration import trainer as trainers
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.integration.time_budget import nnUNetTrainerTimeBudget

CHECKPOINT = "fold_0/checkpoint_final.pth"
REFUSED = r"asks for posix\.system, .* nothing of it was run"


@pytest.fixture
def marker(tmp_path):
    """A file that a checkpoint makes if it is run; the test fails if it is there at the end."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@pytest.fixture
def bombed(tmp_path, marker):
    """A model whose checkpoint is a bomb."""
    folder = model_folder(tmp_path / "model")
    (folder / CHECKPOINT).write_bytes(bomb("a call of os.system", marker))
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "image.png")
    return folder


def checkpoint_file(tmp_path, marker):
    path = tmp_path / "bomb.pth"
    path.write_bytes(bomb("a call of os.system", marker))
    return str(path)


# ------------------------------------------------------------------ our commands and functions


def test_command_predict(bombed, tmp_path, capsys):
    arguments = ["-m", str(bombed), "-i", str(tmp_path / "image.png"), "-o", str(tmp_path / "out")]
    assert main(["predict", *arguments, "-device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "asks for posix.system" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "opens",
    [
        lambda folder, image, out: load_model(folder),
        lambda folder, image, out: nnunet_octreenca.segment_file(image, folder),
        lambda folder, image, out: nnunet_octreenca.predict(image, out, folder),
        lambda folder, image, out: count_parameters(folder / CHECKPOINT),
    ],
    ids=["load_model", "segment_file", "predict", "the demo's report"],
)
def test_functions(opens, bombed, tmp_path):
    with pytest.raises(CheckpointError, match=REFUSED):
        opens(bombed, tmp_path / "image.png", tmp_path / "out")


# ------------------------------------------------------------------ trainers


def test_checkpoints_of_trainers_load_with_weights_only(make_trainer, batch, tmp_path):
    trainer = make_trainer()
    trainer.initialize()
    trainer.train_step(batch(trainer))
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)  # nnU-Net's own type
    trainer._best_ema = np.float64(0.25)
    path = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    saved = torch.load(path, weights_only=True)
    assert saved["_best_ema"] == 0.25
    assert saved["logging"]["mean_fg_dice"] == [0.5]
    assert saved["init_args"]["device"] == "cpu"
    assert saved["octreenca_versions"]["torch"] == torch.__version__

    second = make_trainer()
    second.load_checkpoint(str(path))
    assert second._best_ema == 0.25
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key])


def test_checkpoints_of_earlier_versions_resume(make_trainer, batch, tmp_path):
    """As they were written before: NumPy's scalars and a device among the data."""
    trainer = make_trainer()
    trainer.initialize()
    trainer.train_step(batch(trainer))
    path = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    old = torch.load(path, weights_only=True)
    old["_best_ema"] = np.float64(0.25)
    old["logging"]["train_losses"] = [np.float32(0.5)]
    old["init_args"]["device"] = torch.device("cpu")
    del old["octreenca_versions"]
    torch.save(old, path)
    second = make_trainer()
    second.load_checkpoint(str(path))
    assert second._best_ema == 0.25
    assert second.logger.get_value("train_losses", None) == [0.5]


def test_resuming_and_validating(make_trainer, tmp_path, marker):
    with pytest.raises(CheckpointError, match=REFUSED):
        make_trainer().load_checkpoint(checkpoint_file(tmp_path, marker))


def test_resuming_through_nnunets_function(make_trainer, tmp_path, marker):
    """What --c, --val and -pretrained_weights call."""
    for name, flags in (
        ("checkpoint_latest.pth", (True, False)),
        ("checkpoint_final.pth", (False, True)),
    ):
        trainer = make_trainer()
        shutil.copy(checkpoint_file(tmp_path, marker), f"{trainer.output_folder}/{name}")
        with pytest.raises(CheckpointError, match=REFUSED):
            run_training.maybe_load_checkpoint(trainer, *flags)
    with pytest.raises(CheckpointError, match=REFUSED):
        run_training.maybe_load_checkpoint(
            make_trainer(), False, False, checkpoint_file(tmp_path, marker)
        )


def test_pretrained_weights_are_loaded(make_trainer, batch, tmp_path):
    trainer = make_trainer()
    trainer.initialize()
    trainer.train_step(batch(trainer))
    path = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    second = make_trainer()
    run_training.maybe_load_checkpoint(second, False, False, str(path))
    for key, value in trainer.average.average.items():
        assert torch.equal(second.network.state_dict()[key], value)
    with pytest.raises(CheckpointError, match="holds no weights for the network"):
        run_training.maybe_load_checkpoint(make_trainer(channels=2), False, False, str(path))


def test_other_networks_pretrained_weights_are_nnunets(tmp_path):
    network = torch.nn.Linear(2, 2)
    weights = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    torch.save({"network_weights": weights, "other": {1, 2}}, tmp_path / "c.pth")
    run_training.load_pretrained_weights(network, str(tmp_path / "c.pth"))
    assert torch.equal(network.weight, torch.ones(2, 2))


def test_the_stock_trainer_with_a_time_budget(make_trainer, stock_plans, tmp_path, marker):
    make_trainer()  # makes the folders
    stock = nnUNetTrainerTimeBudget.__new__(nnUNetTrainerTimeBudget)
    stock.was_initialized = True
    stock.device = torch.device("cpu")
    with pytest.raises(CheckpointError, match=REFUSED):
        stock.load_checkpoint(checkpoint_file(tmp_path, marker))


def test_a_subclass_that_saves_objects_is_told(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.initialize()
    trainer.my_init_kwargs["labels"] = {1, 2}
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(CheckpointError, match=r"to be saved as .*builtins\.set.* Convert it"):
        trainer.save_checkpoint(str(path))
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("optimizer_state"), "lacks what resuming needs"),
        (lambda saved: saved.update(current_epoch="one"), "lacks what resuming needs"),
        (lambda saved: saved[trainers.AVERAGE].update(average={}), "lacks what resuming needs"),
        (lambda saved: saved.update(optimizer_state=[]), "lacks what resuming needs"),
        (lambda saved: saved.pop(trainers.RAW_WEIGHTS), "another network"),
    ],
)
def test_checkpoints_that_lack_something(make_trainer, tmp_path, change, message):
    trainer = make_trainer()
    trainer.initialize()
    path = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=message):
        make_trainer().load_checkpoint(str(path))


# ------------------------------------------------------------------ nnU-Net's predictor


def test_nnunets_predictor(bombed):
    with pytest.raises(CheckpointError, match=REFUSED):
        nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(
            str(bombed), (0,)
        )


def test_nnunets_predictor_checks_plans_before_it_imports(tmp_path):
    folder = model_folder(tmp_path / "model")
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["_kw_requires_import"] = ["channels"]
    architecture["arch_kwargs"]["channels"] = "antigravity"
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(PlansError, match="_kw_requires_import"):
        trainers.OctreeNCATrainer.build_network_architecture(
            trainers.PlansManager(plans),
            trainers.PlansManager(plans).get_configuration("2d"),
            3,
            3,
        )
    with pytest.raises(PlansError, match="_kw_requires_import"):
        nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(
            str(folder), (0,)
        )
    with pytest.raises(PlansError, match="_kw_requires_import"):
        load_model(folder)
    assert "antigravity" not in sys.modules


def test_models_of_other_networks_are_left_to_nnunet(bombed, monkeypatch):
    """Stock commands on stock models do what they always do, for better or worse."""
    path = bombed / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "a.PlainConvUNet"
    path.write_text(json.dumps(plans))
    torch.save({"trainer_name": {1, 2}}, bombed / CHECKPOINT)  # which weights_only reads as well
    with pytest.raises(KeyError, match="init_args"):
        nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(
            str(bombed), (0,)
        )
