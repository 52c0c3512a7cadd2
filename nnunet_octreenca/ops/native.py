"""Finds the native modules, which an installation may lack (no compiler when it was built)."""

from functools import lru_cache
from importlib import import_module
from types import ModuleType

_IMPORT_ERROR: list[str] = []


@lru_cache(maxsize=1)
def cpu_module() -> ModuleType | None:
    """The C++ module, or None where it was not built or cannot be loaded."""
    try:
        return import_module("nnunet_octreenca._cpu")
    except ImportError as error:
        _IMPORT_ERROR.append(str(error))
        return None


def cpu_module_problem() -> str | None:
    """Why `cpu_module` is None, in the words of the import system; None if it is there."""
    return None if cpu_module() is not None else _IMPORT_ERROR[-1]
