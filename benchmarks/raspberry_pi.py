"""How long a pass would take on a Raspberry Pi 4: an estimate from counted instructions.

    python benchmarks/raspberry_pi.py --size 960
    python benchmarks/raspberry_pi.py --size 320 --json

The engine is compiled for 64-bit Arm and one pass over a random RGB image (five levels) is run
under qemu, whose plugin counts the instructions. Nothing is timed: the estimate divides them by
what the Pi's four Cortex-A72 cores issue at 1.5 GHz. Two figures bound it: all instructions at
the full issue width of 3, and the multiply-adds alone at one 128-bit instruction a cycle. Memory
is not counted, nor is anything but this program.

Needs Debian's g++-aarch64-linux-gnu, gcc and qemu-user. A size of 960 takes some minutes.
"""

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from math import ceil
from pathlib import Path

CLOCK, CORES, ISSUE_WIDTH = 1.5e9, 4, 3  # Raspberry Pi 4 Model B: Cortex-A72
PAPER_SECONDS = {320: 2.2, 640: 8.8, 960: 21.5}
HERE = Path(__file__).parents[1] / "tests" / "cpu"


def count_instructions(size: int) -> int:
    """Instructions of one pass over `size` x `size` pixels, one thread."""
    spec = importlib.util.spec_from_file_location("build_replay", HERE / "build_replay.py")
    assert spec
    assert spec.loader
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = builder.build_replay(
            folder,
            compiler="aarch64-linux-gnu-g++",
            machine="aarch64",
            flags=("-O3", "-static"),
        )
        plugin = folder / "libcount.so"
        source = str(HERE / "count_instructions.c")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", str(plugin)], check=True)
        command = ["qemu-aarch64", "-plugin", str(plugin), str(program), "--pass", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.findall(r"INSTRUCTIONS (\d+)", done.stderr)[-1])


def multiply_adds(size: int) -> float:
    """128-bit multiply-adds of the fired cells: perceive, two linear layers, C = 16, H = 64."""
    steps, cells, total = [10, 10, 10, 10, ceil(size / 16)], size * size, 0.0
    for level, count in enumerate(steps):
        total += 0.5 * count * cells / 4**level
    return total * (9 * 16 + 32 * 64 + 64 * 16) / 4


def main() -> None:
    """Print the estimate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=960, help="pixels a side (default: 960)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    programs = ("aarch64-linux-gnu-g++", "gcc", "qemu-aarch64")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(
            f"not installed: {', '.join(missing)}. On Debian: apt-get install g++ "
            f"g++-aarch64-linux-gnu qemu-user"
        )
    instructions, products = count_instructions(arguments.size), multiply_adds(arguments.size)
    report = {
        "size": arguments.size,
        "instructions": instructions,
        "multiply_adds": round(products),
        "estimate_seconds": {
            "issue width": round(instructions / (ISSUE_WIDTH * CLOCK * CORES), 2),
            "multiply-adds": round(products / (CLOCK * CORES), 2),
            "one instruction a cycle": round(instructions / (CLOCK * CORES), 2),
        },
        "paper_seconds": PAPER_SECONDS.get(arguments.size),
    }
    if arguments.json:
        print(json.dumps(report, indent=4))
        return
    bounds = report["estimate_seconds"]
    print(
        f"{arguments.size} x {arguments.size}: {instructions / 1e9:.2f} billion instructions. "
        f"Estimates for a Raspberry Pi 4, four cores: {bounds['issue width']} s at its issue "
        f"width, {bounds['multiply-adds']} s for the multiply-adds alone, "
        f"{bounds['one instruction a cycle']} s at one instruction a cycle and core. The paper "
        f"measured {report['paper_seconds']} s with PyTorch."
    )


if __name__ == "__main__":
    main()
