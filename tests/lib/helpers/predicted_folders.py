"""A truth and predictions of known quality, as folders."""

from pathlib import Path

import numpy as np

from nnunet_octreenca.files import write_json
from nnunet_octreenca.labels.volume import write_volume

SPACING = (0.8, 0.8, 2.5)  # x, y, z
SHAPE = (8, 24, 22)
DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 0,
    "file_ending": ".nii.gz",
}


def make_folders(
    folder: Path, *, cases: int = 7, methods: tuple[str, ...] = ("A", "B"), images: bool = False
) -> tuple[Path, dict[str, Path]]:
    """`truth`, a folder a method, `images` and dataset.json; later methods shift the truth more."""
    generator = np.random.default_rng(0)
    write_json(folder / "dataset.json", DATASET)
    for name in ("truth", "images", *methods):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        truth = labels_of(generator)
        save(truth, folder / "truth" / f"case_{number}.nii.gz")
        for place, name in enumerate(methods):
            shift = place + int(generator.integers(1, 3))
            save(np.roll(truth, shift, 2), folder / name / f"case_{number}.nii.gz")
        if images:
            image = (100 * truth + generator.normal(0, 20, SHAPE)).astype(np.int16)
            save(image, folder / "images" / f"case_{number}_0000.nii.gz")
    return folder / "truth", {name: folder / name for name in methods}


def labels_of(generator: np.random.Generator) -> np.ndarray:
    """An ellipsoid (1) with a smaller one (2) in it."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    centre = [n / 2 + generator.uniform(-1, 1) for n in SHAPE]
    radii = np.array([3.2, 8, 6]) * generator.uniform(0.7, 1.1)
    far = sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radii, strict=True))
    return (far < 1).astype(np.uint8) + (far < 0.2)


def save(voxels: np.ndarray, path: Path, **options) -> None:
    """With the spacing of these cases unless told otherwise."""
    write_volume(voxels, path, **{"spacing": SPACING, **options})
