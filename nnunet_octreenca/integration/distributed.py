"""`torchrun -m nnunet_octreenca.integration.distributed`: nnU-Net's training on several machines.

`nnUNetv2_train -num_gpus N` starts its processes itself, on one machine. Here torchrun starts
them, on any number of machines; each joins the others and then runs nnU-Net's own command, which
trains with whoever has joined. All of `nnUNetv2_train`'s arguments hold, but for `-num_gpus`.
"""

import argparse
import os
import platform
import sys
import uuid
from collections.abc import Sequence
from datetime import timedelta
from math import inf
from pathlib import Path

import torch
from torch import distributed as dist

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, OutputError
from nnunet_octreenca.integration import error_reporting
from nnunet_octreenca.waiting import wait_limit

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_NO_LIMIT = timedelta(days=365)


def join(device: str) -> None:
    """Join the processes that torchrun has started: gloo between CPUs, NCCL between GPUs.

    Args:
        device: "cpu" or "cuda".

    Raises:
        EnvironmentMismatchError: this is no process of torchrun's, its GPU is not there, or the
            others cannot be reached.
    """
    absent = [name for name in _VARIABLES if name not in os.environ]
    if absent:
        raise EnvironmentMismatchError(
            f"{', '.join(absent)} not set: start this with torchrun (torchrun --nnodes 2 "
            f"--nproc-per-node 1 ... -m {__spec__.name} 4 3d_fullres 0), or train on one machine "
            f"with nnUNetv2_train"
        )
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        there = torch.cuda.device_count()
        if local >= there:
            raise EnvironmentMismatchError(
                f"process {local} of this machine has no GPU, of which there are {there}; give "
                f"torchrun as many processes with --nproc-per-node, or train with -device cpu"
            )
        torch.cuda.set_device(local)
    limit = wait_limit()
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            timeout=_NO_LIMIT if limit == inf else timedelta(seconds=limit),
        )
    except (RuntimeError, ValueError) as error:  # of several types, by what failed
        raise EnvironmentMismatchError(
            f"the other processes cannot be joined ({str(error).splitlines()[0]}); check that "
            f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']} can be reached from "
            f"{platform.node()}, and set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the "
            f"network interface that the machines share"
        ) from error


def require_shared(folder: Path) -> None:
    """Refuse a folder that not all processes see: validation gathers their files in it.

    Args:
        folder: nnU-Net's results; made if it is not there. All processes must call this.

    Raises:
        OutputError: it cannot be written, or a process does not see what the first one writes.
    """
    first = dist.get_rank() == 0
    name: list[str] = [f".octreenca_{uuid.uuid4().hex}" if first else ""]
    problem = ""
    if first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name[0]).touch()
        except OSError as error:
            problem = f"{folder} cannot be written to ({error}); set nnUNet_results to another"
    dist.broadcast_object_list(name)
    try:
        if not problem and not (folder / name[0]).exists():
            problem = (
                f"{folder} on {platform.node()} is not the folder of that name on the first "
                f"machine; set nnUNet_results to one on a disk that all machines share"
            )
        said: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(said, problem)
    finally:
        if first:
            (folder / name[0]).unlink(missing_ok=True)
    problems = [sentence for sentence in said if sentence]
    if problems:
        raise OutputError(problems[0])


def _device(arguments: Sequence[str]) -> str:
    """nnU-Net's `-device`, as its parser takes it.

    Raises:
        InputError: several processes cannot train so.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-device", default="cuda")
    parser.add_argument("-num_gpus", type=int, default=1)
    known, _ = parser.parse_known_args(arguments)
    if known.num_gpus != 1:
        raise InputError(
            f"-num_gpus {known.num_gpus} starts processes on this machine; leave it out, and give "
            f"torchrun --nproc-per-node {known.num_gpus}"
        )
    if known.device not in ("cpu", "cuda"):
        raise InputError(f"-device {known.device} cannot be shared by machines; give cpu or cuda")
    return str(known.device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Join the other processes and run `nnUNetv2_train`.

    Args:
        arguments: of `nnUNetv2_train`; the command line's if left out.

    Raises:
        OctreeNCAError: the processes cannot train together.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    error_reporting.install()
    join(_device(given))
    try:
        from nnunetv2.paths import nnUNet_results
        from nnunetv2.run.run_training import run_training_entry

        if nnUNet_results is None:
            raise EnvironmentMismatchError(
                "nnUNet_results is not set; set nnU-Net's three folders on every machine"
            )
        require_shared(Path(nnUNet_results))
        sys.argv = ["nnUNetv2_train", *given]
        run_training_entry()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
