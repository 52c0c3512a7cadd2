"""Compiles device code with NVRTC, and keeps what it compiled: in the process and on disk.

NVRTC comes with PyTorch's CUDA wheels, in folders `nvidia/*/lib` that no search path names, under
names with a version; it is looked for there, in the environment's `lib` (conda), and where the
system keeps libraries. It needs neither a GPU nor a driver.
"""

import hashlib
import itertools
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import NamedTuple, Protocol

import torch

from nnunet_octreenca.errors import CudaError
from nnunet_octreenca.ops.native import cuda_module, cuda_module_problem
from nnunet_octreenca.waiting import advice, wait_for, wait_limit

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CACHE_VARIABLE = "OCTREENCA_CACHE"
# Seconds that a process waits for another's compilation: many times what one takes.
WAIT_S = 180.0
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


class FoundNvrtc(NamedTuple):
    """A compiler, and what tells it from others: its version, file name and size."""

    compiler: Compiler
    identity: str


def nvrtc_candidates() -> Iterator[list[str]]:
    """Libraries to load in turn, NVRTC last: PyTorch's own, the environment's, the system's.

    Those of the CUDA version that PyTorch was built for come first: its driver loads what they
    make.
    """
    found = [paths for folder in _nvrtc_folders() for paths in _nvrtcs_in(folder)]
    found += [[name] for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")]
    wanted = _pytorchs_cuda()

    def rank(paths: list[str]) -> int:
        major = _major(paths)
        return 0 if major == wanted else 1 if major is None else 2

    yield from sorted(found, key=rank) if wanted is not None else found


def _nvrtc_folders() -> list[Path]:
    folders: list[Path] = []
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        folders += sorted(Path(place).glob("*/lib"))
    folders.append(Path(torch.__file__).parent / "lib")
    folders.append(Path(sys.prefix) / "lib")  # conda's
    folders += sorted(Path("/usr/local").glob("cuda*/lib64"), reverse=True)
    return folders


def _nvrtcs_in(folder: Path) -> Iterator[list[str]]:
    for nvrtc in sorted(folder.glob("libnvrtc[.-]*so*"), reverse=True):
        if re.fullmatch(r"libnvrtc(-[0-9a-f]+)?\.so(\.[\d.]+)?", nvrtc.name):
            builtins = sorted(folder.glob("libnvrtc-builtins*so*"), reverse=True)
            major = _major([str(nvrtc)])
            builtins = [b for b in builtins if major is None or _major([str(b)]) in (None, major)]
            yield [*map(str, builtins[:1]), str(nvrtc)]


def _major(paths: Sequence[str]) -> int | None:
    """Of the CUDA version of libraries, by their names or those that they link to."""
    for path in reversed(paths):
        for name in (Path(path).name, Path(path).resolve().name):
            number = re.search(r"\.so\.(\d+)", name)
            if number is not None:
                return int(number[1])
    return None


def _pytorchs_cuda() -> int | None:
    """Major version of the CUDA that PyTorch was built for; None without CUDA."""
    version = torch.version.cuda
    return int(version.split(".")[0]) if version else None


@lru_cache(maxsize=8)
def find_nvrtc(number: int) -> FoundNvrtc | None:
    """One of the compilers that can be loaded, in the order of `nvrtc_candidates`.

    Args:
        number: 0 is the first; each has another version than those before.

    Returns:
        None where there are fewer.

    Raises:
        CudaError: it is not found, or none of those found can be loaded.
    """
    module = cuda_module()
    if module is None:
        raise CudaError(f"the module _cuda was not built ({cuda_module_problem()})")
    problems = []
    versions: list[tuple[int, int]] = []
    for paths in nvrtc_candidates():
        try:
            compiler: Compiler = module.Nvrtc(paths)
            version = compiler.version()
        except (module.LibraryError, module.CompileError) as error:
            problems.append(f"{paths[-1]}: {error}")
            continue
        if version not in versions:
            versions.append(version)
            if len(versions) > number:
                return FoundNvrtc(compiler, _identity(version, paths[-1]))
    if versions:
        return None
    raise CudaError(
        "NVRTC, which compiles the CUDA kernels, cannot be loaded. PyTorch's CUDA wheels bring it; "
        "for others `pip install nvidia-cuda-nvrtc`. Tried " + "; ".join(problems)
    )


def _identity(version: tuple[int, int], path: str) -> str:
    library = Path(path).resolve()
    size = library.stat().st_size if library.is_file() else 0
    return f"{version[0]}.{version[1]} {library.name} {size}"


def nvrtc() -> Compiler:
    """The first compiler.

    Raises:
        CudaError: it is nowhere, or none of those found can be loaded.
    """
    found = find_nvrtc(0)
    assert found is not None
    return found.compiler


def best_architecture(capability: int) -> int:
    """What to compile for on a GPU of this compute capability (90 for 9.0).

    The GPU's own where a compiler knows it, else the nearest older one of the same generation,
    whose code it runs.

    Raises:
        CudaError: no compiler knows any.
    """
    known: dict[str, list[int]] = {}
    for number in itertools.count():
        found = find_nvrtc(number)
        if found is None:
            break
        architectures = found.compiler.architectures()
        fitting = [n for n in architectures if n // 10 == capability // 10 and n <= capability]
        if fitting:
            return max(fitting)
        known[found.identity.split()[0]] = architectures
    sentences = (
        f"NVRTC {version} does not compile for compute capability {capability / 10:.1f} (it knows "
        f"{', '.join(f'{n / 10:.1f}' for n in architectures)})"
        for version, architectures in known.items()
    )
    raise CudaError(
        f"{'; '.join(sentences)}; install a PyTorch whose CUDA version supports this GPU"
    )


def options(architecture: int) -> list[str]:
    """Of the compiler; they are part of the cache's key."""
    return [
        f"--gpu-architecture=sm_{architecture}",
        "--std=c++17",
        "--device-as-default-execution-space",
    ]


def compile_program(name: str, source: str, architecture: int, number: int = 0) -> bytes:
    """A cubin, from the cache on disk where it is there.

    Of several processes that want the same one compiles, and the others wait for its entry.

    Args:
        name: the source's name in the compiler's messages.
        source: includes the files of `cuda/` by their names.
        architecture: compute capability as a number, 90 for 9.0.
        number: which compiler, as `find_nvrtc` counts.

    Raises:
        CudaError: no compiler, or it refuses the source; its words are in the message.
    """
    found = find_nvrtc(number)
    if found is None:
        raise CudaError(f"there is no NVRTC number {number}")
    key = cache_key(source, device_sources(), options(architecture), found.identity)
    entry = cache_folder() / f"{key}.cubin"
    cached = read_entry(entry)
    if cached is not None:
        return cached
    with alone(entry.with_suffix(".lock")):
        cached = read_entry(entry)  # another process may have written it meanwhile
        if cached is not None:
            return cached
        cubin = compile_uncached(name, source, architecture, number)
        write_entry(entry, cubin)
    return cubin


def compile_uncached(name: str, source: str, architecture: int, number: int = 0) -> bytes:
    """As `compile_program`, and neither reads nor writes the cache."""
    found, module = find_nvrtc(number), cuda_module()
    assert found is not None
    assert module is not None
    compiling = _Compiling(found.compiler, source, name, architecture)
    major, minor = found.compiler.version()
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
        self._compile = partial(
            compiler.compile, source, name, device_sources(), options(architecture)
        )
        self.cubin = b""
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.cubin, _ = self._compile()
        except Exception as error:
            self.error = error


def device_sources() -> list[tuple[str, str]]:
    """Names and texts of the files that a source may include."""
    module = cuda_module()
    assert module is not None
    return [*sorted(module.sources().items()), ("cstdint", _CSTDINT)]


# ---------------------------------------------------------------- the cache on disk


def cache_key(
    source: str,
    headers: Sequence[tuple[str, str]],
    flags: Sequence[str],
    compiler: str,
) -> str:
    """A name for what is compiled: it changes with every word of it, and with the compiler."""
    digest = hashlib.sha256()
    for part in (
        source,
        *(text for header in headers for text in header),
        *flags,
        compiler,
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


@contextmanager
def alone(path: Path, limit_s: float = WAIT_S) -> Iterator[None]:
    """The body runs in one process at a time, as long as that takes no longer than `limit_s`.

    Args:
        path: of a file that is locked; it is there only meanwhile. The system unlocks what a
            process that died had locked. Where files cannot be locked nobody waits.
        limit_s: after so many seconds the body runs in any case.
    """
    with ExitStack() as stack:
        if fcntl is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("w"))
                if _locked(file.fileno(), limit_s):
                    stack.callback(path.unlink, missing_ok=True)
            except OSError:
                pass
        yield


def _locked(file: int, limit_s: float) -> bool:
    """Lock a file; False where another process kept it for too long."""
    end = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)


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
