"""Training in several processes: which one this is, and whether all compute alike."""

import os

import torch
from torch import distributed as dist
from torch import nn

from nnunet_octreenca.ops.engine import ENGINES, Engine


def several() -> bool:
    """Whether this process trains with others."""
    return dist.is_available() and dist.is_initialized()


def global_rank() -> int:
    """Number of this process among those of all machines, from 0."""
    return dist.get_rank() if several() else 0


def local_device(device: torch.device) -> torch.device:
    """The device of this process among those of its machine.

    torchrun says which process of its machine this is; without it there is one machine, as in
    `nnUNetv2_train -num_gpus`.

    >>> local_device(torch.device("cpu"))
    device(type='cpu')
    """
    if device.type == "cpu":
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", global_rank())))


def share_weights(network: nn.Module) -> None:
    """Take the weights of process 0; all processes must call this.

    All take steps with one gradient, but processors round them differently.
    """
    if several():
        for weights in network.parameters():
            dist.broadcast(weights.data, 0)


def different_engines(engine: Engine, device: torch.device) -> str | None:
    """Compare what computes in every process; all processes must call this.

    Args:
        engine: of this process.
        device: where the processes' backend exchanges tensors.

    Returns:
        a sentence that names every process's engine where they differ, else None.
    """
    if not several():
        return None
    own = torch.tensor([ENGINES.index(engine)], device=device)
    numbers = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(numbers, own)
    names = [ENGINES[int(number)].name for number in numbers]
    if len(set(names)) == 1:
        return None
    used = ", ".join(f"{rank}: {name}" for rank, name in enumerate(names))
    return (
        f"the processes train with different engines ({used}): the slowest holds up the others. "
        f"The warnings of the processes with another engine, and `nnunet_octreenca doctor` on "
        f"their machine, say why"
    )
