"""Checkpoints that try to run code when they are loaded: they make a marker file."""

import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Calls:
    """Pickled, it has its reader call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def bombs(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that make `marker` when all of Python may be unpickled."""
    system = Calls(os.system, f"touch {marker}")
    checkpoint = {"network_weights": {}, "init_args": {"configuration": "2d"}, "logging": system}
    yield "a call of os.system", saved(checkpoint)
    yield "a call of mkdir", saved({**checkpoint, "logging": Calls(os.mkdir, str(marker))})
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    yield "a call of exec", saved({**checkpoint, "logging": Calls(exec, code)})
    yield "no dictionary", saved(system)
    yield "within an array", saved({**checkpoint, "logging": np.array([system], dtype=object)})
    yield "torch's old format", saved(checkpoint, _use_new_zipfile_serialization=False)
    yield "pickle protocol 4", saved(checkpoint, pickle_protocol=4)
    yield "a bare pickle", pickle.dumps(system)


NAMES = [name for name, _ in bombs(Path("marker"))]


def bomb(name: str, marker: Path) -> bytes:
    """The content of one of them."""
    return dict(bombs(marker))[name]
