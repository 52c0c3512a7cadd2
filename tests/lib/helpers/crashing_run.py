"""A run whose process ends on some images, as one does in which a library crashes.

It is made in a child process, which can import this package and not the tests.
"""

import os
import signal
from pathlib import Path

from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction import case as case_module
from nnunet_octreenca.prediction.folder import Destination, Run
from nnunet_octreenca.prediction.options import Options

ENDS = {"b": signal.SIGSEGV, "e": getattr(signal, "SIGKILL", None)}


def crashing_run(path: Path) -> Run:
    """Prepare a run of which cases b, c and e fail, b and e with their process.

    Args:
        path: holds `model`; results go to `out`.
    """
    run = Run(load_model(path / "model"), Destination(path / "out"), Options(mirror=False))
    stock = case_module.write_overlay

    def write_overlay(overlay, *args, **kwargs):
        name = overlay.name[0]
        if name == "c":
            raise KeyError("codec")
        if name in ENDS:
            (path / "out" / f".{name}.png.{os.getpid()}.tmp").write_bytes(b"half")
            os.kill(os.getpid(), ENDS[name])
        return stock(overlay, *args, **kwargs)

    case_module.write_overlay = write_overlay
    return run
