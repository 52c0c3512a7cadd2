"""A kill in the middle of training: --c goes on as if nothing had been."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnunet_octreenca.training import learning_rate

pytestmark = pytest.mark.slow

EPOCHS = 12


def test_kill_and_continue(nnunet):
    """Learning rates after a kill are those of an undisturbed training, the average goes on."""
    nnunet.run(
        "nnunet_octreenca",
        *("extend_plans", "-d", 901, "--batch_size", 2, "-overwrite_plans_name", "LongPlans"),
        *("--set", f"num_epochs={EPOCHS}", "--set", "num_iterations_per_epoch=3"),
        *("--set", "num_val_iterations_per_epoch=1"),
    )
    program = shutil.which("nnUNetv2_train", path=str(Path(sys.executable).parent))
    arguments = ["901", "3d_fullres", "0", "-tr", "OctreeNCATrainer", "-p", "LongPlans"]
    arguments += ["-device", "cpu"]
    fold = nnunet.results / "Dataset901_Phantoms" / "OctreeNCATrainer__LongPlans__3d_fullres"
    latest = fold / "fold_0" / "checkpoint_latest.pth"
    process = subprocess.Popen(
        [program, *arguments], env=nnunet.environment, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 240
        while not latest.exists():
            assert process.poll() is None, "training ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint within four minutes"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    killed = torch.load(latest, weights_only=False)  # never half a file
    done = killed["current_epoch"]
    assert 0 < done < EPOCHS
    assert killed["octreenca_weight_average"]["updates"] == 3 * done

    nnunet.run("nnUNetv2_train", *arguments, "--c")
    final = torch.load(fold / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == EPOCHS
    assert final["octreenca_weight_average"]["updates"] == 3 * EPOCHS
    rates = final["logging"]["lrs"]
    expected = [
        learning_rate(
            epoch / EPOCHS,
            initial_lr=4e-3,
            lr_schedule="poly",
            num_epochs=EPOCHS,
            poly_exponent=0.9,
            lr_decay=1.0,
            warm_up=0.05,
        )
        for epoch in range(EPOCHS)
    ]
    assert rates == pytest.approx(expected)
    logs = sorted((fold / "fold_0").glob("training_log_*.txt"))
    epochs = [int(n) for n in re.findall(r"Epoch (\d+) \n", logs[-1].read_text())]
    assert epochs == list(range(done, EPOCHS))
