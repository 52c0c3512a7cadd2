"""A fold's folder: one training at a time, and a full disk destroys nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nnunet_octreenca.errors import LockedError, TrainingError
from nnunet_octreenca.integration import fold_folder
from nnunet_octreenca.integration.fold_folder import FoldFolder, ProgressPicture, atomic_json
from nnunet_octreenca.locks import LOCK_NAME

resource = pytest.importorskip("resource", reason="limits of Unix")


@contextmanager
def files_of_at_most(size):
    """Writing a byte more fails as on a full disk, in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def trainer(make_trainer, on_noise):
    """Of two epochs of one iteration."""
    short = {"num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    return on_noise(make_trainer(num_epochs=2, **short))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_second_process_is_refused(trainer):
    """Its sentence names the first, and it writes nothing."""
    folder = Path(trainer.output_folder)
    program = (
        "import sys, time\n"
        "from nnunet_octreenca.locks import FolderLock\n"
        "with FolderLock(sys.argv[1], 'training'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        before = content(folder)
        words = rf"^fold 0 \(.*\) is in use by training \(process {other.pid} on .*wait until"
        for work in (trainer.run_training, trainer.perform_actual_validation):
            with pytest.raises(LockedError, match=words):
                work()
        assert content(folder) == before
        for name in (".checkpoint_latest.pth.17.tmp", "validation/.a.nii.gz.17.tmp"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"half")
        (folder / ".progress_abc").mkdir()
        (folder / ".kept").touch()
        other.send_signal(signal.SIGKILL)
    # What it left is removed, and nothing else.
    with trainer.fold_folder.held("training"):
        assert sorted(path.name for path in folder.glob(".*")) == [".kept", LOCK_NAME]
        assert not list((folder / "validation").iterdir())
    assert not (folder / LOCK_NAME).exists()


def test_one_process_of_several_locks(tmp_path):
    with FoldFolder(tmp_path, 0, first=True).held("training"):
        with FoldFolder(tmp_path, 0, first=False).held("training"):
            pass
        with pytest.raises(LockedError), FoldFolder(tmp_path, 0, first=True).held("training"):
            pass


def test_training_ends_and_lets_go(trainer):
    folder = Path(trainer.output_folder)
    seen = []
    step = trainer.train_step
    trainer.train_step = lambda batch: (seen.append((folder / LOCK_NAME).exists()), step(batch))[1]
    trainer.run_training()
    assert seen == [True, True]
    names = {path.name for path in folder.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "debug.json"} <= names
    assert not [name for name in names if name.startswith(".") or name.endswith("latest.pth")]


@pytest.mark.parametrize("size", [1000, 20_000], ids=["at the start", "at a checkpoint"])
def test_a_full_disk_leaves_the_last_checkpoint(trainer, make_trainer, size):
    folder = Path(trainer.output_folder)
    latest = folder / "checkpoint_latest.pth"
    trainer.initialize()
    trainer.save_checkpoint(str(latest))
    assert latest.stat().st_size > 20_000
    before = latest.read_bytes()
    trainer.print_to_log_file = lambda *words, **options: None  # tries for seconds
    with (
        files_of_at_most(size),
        pytest.raises(TrainingError, match=r"cannot be written .*File too large"),
    ):
        trainer.run_training()
    assert latest.read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    resumed = make_trainer(num_epochs=2)
    resumed.load_checkpoint(str(latest))
    assert resumed.current_epoch == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ValueError("of fonts")])
def test_progress_that_cannot_be_drawn_ends_nothing(trainer, monkeypatch, error):
    folder = Path(trainer.output_folder)
    (folder / "progress.png").write_bytes(b"before")

    def half(self, where):
        Path(where, "progress.png").write_bytes(b"half")
        raise error

    monkeypatch.setattr(type(trainer.logger.local_logger), "plot_progress_png", half)
    trainer.run_training()
    assert (folder / "progress.png").read_bytes() == b"before"
    assert str(error) in Path(trainer.log_file).read_text()
    assert (folder / "checkpoint_final.pth").exists()


def test_pictures_take_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    """Two seconds of drawing, then nothing for 100; what was put off is drawn at the end."""
    now, drawn = [0.0], []
    monkeypatch.setattr(fold_folder, "monotonic", lambda: now[0])

    def draw(folder):
        drawn.append(now[0])
        Path(folder, "progress.png").write_text(str(now[0]))
        now[0] += 2

    picture = ProgressPicture(draw, print)
    for seconds in (0, 50, 101, 103, 104, 110):
        now[0] = max(now[0], float(seconds))
        picture(tmp_path)
    assert drawn == [0, 103]
    now[0] = 120.0
    picture.finish()
    picture.finish()
    assert drawn == [0, 103, 120]
    assert (tmp_path / "progress.png").read_text() == "120.0"


def test_the_last_epoch_is_in_the_picture(trainer, monkeypatch):
    """However soon it follows the first, which is drawn at once."""
    epochs = []

    def draw(self, where):
        epochs.append(len(self.my_fantastic_logging["train_losses"]))
        Path(where, "progress.png").write_bytes(b"drawn")

    monkeypatch.setattr(type(trainer.logger.local_logger), "plot_progress_png", draw)
    monkeypatch.setattr(fold_folder, "PICTURE_PATIENCE", 1e9)
    trainer.run_training()
    assert epochs == [1, 2]


def test_a_log_that_cannot_be_written_ends_nothing(trainer, monkeypatch):
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

    monkeypatch.setattr(stock, "sleep", lambda seconds: None)
    trainer.log_file = str(Path(trainer.output_folder) / "no folder" / "log.txt")
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").exists()


def test_plans_that_all_folds_share_stay_whole(tmp_path):
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

    plans, own = tmp_path / "plans.json", stock.save_json
    with atomic_json():
        stock.save_json({"b": 1, "a": ["\u00e4"]}, str(plans), sort_keys=False)
        before = plans.read_bytes()
        with files_of_at_most(30), pytest.raises(OSError, match="File too large"):
            stock.save_json({"c": "x" * 99}, str(plans))
    assert stock.save_json is own
    assert plans.read_bytes() == before
    assert list(json.loads(before)) == ["b", "a"]
    assert [path.name for path in tmp_path.iterdir()] == ["plans.json"]


def test_checkpoints_reach_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("written"), sync(file)))
    monkeypatch.setattr(Path, "replace", lambda *names: (done.append("named"), replace(*names)))
    fold_folder.write_checkpoint({"a": torch.arange(3)}, tmp_path / "a.pth")
    assert done == ["written", "named"]
    assert torch.load(tmp_path / "a.pth")["a"].tolist() == [0, 1, 2]
