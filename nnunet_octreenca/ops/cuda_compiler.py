"""Compiles device code with NVRTC, and keeps what it compiled: in the process and on disk.

NVRTC comes with PyTorch's CUDA wheels, in folders `nvidia/*/lib` that no search path names, under
names with a version; it is looked for there first, then where the system keeps libraries. It needs
neither a GPU nor a driver.
"""

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Protocol

from nnunet_octreenca.errors import CudaError
from nnunet_octreenca.ops.native import cuda_module, cuda_module_problem
from nnunet_octreenca.waiting import advice, wait_for, wait_limit

CACHE_VARIABLE = "OCTREENCA_CACHE"
_MAGIC = b"octreenca-cubin-1\n"
# The device code includes this one header of the standard library; the toolkit's may be absent.
_CSTDINT = """\
#pragma once
namespace std {
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using int64_t = long long;
}
"""


class Compiler(Protocol):
    """NVRTC, as `_cuda` binds it."""

    def version(self) -> tuple[int, int]:
        """Major and minor."""

    def architectures(self) -> list[int]:
        """What it compiles for, 90 for compute capability 9.0."""

    def compile(
        self, source: str, name: str, headers: Sequence[tuple[str, str]], options: Sequence[str]
    ) -> tuple[bytes, str]:
        """Code for a real architecture, and the compiler's log."""


def nvrtc_candidates() -> Iterator[list[str]]:
    """Libraries to load in turn, NVRTC last: in PyTorch's folders, then the system's."""
    folders: list[Path] = []
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        folders += sorted(Path(place).glob("*/lib"))
    torch = find_spec("torch")
    if torch is not None and torch.origin is not None:
        folders.append(Path(torch.origin).parent / "lib")
    folders += sorted(Path("/usr/local").glob("cuda*/lib64"), reverse=True)
    for folder in folders:
        for nvrtc in sorted(folder.glob("libnvrtc[.-]*so*"), reverse=True):
            if re.fullmatch(r"libnvrtc(-[0-9a-f]+)?\.so(\.[\d.]+)?", nvrtc.name):
                builtins = sorted(folder.glob("libnvrtc-builtins*so*"), reverse=True)
                yield [*map(str, builtins[:1]), str(nvrtc)]
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"):
        yield [name]


@lru_cache(maxsize=1)
def nvrtc() -> Compiler:
    """The compiler.

    Raises:
        CudaError: it is not found, or none of those found can be loaded.
    """
    module = cuda_module()
    if module is None:
        raise CudaError(f"the module _cuda was not built ({cuda_module_problem()})")
    problems = []
    for paths in nvrtc_candidates():
        try:
            compiler: Compiler = module.Nvrtc(paths)
            compiler.version()
            return compiler
        except (module.LibraryError, module.CompileError) as error:
            problems.append(f"{paths[-1]}: {error}")
    raise CudaError(
        "NVRTC, which compiles the CUDA kernels, cannot be loaded. PyTorch's CUDA wheels bring it; "
        "for others `pip install nvidia-cuda-nvrtc`. Tried " + "; ".join(problems)
    )


def best_architecture(capability: int) -> int:
    """What to compile for on a GPU of this compute capability (90 for 9.0).

    The GPU's own where the compiler knows it, else the nearest older one of the same generation,
    whose code it runs.

    Raises:
        CudaError: the compiler knows none.
    """
    known = nvrtc().architectures()
    fitting = [number for number in known if number // 10 == capability // 10]
    fitting = [number for number in fitting if number <= capability]
    if not fitting:
        major, minor = nvrtc().version()
        raise CudaError(
            f"NVRTC {major}.{minor} does not compile for compute capability "
            f"{capability / 10:.1f} (it knows {', '.join(f'{n / 10:.1f}' for n in known)}); "
            f"install a PyTorch whose CUDA version supports this GPU"
        )
    return max(fitting)


def options(architecture: int) -> list[str]:
    """Of the compiler; they are part of the cache's key."""
    return [
        f"--gpu-architecture=sm_{architecture}",
        "--std=c++17",
        "--device-as-default-execution-space",
    ]


def compile_program(name: str, source: str, architecture: int) -> bytes:
    """A cubin, from the cache on disk where it is there.

    Args:
        name: the source's name in the compiler's messages.
        source: includes the files of `cuda/` by their names.
        architecture: compute capability as a number, 90 for 9.0.

    Raises:
        CudaError: no compiler, or it refuses the source; its words are in the message.
    """
    key = cache_key(source, _headers(), options(architecture), nvrtc().version())
    entry = cache_folder() / f"{key}.cubin"
    cached = read_entry(entry)
    if cached is not None:
        return cached
    cubin = compile_uncached(name, source, architecture)
    write_entry(entry, cubin)
    return cubin


def compile_uncached(name: str, source: str, architecture: int) -> bytes:
    """As `compile_program`, and neither reads nor writes the cache."""
    compiler, module = nvrtc(), cuda_module()
    assert module is not None
    compiling = _Compiling(compiler, source, name, architecture)
    major, minor = compiler.version()
    if not wait_for(compiling):
        raise CudaError(
            f"NVRTC {major}.{minor} hangs: it has compiled {name} for sm_{architecture} for "
            f"{wait_limit():.0f} s without computing. {advice()}"
        )
    if isinstance(compiling.error, module.CompileError):
        raise CudaError(
            f"NVRTC {major}.{minor} cannot compile {name} for sm_{architecture}: {compiling.error}"
        ) from compiling.error
    if compiling.error is not None:
        raise compiling.error
    return compiling.cubin


class _Compiling(Thread):
    """A call of the compiler, which cannot be interrupted."""

    def __init__(self, compiler: Compiler, source: str, name: str, architecture: int) -> None:
        super().__init__(name="nvrtc", daemon=True)
        self._compile = partial(compiler.compile, source, name, _headers(), options(architecture))
        self.cubin = b""
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.cubin, _ = self._compile()
        except Exception as error:
            self.error = error


def _headers() -> list[tuple[str, str]]:
    module = cuda_module()
    assert module is not None
    return [*sorted(module.sources().items()), ("cstdint", _CSTDINT)]


# ---------------------------------------------------------------- the cache on disk


def cache_key(
    source: str,
    headers: Sequence[tuple[str, str]],
    flags: Sequence[str],
    version: tuple[int, int],
) -> str:
    """A name for what is compiled: it changes with every word of it."""
    digest = hashlib.sha256()
    for part in (
        source,
        *(text for header in headers for text in header),
        *flags,
        *map(str, version),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part.encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """`OCTREENCA_CACHE`, or `nnunet_octreenca` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "nnunet_octreenca"


def read_entry(path: Path) -> bytes | None:
    """What `write_entry` wrote; None if it is not there, or not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, digest, cubin = content[: len(_MAGIC)], content[len(_MAGIC) :][:32], b""
    cubin = content[len(_MAGIC) + 32 :]
    if head != _MAGIC or hashlib.sha256(cubin).digest() != digest:
        return None
    return cubin


def write_entry(path: Path, cubin: bytes) -> None:
    """Put an entry in its place in one go, so that other processes see all of it or nothing.

    Where the folder cannot be written to, one warning says so and every process compiles again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(_MAGIC + hashlib.sha256(cubin).digest() + cubin)
                file.close()
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        _warn_not_kept(str(path.parent), str(error))


@lru_cache(maxsize=8)
def _warn_not_kept(folder: str, why: str) -> None:
    warnings.warn(
        f"compiled CUDA kernels cannot be kept in {folder} ({why}): every process compiles them "
        f"again, which takes seconds. Set {CACHE_VARIABLE} to a folder that can be written to",
        stacklevel=4,
    )
