"""Phantoms: a small 3-D data set in nnU-Net's layout, the same from the same seed.

A case is a body with an organ (class 1) and a lesion within it (class 2). Vessels are as bright
as the organ and nodules elsewhere in the body as bright as the lesion, so that no threshold can
tell the classes: an organ is recognised by its shape, a lesion by what lies around it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonObject, write_json

SHAPE = (12, 38, 38)  # voxels (z, y, x); the median plans to a context of 12 x 40 x 40
SPACING = (2.5, 1.0, 1.0)  # mm (z, y, x)
LABELS = {"background": 0, "organ": 1, "lesion": 2}
MIN_SHAPE = (6, 16, 16)  # in smaller ones a lesion may have no voxel
MIN_VOXELS = 8  # of every class in every case

# What a voxel is made of, and how bright that is. Nodules are of the lesion's tissue, vessels
# of the organ's.
AIR, BODY, ORGAN, LESION = range(4)
BRIGHTNESS = (0.03, 0.35, 0.65, 0.95)
BRIGHTNESS_SPREAD = 0.05  # standard deviation between cases, relative
BIAS = 0.12  # standard deviation of the log of the bias field within a case
NOISE = 0.05  # standard deviation
SCANNER_UNITS = 1000  # stored int16 per unit of brightness

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


def make_phantoms(
    folder: Path,
    *,
    training: int,
    test: int,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    channels: int = 1,
) -> None:
    """Write a data set: imagesTr, labelsTr, imagesTs, dataset.json, and labelsTs as the truth.

    A case depends on the seed and its number only, so that a larger data set begins with the
    cases of a smaller one.

    Args:
        folder: of the data set, `DatasetXXX_Name`; made here.
        training: number of training cases; nnU-Net's five folds need at least five.
        test: number of test cases, which are numbered after the training cases.
        seed: of everything random.
        shape: voxels (z, y, x); cases differ from it by up to an eighth per axis.
        channels: images per case, of the same anatomy in different contrasts.

    Raises:
        InputError: the folder holds something already, or a number is too small.
    """
    if training < 1 or test < 0 or channels < 1:
        raise InputError(
            f"training ({training}) and channels ({channels}) must be at least 1, test ({test}) "
            f"at least 0"
        )
    if len(shape) != 3 or any(n < least for n, least in zip(shape, MIN_SHAPE, strict=False)):
        raise InputError(f"shape {tuple(shape)} must be (z, y, x), at least {MIN_SHAPE} voxels")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; give a new one")
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True)
    for number in range(training + test):
        part = "Tr" if number < training else "Ts"
        images, labels = draw_case(shape, channels, np.random.default_rng([seed, number]))
        name = f"phantom_{number:03d}"
        for channel, image in enumerate(images):
            _write(image, folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz")
        _write(labels, folder / f"labels{part}" / f"{name}.nii.gz")
    write_json(folder / "dataset.json", dataset_json(training, channels))


def dataset_json(training: int, channels: int) -> JsonObject:
    """What nnU-Net wants to know about the data set."""
    return {
        "channel_names": {str(channel): f"contrast {channel}" for channel in range(channels)},
        "labels": LABELS,
        "numTraining": training,
        "file_ending": ".nii.gz",
        "name": "Phantoms",
        "description": "Drawn by nnunet_octreenca; class 2 lies within class 1",
    }


def draw_case(
    shape: Sequence[int], channels: int, generator: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A case of about the given shape.

    Returns:
        images (channels, z, y, x) int16 and labels (z, y, x) uint8.
    """
    own_shape = [n + int(generator.integers(-(n // 8), n // 8 + 1)) for n in shape]
    tissue, labels = draw_anatomy(own_shape, generator)
    images = [
        draw_image(tissue, np.roll(BRIGHTNESS, channel).tolist(), generator)
        for channel in range(channels)
    ]
    return np.stack(images), labels


def draw_anatomy(
    shape: Sequence[int], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Body, vessels, nodules, organ and lesion; drawn again until no class is too small.

    Returns:
        tissue (z, y, x) uint8, AIR to LESION, and labels (z, y, x) uint8.
    """
    grid = millimetres(shape)
    extent = np.multiply(shape, SPACING)
    while True:
        body, vessels, nodules = _surroundings(grid, extent, generator)
        organ, lesion = _organ_and_lesion(grid, extent, generator)
        tissue = np.full(shape, AIR, np.uint8)
        labels = np.zeros(shape, np.uint8)
        for mask, material in ((body, BODY), (vessels & body, ORGAN), (nodules & body, LESION)):
            tissue[mask] = material
        for mask, material, label in ((organ, ORGAN, 1), (lesion, LESION, 2)):
            tissue[mask] = material
            labels[mask] = label
        if np.bincount(labels.ravel(), minlength=3).min() >= MIN_VOXELS:
            return tissue, labels


def _surroundings(
    grid: Floats, extent: Floats, generator: np.random.Generator
) -> tuple[Mask, Mask, Mask]:
    """Body, three or four vessels through it, five to eight nodules in it."""
    body = superellipsoid(grid, np.zeros(3), 0.47 * extent, exponent=4)
    vessels = np.zeros_like(body)
    for _ in range(generator.integers(3, 5)):
        ends = direction(generator) * 0.6 * extent
        bend = generator.uniform(-0.35, 0.35, 3) * extent
        vessels |= tube(grid, (ends, bend, -ends), generator.uniform(0.05, 0.07) * extent.mean())
    nodules = np.zeros_like(body)
    for _ in range(generator.integers(5, 9)):
        centre = direction(generator) * generator.uniform(0.2, 0.45) * extent
        radii = generator.uniform(0.07, 0.12, 3) * extent.min()
        nodules |= superellipsoid(grid, centre, radii, exponent=8, axes=rotation(generator))
    return body, vessels, nodules


def _organ_and_lesion(
    grid: Floats, extent: Floats, generator: np.random.Generator
) -> tuple[Mask, Mask]:
    """The organ, anywhere about the middle, and the part of the lesion that lies in it."""
    centre = generator.uniform(-0.12, 0.12, 3) * extent
    radii = generator.uniform(0.22, 0.34, 3) * extent.min()
    axes = rotation(generator)
    organ = superellipsoid(grid, centre, radii, exponent=2.5, axes=axes)
    inside = axes.T @ (direction(generator) * generator.uniform(0.1, 0.6) * radii)
    size = generator.uniform(0.4, 0.65, 3) * radii.min()
    return organ, organ & superellipsoid(grid, centre + inside, size, axes=rotation(generator))


def draw_image(
    tissue: NDArray[np.uint8], brightness: Sequence[float], generator: np.random.Generator
) -> NDArray[np.int16]:
    """What a scanner makes of tissues: contrast, blur, bias field and the noise of magnitudes.

    Args:
        tissue: (z, y, x) uint8.
        brightness: of every tissue.

    Returns:
        (z, y, x) int16.
    """
    spread = 1 + BRIGHTNESS_SPREAD * generator.standard_normal(len(brightness))
    signal = blurred((np.asarray(brightness) * spread)[tissue])
    signal *= bias_field(tissue.shape, generator)
    real, imaginary = NOISE * generator.standard_normal((2, *tissue.shape))
    magnitude = np.hypot(signal + real, imaginary)
    return np.rint(SCANNER_UNITS * magnitude).astype(np.int16)


def millimetres(shape: Sequence[int], spacing: Sequence[float] = SPACING) -> Floats:
    """Positions (3, z, y, x) in mm of the voxels' centres; the volume's centre is 0.

    >>> millimetres((2, 1, 1))[0].ravel().tolist()
    [-1.25, 1.25]
    """
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def superellipsoid(
    grid: Floats,
    centre: Floats,
    radii: Floats,
    *,
    exponent: float = 2.0,
    axes: Floats | None = None,
) -> Mask:
    """Voxels within |a|^e + |b|^e + |c|^e <= 1: an ellipsoid for e = 2, a box for large e.

    Args:
        grid: positions (3, z, y, x) in mm.
        centre, radii: (3,) in mm; the radii along the rows of `axes`.
        axes: (3, 3) orthonormal; z, y and x if left out.

    Returns:
        (z, y, x) bool.
    """
    relative = np.moveaxis(grid, 0, -1) - centre
    own = relative if axes is None else relative @ axes.T
    return (np.abs(own / radii) ** exponent).sum(-1) <= 1


def tube(grid: Floats, points: Sequence[Floats], radius: float, samples: int = 48) -> Mask:
    """Voxels within `radius` mm of the quadratic Bézier curve through three control points.

    Args:
        grid: positions (3, z, y, x) in mm.
        points: start, control point and end, (3,) in mm each.
        samples: points of the curve that distances are taken to.

    Returns:
        (z, y, x) bool.
    """
    t = np.linspace(0, 1, samples)[:, None]
    curve = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
    near = np.zeros(grid.shape[1:], bool)
    for point in curve:
        near |= ((grid - point[:, None, None, None]) ** 2).sum(0) <= radius**2
    return near


def direction(generator: np.random.Generator) -> Floats:
    """A unit vector (3,), all directions alike."""
    vector = generator.standard_normal(3)
    return vector / np.linalg.norm(vector)


def rotation(generator: np.random.Generator) -> Floats:
    """Three orthonormal rows (3, 3), all orientations alike."""
    first = direction(generator)
    second = np.cross(first, direction(generator))
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])


def bias_field(
    shape: Sequence[int], generator: np.random.Generator, strength: float = BIAS
) -> Floats:
    """A smooth field (z, y, x) above 0: the exponential of a random quadratic polynomial.

    Its logarithm has mean 0 and standard deviation `strength`.
    """
    z, y, x = (np.linspace(-1, 1, n) for n in shape)
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    terms = np.stack([z, y, x, z * y, z * x, y * x, z * z, y * y, x * x])
    logarithm = np.tensordot(generator.standard_normal(len(terms)), terms, 1)
    logarithm -= logarithm.mean()
    return np.exp(strength * logarithm / logarithm.std())


def blurred(volume: Floats) -> Floats:
    """Each voxel averaged with its neighbours, weights 1/8, 6/8, 1/8 along every axis."""
    for axis in range(volume.ndim):
        pad = [(int(a == axis),) * 2 for a in range(volume.ndim)]
        padded = np.moveaxis(np.pad(volume, pad, mode="edge"), axis, 0)
        mixed = 0.125 * padded[:-2] + 0.75 * padded[1:-1] + 0.125 * padded[2:]
        volume = np.moveaxis(mixed, 0, axis)
    return volume


def _write(volume: Pixels, path: Path) -> None:
    """(z, y, x) to NIfTI; the volume's centre is the scanner's."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(volume)
    spacing = SPACING[::-1]  # SimpleITK counts x, y, z
    image.SetSpacing(spacing)
    image.SetOrigin([-(n - 1) / 2 * s for n, s in zip(image.GetSize(), spacing, strict=True)])
    sitk.WriteImage(image, str(path), useCompression=True)
