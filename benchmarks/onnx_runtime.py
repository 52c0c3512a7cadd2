"""An ONNX file in ONNX Runtime against the package's own engine, a thread each.

    python benchmarks/onnx_runtime.py
    python benchmarks/onnx_runtime.py --json > docs/results/onnx_runtime.json

One picture, one network of the 2-D plan. "pad" is a file for images of at least the context, whose
levels are padded by ONNX's Pad; "gather" takes any size. Each run is a process of its own, for its
peak of memory (Linux); what a first run of a 64 x 64 picture took is not counted. Seconds are of
the processor, the median of the rounds.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SMALL = 64


def write_case(folder: Path, size: int) -> dict[str, int]:
    """Both files, the image, and the engine's labels; bytes of the files."""
    import onnx
    import torch
    from cpu_engine import make_network

    from nnunet_octreenca.export.onnx import OPERATORS, network_graph

    network = make_network((size, size), 3).eval().requires_grad_(False)
    helper, sizes = onnx.helper, {}
    for name, context in (("pad", (SMALL, SMALL)), ("gather", None)):
        model = helper.make_model(
            network_graph([network], context=context),
            opset_imports=[helper.make_opsetid("", OPERATORS)],
            ir_version=8,
        )
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        sizes[name] = path.stat().st_size
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    np.save(folder / "image.npy", image.numpy())
    torch.save(network, folder / "network.pt")
    return sizes


def runner(engine: str, folder: Path) -> Callable[[Any], Any]:
    """What segments an image on one thread."""
    if engine == "native":
        import torch

        torch.set_num_threads(1)
        network = torch.load(folder / "network.pt", weights_only=False)
        return lambda image: network.segment(torch.from_numpy(image), seed=0).numpy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / f"{engine}.onnx", options, providers=["CPUExecutionProvider"]
    )
    seeds = np.zeros(1, np.int64)
    return lambda image: session.run(["labels"], {"image": image, "seeds": seeds})[0]


def run_once(engine: str, folder: Path) -> dict[str, Any]:
    """Processor seconds, peak bytes a pixel, and the labels in a file."""
    segment = runner(engine, folder)
    from memory_model import status

    image = np.load(folder / "image.npy")
    segment(np.ascontiguousarray(image[..., :SMALL, :SMALL]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    before, began = status("VmRSS"), time.process_time()
    labels = segment(image)
    seconds = time.process_time() - began
    np.save(folder / f"{engine}.npy", labels)
    return {"seconds": seconds, "bytes_a_pixel": (status("VmHWM") - before) / labels.size}


def measure(size: int, rounds: int) -> dict[str, Any]:
    """All engines in turns."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = write_case(folder, size)
        runs: dict[str, list[dict[str, Any]]] = {"native": [], "pad": [], "gather": []}
        for _ in range(rounds):
            for engine, found in runs.items():
                command = [sys.executable, __file__, "--child", engine, temporary]
                found.append(json.loads(subprocess.check_output(command, text=True)))
        labels = {engine: np.load(folder / f"{engine}.npy") for engine in runs}
    rows = [
        {
            "engine": engine,
            "seconds": statistics.median(one["seconds"] for one in found),
            "bytes_a_pixel": round(max(one["bytes_a_pixel"] for one in found)),
            "labels_differ": int((labels[engine] != labels["native"]).sum()),
            "file_bytes": sizes.get(engine),
        }
        for engine, found in runs.items()
    ]
    return {
        "command": "python benchmarks/onnx_runtime.py " + " ".join(sys.argv[1:]),
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.machine(),
        "image": f"{size} x {size} x 3",
        "rounds": rounds,
        "rows": rows,
    }


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        engine, folder = arguments.child
        print(json.dumps(run_once(engine, Path(folder))))
        return
    result = measure(arguments.size, arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"onnxruntime {result['onnxruntime']}, {result['image']}, one thread")
    for row in result["rows"]:
        print(
            f"{row['engine']:<7} {row['seconds']:6.2f} s  {row['bytes_a_pixel']:>5} bytes a pixel  "
            f"{row['labels_differ']} labels differ"
        )


if __name__ == "__main__":
    main()
