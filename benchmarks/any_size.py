"""Images of any size, from disk to disk: memory, time, and the same labels.

    python benchmarks/any_size.py --json > docs/results/any_size.json
    python benchmarks/any_size.py --only video --only ct
    python benchmarks/any_size.py --scale 0.1       every side a tenth: that it runs

Every case makes its file, runs `nnunet_octreenca predict` on it as a user would, with a network of
the paper's size whose weights were never trained (time and memory do not depend on them), and
tells the command's wall time and the peak memory of its one process. `engine` is the same pass on
an image that lies normalized in memory (`OctreeNCA.segment`), in a process of its own after it.

cases: square    13,600 x 13,600 RGB, tiled TIFF to label TIFF
       slide     23,500 x 52,500 RGB, pyramid of JPEG tiles to label pyramid, twice with other bands
       video     432 x 240 x 1,905 frames, mp4 to frames and overlay (2D+t network)
       ct        512 x 512 x 800, NIfTI to NIfTI (z-score: read once more, resampling: none)
       heights   2,048 columns, 2,048 to 32,768 rows: what memory grows by
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from untrained_model import model_folder

from nnunet_octreenca.child_process import find_script, run_child

TILE = 512
GB = 1e9
MOST_GB = {"square": 3, "slide": 12, "video": 6, "ct": 6}
MOST_RATIO = 1.3


def tissue(y: NDArray, x: NDArray) -> NDArray[np.uint8]:
    """Something that looks like stained tissue and compresses like it: (rows, columns, 3)."""
    rng = np.random.default_rng([int(y[0]), int(x[0])])
    rows, columns = y[:, None].astype(np.float32), x[None].astype(np.float32)
    glands = np.sin(rows / 97) * np.cos(columns / 131) + np.sin((rows + 2 * columns) / 211)
    nuclei = rng.random((len(y) // 8 + 1, len(x) // 8 + 1), np.float32)
    nuclei = nuclei.repeat(8, 0).repeat(8, 1)[: len(y), : len(x)]
    base = np.stack(
        [225 - 45 * (glands > 0.2), 205 - 90 * (glands > 0.2), 220 - 30 * (glands > 0.2)]
    )
    base = base - 60 * ((nuclei > 0.8) & (glands > 0.2))
    noisy = np.moveaxis(base, 0, -1) + rng.integers(-8, 8, (*base.shape[1:], 1))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def tiles(height: int, width: int, step: int = 1) -> Iterator[NDArray[np.uint8]]:
    """The tiles of a level of a slide in TIFF's order."""
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            ys, xs = np.arange(y, y + TILE) * step, np.arange(x, x + TILE) * step
            yield tissue(ys, xs)


def write_slide(path: Path, height: int, width: int, *, jpeg: bool) -> None:
    """A tiled TIFF, with `jpeg` a pyramid of JPEG tiles."""
    import tifffile

    options: dict[str, Any] = {"dtype": np.uint8, "tile": (TILE, TILE), "photometric": "rgb"}
    options |= {"compression": "jpeg"} if jpeg else {"compression": "zlib"}
    options |= {"resolution": (1e4 / 0.25, 1e4 / 0.25), "resolutionunit": "CENTIMETER"}
    levels = [4, 16] if jpeg else []
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(tiles(height, width), shape=(height, width, 3), subifds=len(levels), **options)
        for step in levels:
            shape = (-(-height // step), -(-width // step), 3)
            tiff.write(tiles(*shape[:2], step), shape=shape, subfiletype=1, **options)


def write_video(path: Path, frames: int, height: int, width: int) -> None:
    """25 frames a second, H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        y, x = np.arange(height), np.arange(width)
        for number in range(frames):
            picture = tissue(y + number, x + 2 * number)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_ct(path: Path, shape: tuple[int, int, int]) -> None:
    """Hounsfield units of something like a trunk."""
    import SimpleITK

    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    radius = ((y - shape[1] / 2) / shape[1]) ** 2 + ((x - shape[2] / 2) / shape[2]) ** 2
    volume = np.full(shape, -1000, np.int16)
    volume[np.broadcast_to(radius < 0.16, shape)] = 40
    volume += (30 * np.sin(z / 9) * np.cos(y / 17) * np.sin(x / 13)).astype(np.int16)
    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing((0.8, 0.8, 1.0))
    SimpleITK.WriteImage(image, str(path), True)


class Bench:
    """One folder of files and runs."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale = folder, scale

    def sized(self, *sides: int) -> tuple[int, ...]:
        """Sides as asked for, at least 64."""
        return tuple(max(round(side * self.scale), min(side, 64)) for side in sides)

    def model(self, name: str, **options: Any) -> Path:
        """A model folder."""
        return model_folder(self.folder / name, **options)

    def predict(self, model: Path, image: Path, *flags: str) -> dict[str, Any]:
        """Run the command; its seconds, peak bytes and report."""
        output = self.folder / f"{image.name}_out"
        shutil.rmtree(output, ignore_errors=True)
        report = self.folder / "run.json"
        command = [find_script("nnunet_octreenca"), "predict", "-m", str(model), "-i", str(image)]
        command += ["-o", str(output), "--disable_tta", "--report", str(report), *flags]
        done = run_child(command, log=self.folder / "log.txt", environment=dict(os.environ))
        said = json.loads(report.read_text())
        case = said["cases"][0]
        return {
            "seconds": round(done.seconds, 1),
            "stages": case["seconds"],
            "peak_gb": round((done.peak_bytes or 0) / GB, 2),
            "planned_gb": round(case["planned_bytes"] / GB, 2),
            "band": case["bands_of"],
            "shape": case["shape"],
            "output": output,
        }


def engine_seconds(model: Path, shape: tuple[int, ...]) -> float:
    """One pass on an image in memory, in this process."""
    import torch

    from nnunet_octreenca.integration.model import load_model

    network = load_model(model).networks[0]
    image = torch.empty(1, network.input_channels, *shape)
    for plane in image[0]:
        plane.uniform_()
    network.segment(image[:, :, :64])  # threads and weights are warm
    began = time.perf_counter()
    network.segment(image)
    return time.perf_counter() - began


def engine(model: Path, shape: list[int]) -> float:
    """`engine_seconds` in a process of its own."""
    command = [sys.executable, __file__, "--engine", str(model), *map(str, shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def compared(row: dict[str, Any], model: Path) -> dict[str, Any]:
    """With the pure engine's time beside."""
    alone = engine(model, row["shape"])
    return row | {
        "engine_seconds": round(alone, 1),
        "times_the_engine": round(row["seconds"] / alone, 2),
        "megapixels_a_second": round(np.prod(row["shape"]) / row["seconds"] / 1e6, 2),
    }


def square(bench: Bench) -> dict[str, Any]:
    """The paper's largest image."""
    height, width = bench.sized(13_600, 13_600)
    path = bench.folder / "square.tif"
    write_slide(path, height, width, jpeg=False)
    model = bench.model("rgb", patch=(320, 320))
    row = compared(bench.predict(model, path, "--formats", "ome.tif"), model)
    return row | {"most_times_the_engine": MOST_RATIO}


def slide(bench: Bench) -> dict[str, Any]:
    """The whole slide that nobody does in one pass, twice."""
    import tifffile

    height, width = bench.sized(23_500, 52_500)
    path = bench.folder / "slide.tif"
    began = time.perf_counter()
    write_slide(path, height, width, jpeg=True)
    made = time.perf_counter() - began
    model = bench.model("rgb", patch=(320, 320))
    row = bench.predict(model, path, "--formats", "ome.tif")
    kept = bench.folder / "first.ome.tif"
    next(row["output"].glob("*.ome.tif")).rename(kept)
    again = bench.predict(model, path, "--formats", "ome.tif", "--band", str(row["band"] * 3 // 2))
    one, other = (tifffile.imread(f) for f in (kept, *again["output"].glob("*.ome.tif")))
    levels = len(tifffile.TiffFile(kept).series[0].levels)
    return row | {
        "file_gb": round(path.stat().st_size / GB, 2),
        "seconds_to_make_the_file": round(made, 1),
        "levels": levels,
        "again": {key: again[key] for key in ("seconds", "peak_gb", "band")},
        "same_labels": bool(np.array_equal(one, other)),
        "labels": np.bincount(one[::16].ravel()).tolist(),
    }


def video(bench: Bench) -> dict[str, Any]:
    """76 seconds of surgery."""
    frames, height, width = bench.sized(1_905, 240, 432)
    path = bench.folder / "video.mp4"
    write_video(path, frames, height - height % 2, width - width % 2)
    model = bench.model("video", patch=(80, 240, 432), ending=".nii.gz",
                        schemes=["RGBTo01Normalization"] * 3)  # fmt: skip
    row = compared(bench.predict(model, path), model)
    return row | {"frames_a_second": round(frames / row["seconds"], 1)}


def ct(bench: Bench) -> dict[str, Any]:
    """A trunk."""
    path = bench.folder / "ct.nii.gz"
    write_ct(path, bench.sized(800, 512, 512))  # type: ignore[arg-type]
    model = bench.model("ct", patch=(128, 128, 128), channels=1, ending=".nii.gz",
                        spacing=(1.0, 0.8, 0.8), schemes=["CTNormalization"])  # fmt: skip
    return compared(bench.predict(model, path), model)


def heights(bench: Bench) -> dict[str, Any]:
    """Peak memory of images of one width."""
    (width,) = bench.sized(2_048)
    model = bench.model("rgb", patch=(320, 320))
    rows = []
    for factor in (2, 4, 8, 16, 32):
        (height,) = bench.sized(1_024 * factor)
        path = bench.folder / "height.tif"
        write_slide(path, height, width, jpeg=True)
        row = bench.predict(model, path, "--formats", "ome.tif", "--band", "256")
        rows.append({"rows": height, **{k: row[k] for k in ("peak_gb", "planned_gb", "seconds")}})
    pixels = (rows[-1]["rows"] - rows[1]["rows"]) * width
    growth = (rows[-1]["peak_gb"] - rows[1]["peak_gb"]) * GB
    return {"width": width, "heights": rows, "bytes_per_pixel": round(growth / pixels, 2)}


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "square": square,
    "slide": slide,
    "video": video,
    "ct": ct,
    "heights": heights,
}


def measure(name: str, scale: float) -> dict[str, Any]:
    """One case, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="any_size_") as folder:
        row = CASES[name](Bench(Path(folder), scale))
    row.pop("output", None)
    if name in MOST_GB:
        row["most_gb"] = MOST_GB[name]
    return {"case": name, **row}


def main() -> None:
    """Print a line a case, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=CASES, help="this case")
    parser.add_argument("--scale", type=float, default=1.0, help="of every side")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--engine", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        model, *shape = arguments.engine
        print(engine_seconds(Path(model), tuple(map(int, shape))))
        return
    rows = []
    for name in arguments.only or CASES:
        rows.append(measure(name, arguments.scale))
        if not arguments.json:
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=4))


if __name__ == "__main__":
    main()
