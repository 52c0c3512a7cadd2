"""The engine for web pages against the native one, a thread each.

    python benchmarks/web_engine.py
    python benchmarks/web_engine.py --json > docs/results/web_engine.json

Both segment the same image with the same network, in turns; a ratio is the median over the rounds
of WebAssembly's processor time in node over the native kernels'. `labels_differ` compares the label
maps as a whole. Fused products ("relaxed") are compared with AVX2, the others with the plain
kernels and with AVX2.
"""

import argparse
import hashlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RELAXED = "--experimental-wasm-relaxed-simd"
MODULES = {"simd128": [], "relaxed": [RELAXED]}
SCRIPT = Path(__file__).with_name("web_engine.mjs")


class Node:
    """A process of node that segments on request."""

    def __init__(self, module: str, folder: Path) -> None:
        from nnunet_octreenca.export.html import MODULES as BUILT

        wasm = BUILT / f"{module}.wasm"
        command = ["node", *MODULES[module], str(SCRIPT), str(wasm), str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        with self._process:  # closes its pipes, and waits
            pass


def write_case(folder: Path, size: int) -> tuple[Any, Any]:
    """The planner's network for a picture and noise (1, 3, size, size), as node reads them."""
    import torch
    from cpu_engine import make_network

    from nnunet_octreenca.export.packing import packed_network

    network = make_network((size, size), 3).eval()
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    (folder / "network").write_bytes(packed_network(network))
    (folder / "image").write_bytes(image.numpy().tobytes())
    (folder / "case.json").write_text(json.dumps({"shape": [1, size, size], "channels": 3}))
    return network, image


def native(network: Any, image: Any, kernels: str) -> dict[str, Any]:
    """Seconds of processor time and the labels, one thread."""
    import os

    from nnunet_octreenca.ops.native import KERNELS_VARIABLE

    os.environ[KERNELS_VARIABLE] = kernels
    began = time.process_time()
    labels = network.segment(image, seed=0)[0]
    seconds = time.process_time() - began
    return {
        "seconds": seconds,
        "labels": hashlib.sha256(labels.numpy().astype("u1").tobytes()).hexdigest(),
    }


def measure(size: int, rounds: int) -> dict[str, Any]:
    """All modules against all kernels that this machine has."""
    import torch

    from nnunet_octreenca.ops.native import cpu_module

    torch.set_num_threads(1)
    module = cpu_module()
    assert module is not None, "the C++ module is not there"
    sets = [name for name in ("avx2", "plain") if name in module.kernels()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network, image = write_case(folder, size)
        nodes = {name: Node(name, folder) for name in MODULES}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*nodes, *sets)}
        with torch.inference_mode():
            for _ in range(rounds + 1):
                for name, node in nodes.items():
                    runs[name].append(node.run())
                for name in sets:
                    runs[name].append(native(network, image, name))
        for node in nodes.values():
            node.close()
    rows = []
    for web in MODULES:
        for kernels in sets:
            pairs = list(zip(runs[web][1:], runs[kernels][1:], strict=True))
            rows.append(
                {
                    "module": web,
                    "kernels": kernels,
                    "web_seconds": statistics.median(a["seconds"] for a, _ in pairs),
                    "native_seconds": statistics.median(b["seconds"] for _, b in pairs),
                    "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs),
                    "labels_differ": any(a["labels"] != b["labels"] for a, b in pairs),
                    "web_megabytes": pairs[-1][0]["megabytes"],
                }
            )
    return {
        "command": "python benchmarks/web_engine.py " + " ".join(sys.argv[1:]),
        "processor": processor(),
        "node": subprocess.check_output(["node", "--version"], text=True).strip(),
        "image": f"{size} x {size} x 3",
        "rounds": rounds,
        "rows": rows,
    }


def processor() -> str:
    """Its name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of the image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if shutil.which("node") is None:
        raise SystemExit("node is not installed (Debian: nodejs)")
    found = measure(arguments.size, arguments.rounds)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for row in found["rows"]:
        print(
            f"{row['module']:8} {row['web_seconds']:.2f} s, {row['kernels']:5} "
            f"{row['native_seconds']:.2f} s: {row['ratio']:.2f} x, labels "
            f"{'differ' if row['labels_differ'] else 'equal'}, {row['web_megabytes']:.0f} MB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
