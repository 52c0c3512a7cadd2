"""What processes that train together ask one another."""

import pytest
import torch
from torch import distributed as dist

from nnunet_octreenca.ops.engine import engine_named
from nnunet_octreenca.training import processes

CPU = torch.device("cpu")


@pytest.fixture
def gathered(monkeypatch):
    """The answers of all processes, which a test fills; None answers as this process."""
    answers = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: len(answers))
    monkeypatch.setattr(dist, "get_rank", lambda: 5)

    def all_gather(numbers, own):
        for number, answer in zip(numbers, answers, strict=True):
            number.copy_(own if answer is None else torch.tensor([answer]))

    monkeypatch.setattr(dist, "all_gather", all_gather)
    return answers


def test_a_process_alone():
    assert processes.global_rank() == 0
    assert processes.different_engines(engine_named("torch"), CPU) is None


def test_the_rank_is_the_global_one(gathered):
    assert processes.global_rank() == 5


def test_the_device_is_one_of_this_machine(gathered, monkeypatch):
    """Process 5 of all is process 1 of its machine, which has no sixth GPU."""
    cuda = torch.device("cuda")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert processes.local_device(cuda).index == 5, "nnU-Net's own start, on one machine"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.local_device(cuda) == torch.device("cuda", 1)
    assert processes.local_device(CPU) == CPU


@pytest.mark.parametrize("own", ["cpu", "torch"])
def test_engines_of_all_processes(gathered, own):
    number = [engine.name for engine in processes.ENGINES].index(own)
    gathered[:] = [None, number, number]
    assert processes.different_engines(engine_named(own), CPU) is None
    gathered[:] = [None, 1, number]
    told = processes.different_engines(engine_named(own), CPU)
    assert told.startswith(
        f"the processes train with different engines (0: {own}, 1: cuda, 2: {own}): the slowest"
    )
