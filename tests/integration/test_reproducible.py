"""The same seed is the same training, however often it is killed and continued."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EPOCHS = 8
# What nnUNetv2_train does, without the validation of whole images afterwards.
TRAINING = """
import sys
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

if __name__ == "__main__":
    resume = sys.argv[2] == "resume"
    trainer = get_trainer_from_args("901", "3d_fullres", 0, "OctreeNCATrainer", sys.argv[1],
                                    resume, device=torch.device("cpu"))
    maybe_load_checkpoint(trainer, resume, False)
    trainer.run_training()
"""


class Training:
    """Of one plans file, in a results folder of its own."""

    def __init__(self, nnunet, folder: Path, plans: str, processes: int) -> None:
        self.fold = folder / "Dataset901_Phantoms" / f"OctreeNCATrainer__{plans}__3d_fullres/fold_0"
        self.latest = self.fold / "checkpoint_latest.pth"
        self._script = folder / "training.py"
        folder.mkdir()
        self._script.write_text(TRAINING)
        self._plans = plans
        self._environment = nnunet.environment | {
            "nnUNet_results": str(folder),
            "nnUNet_n_proc_DA": str(processes),
        }

    def start(self, resume: bool) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, self._script, self._plans, "resume" if resume else "anew"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
        )

    def finish(self, resume: bool = False) -> dict:
        with self.start(resume) as process:
            assert process.wait(timeout=120) == 0
        return torch.load(self.fold / "checkpoint_final.pth", weights_only=False)

    def kill_after_the_next_checkpoint(self, resume: bool, delay: float) -> int:
        """SIGKILL; the number of epochs that the checkpoint holds."""
        before = self.latest.stat().st_mtime_ns if resume else 0
        with self.start(resume) as process:
            deadline = time.monotonic() + 120
            while not self.latest.exists() or self.latest.stat().st_mtime_ns == before:
                assert process.poll() is None, "training ended before it could be killed"
                assert time.monotonic() < deadline, "no checkpoint within two minutes"
                time.sleep(0.01)
            time.sleep(delay)
            process.kill()
        return torch.load(self.latest, weights_only=False)["current_epoch"]


def plans_of(nnunet, name: str, seed: int) -> str:
    nnunet.run(
        "nnunet_octreenca",
        *("extend_plans", "-d", 901, "--batch_size", 2, "-overwrite_plans_name", name),
        *("--set", f"num_epochs={EPOCHS}", "--set", "num_iterations_per_epoch=3"),
        *("--set", "num_val_iterations_per_epoch=1", "--set", f"seed={seed}"),
        # Every second epoch begins with a batch that the one before has used.
        *("--set", "steps_per_context=2"),
    )
    return name


def same(first: dict, second: dict, key: str) -> bool:
    return all(torch.equal(value, second[key][name]) for name, value in first[key].items())


def test_same_seed_same_training(nnunet, tmp_path):
    """Bit for bit: weights, average, optimiser and losses, with two processes and two kills."""
    plans = plans_of(nnunet, "SeededPlans", seed=5)
    undisturbed = Training(nnunet, tmp_path / "undisturbed", plans, processes=1).finish()

    killed = Training(nnunet, tmp_path / "killed", plans, processes=2)
    moments = random.Random(0)
    epochs = [
        killed.kill_after_the_next_checkpoint(resume, moments.uniform(0, 0.4))
        for resume in (False, True)
    ]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] < EPOCHS
    continued = killed.finish(resume=True)
    assert not list(killed.fold.glob(".*.tmp"))

    for key in ("network_weights", "octreenca_raw_weights"):
        assert same(undisturbed, continued, key)
    states = [checkpoint["optimizer_state"]["state"] for checkpoint in (undisturbed, continued)]
    for parameter, state in states[0].items():
        assert all(torch.equal(state[name], states[1][parameter][name]) for name in state)
    logs = [checkpoint["logging"] for checkpoint in (undisturbed, continued)]
    assert len(logs[0]["train_losses"]) == EPOCHS
    for name in ("train_losses", "val_losses", "mean_fg_dice"):
        assert logs[0][name] == logs[1][name]
