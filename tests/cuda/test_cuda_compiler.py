"""NVRTC compiles every kernel for every architecture; the cache; what can be missing or wrong."""

import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from nnunet_octreenca.cli.kernel_report import NETWORKS, architecture_of, compile_kernels, programs
from nnunet_octreenca.errors import CudaError, EnvironmentMismatchError
from nnunet_octreenca.ops import cuda_compiler
from nnunet_octreenca.ops.cubin import kernel_figures
from nnunet_octreenca.ops.cuda_compiler import (
    CACHE_VARIABLE,
    best_architecture,
    cache_folder,
    compile_program,
    compile_uncached,
    find_nvrtc,
    nvrtc,
    read_entry,
)
from nnunet_octreenca.ops.cuda_program import map_program
from nnunet_octreenca.ops.native import cuda_module, cuda_module_problem
from nnunet_octreenca.waiting import LIMIT_VARIABLE

if cuda_module() is None:
    pytest.skip(f"the module is not there: {cuda_module_problem()}", allow_module_level=True)
try:
    nvrtc()
except CudaError as error:  # a PyTorch without CUDA
    pytest.skip(str(error), allow_module_level=True)

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
EVERY_PUSH = (75, 80, 90)
# Sizes beside those that doctor compiles: padding in C and H, no and many image channels, levels
# that are wider than the finest.
ODD_NETWORKS = (
    (2, 13, 2, 37), (2, 16, 0, 64), (2, 52, 5, 208), (3, 16, 15, 64), (3, 5, 1, 3),
    (3, 24, 1, 96), (3, 32, 1, 128), (3, 48, 1, 192),
)  # fmt: skip
# Seconds a program, which a user waits for at the first use. An idle core of 2021 takes 20; the
# bound is for machines that have other things to do, and finds kernels that explode.
BUDGET = 180.0
TINY = 'extern "C" __global__ void tiny(int* out) { *out = 1; }\n'


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "architectures",
    [EVERY_PUSH, pytest.param(ARCHITECTURES, marks=pytest.mark.nightly)],
    ids=["three", "all"],
)
def test_every_kernel_compiles_and_the_fast_ones_spill_nothing(architectures, capsys):
    begun = time.perf_counter()
    every = len(architectures) == len(ARCHITECTURES)
    networks = dict.fromkeys(architectures, NETWORKS[: 2 if every else 1])
    networks[90] = (*NETWORKS, *ODD_NETWORKS[: None if every else 3])
    if every:
        networks[75] = networks[90]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tables = list(pool.map(lambda n: compile_kernels(n, networks[n]), architectures))
    seconds = time.perf_counter() - begun
    rows = [row for table in tables for row in table]
    keys = ("architecture", "dimension", "channels", "input_channels", "precision", "pass")
    compiled = {tuple(row[key] for key in keys): row["program_seconds"] for row in rows}
    with capsys.disabled():
        slowest = max(compiled.values())
        print(
            f"\n{len(compiled)} programs for {len(architectures)} architectures compiled in "
            f"{seconds:.0f} s, the slowest in {slowest:.1f} s (budget {BUDGET:.0f} s)"
        )
    wanted = sum(len(list(programs(n, networks[n]))) for n in architectures)
    assert len(compiled) == wanted > 30
    assert slowest < BUDGET

    for row in rows:
        assert row["registers"] <= 255
        if row["channels"] == 16 and row["kernel"].startswith("forward"):
            assert row["stack_bytes"] == 0, row
        if row["architecture"] in ("sm_80", "sm_90", "sm_100") and row["channels"] == 16:
            assert row["stack_bytes"] == 0, row
        assert row["stack_bytes"] <= 512, row
        half = row["precision"] == "half" and row["channels"] == 16
        if row["pass"] == "inference, every cell" and row["architecture"] in ("sm_100", "sm_120"):
            continue  # two blocks: with three, registers are spilled
        if half and row["kernel"] == "forward_1" and row["architecture"] != "sm_120":
            # Three blocks of 128 threads a multiprocessor with its 65,536 registers.
            assert row["registers"] <= 168, row


def test_the_main_kernels_spill_nothing():
    rows = compile_kernels(90, NETWORKS[:1])
    assert {row["kernel"] for row in rows} == {
        "pack", "draw", "enter", "map", "leave", "forward_1", "forward_2", "backward_cells",
        "backward_perceive", "reduce",
    }  # fmt: skip
    assert all(row["stack_bytes"] == 0 for row in rows)
    assert {row["pass"] for row in rows} == {"inference", "inference, every cell", "training"}
    half = next(r for r in rows if r["kernel"] == "forward_1" and r["precision"] == "half")
    assert 64 < half["registers"] <= 168
    assert half["shared_bytes"] == (34 * 18) * 32 + 18 * 8 + (34 * 18 + 256) * 2


@pytest.mark.parametrize("architecture", EVERY_PUSH)
@pytest.mark.parametrize("channels", [16, 48])
def test_the_map_between_levels_compiles_alone_and_spills_nothing(channels, architecture):
    single = "tf32" if architecture >= 80 else "plain"
    for precision in ("half", single):
        wanted = map_program(channels, precision)
        cubin = compile_uncached(wanted.name, wanted.source, architecture)
        figures = kernel_figures(cubin)["map"]
        assert figures.stack_bytes == 0
        assert figures.registers <= 64


def test_figures_of_what_is_no_cubin():
    for wrong in (b"", b"\x7fELF\x02", b"\x7fELF\x02" + bytes(100), b"MZ" * 100):
        with pytest.raises(ValueError, match="not a cubin"):
            kernel_figures(wrong)


def test_a_stack_is_seen():
    source = (
        'extern "C" __global__ void deep(int* out, int n) {\n'
        "  int values[50];\n"
        "  for (int i = 0; i < 50; ++i) values[(i * n) % 50] = i;\n"
        "  *out = values[n];\n"
        "}\n"
    )
    figures = kernel_figures(compile_uncached("deep.cu", source + TINY, 90))
    assert figures["deep"].stack_bytes >= 200
    assert figures["tiny"].stack_bytes == 0
    assert 0 < figures["tiny"].registers < 32


@pytest.mark.parametrize("name", ["sm_90", "90", "9.0"])
def test_names_of_architectures(name):
    assert architecture_of(name) == 90


@pytest.mark.parametrize("name", ["sm_42", "hopper", "sm_60", ""])
def test_what_is_no_architecture_is_refused(name):
    with pytest.raises(EnvironmentMismatchError, match=r"--compile .* compiles for sm_75"):
        architecture_of(name)


def test_a_gpu_newer_than_the_compiler():
    newest = max(nvrtc().architectures())
    assert best_architecture(90) == 90
    assert best_architecture(newest // 10 * 10 + 9) == newest
    with pytest.raises(CudaError, match=r"does not compile for compute capability 99\.0"):
        best_architecture(990)


# ------------------------------------------------------------------ the cache


def count_compilations(monkeypatch):
    calls = []
    original = cuda_compiler.compile_uncached
    monkeypatch.setattr(
        cuda_compiler, "compile_uncached", lambda *a: calls.append(a) or original(*a)
    )
    return calls


def test_a_program_is_compiled_once(monkeypatch):
    calls = count_compilations(monkeypatch)
    first = compile_program("tiny.cu", TINY, 90)
    assert compile_program("tiny.cu", TINY, 90) == first
    assert len(calls) == 1
    compile_program("tiny.cu", TINY, 80)
    compile_program("tiny.cu", TINY + "\n", 90)
    assert len(calls) == 3
    assert len(list(cache_folder().iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_entry_is_compiled_anew(damage, monkeypatch):
    whole = compile_program("tiny.cu", TINY, 90)
    (entry,) = cache_folder().iterdir()
    content = entry.read_bytes()
    entry.write_bytes(
        {
            "cut": content[:-100],
            "changed": content[:-1] + bytes([content[-1] ^ 1]),
            "empty": b"",
            "other": whole,
        }[damage]
    )
    assert read_entry(entry) is None
    calls = count_compilations(monkeypatch)
    assert compile_program("tiny.cu", TINY, 90) == whole
    assert len(calls) == 1
    assert read_entry(entry) == whole


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=f"cannot be kept .* Set {CACHE_VARIABLE}"):
        first = compile_program("tiny.cu", TINY, 90)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert compile_program("tiny.cu", TINY, 90) == first


def test_an_interrupted_write_leaves_nothing(monkeypatch):
    import hashlib

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cuda_compiler, "hashlib", type("", (), {"sha256": interrupt}))
    entry = cache_folder() / "entry.cubin"
    with pytest.raises(KeyboardInterrupt):
        cuda_compiler.write_entry(entry, b"code")
    assert list(cache_folder().iterdir()) == []
    monkeypatch.setattr(cuda_compiler, "hashlib", hashlib)
    cuda_compiler.write_entry(entry, b"code")
    assert read_entry(entry) == b"code"


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    # In a file: with `-c` the package would be looked for in the current folder first.
    script = tmp_path / "compile.py"
    script.write_text(
        "import sys\n"
        "from nnunet_octreenca.ops.cuda_compiler import compile_program\n"
        f"sys.stdout.buffer.write(compile_program('tiny.cu', {TINY!r}, 90))\n"
    )
    children = [
        subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) for _ in range(2)
    ]
    results = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert results[0] == results[1] == compile_program("tiny.cu", TINY, 90)
    assert [entry.suffix for entry in cache_folder().iterdir()] == [".cubin"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nnunet_octreenca"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "nnunet_octreenca"


# ------------------------------------------------------------------ the compiler


def test_an_error_in_the_source_is_told_with_its_line():
    told = r"cannot compile wrong\.cu for sm_90(.|\n)*wrong\.cu\(2\)(.|\n)*no_such_thing"
    with pytest.raises(CudaError, match=told):
        compile_program("wrong.cu", "// one\nint a = no_such_thing;\n", 90)
    assert list(cache_folder().iterdir()) == []


def test_a_compiler_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0.6")
    answer = Event()

    class Hanging:
        version = staticmethod(lambda: (13, 0))

        @staticmethod
        def compile(*arguments):
            answer.wait()
            return b"", ""

    hanging = cuda_compiler.FoundNvrtc(Hanging(), "13.0 hanging 0")
    monkeypatch.setattr(cuda_compiler, "find_nvrtc", lambda number: hanging)
    begun = time.monotonic()
    with pytest.raises(CudaError, match=r"NVRTC 13\.0 hangs: it has compiled tiny\.cu for sm_90"):
        compile_uncached("tiny.cu", TINY, 90)
    assert time.monotonic() - begun < 60
    answer.set()


def test_a_struct_that_differs_from_pythons_does_not_compile():
    _, name, wanted = next(iter(programs(90)))
    assert name == "inference"
    changed = wanted.source.replace("sizeof(EnterArguments) == ", "sizeof(EnterArguments) == 1")
    assert changed != wanted.source
    with pytest.raises(CudaError, match="static assertion failed"):
        compile_uncached(wanted.name, changed, 90)


def test_libraries_that_are_missing_or_something_else(monkeypatch):
    right = next(iter(cuda_compiler.nvrtc_candidates()))
    wrong = [["/no/such/libnvrtc.so.13"], ["libc.so.6"]]
    find_nvrtc.cache_clear()
    try:
        monkeypatch.setattr(cuda_compiler, "nvrtc_candidates", lambda: iter([*wrong, right]))
        assert nvrtc().version() >= (11, 0)
        find_nvrtc.cache_clear()
        monkeypatch.setattr(cuda_compiler, "nvrtc_candidates", lambda: iter(wrong))
        advice = r"pip install nvidia-cuda-nvrtc.*/no/such/lib.*has no function nvrtcVersion"
        with pytest.raises(CudaError, match=advice):
            nvrtc()
    finally:
        find_nvrtc.cache_clear()


def test_a_package_without_the_module(monkeypatch):
    monkeypatch.setattr(cuda_compiler, "cuda_module", lambda: None)
    monkeypatch.setattr(cuda_compiler, "cuda_module_problem", lambda: "no such file")
    find_nvrtc.cache_clear()
    try:
        with pytest.raises(CudaError, match=r"_cuda was not built \(no such file\)"):
            nvrtc()
    finally:
        find_nvrtc.cache_clear()


# ------------------------------------------------------------------ which compiler


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def candidates(monkeypatch, tmp_path, cuda):
    """Names of the libraries that lie below a folder, in their order."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "conda"))
    monkeypatch.setattr(cuda_compiler.torch.version, "cuda", cuda)
    monkeypatch.setattr(cuda_compiler.torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(cuda_compiler, "find_spec", lambda name: None)
    found = [paths for paths in cuda_compiler.nvrtc_candidates() if str(tmp_path) in paths[-1]]
    return [[os.path.relpath(path, tmp_path) for path in paths] for paths in found]


def test_condas_libraries_are_found(monkeypatch, tmp_path):
    put(tmp_path / "conda" / "lib", "libnvrtc.so.12", "libnvrtc-builtins.so.12.4", "libc.so.6")
    wanted = [["conda/lib/libnvrtc-builtins.so.12.4", "conda/lib/libnvrtc.so.12"]]
    assert candidates(monkeypatch, tmp_path, "12.4") == wanted
    assert candidates(monkeypatch, tmp_path, None) == wanted


@pytest.mark.parametrize(
    ("cuda", "order"),
    [
        ("12.8", ["conda/lib/libnvrtc.so.12", "torch/lib/libnvrtc.so.13"]),
        ("13.0", ["torch/lib/libnvrtc.so.13", "conda/lib/libnvrtc.so.12"]),
        (None, ["torch/lib/libnvrtc.so.13", "conda/lib/libnvrtc.so.12"]),
    ],
)
def test_the_cuda_version_of_pytorch_comes_first(cuda, order, monkeypatch, tmp_path):
    put(tmp_path / "torch" / "lib", "libnvrtc.so.13")
    put(tmp_path / "conda" / "lib", "libnvrtc.so.12")
    assert [paths[-1] for paths in candidates(monkeypatch, tmp_path, cuda)] == order


def test_builtins_are_of_the_compilers_version(monkeypatch, tmp_path):
    put(
        tmp_path / "conda" / "lib", "libnvrtc.so.12", "libnvrtc-builtins.so.12.4",
        "libnvrtc.so.13", "libnvrtc-builtins.so.13.0",
    )  # fmt: skip
    assert candidates(monkeypatch, tmp_path, "12.4") == [
        [f"conda/lib/libnvrtc-builtins.so.{full}", f"conda/lib/libnvrtc.so.{major}"]
        for full, major in (("12.4", 12), ("13.0", 13))
    ]


class OldNvrtc:
    """Knows no newer architecture than 9.0."""

    def version(self):
        return (11, 8)

    def architectures(self):
        return [80, 90]


@pytest.fixture
def two_compilers(monkeypatch):
    """An old compiler, then the real one."""
    right = next(iter(cuda_compiler.nvrtc_candidates()))
    module = cuda_module()

    class Module:
        LibraryError, CompileError = module.LibraryError, module.CompileError

        @staticmethod
        def Nvrtc(paths):
            return OldNvrtc() if paths == ["old"] else module.Nvrtc(paths)

        sources = staticmethod(module.sources)

    monkeypatch.setattr(cuda_compiler, "cuda_module", lambda: Module)
    monkeypatch.setattr(cuda_compiler, "nvrtc_candidates", lambda: iter([["old"], right, right]))
    find_nvrtc.cache_clear()
    yield
    find_nvrtc.cache_clear()


def test_compilers_are_numbered_by_version(two_compilers):
    first, second = find_nvrtc(0), find_nvrtc(1)
    assert first.identity == "11.8 old 0"
    major, minor = second.compiler.version()
    assert second.identity.startswith(f"{major}.{minor} libnvrtc")
    assert int(second.identity.split()[-1]) > 1_000_000
    assert find_nvrtc(2) is None, "the same version twice is one compiler"


def test_a_gpu_that_only_the_second_compiler_knows(two_compilers):
    assert best_architecture(90) == 90
    assert best_architecture(120) == 120
    with pytest.raises(
        CudaError, match=r"NVRTC 11\.8 does not .*; NVRTC \d+\.\d+ does not compile"
    ):
        best_architecture(990)


def test_another_compiler_is_another_entry(two_compilers, monkeypatch):
    second = compile_program("tiny.cu", TINY, 90, 1)
    (entry,) = cache_folder().iterdir()
    renamed = find_nvrtc(1)._replace(identity="13.0 libnvrtc.so.13.0.88 1")
    monkeypatch.setattr(cuda_compiler, "find_nvrtc", lambda number: renamed)
    assert compile_program("tiny.cu", TINY, 90, 1) == second
    assert len(list(cache_folder().iterdir())) == 2
    assert entry.exists()


# ------------------------------------------------------------------ one process compiles


def test_of_many_one_compiles_and_the_others_wait(monkeypatch):
    calls = []
    original = cuda_compiler.compile_uncached

    def slow(*arguments):
        calls.append(arguments)
        time.sleep(0.3)
        return original(*arguments)

    monkeypatch.setattr(cuda_compiler, "compile_uncached", slow)
    with ThreadPoolExecutor(4) as pool:  # locks are of open files, not of processes
        results = list(pool.map(lambda _: compile_program("tiny.cu", TINY, 90), range(4)))
    assert len(calls) == 1
    assert len(set(results)) == 1
    assert [entry.suffix for entry in cache_folder().iterdir()] == [".cubin"]


def test_nobody_waits_for_ever(tmp_path):
    """A process that hangs while it compiles holds the others up for the limit, no longer."""
    path = tmp_path / "entry.lock"
    with cuda_compiler.alone(path):
        begun = time.monotonic()
        with cuda_compiler.alone(path, limit_s=0.2):
            assert 0.2 <= time.monotonic() - begun < 60
        assert path.exists(), "it is not ours"
    assert not path.exists()


def test_a_process_that_died_locks_nothing(tmp_path):
    path = tmp_path / "entry.lock"
    script = tmp_path / "die.py"
    script.write_text(
        "import fcntl, os\n"
        f"file = open({str(path)!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-S", script], check=False).returncode == 9
    assert path.exists()
    begun = time.monotonic()
    with cuda_compiler.alone(path):
        assert time.monotonic() - begun < 5


def test_where_files_cannot_be_locked_nobody_waits(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cuda_compiler.fcntl, "flock", refuse)
    with cuda_compiler.alone(tmp_path / "one.lock"), cuda_compiler.alone(tmp_path / "one.lock"):
        pass
    monkeypatch.setattr(cuda_compiler, "fcntl", None)
    with cuda_compiler.alone(tmp_path / "no" / "such.lock"):
        assert not (tmp_path / "no").exists()
