"""Finds the native modules, which an installation may lack (no compiler when it was built)."""

import os
from functools import cache
from importlib import import_module
from types import ModuleType

from nnunet_octreenca.errors import EnvironmentMismatchError

ENGINE_VARIABLE = "OCTREENCA_ENGINE"
KERNELS_VARIABLE = "OCTREENCA_CPU_KERNELS"
MULTIPLY_VARIABLE = "OCTREENCA_MULTIPLY"
STATE_VARIABLE = "OCTREENCA_STATE"
CELLS_VARIABLE = "OCTREENCA_CUDA_CELLS"


@cache
def _module(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        return import_module(f"nnunet_octreenca.{name}"), None
    except ImportError as error:
        return None, str(error)


def cpu_module() -> ModuleType | None:
    """The C++ module, or None where it was not built or cannot be loaded."""
    return _module("_cpu")[0]


def cpu_module_problem() -> str | None:
    """Why `cpu_module` is None, in the words of the import system; None if it is there."""
    return _module("_cpu")[1]


def cuda_module() -> ModuleType | None:
    """The host side of the CUDA engine, or None where it was not built or cannot be loaded."""
    return _module("_cuda")[0]


def cuda_module_problem() -> str | None:
    """Why `cuda_module` is None, in the words of the import system; None if it is there."""
    return _module("_cuda")[1]


def wanted_engine() -> str:
    """What `OCTREENCA_ENGINE` names: "cpu", "cuda", "torch", or "" for the fastest there is.

    Raises:
        EnvironmentMismatchError: it names no engine.
    """
    wanted = os.environ.get(ENGINE_VARIABLE, "")
    if wanted not in ("", "torch", "cpu", "cuda"):  # the names of ops.engine
        raise EnvironmentMismatchError(
            f"{ENGINE_VARIABLE} is {wanted!r}; it can be 'cpu' (C++ on CPU tensors), 'cuda' (on "
            f"CUDA tensors; neither falls back), 'torch' (PyTorch everywhere) or unset (the "
            f"fastest there is)"
        )
    return wanted


def only_pytorch_wanted() -> bool:
    """Whether `OCTREENCA_ENGINE` turns the native engines off.

    Raises:
        EnvironmentMismatchError: it names no engine.
    """
    return wanted_engine() == "torch"


def cpu_engine_wanted() -> bool:
    """Whether CPU tensors go to the C++ engine: yes where it is there, unless told otherwise.

    Raises:
        EnvironmentMismatchError: `OCTREENCA_ENGINE` names no engine, or one that is not there.
    """
    wanted = wanted_engine()
    if wanted == "cpu" and cpu_module() is None:
        raise EnvironmentMismatchError(
            f"{ENGINE_VARIABLE} is 'cpu', but the C++ module is not there "
            f"({cpu_module_problem()}): install a C++ compiler and reinstall this package, or "
            f"unset the variable"
        )
    return not only_pytorch_wanted() and cpu_module() is not None


def cpu_kernels() -> str:
    """Which of the C++ module's kernels run: the fastest, or what `OCTREENCA_CPU_KERNELS` names.

    Raises:
        EnvironmentMismatchError: the variable names kernels that this processor cannot run.
    """
    module = cpu_module()
    assert module is not None
    names = module.kernels()
    wanted = os.environ.get(KERNELS_VARIABLE, "")
    if wanted and wanted not in names:
        raise EnvironmentMismatchError(
            f"{KERNELS_VARIABLE} is {wanted!r}, but this build on this processor has "
            f"{', '.join(names)}"
        )
    return wanted or names[0]


def wanted_cells() -> str:
    """Which kernels `OCTREENCA_CUDA_CELLS` names: "lists", "dense" or "measured" (also if unset).

    Raises:
        EnvironmentMismatchError: it names none.
    """
    wanted = os.environ.get(CELLS_VARIABLE, "") or "measured"
    if wanted not in ("lists", "dense", "measured"):
        raise EnvironmentMismatchError(
            f"{CELLS_VARIABLE} is {wanted!r}; it can be 'lists' (cells that fire), 'dense' (every "
            f"cell) or 'measured' (the faster of the two on this GPU)"
        )
    return wanted


def precision(multiply: str | None = None, state: str | None = None) -> tuple[str, str]:
    """What whole images are multiplied with and kept in: as asked for, else as the variables say.

    Args:
        multiply: "float32" or "bfloat16"; None looks at `OCTREENCA_MULTIPLY`.
        state: "float32" or "float16"; None looks at `OCTREENCA_STATE`.

    Raises:
        ValueError: an argument names no precision.
        EnvironmentMismatchError: a variable names none.
    """
    chosen = []
    for name, given, variable, lower in (
        ("multiply", multiply, MULTIPLY_VARIABLE, "bfloat16"),
        ("state", state, STATE_VARIABLE, "float16"),
    ):
        value = given or os.environ.get(variable, "") or "float32"
        if value not in ("float32", lower):
            sentence = f"is {value!r}; it can be 'float32' or {lower!r}"
            if given:
                raise ValueError(f"{name} {sentence}")
            raise EnvironmentMismatchError(f"{variable} {sentence}")
        chosen.append(value)
    return chosen[0], chosen[1]
