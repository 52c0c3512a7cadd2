"""Real images whole: trained for minutes, held-out images from disk to disk.

    python benchmarks/real_images.py vessels --minutes 15 --json
    python benchmarks/real_images.py surgery --minutes 15
    python benchmarks/real_images.py surgery-3d --minutes 15 --trainers OctreeNCATrainerTimeBudget

vessels: High-Resolution Fundus, nine photographs of 3504 x 2336, vessel or not; eight to train
with, one held out. surgery: one clip of CholecSeg8k at 432 x 240, frames 561 to 608 to train with
and 617 to 632 held out (one clip: its scores are optimistic), five classes, frame by frame.
surgery-3d: the same clip, which OctreeNCA sees as a volume (frame, y, x).

OctreeNCA (`OctreeNCATrainerTimeBudget`, then `nnunet_octreenca predict`, one pass over the whole)
and stock nnU-Net's 2d configuration (`nnUNetTrainerTimeBudget`, then `nnUNetv2_predict` with its
sliding window) get the same minutes; neither is mirrored; no image is validated on in between.
Data: --data, $OCTREENCA_DATA or ../shared/data.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minutes_of_training import OURS, PLANS, STOCK, budget_used, find_data, make_folders, run
from numpy.typing import NDArray

DATASET = "Dataset005_Real"
HELD_OUT = ("03_h",)


class Task(NamedTuple):
    """A data set, and what OctreeNCA is given beside the usual."""

    folder: str
    ours: str  # configuration
    extend: tuple[str, ...]  # flags of extend_plans
    classes: dict[str, int]
    ending: str


CHOLEC = {
    "abdominal_wall": 1,
    "liver": 2,
    "gastrointestinal_tract": 3,
    "fat": 4,
    "gallbladder": 5,
}
TASKS = {
    "vessels": Task("hrf_av", "2d", ("--preset", "pathology"), {"vessel": 1}, ".png"),
    "surgery": Task("cholecseg8k_clip", "2d", (), CHOLEC, ".nii.gz"),
    "surgery-3d": Task(
        "cholecseg8k_clip",
        "3d_fullres",
        ("--batch_size", "1", "-gpu_memory_target", "2"),
        CHOLEC,
        ".nii.gz",
    ),
}


def make_vessels(source: Path, raw: Path) -> None:
    """PNG pictures in nnU-Net's layout."""
    from PIL import Image

    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / name).mkdir(parents=True)
    count = 0
    for path in sorted((source / "images").iterdir()):
        part = "Ts" if path.stem in HELD_OUT else "Tr"
        count += part == "Tr"
        mask = np.asarray(
            Image.open(source / "labels" / f"{path.stem}_AVmanual.png").convert("RGB")
        )
        label = Image.fromarray((mask.max(-1) > 127).astype(np.uint8))
        label.save(raw / f"labels{part}" / f"{path.stem}.png")
        image = Image.open(path).convert("RGB")
        image.save(raw / f"images{part}" / f"{path.stem}_0000.png", compress_level=1)
    description = {
        "channel_names": dict.fromkeys("012", "rgb_to_0_1"),
        "labels": {"background": 0, "vessel": 1},
        "numTraining": count,
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(description))


def train_here(trainer: str, configuration: str) -> None:
    """Train without the validation of whole cases that nnUNetv2_train ends with."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    made = get_trainer_from_args(
        DATASET, configuration, "all", trainer, PLANS[trainer], device=torch.device("cpu")
    )
    made.run_training()


def dice(truth: NDArray, found: NDArray, classes: dict[str, int]) -> dict[str, float]:
    """Of every class that occurs in one of them."""
    scores = {}
    for name, value in classes.items():
        a, b = truth == value, found == value
        if a.any() or b.any():
            scores[name] = round(float(2 * (a & b).sum() / (a.sum() + b.sum())), 4)
    return scores


def read(path: Path) -> NDArray:
    """A label map of either format."""
    if path.suffix == ".png":
        from PIL import Image

        return np.asarray(Image.open(path))
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def measure(task: Task, trainer: str, minutes: float, work: Path) -> dict[str, Any]:
    """Train, predict the held-out images whole, compare with the truth."""
    os.environ["nnUNet_octreenca_minutes"] = str(minutes)
    configuration = task.ours if trainer == OURS else "2d"
    log = work / f"{trainer}.log"
    trained = run([sys.executable, __file__, "--train", trainer, configuration], log)
    iterations, seconds = budget_used(log)
    folder = work / "results" / DATASET / f"{trainer}__{PLANS[trainer]}__{configuration}"
    images, output = work / "raw" / DATASET / "imagesTs", work / f"{trainer}_out"
    if trainer == OURS:
        formats = "plain.png" if task.ending == ".png" else "nii.gz"
        command = ["nnunet_octreenca", "predict", "-m", str(folder), "--formats", formats]
        command += ["-i", str(images), "-o", str(output), "-f", "all", "--disable_tta"]
    else:
        command = ["nnUNetv2_predict", "-d", DATASET, "-i", str(images), "-o", str(output)]
        command += ["-f", "all", "-tr", trainer, "-p", PLANS[trainer], "-c", configuration]
        command += ["--disable_tta", "-device", "cpu", "-npp", "1", "-nps", "1"]
    predicted = run(command, work / f"{trainer}_predict.log")
    cases = {}
    for path in sorted((work / "raw" / DATASET / "labelsTs").glob(f"*{task.ending}")):
        cases[path.name] = dice(read(path), read(output / path.name), task.classes)
    scores = [score for case in cases.values() for score in case.values()]
    return {
        "trainer": trainer,
        "configuration": configuration,
        "minutes": minutes,
        "iterations": iterations,
        "training_seconds": seconds,
        "training_peak_bytes": trained.peak_bytes,
        "prediction_seconds": round(predicted.seconds, 1),
        "prediction_peak_bytes": predicted.peak_bytes,
        "cases": cases,
        "mean_dice": round(float(np.mean(scores)), 4),
    }


def main() -> None:
    """Prepare, train, predict, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=TASKS)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--trainers", nargs="+", default=[OURS, STOCK], choices=[OURS, STOCK])
    parser.add_argument("--data", help="folder that holds hrf_av/ and cholecseg8k_clip/")
    parser.add_argument("--work", help="keep everything in this new folder")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train_here(*arguments.train)
        return
    if arguments.task is None:
        parser.error(f"choose {', '.join(TASKS)}")

    task = TASKS[arguments.task]
    work = Path(arguments.work or tempfile.mkdtemp(prefix="real_images_"))
    make_folders(work)
    source = find_data(arguments.data, task.folder)
    if arguments.task == "vessels":
        make_vessels(source, work / "raw" / DATASET)
    else:
        convert = ["nnunet_octreenca", "convert", "cholecseg8k", "-i", str(source)]
        convert += ["-o", str(work / "raw" / DATASET), "--temporal-split", "561-608/617-632"]
        run(convert, work / "convert.log")
    configurations = sorted({task.ours, "2d"})
    plan = ["nnUNetv2_plan_and_preprocess", "-d", "5", "-c", *configurations, "-npfp", "2"]
    run([*plan, "-np", *("1" for _ in configurations)], work / "plan.log")
    run(["nnunet_octreenca", "extend_plans", "-d", "5", *task.extend], work / "extend.log")
    rows = []
    for trainer in arguments.trainers:
        rows.append(measure(task, trainer, arguments.minutes, work))
        if not arguments.json:
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"task": arguments.task, "rows": rows}, indent=4))
    if not arguments.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
