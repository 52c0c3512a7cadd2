"""Natural images of any size, read once into one float32 array, without Pillow's size limit.

nnU-Net reads PNG, BMP and TIFF through scikit-image. Pillow, which reads the first two, refuses
images of more than 179 megapixels, for a small file can promise a huge image. Here the limit is
lifted while we read, and what it guards against is checked instead: whether the file and the
machine can hold what the header promises.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import orientation
from nnunet_octreenca.images.picture_checks import require_whole_png
from nnunet_octreenca.images.slide_reader import orientation_of, read_whole
from nnunet_octreenca.images.tiff_reader import samples_to_convert
from nnunet_octreenca.integration.case_properties import CaseProperties
from nnunet_octreenca.libraries import unlimited_pillow
from nnunet_octreenca.resources import physical_memory

# A deflated byte stands for at most 1,032 bytes.
_DEFLATE_RATIO = 1032
_PILLOW_ENDINGS = (".png", ".bmp")
_BITS = {"RGB": 24, "RGBA": 32}  # of a pixel in a PNG; of other modes at least 1


def check_promise(path: str) -> None:
    """Check the header of a PNG or BMP before any memory is allocated for it.

    Raises:
        InputError: the file is too short for the image that its header promises, or the machine
            too small.
    """
    from PIL import Image

    if not path.lower().endswith(_PILLOW_ENDINGS):
        return
    try:
        with unlimited_pillow(), Image.open(path) as image:
            (width, height), mode, kind = image.size, image.mode, image.format
    except OSError as error:
        raise InputError(
            f"{path} cannot be read as an image ({error}); replace or remove it"
        ) from error
    require_whole_png(Path(path))
    promised = width * height * _BITS.get(mode, 1) // 8
    there = Path(path).stat().st_size
    if kind == "PNG" and promised > there * _DEFLATE_RATIO:
        raise InputError(
            f"{path} promises {width} x {height} pixels, which its {there} bytes cannot hold; it "
            f"is damaged: replace or remove it"
        )
    # In float32, as nnU-Net wants it.
    needed = width * height * Image.getmodebands(mode) * 4
    memory = physical_memory()
    if needed > memory:
        raise InputError(
            f"{path} has {width} x {height} pixels, which take {needed / (1 << 30):.1f} GiB as "
            f"nnU-Net wants them, but this machine has {memory / (1 << 30):.1f} GiB; predict it "
            f"with `nnunet_octreenca predict`, which reads in bands"
        )


def read_natural_images(files: Sequence[str]) -> tuple[NDArray[np.float32], CaseProperties]:
    """Return what `NaturalImage2DIO.read_images` returns, in channel-first memory order.

    nnU-Net's array has the three colours of a pixel side by side, and is copied when it becomes
    a tensor. Besides the array, only the files' own pixels are held.

    Args:
        files: of one case; grey, RGB or RGBA.

    Returns:
        (channels, 1, y, x) float32, contiguous, and the properties: spacing (999, 1, 1).

    Raises:
        InputError: a file is damaged, or promises what it or the machine cannot hold.
    """
    for path in files:
        check_promise(path)
    with unlimited_pillow():
        images = [_pixels(path) for path in files]
        if not _alike(images):  # what nnU-Net has a sentence for
            return NaturalImage2DIO().read_images(files)
    return _planes(images), {"spacing": (999, 1, 1)}


class OctreeNCANaturalImage2DIO(NaturalImage2DIO):
    """nnU-Net's reader of natural images, for pictures of any size and with identical values.

    But for pictures that viewers show turned (EXIF's and TIFF's orientation), and for TIFF files
    in which white is 0, colours are YCbCr, samples have 2 or 4 bits, or tiles were never written:
    nnU-Net takes the numbers as they are stored, here they are what viewers show and predictions
    are made from.

    For all of nnU-Net's commands, once `nnunet_octreenca register` has made it known:
    `"overwrite_image_reader_writer": "OctreeNCANaturalImage2DIO"` in dataset.json.
    """

    def read_images(
        self, image_fnames: list[str] | tuple[str, ...]
    ) -> tuple[NDArray[np.float32], CaseProperties]:
        """See `read_natural_images`."""
        return read_natural_images(image_fnames)


def _pixels(path: str) -> Pixels:
    from skimage import io

    try:
        samples = samples_to_convert(path) if path.lower().endswith((".tif", ".tiff")) else None
        if samples is None:
            code = _orientation(path)
            say_once(*orientation.note("pictures of the data set", code))
            return orientation.turned(io.imread(path), code, axis=0)
        pixels = read_whole(path, channels=samples)  # as a prediction sees it
        say_once(*orientation.note("pictures of the data set", _orientation(path), "TIFF"))
        return pixels if samples > 1 else pixels[..., 0]
    except (MemoryError, InputError):
        raise
    except Exception as error:  # a damaged image can raise anything
        raise InputError(
            f"{path} cannot be read as an image ({error}); replace or remove it"
        ) from error


def stored_otherwise_than_shown(path: str) -> bool:
    """Whether nnU-Net's own reader returns other pixels than a prediction is made from.

    What cannot be read does not count; reading it says why.
    """
    try:
        if path.lower().endswith((".tif", ".tiff")):
            return samples_to_convert(path) is not None
        return _orientation(path) != orientation.STORED
    except Exception:
        return False


def labels_as_shown(labels: Pixels, path: str) -> Pixels:
    """Labels (1, 1, y, x) that nnU-Net read from a picture, turned as its image is."""
    return orientation.turned(labels, _orientation(path))


def _orientation(path: str) -> int:
    from PIL import Image

    if path.lower().endswith((".tif", ".tiff")):
        return orientation_of(path)
    if not path.lower().endswith(".png"):
        return orientation.STORED
    with unlimited_pillow(), Image.open(path) as image:
        return orientation.of_picture(image, Path(path))


@cache
def say_once(*sentences: str) -> None:
    """Print what is done, each sentence once."""
    for sentence in sentences:
        print(sentence)


def _alike(images: list[Pixels]) -> bool:
    """Whether all images are grey, RGB or RGBA and share one shape."""
    shape = images[0].shape
    natural = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4))
    return natural and all(image.shape == shape for image in images)


def _planes(images: list[Pixels]) -> NDArray[np.float32]:
    """Images (y, x) or (y, x, channel) as (channels, 1, y, x)."""
    stacked = [np.moveaxis(image, 2, 0) if image.ndim == 3 else image[None] for image in images]
    planes = np.empty((sum(map(len, stacked)), 1, *images[0].shape[:2]), dtype=np.float32)
    np.concatenate(stacked, out=planes[:, 0], casting="unsafe")
    return planes
