"""Builds tests/cpu/replay.cpp with the engine's sources, natively or for another processor."""

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
KERNELS = {
    "x86_64": {
        "plain": [],
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512_bf16": [*AVX512, "-mavx512bf16"],
    },
    "aarch64": {"plain": [], "neon": []},
}


def build_replay(
    folder: Path,
    *,
    compiler: str = "g++",
    machine: str | None = None,
    flags: tuple[str, ...] = ("-O2",),
) -> Path:
    """Compile and link; returns the program.

    Raises:
        subprocess.CalledProcessError: the compiler refused; its words are on stderr.
    """
    machine = machine or platform.machine()
    cpu, here = ROOT / "cpu", Path(__file__).parent
    sources: list[tuple[Path, list[str]]] = [
        (cpu / f"{name}.cpp", [])
        for name in ("kernels", "level", "steps", "steps_backward", "octree")
    ]
    sources += [(cpu / f"kernels_{name}.cpp", extra) for name, extra in KERNELS[machine].items()]
    sources += [(here / "kernels_wide.cpp", []), (here / "replay.cpp", [])]
    common = ["-std=c++17", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", f"-I{cpu}"]
    objects = [folder / f"{source.stem}.o" for source, _ in sources]

    def compile_one(source: Path, extra: list[str], target: Path) -> None:
        command = [compiler, *common, *flags, *extra, "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(compile_one, source, extra, target)
            for (source, extra), target in zip(sources, objects, strict=True)
        ]
        for job in jobs:
            job.result()
    program = folder / "replay"
    subprocess.run(
        [compiler, *flags, "-pthread", *map(str, objects), "-o", str(program)], check=True
    )
    return program
