"""Is a departure from the paper's recipe worth it? Dice after the same iterations, both ways.

    python benchmarks/training_choices.py --iterations 200
    python benchmarks/training_choices.py --tasks hippocampus --json

Compared: the paper's recipe (learning rate times 0.9992 an epoch of 250 iterations, gradients as
they are) with ours (polynomial decay to 0 at the end, gradients clipped at norm 1), and each of the
two changes alone. Everything else is the same: network, start, loss, average of the weights,
batches, crops and flips. Without nnU-Net, so that nothing else differs. Dice of held-out whole
images, mean over classes and images.

Data: hippocampus/, acdc/ and chase_db1/ in --data, $OCTREENCA_DATA or ../shared/data; acdc needs
h5py, chase_db1 needs Pillow.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from hippocampus import find_data
from torch import Tensor

from nnunet_octreenca import OctreeNCA
from nnunet_octreenca.octree import level_shapes
from nnunet_octreenca.planning import level_factors, level_steps
from nnunet_octreenca.training import SegmentationLoss, WeightAverage, learning_rate

EPOCH = 250  # nnU-Net's
RECIPES = {
    "paper": {"lr_schedule": "exponential", "clip": None},
    "poly": {"lr_schedule": "poly", "clip": None},
    "clip": {"lr_schedule": "exponential", "clip": 1.0},
    "poly and clip": {"lr_schedule": "poly", "clip": 1.0},
}
Case = tuple[Tensor, Tensor]  # image (channels, *spatial), labels (1, *spatial)


def normalized(image: np.ndarray) -> Tensor:
    """Zero mean and unit variance in each channel."""
    axes = tuple(range(1, image.ndim))
    mean, std = image.mean(axes, keepdims=True), image.std(axes, keepdims=True)
    return torch.from_numpy((image - mean) / (std + 1e-8)).float()


def hippocampus(data: Path) -> tuple[list[Case], list[Case], tuple[int, ...], int]:
    """Brain MRI: 40 cases to train on, 12 to test, crops of 32 x 40 x 32, two classes."""

    def read(path: Path) -> Case:
        label = sitk.ReadImage(str(data / "hippocampus" / "labels" / path.name))
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)
        return normalized(image[None]), torch.from_numpy(
            sitk.GetArrayFromImage(label).astype(np.int16)
        )[None]

    cases = [read(path) for path in sorted((data / "hippocampus" / "images").glob("*"))[:52]]
    return cases[:40], cases[40:], (32, 40, 32), 2


def acdc(data: Path) -> tuple[list[Case], list[Case], tuple[int, ...], int]:
    """Cardiac MRI: 8 patients to train on, 4 to test, crops of 7 x 96 x 96, three classes."""
    import h5py

    cases = []
    for path in sorted((data / "acdc").glob("*.h5")):
        with h5py.File(path) as file:
            label = torch.from_numpy(file["label"][:].astype(np.int16))
            cases.append((normalized(file["image"][:].astype(np.float32)[None]), label[None]))
    return cases[:8], cases[8:], (7, 96, 96), 3


def chase_db1(data: Path) -> tuple[list[Case], list[Case], tuple[int, ...], int]:
    """Fundus photographs: 14 to train on, 6 to test, crops of 160 x 160, vessels."""
    from PIL import Image

    def read(path: Path) -> Case:
        truth = data / "chase_db1" / "labels" / f"{path.stem}_1stHO.png"
        image = np.asarray(Image.open(path), dtype=np.float32).transpose(2, 0, 1)
        vessels = np.asarray(Image.open(truth).convert("L")) > 127
        return normalized(image), torch.from_numpy(vessels.astype(np.int16))[None]

    cases = [read(path) for path in sorted((data / "chase_db1" / "images").glob("*"))]
    return cases[:14], cases[14:], (160, 160), 1


TASKS = {"hippocampus": hippocampus, "acdc": acdc, "chase_db1": chase_db1}


def draw_batch(
    cases: list[Case], crop: tuple[int, ...], size: int, rng: np.random.Generator
) -> Case:
    """Random crops (padded where an image is smaller), randomly flipped."""
    images, labels = [], []
    for number in rng.integers(len(cases), size=size):
        image, label = cases[number]
        for axis, wanted in enumerate(crop, start=1):
            room = image.shape[axis] - wanted
            first = int(rng.integers(max(room, 0) + 1))
            image, label = (
                t.narrow(axis, first, min(wanted, t.shape[axis])) for t in (image, label)
            )
            if room < 0:
                pad = (0, 0) * (len(crop) - axis) + (0, -room)
                image, label = (torch.nn.functional.pad(t, pad) for t in (image, label))
        flips = [axis for axis in range(1, len(crop) + 1) if rng.random() < 0.5]
        images.append(image.flip(flips))
        labels.append(label.flip(flips))
    return torch.stack(images), torch.stack(labels)


def dice(network: OctreeNCA, cases: list[Case], classes: int) -> float:
    """Mean Dice over images and classes, each image whole."""
    scores = []
    with torch.no_grad():
        for image, label in cases:
            predicted = network(image[None], seed=0)[0].argmax(0)
            for c in range(1, classes + 1):
                one, other = predicted == c, label[0] == c
                total = int(one.sum() + other.sum())
                scores.append(2 * int((one & other).sum()) / total if total else 1.0)
    return float(np.mean(scores))


def measure(task: str, recipe: str, iterations: int, data: Path, batch_size: int) -> dict:
    """Train on one task with one recipe."""
    train, test, crop, classes = TASKS[task](data)
    choice = RECIPES[recipe]
    factors = level_factors(crop)
    torch.manual_seed(0)
    network = OctreeNCA(
        train[0][0].shape[0],
        classes + 1,
        dimension=len(crop),
        factors=factors,
        steps=level_steps(level_shapes(crop, factors)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1.6e-3, betas=(0.9, 0.99))
    average, loss = WeightAverage(network, 0.99), SegmentationLoss()
    rng = np.random.default_rng(0)
    for iteration in range(iterations):
        rate = learning_rate(
            iteration / iterations,
            initial_lr=1.6e-3,
            lr_schedule=choice["lr_schedule"],
            num_epochs=max(iterations // EPOCH, 1),
            poly_exponent=0.9,
            lr_decay=0.9992,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        image, label = draw_batch(train, crop, batch_size, rng)
        optimizer.zero_grad()
        loss(network(image, seed=iteration), label).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), choice["clip"] or float("inf"))
        if torch.isfinite(norm):
            optimizer.step()
            average.update(network)
    with average.applied(network):
        return {"task": task, "recipe": recipe, "iterations": iterations} | {
            "dice": dice(network, test, classes)
        }


def main() -> None:
    """Print a row for every task and recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--data", help="folder that holds the tasks' folders")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    data = find_data(arguments.data)
    rows = []
    for task in arguments.tasks:
        for recipe in arguments.recipes:
            row = measure(task, recipe, arguments.iterations, data, arguments.batch_size)
            rows.append(row)
            if not arguments.json:
                print(f"{task:12} {recipe:14} {row['dice']:.3f}", flush=True)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "rows": rows}, indent=4))


if __name__ == "__main__":
    main()
