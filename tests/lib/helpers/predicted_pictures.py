"""Pictures, a truth and predictions of known quality, as folders."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (90, 120)


def make_pictures(
    folder: Path, *, cases: int = 3, methods: tuple[str, ...] = ("A", "B")
) -> tuple[Path, dict[str, Path]]:
    """`truth`, `images` (RGB) and a folder a method; later methods shift the truth more."""
    generator = np.random.default_rng(0)
    for name in ("truth", "images", *methods):
        (folder / name).mkdir(parents=True)
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    for number in range(cases):
        centre = generator.uniform(0.4, 0.6, 2) * SIZE
        truth = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 25**2).astype(np.uint8)
        image = 90 + 60 * truth[..., None] + generator.normal(0, 8, (*SIZE, 3))
        save(image.clip(0, 255).astype(np.uint8), folder / "images" / f"case_{number}_0000.png")
        save(truth, folder / "truth" / f"case_{number}.png")
        for place, name in enumerate(methods):
            save(np.roll(truth, 6 * (place + 1), 1), folder / name / f"case_{number}.png")
    return folder / "truth", {name: folder / name for name in methods}


def save(pixels: np.ndarray, path: Path) -> None:
    """As PNG."""
    Image.fromarray(pixels).save(path)
