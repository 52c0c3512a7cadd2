"""Memory of `nnUNetv2_predict` on one large RGB PNG, summed over all its processes.

    python benchmarks/prediction_memory.py
    python benchmarks/prediction_memory.py --size 13600 --json
    python benchmarks/prediction_memory.py --size 3000 --steps 1 --classes 40 --logits

The folder of a model (2-D, RGB, weights drawn at random) and an image of --size x --size pixels
are made; nnU-Net's own command predicts the image, while the proportional set sizes of the
command and all its descendants are added up every few milliseconds. What the same command
takes for a tiny image (libraries, tables) is subtracted. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from untrained_model import model_folder

TINY = 64


# nnU-Net's command in a process where predictions are exported as stock nnU-Net does.
EXPORT_LOGITS = """
from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder
from nnunet_octreenca.integration import predictor
predictor.labels_instead = lambda predictor, logits: logits
predict_entry_point_modelfolder()
"""


def make_model(folder: Path, steps: int | None, classes: int = 2) -> None:
    """A folder that `nnUNetv2_predict_from_modelfolder -m` takes.

    Args:
        folder: to be made.
        steps: of every level; the plan's if None. Fewer are faster and need the same memory.
        classes: with the background.
    """
    labels = {"background": 0, **{f"class {label}": label for label in range(1, classes)}}
    model_folder(folder, patch=(320, 320), labels=labels, steps=steps)


def make_image(path: Path, size: int) -> None:
    """An RGB PNG of size x size pixels: noise, smooth enough to compress."""
    from PIL import Image

    path.parent.mkdir(parents=True)
    tile = np.random.default_rng(0).integers(1, 255, (61, 67, 3), dtype=np.uint8)
    repeats = (-(-size // tile.shape[0]), -(-size // tile.shape[1]), 1)
    Image.fromarray(np.tile(tile, repeats)[:size, :size]).save(path, compress_level=1)


def descendants(root: int) -> list[int]:
    """A process and all below it."""
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        try:
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
        except OSError:  # it ended in the meantime
            continue
    return found


def memory(process: int) -> int:
    """Proportional set size in bytes: pages shared by n processes count 1/n in each."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def peak_of(command: list[str], environment: dict[str, str], interval: float) -> dict[str, Any]:
    """Run a command; the largest sum over its processes, what each then had, and its seconds."""
    start, peak, shares = time.monotonic(), 0, []
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            now = [memory(one) for one in descendants(process.pid)]
            if sum(now) > peak:
                peak, shares = sum(now), sorted(now, reverse=True)
            time.sleep(interval)
        if process.returncode:
            log.seek(0)
            sys.exit(log.read().decode(errors="replace")[-4000:])
    return {"bytes": peak, "processes": shares, "seconds": time.monotonic() - start}


def measure(
    size: int,
    steps: int | None,
    interval: float,
    flags: list[str],
    *,
    classes: int = 2,
    logits: bool = False,
) -> dict[str, Any]:
    """Bytes per pixel above what a tiny image takes.

    Args:
        size: pixels a side.
        steps: of every level; the plan's if None.
        interval: seconds between two looks.
        flags: further ones for nnU-Net's command.
        classes: of the model, with the background.
        logits: send logits rather than labels to the export worker.
    """
    program = [str(Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder")]
    if logits:
        program = [sys.executable, "-c", EXPORT_LOGITS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from nnunet_octreenca.integration.register import TRAINER_SHIMS

        environment = {
            **os.environ,
            **{f"nnUNet_{part}": name for part in ("raw", "preprocessed", "results")},
            "nnUNet_extTrainer": str(TRAINER_SHIMS),
        }
        make_model(folder / "model", steps, classes)
        results = []
        for pixels in (TINY, size):
            images, out = folder / f"in_{pixels}", folder / f"out_{pixels}"
            make_image(images / "case_0000.png", pixels)
            command = [*program, "-i", str(images), "-o", str(out), "-m"]
            command += [str(folder / "model"), "-f", "0", "-device", "cpu", *flags]
            results.append(peak_of(command, environment, interval))
            if not (out / "case.png").is_file():
                sys.exit(f"{command} wrote no {out / 'case.png'}")
    tiny, large = results
    return {
        "size": size,
        "classes": classes,
        "exported": "logits" if logits else "labels",
        "bytes_per_pixel": round((large["bytes"] - tiny["bytes"]) / size**2, 1),
        "peak_bytes": large["bytes"],
        "tiny_bytes": tiny["bytes"],
        "processes_at_peak": large["processes"],
        "seconds": round(large["seconds"], 1),
    }


def main() -> None:
    """Print a line, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4000, help="pixels a side")
    parser.add_argument("--steps", type=int, help="steps of every level, instead of the plan's")
    parser.add_argument("--classes", type=int, default=2, help="of the model, with background")
    parser.add_argument(
        "--logits", action="store_true", help="export logits rather than labels, as stock nnU-Net"
    )
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between two looks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    arguments, flags = parser.parse_known_args()
    result = measure(
        arguments.size,
        arguments.steps,
        arguments.interval,
        flags or ["--disable_tta"],
        classes=arguments.classes,
        logits=arguments.logits,
    )
    if arguments.json:
        print(json.dumps(result, indent=4))
        return
    print(
        f"{result['size']} x {result['size']} RGB, {result['classes']} classes, "
        f"{result['exported']} exported: {result['bytes_per_pixel']} bytes a pixel in "
        f"all processes, above the {result['tiny_bytes'] / 1e9:.2f} GB for a tiny image; "
        f"{result['seconds']} s"
    )


if __name__ == "__main__":
    main()
