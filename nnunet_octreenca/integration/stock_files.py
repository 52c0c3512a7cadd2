"""Images and label maps read and written as nnU-Net's reader of a data set does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping


def read_image(files: Sequence[str], dataset: JsonMapping) -> NDArray[np.float32]:
    """(channel, z, y, x) of a case's files, one a channel.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        image, _ = _reader(files[0], dataset).read_images(list(files))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{files[0]} cannot be read ({error})") from error
    return np.asarray(image, np.float32)


def read_labels(path: Path, dataset: JsonMapping) -> tuple[NDArray[np.integer[Any]], Any]:
    """A label map (z, y, x), and where it lies, for `write_labels`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        labels, where = _reader(str(path), dataset).read_seg(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    return labels[0], where


def write_labels(labels: NDArray[np.uint8], path: Path, where: Any, dataset: JsonMapping) -> None:
    """Write (z, y, x) with the geometry of a label map that was read."""
    _reader(str(path), dataset).write_seg(labels, str(path), where)


def _reader(example: str, dataset: JsonMapping) -> Any:
    there = example if Path(example).exists() else None
    return determine_reader_writer_from_dataset_json(dict(dataset), there, verbose=False)()
