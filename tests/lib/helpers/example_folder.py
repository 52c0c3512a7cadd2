"""What examples in docstrings and on the pages find in the folder where they run."""

from pathlib import Path

import numpy as np
from PIL import Image
from untrained_model import model_folder


def make_example_folder(folder: Path) -> Path:
    """A model folder `model` that was never trained, `image.png` of 48 x 40, `images` of two."""
    model_folder(folder / "model")
    (folder / "images").mkdir()
    for seed, name in enumerate(("image.png", "images/a.png", "images/b.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (48, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder
