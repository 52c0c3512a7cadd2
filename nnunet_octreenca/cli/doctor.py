"""`nnunet_octreenca doctor`."""

import argparse
import json
import os
import platform
from pathlib import Path

from nnunet_octreenca.files import JsonObject

HELP = "report versions, engines, devices and registration, and why anything is unavailable"
EXAMPLE = """\
examples:
  nnunet_octreenca doctor
  nnunet_octreenca doctor --json > report.json    attach this to a bug report
  nnunet_octreenca doctor --compile sm_90         compile all CUDA kernels; no GPU needed

exit code: 0 if OctreeNCA can train and predict on this machine, 1 if not
"""

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--compile",
        metavar="sm_NN",
        help="compile the CUDA kernels for an architecture (no GPU needed) and print registers, "
        "spilled bytes and shared memory",
    )


def examine() -> list[JsonObject]:
    """One row per thing looked at: `what`, `state` ("ok", "note" or "missing"), `detail`."""
    return [
        _row("python", "ok", platform.python_version()),
        _row("platform", "ok", platform.platform()),
        *_versions(),
        _cpu_engine(),
        _cuda(),
        _cuda_engine(),
        *_registration(),
        *_folders(),
    ]


def _row(what: str, state: str, detail: str) -> JsonObject:
    return {"what": what, "state": state, "detail": detail}


def _versions() -> list[JsonObject]:
    import torch

    from nnunet_octreenca import __version__
    from nnunet_octreenca.errors import EnvironmentMismatchError
    from nnunet_octreenca.integration.nnunet_version import nnunet_version

    rows = [_row("nnunet_octreenca", "ok", __version__), _row("torch", "ok", torch.__version__)]
    try:
        rows.append(_row("nnunetv2", "ok", nnunet_version()))
    except EnvironmentMismatchError as error:
        rows.append(_row("nnunetv2", "missing", str(error)))
    return rows


def _cpu_engine() -> JsonObject:
    import torch

    from nnunet_octreenca.errors import EnvironmentMismatchError
    from nnunet_octreenca.ops.native import (
        ENGINE_VARIABLE,
        KERNELS_VARIABLE,
        cpu_engine_wanted,
        cpu_kernels,
        cpu_module,
        cpu_module_problem,
    )

    module = cpu_module()
    if module is None:
        return _row(
            "CPU engine",
            "note",
            f"not there ({cpu_module_problem()}): no C++ compiler was found when the package was "
            f"installed. Everything works with the PyTorch engine; for the native code install a "
            f"compiler and `pip install --force-reinstall --no-deps nnunet-octreenca`",
        )
    try:
        wanted, kernels = cpu_engine_wanted(), cpu_kernels()
    except EnvironmentMismatchError as error:
        return _row("CPU engine", "missing", str(error))
    if not wanted:
        return _row("CPU engine", "note", f"off: {ENGINE_VARIABLE}=torch; steps run in PyTorch")
    chosen = os.environ.get(KERNELS_VARIABLE)
    why = f"{KERNELS_VARIABLE}={chosen}" if chosen else "the fastest this processor runs"
    bf16 = "yes" if module.native_bf16(kernels) else "not in this processor"
    return _row(
        "CPU engine",
        "ok",
        f"C++, {kernels} kernels ({why}; there are {', '.join(module.kernels())}), "
        f"{torch.get_num_threads()} threads, bfloat16 products: {bf16}",
    )


def _cuda() -> JsonObject:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        return _row("CUDA", "ok", ", ".join(names))
    built = torch.version.cuda
    why = (
        f"torch is built for CUDA {built}, but finds no device or driver"
        if built
        else ("this torch is built without CUDA")
    )
    return _row("CUDA", "note", f"{why}: use -device cpu")


def _cuda_engine() -> JsonObject:
    import torch

    from nnunet_octreenca.errors import CudaError, EnvironmentMismatchError
    from nnunet_octreenca.ops import cuda_engine
    from nnunet_octreenca.ops.cuda_compiler import cache_folder, nvrtc
    from nnunet_octreenca.ops.native import ENGINE_VARIABLE, only_pytorch_wanted, wanted_engine

    try:
        wanted = wanted_engine()
        version = ".".join(map(str, nvrtc().version()))
    except EnvironmentMismatchError as error:
        return _row("CUDA engine", "missing", str(error))
    except CudaError as error:
        return _row("CUDA engine", "note", f"{error}; CUDA tensors run in PyTorch")
    if not torch.cuda.is_available():
        return _row(
            "CUDA engine",
            "note",
            f"no GPU to run on; NVRTC {version} is there, `--compile sm_90` tries it",
        )
    if only_pytorch_wanted():
        return _row("CUDA engine", "note", f"off: {ENGINE_VARIABLE}=torch; steps run in PyTorch")
    problems = []
    for index in range(torch.cuda.device_count()):
        # Compiles the paper's network for pathology.
        problem = cuda_engine.gpu_problem(index, 2, 16, 3, 64)
        if problem is not None:
            problems.append(f"device {index}: {problem}")
    if problems:
        state = "missing" if wanted == cuda_engine.name else "note"
        return _row("CUDA engine", state, f"{'; '.join(problems)}. Steps run in PyTorch there")
    return _row(
        "CUDA engine", "ok", f"NVRTC {version}, compiled kernels are kept in {cache_folder()}"
    )


def _registration() -> list[JsonObject]:
    from nnunet_octreenca.errors import EnvironmentMismatchError
    from nnunet_octreenca.integration.register import TRAINER_SHIMS, shims

    external = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    try:
        found = shims()
    except EnvironmentMismatchError as error:
        return [_row("registration", "missing", str(error))]
    rows = []
    for shim in found:
        state, detail = "ok", str(shim.target)
        if shim.state != "registered":
            state = "missing"
            detail = f"{shim.state}: run `nnunet_octreenca register`"
            if shim.source.parent == TRAINER_SHIMS and str(TRAINER_SHIMS) in external:
                state, detail = "ok", f"through nnUNet_extTrainer={TRAINER_SHIMS}"
            elif shim.source.parent != TRAINER_SHIMS:
                state = "note"  # extend_plans does without
        rows.append(_row(f"registered {shim.target.stem}", state, detail))
    return rows


def _folders() -> list[JsonObject]:
    rows = []
    for name in FOLDERS:
        value = os.environ.get(name)
        if value is None:
            rows.append(_row(name, "note", "not set; nnU-Net's commands need it"))
        elif not Path(value).is_dir():
            rows.append(_row(name, "note", f"{value} is not a folder"))
        else:
            rows.append(_row(name, "ok", value))
    return rows


def _compile(name: str, as_json: bool) -> int:
    from nnunet_octreenca.cli.kernel_report import architecture_of, compile_kernels, print_kernels

    rows = compile_kernels(architecture_of(name))
    if as_json:
        print(json.dumps(rows, indent=4))
    else:
        print_kernels(rows)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Print the rows."""
    if arguments.compile:
        return _compile(arguments.compile, arguments.json)
    rows = examine()
    if arguments.json:
        print(json.dumps(rows, indent=4))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        colours = {"ok": "green", "note": "yellow", "missing": "red"}
        table = Table("what", "state")
        table.add_column("detail", overflow="fold")
        for row in rows:
            table.add_row(row["what"], Text(row["state"], colours[row["state"]]), row["detail"])
        Console().print(table)
    return 1 if any(row["state"] == "missing" for row in rows) else 0
