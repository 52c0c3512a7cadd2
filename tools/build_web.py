"""The C++ engine compiled for web pages, with the clang that PyPI's `ziglang` brings.

    python tools/build_web.py                 # writes nnunet_octreenca/export/web/*.wasm
    python tools/build_web.py --check         # compares them with a fresh build

The same sources and the same compiler give the same bytes, in whichever folder: a nightly test
compares them, one on every push the sources with those that the modules were built from. Run it
after a change in `cpu/`, and commit the result: users need no compiler.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nnunet_octreenca.files import write_json
from nnunet_octreenca.hashes import blocks_hash, file_hash

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "nnunet_octreenca/export/web"
COMPILER = "0.17.1"
"""Of ziglang; another version's bytes differ."""

SOURCES = ("web", "stream", "octree", "steps", "level", "kernels", "kernels_wasm")
FLAGS = (
    "-target", "wasm32-wasi", "-std=c++17", "-O3", "-ffp-contract=fast", "-fno-exceptions",
    "-fno-rtti", "-DOCTREENCA_ONE_THREAD", "-DNDEBUG", "-msimd128", "-flto",
)  # fmt: skip
LINK = (
    "-target",
    "wasm32-wasi",
    "-O3",
    "-flto",
    "-mexec-model=reactor",
    "-Wl,--strip-all",
    "-Wl,--gc-sections",
    "-Wl,-z,stack-size=1048576",  # of every worker; the compiler's default is 16 MiB
)
# Only the kernels differ: nothing else may round otherwise than the native engine does.
MODULES = {"simd128": (), "relaxed": ("-mrelaxed-simd",)}
BUILT_FROM = ROOT / "tools/web_sources.json"
"""Digests of what the committed modules were built from."""


def sources() -> dict[str, str]:
    """SHA-256 of every file that may go into the modules, and of the way they are built."""
    files = [ROOT / f"cpu/{name}.cpp" for name in SOURCES] + sorted(ROOT.glob("cpu/*.hpp"))
    digests = {path.relative_to(ROOT).as_posix(): file_hash(path) for path in files}
    way = json.dumps([COMPILER, SOURCES, FLAGS, LINK, MODULES])
    return {**digests, "compiler and flags": blocks_hash([way.encode()])}


def compiler() -> list[str]:
    """The command that compiles C++.

    Raises:
        SystemExit: ziglang is missing, or of another version.
    """
    try:
        found = version("ziglang")
    except PackageNotFoundError:
        found = None
    if found != COMPILER:
        raise SystemExit(
            f"ziglang is {found or 'not installed'}, but the modules are built with {COMPILER}: "
            f"pip install ziglang=={COMPILER}"
        )
    return [sys.executable, "-m", "ziglang", "c++"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def build(folder: Path) -> dict[str, Path]:
    """Compile both modules into a folder.

    Returns:
        Name, "simd128" or "relaxed", to file.

    Raises:
        SystemExit: no such compiler, or it found an error.
    """
    command = compiler()
    objects = {name: [(source, name if source == "kernels_wasm" else "") for source in SOURCES]
               for name in MODULES}  # fmt: skip
    wanted = sorted({pair for pairs in objects.values() for pair in pairs})

    def path(source: str, name: str) -> Path:
        return folder / f"{source}{name}.o"

    def compile_one(pair: tuple[str, str]) -> None:
        source, name = pair
        flags = [*FLAGS, *MODULES.get(name, ())]
        _run([*command, *flags, "-c", f"cpu/{source}.cpp", "-o", str(path(*pair))])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, wanted))
    files = {}
    for name, pairs in objects.items():
        files[name] = folder / f"{name}.wasm"
        _run([*command, *LINK, *(str(path(*pair)) for pair in pairs), "-o", str(files[name])])
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    different = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, built in build(Path(temporary)).items():
            target, content = FOLDER / f"{name}.wasm", built.read_bytes()
            if target.is_file() and target.read_bytes() == content:
                continue
            different.append(target.name)
            if not check:
                FOLDER.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
    if not check:
        write_json(BUILT_FROM, sources())
    for file in different:
        print(f"{file} {'differs: run tools/build_web.py' if check else 'written'}")
    return int(check and bool(different))


if __name__ == "__main__":
    sys.exit(main())
