"""Two processes (gloo, CPU): one gradient, one average, one checkpoint."""

import json
import socket
import subprocess
import sys

import pytest
import torch

from nnunet_octreenca.ops.native import ENGINE_VARIABLE, cpu_module

pytestmark = pytest.mark.slow

DATASET = "Dataset901_Phantoms"
PLANS = "nnUNetOctreeNCAPlans"

# What nnU-Net's run_ddp does for each GPU, with gloo instead of nccl.
WORKER = """
import hashlib, json, sys
import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args

def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()

if __name__ == "__main__":
    rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = get_trainer_from_args("901", "3d_fullres", 2, "OctreeNCATrainer",
                                    "nnUNetOctreeNCAPlans", device=torch.device("cpu"))
    seen, step = [], trainer.train_step
    def watched(batch):
        result = step(batch)
        seen.append({
            "gradients": digest([p.grad for p in trainer.network.parameters()]),
            "weights": digest(trainer.network.parameters()),
            "average": digest(trainer.average.average.values()),
            "loss": float(result["loss"]),
            "samples": len(batch["data"]),
        })
        return result
    trainer.train_step = watched
    end = trainer.on_epoch_end
    def rounded():  # as another processor does
        end()
        with torch.no_grad():
            for weights in trainer.network.parameters() if rank else ():
                weights.mul_(1 + 1e-6)
    trainer.on_epoch_end = rounded
    trainer.run_training()
    trainer.perform_actual_validation(False)
    with open(f"{out}/{rank}.json", "w") as file:
        json.dump(seen, file)
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("batch_dice", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_two_processes(nnunet, tmp_path, batch_dice):
    """Each draws its own samples and fires its own cells; all they share is equal."""

    def set_batch_dice(plans: dict) -> None:
        plans["configurations"]["3d_fullres"]["batch_dice"] = batch_dice

    nnunet.edit_plans(PLANS, set_batch_dice)
    engines = ({}, {ENGINE_VARIABLE: "torch"} if batch_dice else {})
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(port), str(tmp_path)],
            env={**nnunet.environment, "OMP_NUM_THREADS": "1", **engines[rank]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = []
    for process in processes:
        outputs.append(process.communicate(timeout=300)[0])
        assert process.returncode == 0, outputs[-1][-3000:]
    told = "WARNING: the processes train with different engines (0: cpu, 1: torch)"
    assert [told in output for output in outputs] == [
        batch_dice and cpu_module() is not None,
        False,
    ]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second) == 6
    for one, other in zip(first, second, strict=True):
        assert one["samples"] == other["samples"] == 1  # a batch of two, shared
        for shared in ("gradients", "weights", "average"):
            assert one[shared] == other[shared]
    if not batch_dice:
        assert any(one["loss"] != other["loss"] for one, other in zip(first, second, strict=True))
    fold = nnunet.model() / "fold_2"
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["octreenca_weight_average"]["updates"] == 6
    assert not any(key.startswith("module.") for key in checkpoint["network_weights"])
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
