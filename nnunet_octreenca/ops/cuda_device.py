"""A GPU as the CUDA engine sees it: programs compiled for it, loaded, and started on a stream."""

import itertools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

from nnunet_octreenca.errors import CudaError, OutOfMemoryError
from nnunet_octreenca.ops.cuda_compiler import best_architecture, compile_program, find_nvrtc
from nnunet_octreenca.ops.cuda_program import Configuration, Program, Schedule, program
from nnunet_octreenca.ops.native import cuda_module, cuda_module_problem

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
# The driver does not know the image that a compiler made: CUDA_ERROR_INVALID_IMAGE,
# _NO_BINARY_FOR_GPU, _INVALID_PTX, _UNSUPPORTED_PTX_VERSION, _INVALID_SOURCE.
_UNKNOWN_IMAGE = (200, 209, 218, 222, 300)


class LoadedProgram(Protocol):
    """The kernels of a configuration, ready to start."""

    program: Program

    def launch(self, kernel: str, blocks: int, arguments: bytes) -> None:
        """Start a kernel on PyTorch's current stream."""

    def resident_blocks(self, kernel: str) -> int:
        """Blocks of the kernel that the whole device holds at a time."""


class Clock(Protocol):
    """Times work on a device."""

    identity: str  # what times depend on: the GPU, its compute capability, its driver

    def is_free(self) -> bool:
        """Whether work can be timed now."""

    def milliseconds(self, before: Callable[[], object], work: Callable[[], object]) -> float:
        """What `work` takes on the device."""


class Device(Protocol):
    """Where programs run. The tests have one that is no GPU."""

    architecture: int  # what is compiled for; 90 for compute capability 9.0
    clock: Clock | None

    def __hash__(self) -> int:
        """Programs are kept by device."""

    def load(
        self, configuration: Configuration, backward: bool, schedule: Schedule | None = None
    ) -> LoadedProgram:
        """The kernels of a configuration, compiled when first asked for."""

    def load_program(self, wanted: Program) -> LoadedProgram:
        """Any program."""


class BoundKernel(Protocol):
    """A kernel as `_cuda` binds it."""

    def launch(self, blocks: int, stream: int, arguments: bytes) -> None:
        """Start it on a stream."""

    def resident_blocks(self) -> int:
        """Blocks that one multiprocessor holds at a time."""


class BoundModule(Protocol):
    """Compiled kernels on a device, as `_cuda` binds them."""

    def kernel(self, name: str, threads: int, shared: int) -> BoundKernel:
        """One of them, to be launched in blocks of `threads` with `shared` bytes of memory."""


class Driver(Protocol):
    """The CUDA driver, as `_cuda` binds it."""

    def load(self, device: int, cubin: bytes) -> BoundModule:
        """Load compiled kernels."""


class GpuProgram:
    """A program on a GPU."""

    def __init__(self, gpu: "Gpu", program: Program, kernels: dict[str, BoundKernel]) -> None:
        self.program = program
        self._gpu = gpu
        self._kernels = kernels
        self._resident: dict[str, int] = {}

    def launch(self, kernel: str, blocks: int, arguments: bytes) -> None:
        """Start a kernel on PyTorch's current stream of the GPU.

        Raises:
            OutOfMemoryError: the driver has no memory left for it.
            CudaError: the driver refuses.
        """
        stream = torch.cuda.current_stream(self._gpu.index).cuda_stream
        try:
            self._kernels[kernel].launch(blocks, stream, arguments)
        except self._gpu.module.DriverError as error:
            raise driver_error(error, f"kernel {kernel} of {self.program.name}") from error

    def resident_blocks(self, kernel: str) -> int:
        """Blocks of the kernel that the whole GPU holds at a time, at least 1."""
        if kernel not in self._resident:
            per_multiprocessor = self._kernels[kernel].resident_blocks()
            self._resident[kernel] = max(per_multiprocessor, 1) * self._gpu.multiprocessors
        return self._resident[kernel]


def driver_error(error: Exception, what: str) -> Exception:
    """Our own error for one of the driver's."""
    if getattr(error, "code", None) == _OUT_OF_MEMORY:
        return OutOfMemoryError(f"the GPU has no memory left for {what} ({error})")
    return CudaError(f"{what}: {error}")


class GpuClock:
    """CUDA events on PyTorch's current stream."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def is_free(self) -> bool:
        """Not while a CUDA graph is captured: then nothing runs."""
        return not torch.cuda.is_current_stream_capturing()

    def milliseconds(self, before: Callable[[], object], work: Callable[[], object]) -> float:
        """What `work` takes on the GPU.

        Args:
            before: keeps the GPU busy while `work` is launched, so that launching is not timed.
        """
        event = partial(torch.cuda.Event, enable_timing=True)
        begin, end = event(), event()
        before()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


def _driver_version() -> str:
    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    return "unknown" if version is None else str(version())


class Gpu:
    """One GPU of this process.

    Raises:
        CudaError: no driver, or a GPU that NVRTC does not know.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        module = cuda_module()
        if module is None:
            raise CudaError(f"the module _cuda was not built ({cuda_module_problem()})")
        self.module = module
        properties = torch.cuda.get_device_properties(index)
        self.multiprocessors = properties.multi_processor_count
        self.architecture = best_architecture(10 * properties.major + properties.minor)
        capability = f"{properties.major}.{properties.minor}"
        self.clock: Clock | None = GpuClock(
            f"{properties.name}, {capability}, {self.multiprocessors} multiprocessors, "
            f"driver {_driver_version()}"
        )
        self._driver = load_driver()
        self._compiler = 0  # the first whose images the driver loads
        self._programs: dict[tuple[Configuration, bool, Schedule | None], GpuProgram] = {}
        self._lock = threading.Lock()

    def load(
        self, configuration: Configuration, backward: bool, schedule: Schedule | None = None
    ) -> GpuProgram:
        """The kernels of a configuration; seconds when it is first asked for, then from a cache.

        Raises:
            DoesNotFitError: the configuration is too large for this GPU.
            CudaError: it cannot be compiled or loaded.
        """
        key = (configuration, backward, schedule)
        with self._lock:
            if key not in self._programs:
                self._programs[key] = self.load_program(
                    program(configuration, self.architecture, backward, schedule)
                )
            return self._programs[key]

    def load_program(self, wanted: Program) -> GpuProgram:
        """Any program, compiled or from the cache.

        A compiler newer than the driver makes images that it does not load; the next one is tried.

        Raises:
            CudaError: it cannot be compiled or loaded.
        """
        problems: list[str] = []
        for number in itertools.count(self._compiler):
            found = find_nvrtc(number)
            if found is None:
                break
            if self.architecture not in found.compiler.architectures():
                continue
            cubin = compile_program(wanted.name, wanted.source, self.architecture, number)
            try:
                bound = self._driver.load(self.index, cubin)
            except self.module.DriverError as error:
                if getattr(error, "code", None) not in _UNKNOWN_IMAGE:
                    raise driver_error(error, f"loading {wanted.name}") from error
                problems.append(f"compiled by NVRTC {found.identity.split()[0]}: {error}")
                continue
            self._compiler = number
            return GpuProgram(self, wanted, self._kernels(wanted, bound))
        raise CudaError(
            f"the driver loads {wanted.name} from no compiler ({'; '.join(problems)}). Install a "
            f"newer driver, or a PyTorch of the CUDA version that this driver supports"
        )

    def _kernels(self, wanted: Program, bound: BoundModule) -> dict[str, BoundKernel]:
        try:
            return {
                name: bound.kernel(name, launch.threads, launch.shared)
                for name, launch in wanted.kernels.items()
            }
        except self.module.DriverError as error:
            raise driver_error(error, f"loading {wanted.name}") from error


@lru_cache(maxsize=1)
def load_driver() -> Driver:
    """The CUDA driver.

    Raises:
        CudaError: it is not there, or does not start.
    """
    module = cuda_module()
    assert module is not None
    problems = []
    for name in ("libcuda.so.1", "libcuda.so"):
        try:
            driver: Driver = module.Driver(name)
            return driver
        except module.LibraryError as error:
            problems.append(str(error))
        except module.DriverError as error:
            raise CudaError(f"the CUDA driver does not start: {error}") from error
    raise CudaError(f"no CUDA driver: {'; '.join(problems)}")


@cache
def gpu(index: int) -> Gpu:
    """A GPU of this process by its number, the same object at every call.

    Raises:
        CudaError: it cannot be used.
    """
    return Gpu(index)


def device_of(tensor: Tensor) -> Device:
    """The device that a tensor lies on.

    Raises:
        CudaError: it cannot be used.
    """
    return gpu(tensor.device.index)


def current(tensor: Tensor) -> AbstractContextManager[object]:
    """Where PyTorch allocates and finds its current stream: on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
