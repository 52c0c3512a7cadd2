"""Memory of preparing one labelled RGB picture for training: nnU-Net's preprocessor and ours.

    python benchmarks/preprocessing_memory.py
    python benchmarks/preprocessing_memory.py --size 6000 --json

Both prepare the same PNG of --size x --size pixels, three quarters of it foreground, each in a
process of its own; what the same process takes for a tiny picture is subtracted. What they
return is compared: the same bits of image and labels, the same foreground samples.
"""

import argparse
import hashlib
import json
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from prediction_memory import TINY, make_image
from untrained_model import stock_plans

PREPROCESSORS = ("DefaultPreprocessor", "OctreeNCAPreprocessor")


def prepare(name: str, folder: Path) -> str:
    """Prepare the picture in a folder; a digest of everything that comes out."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_octreenca.integration.preprocessor import OctreeNCAPreprocessor

    kind = {"DefaultPreprocessor": DefaultPreprocessor}.get(name, OctreeNCAPreprocessor)
    schemes = ["RGBTo01Normalization"] * 3
    manager = PlansManager(stock_plans((320, 320), 3, schemes=schemes, reader="NaturalImage2DIO"))
    data, seg, properties = kind(verbose=False).run_case(
        [str(folder / "case_0000.png")],
        str(folder / "case.png"),
        manager,
        manager.get_configuration("2d"),
        {"labels": {"background": 0, "foreground": 1}, "file_ending": ".png"},
    )
    digest = hashlib.sha256(np.ascontiguousarray(data))
    digest.update(np.ascontiguousarray(seg).astype(np.int8))
    digest.update(pickle.dumps(properties["class_locations"][1].astype(np.int64)))
    return digest.hexdigest()


def measure(size: int) -> dict[str, Any]:
    """Bytes per pixel of both, above what a tiny picture takes."""
    from PIL import Image

    from nnunet_octreenca.child_process import run_child

    result: dict[str, Any] = {"size": size}
    with tempfile.TemporaryDirectory() as name:
        folders = {pixels: Path(name) / str(pixels) for pixels in (TINY, size)}
        for pixels, folder in folders.items():
            make_image(folder / "case_0000.png", pixels)
            labels = np.ones((pixels, pixels), np.uint8)
            labels[: pixels // 4] = 0
            Image.fromarray(labels).save(folder / "case.png")
        digests = []
        for kind in PREPROCESSORS:
            peaks, seconds = [], 0.0
            for folder in folders.values():
                log = folder / "log.txt"
                command = [sys.executable, __file__, "--one", kind, str(folder)]
                done = run_child(command, log=log, environment=dict(os.environ))
                peaks.append(done.peak_bytes)
                seconds = done.seconds
            digests.append(log.read_text().split()[-1])
            result[kind] = {
                "bytes_per_pixel": round((peaks[1] - peaks[0]) / size**2, 1),
                "seconds": round(seconds, 1),
            }
    result["same_bits"] = digests[0] == digests[1]
    return result


def main() -> None:
    """Print two lines, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=3000, help="pixels a side")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(prepare(arguments.one[0], Path(arguments.one[1])))
        return
    result = measure(arguments.size)
    if arguments.json:
        print(json.dumps(result, indent=4))
        return
    for kind in PREPROCESSORS:
        row = result[kind]
        print(f"{kind}: {row['bytes_per_pixel']} bytes a pixel, {row['seconds']} s")
    print(f"the same bits: {'yes' if result['same_bits'] else 'no'}")


if __name__ == "__main__":
    main()
