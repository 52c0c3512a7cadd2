"""Memory of one pass over larger and larger images, in a process of its own.

The network of a method with untrained weights, for images of noise. Nothing here limits the
memory: whoever started the process ends it when it has taken too much.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from math import prod
from multiprocessing.connection import Connection
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_octreenca.errors import OctreeNCAError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.integration.predictor import is_ours
from nnunet_octreenca.planning.plans_faults import inherited
from nnunet_octreenca.resources import forget_peak, peak_memory, resident_memory

STEPS = 2
"""Of each level of an automaton, at most: more take time, no memory."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's parameters


def answer(job: JsonMapping, answers: Connection, log: str, variables: Mapping[str, str]) -> None:
    """Send what `measured` finds; a process' target.

    Args:
        job: see `measured`.
        answers: what is found is sent here.
        log: file for what is printed.
        variables: of the environment.
    """
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.environ.update(variables)
    _give_back_what_is_freed()
    try:
        for found in measured(job):
            answers.send(found)
    except OctreeNCAError as error:
        sys.exit(f"ERROR: {error}")


def _give_back_what_is_freed() -> None:
    """Have glibc map each large block on its own.

    It raises that threshold with every such block that is freed; the heap then fragments, and a
    peak says more about malloc than about tensors.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        mallopt(parameter, 1_000_000)


def measured(job: JsonMapping) -> Iterator[JsonObject]:
    """What one pass takes at each shape; ends before the first that does not fit a GPU.

    Args:
        job: `trainer`, `plans` and `dataset` (content), `configuration`, `device`, `shapes` from
            small to large, and on a GPU `limit`, the bytes that may be taken.

    Yields:
        At first `resident`, the bytes that the process holds with its libraries. Then for each
        shape `shape`, rounded up to what the network divides; `voxels`; `parameters`; `bytes`:
        what memory grew by at the most, weights, image and labels among it, on a GPU the GPU's.
    """
    device = torch.device(job["device"])
    cuda = device.type == "cuda"
    trainer = recursive_find_trainer_class_by_name(job["trainer"])
    with torch.inference_mode():
        nn.Conv2d(16, 16, 3).to(device)(torch.rand(1, 16, 64, 64, device=device))  # threads, cuDNN
        if cuda:
            share = job["limit"] / torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
        before = resident_memory()
        yield {"resident": before}
        for wanted in job["shapes"]:
            gc.collect()
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            try:
                shape, parameters = one_pass(trainer, job, wanted, device)
            except torch.OutOfMemoryError:
                return
            peak = torch.cuda.max_memory_allocated(device) if cuda else peak_memory() - before
            yield {
                "shape": list(shape),
                "voxels": prod(shape),
                "parameters": parameters,
                "bytes": peak,
            }


def one_pass(
    trainer: Any, job: JsonMapping, wanted: Sequence[int], device: torch.device
) -> tuple[tuple[int, ...], int]:
    """From an image of noise to its labels; the image's shape and the network's parameters."""
    network, shape, channels = network_for(trainer, job, wanted)
    network = network.to(device).eval()
    gc.collect()
    forget_peak()  # VGG11 is made with a classifier of 0.4 GB that is dropped again
    labels(network, torch.rand(1, channels, *shape, device=device))
    return shape, sum(p.numel() for p in network.parameters())


def network_for(
    trainer: Any, job: JsonMapping, wanted: Sequence[int]
) -> tuple[nn.Module, tuple[int, ...], int]:
    """A method's network for images of at least a shape, that shape, and the image's channels."""
    name = job["configuration"]
    plans = deepcopy(dict(job["plans"]))
    own = {**inherited(plans["configurations"], name)}
    own.pop("inherits_from", None)
    own.update(patch_size=list(wanted), median_image_size_in_voxels=list(wanted))
    plans["configurations"] = {name: own}
    if hasattr(trainer, "planned"):
        plans = trainer.planned(plans, name, job["dataset"])
        own = plans["configurations"][name]
    arguments = own["architecture"]["arch_kwargs"]
    if "steps" in arguments:
        arguments["steps"] = [min(STEPS, n) for n in arguments["steps"]]
    shape = tuple(own["patch_size"])
    if not hasattr(trainer, "planned") and "strides" in arguments:
        multiples = [prod(row) for row in zip(*arguments["strides"], strict=True)]
        # Two cells at the coarsest stage: nnU-Net's normalisation refuses a single one.
        shape = tuple(max(2, -(-n // m)) * m for n, m in zip(shape, multiples, strict=True))
    manager = PlansManager(plans)
    channels = len(job["dataset"].get("channel_names", job["dataset"].get("modality", {})))
    heads = manager.get_label_manager(dict(job["dataset"])).num_segmentation_heads
    network = trainer.build_network_architecture(
        manager, manager.get_configuration(name), channels, heads, enable_deep_supervision=False
    )
    return network, shape, channels


def labels(network: nn.Module, image: Tensor) -> Tensor:
    """The label map of an image (N, channels, *spatial), (N, *spatial), as each method makes it.

    A network for regions gives (N, heads, *spatial).
    """
    whole: Any = network
    if not is_ours(network):
        return network(image).argmax(1).to(torch.uint8)
    if whole.constant_background:
        found: Tensor = whole.segment(image)
        return found
    regions: Tensor = whole.infer(image) > 0
    return regions
