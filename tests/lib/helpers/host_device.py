"""The CUDA engine's device without a GPU: its kernels compiled as C++ through shim.hpp."""

import ctypes
import hashlib
import subprocess
import threading
from pathlib import Path

from nnunet_octreenca.ops.cuda_device import Clock
from nnunet_octreenca.ops.cuda_program import Configuration, Program, Schedule, program

ROOT = Path(__file__).parents[3]


class HostProgram:
    """Kernels that run on this processor, on tensors in its memory."""

    def __init__(self, program: Program, library: ctypes.CDLL, blocks: int) -> None:
        self.program = program
        self._library = library
        self._blocks = blocks
        self.launches: list[str] = []

    def launch(self, kernel: str, blocks: int, arguments: bytes) -> None:
        """Run a kernel to its end."""
        self.launches.append(kernel)
        function = getattr(self._library, kernel)
        function(blocks, self.program.kernels[kernel].shared, arguments)

    def resident_blocks(self, kernel: str) -> int:
        """Few, so that every block has several tiles."""
        return self._blocks


class HostDevice:
    """Looks like a GPU of a compute capability to the engine."""

    def __init__(self, folder: Path, architecture: int = 90, blocks: int = 3) -> None:
        self.folder = folder
        self.architecture = architecture
        self.clock: Clock | None = None
        self._blocks = blocks
        self._programs: dict[tuple[Configuration, bool, Schedule | None], HostProgram] = {}
        self._lock = threading.Lock()

    def load(
        self, configuration: Configuration, backward: bool, schedule: Schedule | None = None
    ) -> HostProgram:
        """Compile where it is not there yet."""
        key = (configuration, backward, schedule)
        with self._lock:
            if key not in self._programs:
                wanted = program(configuration, self.architecture, backward, schedule)
                self._programs[key] = self.load_program(wanted)
            return self._programs[key]

    def load_program(self, wanted: Program) -> HostProgram:
        """Any program."""
        return HostProgram(wanted, ctypes.CDLL(str(self._build(wanted))), self._blocks)

    def _build(self, wanted: Program) -> Path:
        digest = hashlib.sha256(wanted.source.encode()).hexdigest()[:16]
        target = self.folder / f"{wanted.name}-{digest}.so"
        if not target.exists():
            source = target.with_suffix(".cpp")
            source.write_text(wanted.source)
            folders = [f"-I{ROOT / name}" for name in ("cuda", "cpu", "tests/cuda")]
            # -O1: compiling takes longer than running. _FORTIFY_SOURCE would refuse the fibers'
            # jumps from stack to stack.
            flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-w"]
            subprocess.run(["g++", *flags, *folders, str(source), "-o", str(target)], check=True)
        return target
