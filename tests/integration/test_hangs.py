"""nnU-Net's prediction and validation end with a sentence if a process is killed or hangs."""

import multiprocessing
import time

import pytest
import torch
from helpers.faults import kill_oneself, sleep_forever

from nnunet_octreenca.errors import WorkerError
from nnunet_octreenca.waiting import LIMIT_VARIABLE

pytestmark = pytest.mark.slow

FAULTS = pytest.mark.parametrize(
    ("fault", "words"), [(kill_oneself, "ended unexpectedly"), (sleep_forever, LIMIT_VARIABLE)]
)


@pytest.fixture(autouse=True)
def environment(trained, monkeypatch):
    for name, value in trained.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(LIMIT_VARIABLE, "3")


def ends_soon(function, words):
    """Starting processes takes seconds, and nothing takes minutes."""
    begun = time.monotonic()
    with pytest.raises(WorkerError, match=words):
        function()
    assert time.monotonic() - begun < 100
    # nnU-Net's manager ends with the last reference to it, and here the error has one.
    left = [process.name for process in multiprocessing.active_children()]
    assert [name for name in left if not name.startswith("SyncManager")] == []


@FAULTS
def test_an_export_process_in_validation(monkeypatch, fault, words):
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

    trainer = get_trainer_from_args(
        "901", "3d_fullres", 0, "OctreeNCATrainer", "nnUNetOctreeNCAPlans",
        device=torch.device("cpu"),
    )  # fmt: skip
    maybe_load_checkpoint(trainer, continue_training=False, validation_only=True)
    monkeypatch.setattr(stock, "export_prediction_from_logits", fault)
    ends_soon(trainer.perform_actual_validation, words)


@FAULTS
@pytest.mark.parametrize("place", ["export", "preprocessing"])
def test_processes_in_prediction(trained, monkeypatch, tmp_path, place, fault, words):
    from nnunetv2.inference import data_iterators, predict_from_raw_data

    if place == "export":
        monkeypatch.setattr(predict_from_raw_data, "export_prediction_from_logits", fault)
    else:
        monkeypatch.setattr(data_iterators, "preprocess_fromfiles_save_to_queue", fault)
    predictor = predict_from_raw_data.nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"),
        allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(trained.model()), (0,))
    images = trained.raw / "Dataset901_Phantoms" / "imagesTs"
    ends_soon(
        lambda: predictor.predict_from_files(
            str(images),
            str(tmp_path),
            num_processes_preprocessing=1,
            num_processes_segmentation_export=1,
        ),
        words,
    )
