"""What a result depends on: the model's files, the options, the programs; to know it again."""

import os
import platform
from typing import Any

import numpy
import torch

from nnunet_octreenca import __version__
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.hashes import content_hash
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.integration.nnunet_version import nnunet_version
from nnunet_octreenca.integration.predictor import SEED_VARIABLE
from nnunet_octreenca.ops import cpu_engine, cuda_engine
from nnunet_octreenca.ops.native import (
    ENGINE_VARIABLE,
    KERNELS_VARIABLE,
    MULTIPLY_VARIABLE,
    STATE_VARIABLE,
    cpu_kernels,
    precision,
)
from nnunet_octreenca.prediction.options import Options

VARIABLES = (
    ENGINE_VARIABLE,
    KERNELS_VARIABLE,
    MULTIPLY_VARIABLE,
    STATE_VARIABLE,
    SEED_VARIABLE,
)
"""Of the environment, all that labels may depend on."""


def model_hash(model: Model) -> str:
    """SHA-256 of the model's files: plans, data set description and checkpoints."""
    return content_hash(model.files)


def settings(model: Model, options: Options) -> JsonObject:
    """All choices that change labels by more than rounding, as JSON holds them."""
    multiply, state = precision(state="float16" if options.float16 else None)
    return {
        "folds": list(model.folds),
        "seeds": list(options.seeds_of(model)),
        "mirror_axes": list(options.mirror_axes_of(model)),
        "mpp": options.mpp,
        "series": options.series,
        "tissue": options.tissue,
        "state": state,
        "multiply": multiply,
    }


def versions(model: Model) -> dict[str, str]:
    """Programs that computed a result, and with which kernels on what."""
    engine = model.networks[0].engine().name
    return {
        "nnunet_octreenca": __version__,
        "nnunetv2": nnunet_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(model.device),
        "engine": engine,
        "kernels": _kernels(engine, model.device),
    }


def environment() -> dict[str, str]:
    """The variables of `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def differences(before: JsonMapping, now: JsonMapping) -> list[str]:
    """What changed, such as "seeds was [0] and is [3]", in the order of the names.

    >>> differences({"mpp": None, "seeds": [0]}, {"mpp": None, "seeds": [3]})
    ['seeds was [0] and is [3]']
    """
    names = dict.fromkeys([*before, *now])
    return [
        f"{name} was {_said(before.get(name))} and is {_said(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def device_name(device: torch.device) -> str:
    """A device, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


def _said(value: Any) -> str:
    return "unset" if value is None else str(value)


def _kernels(engine: str, device: torch.device) -> str:
    """Which of an engine's kernels run: the instruction set, or the GPU's architecture."""
    if engine == cpu_engine.name:
        return cpu_kernels()
    if engine == cuda_engine.name:
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return "PyTorch"
