"""What the demo's networks have achieved: Dice, a table and a picture."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Pixels
from nnunet_octreenca.datasets.phantoms import LABELS
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import JsonMapping, JsonObject, atomic_write

CLASSES = {name: label for name, label in LABELS.items() if label > 0}
COLOURS = {"organ": (0.0, 0.72, 0.66), "lesion": (1.0, 0.60, 0.0)}  # told apart by all eyes
PICTURE_INCHES, PICTURE_DPI = (10.0, 8.1), 120


def dice(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], label: int) -> float | None:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of a label; None where neither has it.

    >>> dice(np.array([1, 1, 0], np.uint8), np.array([1, 0, 0], np.uint8), 1)
    0.6666666666666666
    """
    true, predicted = truth == label, prediction == label
    total = int(true.sum()) + int(predicted.sum())
    return 2 * int((true & predicted).sum()) / total if total else None


def dice_of_folder(truths: Path, predictions: Path) -> JsonObject:
    """Dice of every class and case, and the means over the cases.

    Raises:
        InputError: a case has not been predicted, or in another shape.
    """
    cases = {}
    for truth in sorted(truths.glob("*.nii.gz")):
        if not (predictions / truth.name).is_file():
            raise InputError(f"{predictions} holds no {truth.name}; see the logs next to it")
        true, predicted = read(truth), read(predictions / truth.name)
        if true.shape != predicted.shape:
            raise InputError(
                f"{predictions / truth.name} has {predicted.shape} voxels, the truth {true.shape}"
            )
        cases[truth.name.removesuffix(".nii.gz")] = {
            name: dice(true, predicted, label) for name, label in CLASSES.items()
        }
    means = {name: _mean(case[name] for case in cases.values()) for name in CLASSES}
    return {"dice": means, "mean_dice": _mean(means.values()), "cases": cases}


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def read(path: Path) -> Pixels:
    """A NIfTI file's voxels (z, y, x)."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def spacing(path: Path) -> tuple[float, float, float]:
    """A NIfTI file's spacing (z, y, x) in mm."""
    import SimpleITK as sitk

    x, y, z = sitk.ReadImage(str(path)).GetSpacing()
    return z, y, x


def count_parameters(checkpoint: Path) -> int:
    """Weights in a checkpoint of nnU-Net's, each once.

    nnU-Net's U-Net holds its encoder twice, under two names for the same memory.
    """
    from nnunet_octreenca.training.checkpoints import read_checkpoint

    weights = read_checkpoint(checkpoint)["network_weights"]
    return sum({w.data_ptr(): w.numel() for w in weights.values() if w.numel()}.values())


def circumstances() -> JsonObject:
    """What must be reported with a figure: machine and versions."""
    import torch

    from nnunet_octreenca import __version__
    from nnunet_octreenca.integration.nnunet_version import nnunet_version

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": os.cpu_count(),
        "versions": {
            "nnunet_octreenca": __version__,
            "nnunetv2": nnunet_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def table_rows(networks: Mapping[str, JsonMapping]) -> list[list[str]]:
    """Rows of the table: what, then a column per network."""

    def row(what: str, key: str, show: Any) -> list[str]:
        values = [network[key] for network in networks.values()]
        return [what, *("-" if value is None else show(value) for value in values)]

    rows = [
        [
            f"Dice {name}",
            *(
                "-" if n["dice"][name] is None else f"{n['dice'][name]:.3f}"
                for n in networks.values()
            ),
        ]
        for name in CLASSES
    ]
    return [
        *rows,
        row("Dice mean", "mean_dice", "{:.3f}".format),
        row("parameters", "parameters", "{:,}".format),
        row("training iterations", "iterations", "{:,}".format),
        row("training, s", "training_seconds", "{:.0f}".format),
        row("prediction, s", "prediction_seconds", "{:.0f}".format),
        row("peak memory of training, GB", "training_peak_bytes", _gigabytes),
    ]


def _gigabytes(value: int) -> str:
    return f"{value / 1e9:.2f}"


def print_table(report: JsonMapping) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table

    networks = report["networks"]
    cases = len(next(iter(networks.values()))["cases"])
    table = Table(title=f"{cases} test cases, {report['total_seconds']} s in all")
    table.add_column("")
    for name in networks:
        table.add_column(name, justify="right")
    for row in table_rows(networks):
        table.add_row(*row)
    table.caption = (
        "prediction: the command, 8 mirrored passes a case\n"
        "memory: the largest process, libraries included"
    )
    table.caption_justify = "left"
    Console().print(table)


def draw(
    raw: Path,
    predictions: Mapping[str, Path],
    networks: Mapping[str, JsonMapping],
    path: Path,
) -> None:
    """Image, truth and each network's segmentation of three test cases, as PNG.

    Two cases in an axial slice and one in a coronal one, each through the middle of the lesion.

    Args:
        raw: the data set's folder.
        predictions: folder of segmentations by network.
        networks: by name, with `dice_of_folder`'s results.
        path: file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = sorted((raw / "labelsTs").glob("*.nii.gz"))[:3]
    figure = Figure(figsize=PICTURE_INCHES, dpi=PICTURE_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(files), 2 + len(predictions), squeeze=False)
    for row, file in enumerate(files):
        case = file.name.removesuffix(".nii.gz")
        truth = read(file)
        image = read(raw / "imagesTs" / f"{case}_0000.nii.gz")
        plane = 1 if row == 2 else 0
        middle = round(np.argwhere(truth == LABELS["lesion"])[:, plane].mean())
        shown: dict[str, Pixels | None] = {"image": None, "truth": truth}
        shown.update({name: read(folder / file.name) for name, folder in predictions.items()})
        for axes, (name, labels) in zip(grid[row], shown.items(), strict=True):
            _panel(axes, image, labels, plane, middle, spacing(file))
            title = name if row == 0 else ""
            if name in networks:
                values = networks[name]["cases"][case]
                title += "\n" + ", ".join(
                    f"{what} {'-' if value is None else f'{value:.2f}'}"
                    for what, value in values.items()
                )
            axes.set_title(title.strip(), fontsize=10)
        grid[row][0].set_ylabel(f"{case}\n{'coronal' if plane else 'axial'}", fontsize=10)
    figure.suptitle("Test cases: organ and lesion, Dice of the whole volume", fontsize=12)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _panel(
    axes: Any,
    image: Pixels,
    labels: Pixels | None,
    plane: int,
    position: int,
    millimetres: tuple[float, float, float],
) -> None:
    """A slice (row, column) of the image, the labels' outlines on it, in true proportions."""
    down, across = (step for axis, step in enumerate(millimetres) if axis != plane)
    axes.imshow(
        image.take(position, plane),
        cmap="gray",
        vmin=0,
        vmax=np.percentile(image, 99.8),
        aspect=down / across,
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    if labels is None:
        return
    for name, label in CLASSES.items():
        mask = labels.take(position, plane) == label
        overlay = np.zeros((*mask.shape, 4))
        overlay[mask] = (*COLOURS[name], 0.3)
        axes.imshow(overlay, aspect=down / across, interpolation="nearest")
        if mask.any() and not mask.all():
            axes.contour(mask, [0.5], colors=[COLOURS[name]], linewidths=1.2)
