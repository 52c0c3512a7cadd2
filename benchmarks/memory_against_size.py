"""Memory of one pass against the image's size, for every method of `compare`.

    python benchmarks/memory_against_size.py
    python benchmarks/memory_against_size.py --into docs/results/memory_against_size.json
    python benchmarks/memory_against_size.py --axes 2 --method OctreeNCA --method TransUNet --json

Untrained networks, RGB squares and one-channel cubes of noise, two classes. Each method is in a
process of its own, which takes larger and larger images until one needs more than the limit
beside Python and its libraries, or takes longer than `--seconds`. `--into` replaces the rows of a
file one by one, so that a run that is cut short loses none. An automaton takes two steps a level:
more take time, no memory. What is measured is what `nnunet_octreenca compare` measures of trained
methods.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from untrained_model import stock_plans

from nnunet_octreenca.comparison.trained.memory import SHAPES, MemoryMeasuringError, measure_sizes
from nnunet_octreenca.comparison.trained.methods import METHODS, Method, find_methods
from nnunet_octreenca.files import write_json
from nnunet_octreenca.inference.memory_plan import parse_memory
from nnunet_octreenca.planning import extend_plans

PATCH = {2: (320, 320), 3: (128, 128, 128)}
"""What networks are planned for; nnU-Net's then have 7 and 6 stages."""

_SAME = ("nnU-Net ResEnc L", "nnU-Net ResEnc XL")
"""As ResEnc M: the presets differ in patch and batch."""

CHANNELS = {2: 3, 3: 1}
CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
ENGINES = {"C++": "cpu", "PyTorch": "torch", "CUDA": "cuda"}


class Row(NamedTuple):
    """A method on an engine."""

    method: Method
    axes: int
    engine: str | None


def rows(device: str, wanted: list[str]) -> Iterator[Row]:
    """Methods of these names, by axes and engine."""
    for axes in PATCH:
        for name in wanted:
            method = METHODS[name]
            if axes not in axes_of(method) or name in _SAME:
                continue
            if not method.is_octreenca:
                yield Row(method, axes, None)
                continue
            for engine in ("CUDA" if device == "cuda" else "C++", "PyTorch"):
                yield Row(method, axes, engine)


def axes_of(method: Method) -> tuple[int, ...]:
    """Numbers of axes that a method's network is for."""
    from nnunet_octreenca import baselines

    if method.trainer not in baselines.MODULES:
        return (2, 3)
    trainer = baselines.trainer_class(method.trainer)
    if hasattr(trainer, "dimension"):
        return (trainer.dimension,)
    return tuple(trainer.dimensions)


def job(row: Row, device: str) -> dict[str, Any]:
    """What the process is told."""
    axes = row.axes
    described = {
        "channel_names": {str(c): f"channel {c}" for c in range(CHANNELS[axes])},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 1,
        "file_ending": ".png" if axes == 2 else ".nii.gz",
    }
    plans = stock_plans(PATCH[axes], CHANNELS[axes])
    (configuration,) = plans["configurations"].values()
    configuration["architecture"] = unet(axes, residual="ResEnc" in row.method.name)
    if row.method.is_octreenca:
        plans = extend_plans(
            plans,
            input_channels=CHANNELS[axes],
            num_classes=2,
            foreground_labels=1,
            has_regions=False,
        )
    return {
        "trainer": row.method.trainer,
        "plans": plans,
        "dataset": described,
        "configuration": CONFIGURATIONS[axes],
        "device": device,
    }


def unet(axes: int, *, residual: bool) -> dict[str, Any]:
    """The U-Net that nnU-Net's planners make for isotropic images of this patch."""
    stages, most = {2: (7, 512), 3: (6, 320)}[axes]
    arguments = {
        "n_stages": stages,
        "features_per_stage": [min(most, 32 << n) for n in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[3] * axes] * stages,
        "strides": [[1] * axes, *[[2] * axes] * (stages - 1)],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    if residual:
        arguments["n_blocks_per_stage"] = [1, 3, 4, 6, 6, 6, 6][:stages]
        arguments["n_conv_per_stage_decoder"] = [1] * (stages - 1)
    else:
        arguments["n_conv_per_stage"] = [2] * stages
        arguments["n_conv_per_stage_decoder"] = [2] * (stages - 1)
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def measure(row: Row, device: str, limit: int, seconds: float, folder: Path) -> dict[str, Any]:
    """A row of the result; `bytes` is from the side of a square or cube."""
    variables = {} if row.engine is None else {"OCTREENCA_ENGINE": ENGINES[row.engine]}
    log = folder / f"{row.method.trainer}_{row.axes}_{row.engine}.log"
    found = measure_sizes(
        job(row, device), SHAPES[row.axes], limit, log, seconds=seconds, variables=variables
    )
    largest = found.rows[-1] if found.rows else None
    name = row.method.name.removesuffix(" M")
    return {
        "axes": row.axes,
        "method": name if row.engine is None else f"{name}, {row.engine}",
        "parameters": found.parameters,
        "bytes": {str(one["shape"][0]): one["bytes"] for one in found.rows},
        "bytes_per_voxel": largest and round(largest["bytes"] / largest["voxels"], 1),
        "too_large": found.too_large and found.too_large[0],
        "too_slow": found.too_slow and found.too_slow[0],
    }


def conditions(device: str, limit: int, seconds: float) -> dict[str, Any]:
    """What rows of one file have in common."""
    return {
        "limit_bytes": limit,
        "limit_seconds": seconds,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def merged(rows: list[dict[str, Any]], common: dict[str, Any]) -> dict[str, Any]:
    """The result's file; of rows of the same name the later one."""
    named = {(row["axes"], row["method"]): row for row in rows}
    return {**common, "rows": [named[name] for name in sorted(named, key=lambda name: name[0])]}


def rows_of(path: Path, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a file, if it has any; ends where they were measured otherwise."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    for key, value in common.items():
        if content.get(key) != value:
            sys.exit(
                f"ERROR: the rows of {path} were measured with {key} {content.get(key)}, not "
                f"{value}; give --into another file, or delete this one to measure all anew"
            )
    found: list[dict[str, Any]] = content["rows"]
    return found


def main() -> None:
    """Print a table, or JSON, or keep rows in a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", type=int, choices=PATCH, help="only pictures or volumes")
    parser.add_argument("--method", action="append", help="only this one")
    parser.add_argument("--limit", default="1G", help="that a pass may take (default: 1G)")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="that an image may take (default: 300)"
    )
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--into", type=Path, help="JSON file whose rows are replaced or added")
    arguments = parser.parse_args()
    limit = parse_memory(arguments.limit)
    common = conditions(arguments.device, limit, arguments.seconds)
    if arguments.into is not None:
        rows_of(arguments.into, common)
    trained = [name for name, method in METHODS.items() if not method.prompted]
    wanted = [method.name for method in find_methods(arguments.method or trained)]
    found: list[dict[str, Any]] = []
    failed = False
    printed = sys.stderr if arguments.json else sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(arguments.device, wanted):
            if arguments.axes not in (None, row.axes):
                continue
            try:
                found.append(measure(row, arguments.device, limit, arguments.seconds, Path(folder)))
            except MemoryMeasuringError as error:
                print(f"ERROR: {error}", file=sys.stderr, flush=True)
                failed = True
                continue
            if arguments.into is not None:
                before = rows_of(arguments.into, common)
                write_json(arguments.into, merged([*before, found[-1]], common))
            print(sentence(found[-1]), file=printed, flush=True)
    if arguments.json:
        print(json.dumps(merged(found, common), indent=1))
    sys.exit(failed)


def sentence(row: dict[str, Any]) -> str:
    """A line of the table."""
    name = f"{row['axes']}-D {row['method']:24} {row['parameters']:>11,} parameters"
    ended = "" if row["too_slow"] is None else f"; time ended it at {row['too_slow']}"
    if not row["bytes"]:
        return f"{name}, none measured{ended}"
    side, taken = list(row["bytes"].items())[-1]
    return f"{name}, side {side}: {taken / 1e9:.2f} GB, {row['bytes_per_voxel']} B a voxel{ended}"


if __name__ == "__main__":
    main()
