"""The driver's errors and the way back to PyTorch, with a driver that is told to fail."""

import ctypes
import shutil
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.oracle import make

from nnunet_octreenca.errors import CudaError, EnvironmentMismatchError, OutOfMemoryError
from nnunet_octreenca.ops import StepWeights, cuda_compiler, cuda_device, cuda_engine
from nnunet_octreenca.ops.cuda_compiler import FoundNvrtc
from nnunet_octreenca.ops.cuda_program import Configuration
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, cuda_module, cuda_module_problem

MODULE = cuda_module()
if MODULE is None:
    pytest.skip(f"the module is not there: {cuda_module_problem()}", allow_module_level=True)
if shutil.which("gcc") is None:
    pytest.skip("gcc compiles a driver for the tests", allow_module_level=True)

PATHOLOGY = Configuration(2, 16, 3, 64, "half")


COMPILERS = (
    FoundNvrtc(SimpleNamespace(architectures=lambda: [90, 100]), "13.0 libnvrtc.so.13 1"),
    FoundNvrtc(SimpleNamespace(architectures=lambda: [75, 80]), "11.2 libnvrtc.so.11 1"),
    FoundNvrtc(SimpleNamespace(architectures=lambda: [80, 90]), "12.4 libnvrtc.so.12 1"),
    None,
)


@pytest.fixture(scope="session")
def fake(fake_path):
    """A driver of that library."""
    return MODULE.Driver(fake_path)


@pytest.fixture(scope="session")
def fake_path(tmp_path_factory):
    """A library that looks like the CUDA driver."""
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).with_name("fake_driver.c")
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return str(library)


@pytest.fixture
def gpu(fake, monkeypatch, tmp_path):
    """A GPU of compute capability 9.0 that computes nothing, number 0 of this process."""
    monkeypatch.setenv(cuda_compiler.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cuda_device, "load_driver", lambda: fake)
    monkeypatch.setattr(cuda_device, "compile_program", lambda *a: b"\x7fELF")
    monkeypatch.setattr(cuda_device, "best_architecture", lambda capability: capability)
    monkeypatch.setattr(cuda_device, "find_nvrtc", lambda number: COMPILERS[number])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name="H", multi_processor_count=132, major=9, minor=0),
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=0))
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    caches = (cuda_device.gpu, cuda_engine.gpu_problem, cuda_engine.warn_fallback)
    for cache in caches:
        cache.cache_clear()
    yield cuda_device.gpu(0)
    for cache in caches:
        cache.cache_clear()


def test_what_times_depend_on(gpu, monkeypatch):
    """A choice that was measured with another driver does not count."""
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    identity = cuda_device.Gpu(0).clock.identity
    assert identity == "H, 9.0, 132 multiprocessors, driver 12040"
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000)
    assert cuda_device.Gpu(0).clock.identity != identity


def test_kernels_start(gpu):
    program = gpu.load(PATHOLOGY, False)
    program.launch("forward_1", 5, bytes(400))
    assert program.resident_blocks("forward_1") == 3 * 132
    assert gpu.load(PATHOLOGY, False) is program


@pytest.mark.parametrize("blocks", [0, 2**31])
def test_a_wrong_number_of_blocks_is_refused(gpu, blocks):
    with pytest.raises(ValueError, match=f"blocks \\({blocks}\\) must be 1 to"):
        gpu.load(PATHOLOGY, False).launch("forward_1", blocks, bytes(400))


@pytest.mark.parametrize(
    ("failing", "type_", "named"),
    [
        ("cuLaunchKernel:700", CudaError, "kernel forward_1 of .*CUDA_ERROR_OF_THE_TEST"),
        ("cuLaunchKernel:2", OutOfMemoryError, "no memory left for kernel forward_1"),
        ("cuCtxPushCurrent_v2:201", CudaError, "choosing the device"),
    ],
)
def test_errors_of_a_launch(gpu, failing, type_, named, monkeypatch):
    program = gpu.load(PATHOLOGY, False)
    monkeypatch.setenv("FAKE_CUDA_FAIL", failing)
    with pytest.raises(type_, match=named):
        program.launch("forward_1", 5, bytes(400))
    assert not issubclass(type_, RuntimeError)  # which nnU-Net would take for a lack of memory


@pytest.mark.parametrize(
    ("failing", "type_", "named"),
    [
        ("cuModuleLoadData:700", CudaError, "loading the compiled kernels"),
        ("cuModuleLoadData:209", CudaError, r"NVRTC 13\.0: .*NVRTC 12\.4: .* newer driver"),
        ("cuModuleLoadData:2", OutOfMemoryError, "loading octreenca_2d_16_3_64_half"),
        ("cuModuleGetFunction:500", CudaError, "looking for the kernel pack"),
        ("cuFuncSetAttribute:1", CudaError, r"asking for \d+ bytes of shared memory"),
        ("cuDevicePrimaryCtxRetain:101", CudaError, "opening device 0"),
    ],
)
def test_errors_of_loading(gpu, failing, type_, named, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_FAIL", failing)
    with pytest.raises(type_, match=named):
        gpu.load(PATHOLOGY, False)


@pytest.mark.parametrize("code", [200, 222])
def test_an_image_that_the_driver_does_not_know_is_made_by_the_next_compiler(
    gpu, code, monkeypatch
):
    asked = []

    def compile_program(name, source, architecture, number):
        asked.append(number)
        monkeypatch.setenv("FAKE_CUDA_FAIL", f"cuModuleLoadData:{0 if number else code}")
        return b"\x7fELF"

    monkeypatch.setattr(cuda_device, "compile_program", compile_program)
    assert gpu.load(PATHOLOGY, False).resident_blocks("forward_1") == 3 * 132
    assert asked == [0, 2], "the one that does not compile for 9.0 is left out"
    gpu.load(PATHOLOGY, True)
    assert asked == [0, 2, 2], "and the one that does is kept"


def test_kernels_prefer_shared_memory_to_its_cache(gpu, fake_path, monkeypatch):
    """A hint: a driver that refuses it runs the kernels too."""
    carveout = ctypes.c_int.in_dll(ctypes.CDLL(fake_path), "fake_carveout")
    carveout.value = -1
    gpu.load(PATHOLOGY, False)
    assert carveout.value == 100
    monkeypatch.setenv("FAKE_CUDA_FAIL", "carveout:1")
    gpu.load(PATHOLOGY, True)


def test_a_driver_that_does_not_start(fake, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cuInit:100")
    path = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("libcuda.so.1")
    )
    with pytest.raises(MODULE.DriverError, match="starting the driver") as caught:
        MODULE.Driver(path)
    assert caught.value.code == 100
    cuda_device.load_driver.cache_clear()
    monkeypatch.setattr(
        cuda_device,
        "cuda_module",
        lambda: SimpleNamespace(
            Driver=lambda name: MODULE.Driver(path),
            LibraryError=MODULE.LibraryError,
            DriverError=MODULE.DriverError,
        ),
    )
    with pytest.raises(CudaError, match="driver does not start: starting the driver"):
        cuda_device.load_driver()


def test_no_driver(monkeypatch):
    cuda_device.load_driver.cache_clear()
    monkeypatch.setattr(
        cuda_device,
        "cuda_module",
        lambda: SimpleNamespace(
            Driver=lambda name: MODULE.Driver(f"/no/such/{name}"),
            LibraryError=MODULE.LibraryError,
            DriverError=MODULE.DriverError,
        ),
    )
    with pytest.raises(CudaError, match=r"no CUDA driver: .*libcuda\.so\.1"):
        cuda_device.load_driver()


# ------------------------------------------------------------------ the way back to PyTorch


def tensor_on_a_gpu(dtype=torch.float32, index=0, shape=()):
    return SimpleNamespace(
        device=SimpleNamespace(type="cuda", index=index), dtype=dtype, shape=shape, ndim=len(shape)
    )


def weights_on_a_gpu(*sizes):
    return StepWeights(*(tensor_on_a_gpu(shape=w.shape) for w in make((4, 5), *sizes, 1)[1]))


WEIGHTS = weights_on_a_gpu(16, 3, 64)


def test_cuda_tensors_go_to_the_engine_unless_told_otherwise(gpu, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)
        assert not cuda_engine.supports(tensor_on_a_gpu(torch.float64), WEIGHTS)
        assert not cuda_engine.supports(torch.zeros(1), WEIGHTS)
        monkeypatch.setenv(ENGINE_VARIABLE, "cpu")  # which is about CPU tensors
        assert cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)
        monkeypatch.setenv(ENGINE_VARIABLE, "torch")
        assert not cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)


@pytest.mark.parametrize("field", StepWeights._fields)
@pytest.mark.parametrize("changes", [{"dtype": torch.float16}, {"index": 1}], ids=str)
def test_weights_of_another_type_or_gpu_are_not_taken(gpu, field, changes, monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "cuda")
    other = tensor_on_a_gpu(**changes, shape=getattr(WEIGHTS, field).shape)
    mixed = WEIGHTS._replace(**{field: other})
    assert not cuda_engine.supports(tensor_on_a_gpu(), mixed)
    reason = cuda_engine.unsupported_reason(tensor_on_a_gpu(), mixed)
    assert reason.startswith(f"{field} is {other.dtype} on {other.device}, but the state is")
    assert cuda_engine.unsupported_reason(tensor_on_a_gpu(), WEIGHTS) is None


def broken(*_):
    raise CudaError("no CUDA driver: the test took it away")


def test_one_clear_line_where_the_engine_cannot_be_used(gpu, monkeypatch):
    monkeypatch.setattr(cuda_device, "gpu", broken)
    with pytest.warns(UserWarning, match="PyTorch computes instead.*the test took it away"):
        assert not cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert not cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)


def test_no_way_back_where_the_engine_was_asked_for(gpu, monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "cuda")
    assert cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)
    cuda_engine.gpu_problem.cache_clear()
    monkeypatch.setattr(cuda_device, "gpu", broken)
    with pytest.raises(EnvironmentMismatchError, match="'cuda', but no CUDA driver"):
        cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)


def test_networks_that_do_not_fit_go_to_pytorch(gpu):
    large = weights_on_a_gpu(600, 3, 2400)
    with pytest.warns(UserWarning, match="600 channels and 2400 hidden units do not fit"):
        assert not cuda_engine.supports(tensor_on_a_gpu(), large)
    assert cuda_engine.supports(tensor_on_a_gpu(), WEIGHTS)
