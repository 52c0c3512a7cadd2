"""Optional libraries, and settings that libraries need before they are used."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any

from nnunet_octreenca.errors import EnvironmentMismatchError

_pillow_lock = RLock()


def import_optional(module: str, extra: str) -> Any:
    """A module of an optional library.

    Args:
        module: its dotted name.
        extra: what installs it, "slides", "video" or "dicom".

    Raises:
        EnvironmentMismatchError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EnvironmentMismatchError(
            f'{module} cannot be imported ({error}); run pip install "nnunet-octreenca[{extra}]"'
        ) from error


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
