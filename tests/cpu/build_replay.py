"""Builds the engine's sources with flags of one's own: with tests/cpu/replay.cpp, natively or for
another processor, or as the Python module."""

import os
import platform
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).parents[2]
CPU = ROOT / "cpu"
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


def engine_sources(machine: str, names: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """Files of the engine, and the flags of those that are for one instruction set."""
    sources: list[tuple[Path, list[str]]] = [(CPU / f"{name}.cpp", []) for name in names]
    return sources + [(CPU / f"kernels_{name}.cpp", own) for name, own in KERNELS[machine].items()]


def compile_all(
    folder: Path, sources: Sequence[tuple[Path, list[str]]], compiler: str, flags: Sequence[str]
) -> list[Path]:
    """Compile each source; returns the objects."""
    common = ["-std=c++17", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", f"-I{CPU}"]
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
    return objects


def build_module(folder: Path, flags: tuple[str, ...]) -> Path:
    """Compile and link the Python module `_cpu`; returns its file.

    Raises:
        subprocess.CalledProcessError: the compiler refused; its words are on stderr.
    """
    names = ("kernels", "level", "steps", "steps_backward", "octree", "stream")
    bindings = ("bindings", "octree_bindings", "training_bindings")
    includes = (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}")
    given = ("-fPIC", "-fvisibility=hidden", *includes, *flags)
    sources = engine_sources(platform.machine(), (*names, *bindings))
    objects = compile_all(folder, sources, "g++", given)
    module = folder / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = ["g++", "-shared", "-pthread", *flags, *map(str, objects), "-o", str(module)]
    subprocess.run(command, check=True)
    return module


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
    here = Path(__file__).parent
    sources = engine_sources(machine, ("kernels", "level", "steps", "steps_backward", "octree"))
    sources += [(here / "kernels_wide.cpp", []), (here / "replay.cpp", [])]
    objects = compile_all(folder, sources, compiler, flags)
    program = folder / "replay"
    subprocess.run(
        [compiler, *flags, "-pthread", *map(str, objects), "-o", str(program)], check=True
    )
    return program
