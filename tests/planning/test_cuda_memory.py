"""The memory model of training with the CUDA engine against PyTorch's record of allocations.

No kernel is started: what is allocated for them is what a GPU would hold.
"""

from types import SimpleNamespace

import pytest
import torch
from helpers.oracle import make_network
from torch.profiler import ProfilerActivity, profile

from nnunet_octreenca.octree import Crop
from nnunet_octreenca.ops import cuda_device, cuda_engine
from nnunet_octreenca.ops.cuda_program import program
from nnunet_octreenca.planning import RECIPES, octreenca_configuration, training_bytes
from nnunet_octreenca.training import SegmentationLoss

RESIDENT = 264  # blocks on an H100


class DeviceWithoutKernels:
    architecture, clock = 90, None

    def load(self, configuration, backward, schedule=None):
        return self.load_program(program(configuration, 90, backward))

    def load_program(self, wanted):
        return SimpleNamespace(
            program=wanted,
            launch=lambda kernel, blocks, arguments: None,
            resident_blocks=lambda kernel: RESIDENT,
        )


@pytest.fixture
def on_host(monkeypatch):
    """Everything that takes CPU tensors goes to the CUDA engine."""
    device = DeviceWithoutKernels()
    monkeypatch.setattr(cuda_device, "device_of", lambda tensor: device)
    monkeypatch.setattr(cuda_engine, "supports", lambda tensor, weights: True)
    monkeypatch.setattr("nnunet_octreenca.ops.cpu_engine.supports", lambda tensor, weights: False)


def peak_bytes(work):
    """The most that lives at a time of what `work` allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert most > 0
    return most


CASES = {
    "16 channels": ((96, 128), {"steps": (10, 6)}, None),
    "20 channels, padded to 32": ((80, 96), {"steps": (8, 4), "channels": 20}, None),
    "few steps": ((96, 128), {"steps": (2, 2)}, None),
    "many classes": ((80, 64), {"steps": (2, 2), "classes": 33, "channels": 48}, None),
    "cropped": ((96, 128), {"steps": (6, 4, 4)}, Crop((32, 32), 1)),
    "wider coarse levels": ((96, 128), {"steps": (10, 6, 6), "channels": [16, 24, 48]}, None),
    "3-D": ((20, 24, 32), {"steps": (4, 4), "n_in": 1, "classes": 2}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_of_the_cuda_engine_is_right_within_15_percent(case, on_host):
    shape, options, crop = CASES[case]
    network, image = make_network(shape, **options)
    target = torch.zeros(2, 1, *(crop.shape if crop else shape))
    origins = [(0,) * len(shape)] * 2 if crop else None
    loss = SegmentationLoss(ignore_label=network.num_classes)

    def step():
        network.zero_grad(set_to_none=True)
        loss(network(image, crop=crop, origins=origins), target).backward()

    step()
    needed = training_bytes(
        shape,
        **network.sizes,
        batch_size=2,
        crop=crop,
        engine="cuda",
    )
    seen = peak_bytes(step) + 4 * image.numel()  # which was there before
    assert 0.85 < needed / seen < 1.15, (needed, seen)


@pytest.mark.parametrize(("classes", "padded"), [(2, 16), (9, 32)])
def test_what_is_planned_is_the_largest_that_the_cuda_engine_trains(classes, padded):
    """A context is cropped where the engine needs it, and only there."""
    shape, steps = (320, 320), {"input_channels": 3, "num_classes": classes}

    def plan(gib):
        return octreenca_configuration(
            shape,
            **steps,
            has_regions=False,
            gpu_memory_target_in_gb=gib,
            recipe=RECIPES["paper"],
        )

    whole = plan(8.0)
    network = whole["architecture"]["arch_kwargs"]
    assert cuda_engine.padded_channels(network["channels"]) == padded
    sizes = {key: network[key] for key in ("factors", "steps", "channels", "hidden")}
    needed = training_bytes(shape, **sizes, **steps, batch_size=3, engine="cuda")
    pytorch = training_bytes(shape, **sizes, **steps, batch_size=3, engine="torch")
    assert (needed < pytorch) == (padded == 16)
    assert plan(needed / 2**30) == whole
    assert plan((needed - 1) / 2**30) != whole
