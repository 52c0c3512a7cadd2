"""No argument crashes the native modules: they return, or raise with a sentence."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import fuzz_bindings

from nnunet_octreenca.ops.native import cpu_module, cpu_module_problem, cuda_module

if cpu_module() is None:
    pytest.skip(f"the C++ module is not there: {cpu_module_problem()}", allow_module_level=True)
MODULE = cpu_module()
KERNELS = MODULE.kernels()[0]
SIZES = (2**31 - 1, 2**31 - 1)


@pytest.mark.parametrize("binding", fuzz_bindings.BINDINGS, ids=lambda one: one.__name__)
def test_arguments_of_every_kind(binding):
    fuzz_bindings.fuzz(binding, MODULE, 40)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="not installed: g++")
def test_arguments_of_every_kind_under_sanitizers(tmp_path):
    """In a process of its own, which a finding ends."""
    spec = importlib.util.spec_from_file_location(
        "build_replay", Path(__file__).parent / "build_replay.py"
    )
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    module = build.build_module(tmp_path, flags)
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan", "stdc++")
    ]
    done = subprocess.run(
        [sys.executable, fuzz_bindings.__file__, str(module), "1500"],
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(libraries),
            # Python's own leaks; more memory than there is is a MemoryError.
            "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert done.stdout.count("no crash in 1500 calls") == len(fuzz_bindings.BINDINGS)


# ------------------------------------------------------------------ what crashed, or was read wrong


def weights(dimension=2, channels=5, inputs=2, hidden=3):
    kernel = (3,) * dimension
    shapes = [(channels, *kernel), (channels,), (hidden, 2 * channels), (hidden,),
              (channels - inputs, hidden)]  # fmt: skip
    return [np.zeros(shape, np.float32) for shape in shapes]


def stream(shape, levels=2, steps=1, threads=1):
    return MODULE.OctreeStream(
        list(shape), [weights()] * levels, [steps] * levels, [[2, 2]] * (levels - 1),
        [None] * (levels - 1), 0, 2**31, 0,
        2, True, KERNELS, threads, False, False,
    )  # fmt: skip


def forward(image, labels=None, values=None):
    return MODULE.octree_forward(
        image, [weights()], [1], [], [], 0, 2**31, 0, 2, True, labels, values, KERNELS, 1,
        "auto", False, False,
    )  # fmt: skip


def test_sums_of_sizes_are_counted_in_64_bits():
    for shape in (SIZES, (2**40, 2**40), (2**62, 3)):
        with pytest.raises(ValueError, match=r"more memory than can be addressed|2\^32"):
            stream(shape)
        with pytest.raises(ValueError, match=r"more memory than can be addressed|2\^32"):
            MODULE.ring_slots(list(shape), 1)
    with pytest.raises(ValueError, match="steps must be 0 to 1048576, got 2147483647"):
        MODULE.ring_slots([3, 3], 2**31 - 1)
    with pytest.raises(ValueError, match="steps must be 0 to 1048576, got 2147483647"):
        stream((9, 9), steps=2**31 - 1)
    with pytest.raises(ValueError, match="threads must be 1 to 4096, got 2147483647"):
        stream((9, 9), threads=2**31 - 1)
    with pytest.raises(ValueError, match="40 levels are more"):
        stream((9, 9), levels=40)
    with pytest.raises(ValueError, match="2147483647 logits do not fit the 3 channels"):
        MODULE.octree_forward(
            np.zeros((2, 4, 4), "f4"), [weights()], [1], [], [], 0, 0, 0, 2**31 - 1, True,
            np.zeros((4, 4), "u1"), None, KERNELS, 1, "auto", False, False,
        )  # fmt: skip


def test_strides_that_are_no_multiple_of_a_number():
    """They were rounded down, and other numbers were read."""
    records = np.zeros((2, 4, 4), [("value", "f4"), ("rest", "u1")])
    image = records["value"]
    assert image.strides[-1] == 5
    with pytest.raises(ValueError, match="stride of 5 bytes along axis 2"):
        forward(image, np.zeros((4, 4), "u1"))
    with pytest.raises(ValueError, match="bytes along axis"):
        MODULE.copy(image, np.zeros((2, 4, 4), "f4"), 1)
    unaligned = np.zeros(2 * 16 * 4 + 1, "u1")[1:].view("f4").reshape(2, 4, 4)
    with pytest.raises(ValueError, match="does not begin at a multiple"):
        forward(unaligned, np.zeros((4, 4), "u1"))


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[:, ::-1],
        lambda image: image[:, ::-1, ::-1],
        lambda image: image[::-1, :, ::2],
        lambda image: np.broadcast_to(image[:, :1], image.shape),
        lambda image: np.broadcast_to(image[:, :1, :1], image.shape),
    ],
)
def test_negative_and_zero_strides_are_read_as_they_are(view):
    image = view(np.random.default_rng(0).normal(size=(2, 7, 8)).astype(np.float32))
    values = [np.empty((3, *image.shape[1:]), np.float32) for _ in range(2)]
    for given, into in zip((image, np.ascontiguousarray(image)), values, strict=True):
        forward(given, values=into)
    assert np.array_equal(*values)
    copied = np.empty(image.shape, np.float32)
    MODULE.copy(image, copied, 2)
    assert np.array_equal(copied, image)


def test_rows_that_hold_nothing_take_no_time():
    MODULE.fire_mask(np.empty((2**31 - 1, 2**31 - 1, 0), np.uint8), 1, 5, 0, 0, 0, 1)
    state = np.empty((1, 2**40, 0, 5), np.float32)
    MODULE.steps_forward(state, weights(), 2, 0, 0, 5, [[0, 0]], None, KERNELS, 1, "auto", False)


def test_a_stream_whose_range_failed_has_to_begin_again():
    one = stream((16, 9))
    one.pool(np.zeros((2, 16, 9), np.float32), 0)
    one.prepare()
    one.begin(0, 16)
    with pytest.raises(ValueError, match="no such rows"):
        one.begin(5, 99)
    with pytest.raises(ValueError, match="rows"):
        one.ready(-(2**63))
    with pytest.raises(ValueError, match="does not fit"):
        one.advance(np.zeros((2, 16, 9), np.float32), 2**63 - 1, np.zeros((16, 9), "u1"), None)


def test_two_threads_do_not_use_one_stream():
    """The interpreter's lock is let go while a stream computes."""
    from concurrent.futures import ThreadPoolExecutor

    one, image = stream((4000, 300)), np.zeros((2, 4000, 300), np.float32)
    one.pool(image, 0)
    one.prepare()
    one.begin(0, 4000)
    labels = np.zeros((4000, 300), np.uint8)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(one.advance, image, 0, labels, None) for _ in range(2)]
        errors = [error for error in (job.exception() for job in jobs) if error is not None]
    (error,) = errors
    assert "another thread is using this stream" in str(error) or "not the next rows" in str(error)


@pytest.mark.skipif(cuda_module() is None, reason="the module _cuda is not there")
@pytest.mark.parametrize(
    "path", ["", "\0", "/", "/dev/null", "libm.so.6", "no\u00efve", "x" * 5000]
)
def test_libraries_that_are_none(path):
    module = cuda_module()
    for make in (module.Driver, lambda one: module.Nvrtc([one]), lambda one: module.Nvrtc([])):
        with pytest.raises((module.LibraryError, module.DriverError)) as raised:
            make(path)
        assert str(raised.value)


@pytest.mark.skipif(cuda_module() is None, reason="the module _cuda is not there")
def test_sources_that_are_none():
    from nnunet_octreenca.errors import CudaError
    from nnunet_octreenca.ops.cuda_compiler import nvrtc

    try:
        compiler = nvrtc()
    except CudaError as error:
        pytest.skip(str(error))
    module = cuda_module()
    for arguments in (
        ("\0", "", [], []),
        ("int f(", "a.cu", [], []),
        ("", "a.cu", [("", "")], ["--no-such-option"]),
        ("x" * 100_000, "a" * 5000, [("a.h", "\0")] * 100, []),
    ):
        with contextlib.suppress(module.CompileError):
            cubin, log = compiler.compile(*arguments)
            assert isinstance(cubin, bytes)
            assert isinstance(log, str)
