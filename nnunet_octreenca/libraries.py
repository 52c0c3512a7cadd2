"""Optional libraries, and settings that libraries need before they are used."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any

from nnunet_octreenca.errors import EnvironmentMismatchError

_pillow_lock = RLock()
# Libraries that the extras leave out below a version of Python; as in pyproject.toml.
_NEEDED_PYTHON = {"zarr": (3, 11), "ome_zarr": (3, 11), "numcodecs": (3, 11)}


def import_optional(module: str, extra: str) -> Any:
    """A module of an optional library.

    Args:
        module: its dotted name.
        extra: what installs it, "slides", "video", "dicom", "onnx" or "cluster".

    Raises:
        EnvironmentMismatchError: it is not installed, or a shared library that it loads is not.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise EnvironmentMismatchError(
            f"{module} cannot be imported ({error}); {_advice(module, extra, sys.version_info[:2])}"
        ) from error


def _advice(module: str, extra: str, python: tuple[int, int]) -> str:
    needed = _NEEDED_PYTHON.get(module.partition(".")[0], python)
    if python < needed:
        return "it needs Python {}.{} or later, and this is {}.{}".format(*needed, *python)
    return f'run pip install "nnunet-octreenca[{extra}]"'


def missing_decoder(path: Path, error: Exception) -> EnvironmentMismatchError | None:
    """What to raise where tifffile could not decode for want of imagecodecs; else None."""
    if "imagecodecs" not in str(error):
        return None
    return EnvironmentMismatchError(
        f'{path} cannot be decoded ({error}); run pip install "nnunet-octreenca[slides]"'
    )


@contextmanager
def unlimited_pillow() -> Iterator[None]:
    """Context without Pillow's limit on pixels, which is meant for web servers."""
    from PIL import Image

    with _pillow_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
