"""End nnU-Net's commands with one sentence, not a traceback, on our own errors."""

import os
import sys
from types import TracebackType

from nnunet_octreenca.errors import OctreeNCAError

DEBUG_VARIABLE = "nnUNet_octreenca_debug"


def debugging() -> bool:
    """Whether the user wants tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "").lower() in ("1", "true", "t")


def print_sentence(error: BaseException) -> None:
    """Print the error's sentence to stderr."""
    print(f"\nERROR: {error}", file=sys.stderr)


def install() -> None:
    """Print uncaught `OctreeNCAError`s as one sentence; other exceptions keep their traceback."""
    if getattr(sys.excepthook, "octreenca", False):
        return
    before = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OctreeNCAError) and not debugging():
            print_sentence(error)
            print(f"(set {DEBUG_VARIABLE}=1 for the traceback)", file=sys.stderr)
        else:
            before(kind, error, traceback)

    hook.octreenca = True  # type: ignore[attr-defined]
    sys.excepthook = hook
