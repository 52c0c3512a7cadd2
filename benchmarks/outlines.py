"""Label map to GeoJSON polygons: this package's tracing against rasterio.features.shapes (GDAL).

    python benchmarks/outlines.py
    python benchmarks/outlines.py --size 13600 --kind blobs --json

Both write every 4-connected region of every class as one exact polygon along pixel edges (nothing
simplified, nothing left out) to a GeoJSON file, each in a process of its own. The label map lies
on disk and is memory-mapped. `noise` draws every pixel's label anew, `blobs` thresholds smooth
noise. `invalid` counts polygons that are not valid by the OGC's rules (shapely), and `area_error`
is the largest deviation of a class's area in pixels; both are left out (null) with --no-check.
`bytes_per_pixel` is the growth of the resident peak. Ours cuts a region of more than 500,000
corners into pieces along tiles of 256 pixels, as programs cannot show it whole. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 3  # above the background
METHODS = ("ours", "rasterio")


def draw(kind: str, size: int) -> np.ndarray:
    """A label map (y, x) of uint8."""
    generator = np.random.default_rng(0)
    if kind == "noise":
        return generator.integers(0, CLASSES + 1, (size, size), dtype=np.uint8)
    from scipy.ndimage import gaussian_filter

    side = min(size, 2048)
    smooth = gaussian_filter(generator.standard_normal((side, side)), 6, mode="wrap")
    limits = np.quantile(smooth, np.arange(1, CLASSES + 1) / (CLASSES + 1))
    tile = np.digitize(smooth, limits).astype(np.uint8)
    repeats = -(-size // side)
    return np.tile(tile, (repeats, repeats))[:size, :size]


def with_rasterio(labels: np.ndarray, path: Path) -> None:
    """One feature per region, by GDAL's polygonize."""
    from rasterio.features import shapes

    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for geometry, label in shapes(labels, mask=labels > 0, connectivity=4):
            feature = {
                "type": "Feature",
                "geometry": geometry,
                "properties": {"classification": {"name": f"class {int(label)}"}},
            }
            file.write(separator + json.dumps(feature))
            separator = ",\n"
        file.write("\n]}\n")


def with_ours(labels: np.ndarray, path: Path) -> None:
    """`write_geojson`, exact."""
    from nnunet_octreenca.labels.geojson import write_geojson

    names = {label: f"class {label}" for label in range(1, CLASSES + 1)}
    write_geojson(labels, path, names=names, simplify=0, min_area=0)


def status(key: str) -> int:
    """A size of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure(method: str, labels: Path, result: Path) -> dict[str, float]:
    """Time and memory of one method, in this process."""
    array = np.load(labels, mmap_mode="r")
    write = {"ours": with_ours, "rasterio": with_rasterio}[method]
    write(array[:64, :64], result)  # libraries are loaded, tables built
    before = status("VmRSS")
    begun = time.perf_counter()
    write(array, result)
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "bytes_per_pixel": round((status("VmHWM") - before) / array.size, 2),
    }


def check(labels: np.ndarray, result: Path) -> dict[str, float]:
    """How many polygons there are and are invalid, and how far areas are off."""
    import shapely

    areas = dict.fromkeys(range(1, CLASSES + 1), 0.0)
    count = invalid = 0
    with result.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith('{"type": "Feature",'):
                continue
            feature = json.loads(line.rstrip().rstrip(","))
            polygon = shapely.geometry.shape(feature["geometry"])
            label = int(feature["properties"]["classification"]["name"].removeprefix("class "))
            areas[label] += polygon.area
            invalid += not polygon.is_valid
            count += 1
    error = max(abs(area - np.count_nonzero(labels == label)) for label, area in areas.items())
    return {"polygons": count, "invalid": invalid, "area_error": error}


def main() -> None:
    """Print a row for each method, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=2000, help="pixels of a side (default: 2000)")
    parser.add_argument("--kind", choices=("noise", "blobs"), default="noise")
    parser.add_argument("--no-check", action="store_true", help="do not read the polygons back")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        method, labels, result = arguments.measure
        print(json.dumps(measure(method, Path(labels), Path(result))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder, "labels.npy")
        array = draw(arguments.kind, arguments.size)
        np.save(labels, array)
        for method in METHODS:
            result = Path(folder, f"{method}.geojson")
            done = subprocess.run(
                [sys.executable, __file__, "--measure", method, str(labels), str(result)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            row = {"method": method, "kind": arguments.kind, "size": arguments.size}
            row |= json.loads(done.stdout)
            unchecked = {"polygons": None, "invalid": None, "area_error": None}
            row |= unchecked if arguments.no_check else check(array, result)
            result.unlink()
            rows.append(row)
            if not arguments.json:
                print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=4))


if __name__ == "__main__":
    main()
