"""The ladder of CUDA kernels: from the obvious one to the engine's, and what each rung gains.

    python benchmarks/cuda_ladder.py            what the rungs are
    python benchmarks/gpu_engine.py --only ladder

Arithmetic per cell and step, 2-D RGB, C = 16, H = 64: 144 multiply-adds to perceive, 2,048 and 832
in the two layers; 64 bytes of state in float32.

1  A thread a cell, float32, a step a launch (kernel_1.cuh, the paper's Listing 1). Every cell is
   computed although half of them do not fire, for a warp's threads go together; every
   multiplication waits for a weight from the cache.
2  A block takes a tile with its halo to shared memory: a neighbour is read from there, not nine
   times through the cache. The fire draw comes first, and the cells that fire are packed: half the
   arithmetic. Four lanes share two cells, so that a weight that is read serves two of them
   (cuda/forward.cuh with `Plain`; what a GPU without TF32 runs in float32).
3  The two layers on tensor cores, float32 as three TF32 products (`Tf32`; float32 from compute
   capability 8.0). 16 cells are the rows of a product. What one layer leaves in a lane is what the
   next one wants there, so nothing is exchanged in between.
4  States and factors in float16, sums in float32 (`Float16`, the fast mode): half the memory
   traffic, one product instead of three at twice the rate, all weights in 48 registers.
5  Two steps a launch: the state passes the memory half as often, for a tenth more cells in 2-D. In
   3-D the halo costs more than it saves: the engine does it in 2-D only.

What an inner tile needs is known to the compiler in all of 2 to 5: neighbours are fixed distances
away, and only the tiles at the level's border look for mirrored ones.

No GPU has timed the rungs from 6 on. They follow from counts (kernel_counts.py): shared memory and
cache are one pipe, which passes 128 bytes a clock, and rung 5 keeps it busier than anything else.

6  While a tile's last step runs, the buffer that it no longer reads takes the next tile
   (`cp.async`, which needs no registers meanwhile): no block waits for memory, and one barrier of
   three is gone.
7  A read of four cells by 16 lanes takes one pass if the cells lie in different banks, and 1.8 if
   chance has picked them. So a warp lists its fired cells by bank and takes one of each.
8  A lane that copies a resting cell holds up the others, and lanes 32 bytes apart meet in the
   banks: two neighbouring lanes copy a cell, and all of the warp's lanes do.
9  What the sums begin with, the bias, took eight reads of 16 bytes a lane for 16 cells: 32 of 92
   passes. As a product of ones with the bias, in two numbers of 11 bits, it is in eight registers.
10 Two chunks of 16 cells for a read of the taps. In 3-D there are too many taps to keep: one.

In float32:

12 Rungs 6 to 8, where a cell is twice as wide: two banks.
13 The weights do not fit registers, and reading them for 16 cells is over half of all passes. In
   3-D this spills registers: the engine does it in 2-D only.
14 A factor's two parts by a mask and a subtraction, where rounding takes seven instructions.

In float16 again, chosen per GPU by measurement (ops/cuda_cells.py):

15 No lists: every cell, 8 x 4 at a time, and those that rest keep their state. A row that is read
   serves the three rows around it, 18 reads where rung 10 has 36, and there are registers for the
   taps. Twice the work for the tensor cores where half of the cells fire.

How a level's states are entered from its image and its parents is timed apart: at first a thread
had a cell (enter_1.cuh), with seven divisions of 64 bits and stores of 8 bytes, 32 apart.

Counted and left out: four steps a launch (the halo eats what they save), `wgmma` (weights and sums
would pass through shared memory), TMA (the copies of rung 6 are hidden already), in float32 an
accumulator of its own for the small terms and tiles of 16 x 16 (docs/explanation/engines.md).
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nnunet_octreenca.ops import cuda_level
from nnunet_octreenca.ops.cuda_program import Configuration, KernelLaunch, Program, Schedule

FIRST_ENTER = Path(__file__).with_name("enter_1.cuh")
SOURCE = Path(__file__).with_name("kernel_1.cuh")
_CLASSES = {"tf32": "Tf32", "plain": "Plain"}


class Rung(NamedTuple):
    """One kernel: the precision it is compiled with (None: kernel 1), its steps a launch, and the
    schedule of its work."""

    number: int
    name: str
    precision: str | None
    fused: int
    schedule: Schedule = Schedule()

    def exists(self, dimension: int) -> bool:
        """Without lists in 2-D only."""
        return dimension == 2 or not self.schedule.dense

    def steps(self, dimension: int) -> int:
        """A launch: after rung 5, which tries it, one in 3-D, as in the engine."""
        return 1 if dimension == 3 and self.number > 5 else self.fused

    def level(self, device: Any, weights: Any, **options: Any) -> cuda_level.LevelLaunches:
        """A level of this rung's kernel."""
        if self.precision is None:
            return Kernel1Level(device, weights, "plain", False, **options)
        options["schedule"] = self.schedule
        return cuda_level.LevelLaunches(device, weights, self.precision, False, **options)


_LISTS = Schedule(ahead=True, by_bank=True, pairs=True)
_DENSE = _LISTS._replace(product=True, chunks=2, dense=True)

RUNGS = (
    Rung(1, "a thread a cell, float32", None, 1),
    Rung(2, "tiles in shared memory, fired cells packed", "plain", 1),
    Rung(3, "tensor cores, three TF32 products", "tf32_rounded", 1),
    Rung(4, "float16 states and factors", "half", 1),
    Rung(5, "two steps a launch", "half", 2),
    Rung(6, "the next tile copied meanwhile", "half", 2, Schedule(ahead=True)),
    Rung(7, "fired cells listed by bank", "half", 2, Schedule(ahead=True, by_bank=True)),
    Rung(8, "resting cells copied in pairs", "half", 2, _LISTS),
    Rung(9, "the bias a product", "half", 2, _LISTS._replace(product=True)),
    Rung(10, "32 cells a read of weights", "half", 2, _LISTS._replace(product=True, chunks=2)),
    Rung(11, "float32, two steps a launch", "tf32_rounded", 2),
    Rung(12, "float32, as rungs 6 to 8", "tf32_rounded", 2, _LISTS),
    Rung(13, "float32, 32 cells a read of weights", "tf32_rounded", 2, _LISTS._replace(chunks=2)),
    Rung(14, "float32, split by a mask", "tf32", 2, _LISTS._replace(chunks=2)),
    Rung(15, "float16, every cell, no lists", "half", 2, _DENSE),
)


def kernel_1_program(configuration: Configuration) -> Program:
    """The program of rung 1; `configuration` in a float32 precision."""
    dimension, channels, inputs, hidden, precision = configuration
    network = f"Network<{dimension}, {channels}, {inputs}, {hidden}, {_CLASSES[precision]}>"
    source = (
        f"{SOURCE.read_text()}\n"
        f"using namespace octreenca;\n"
        f"OCTREENCA_KERNEL(kernel_1, 128, 0, Kernel1Arguments, kernel_1<{network}>)\n"
    )
    return Program("kernel_1.cu", source, {"kernel_1": KernelLaunch(128, 0)}, {}, None)


def enter_1_program(configuration: Configuration) -> Program:
    """States entered as at first, by a kernel that takes what the engine's takes."""
    dimension, channels, inputs, hidden, precision = configuration
    name = {"half": "Float16", **_CLASSES}[precision]
    source = (
        f"{FIRST_ENTER.read_text()}\n"
        f"using namespace octreenca;\n"
        f"using N = Network<{dimension}, {channels}, {inputs}, {hidden}, {name}>;\n"
        f"OCTREENCA_KERNEL(enter, 128, 0, EnterArguments, enter_1<N>)\n"
    )
    return Program("enter_1.cu", source, {"enter": KernelLaunch(128, 0)}, {}, None)


class Kernel1Level(cuda_level.LevelLaunches):
    """A level whose steps kernel 1 does; a state in float32."""

    def __init__(self, device: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(device, *arguments, **options)
        self._kernel_1 = device.load_program(kernel_1_program(self.configuration))

    def forward(
        self, source: Tensor, target: Tensor, first_step: int, fused: int = 1, **labels: Any
    ) -> None:
        """One step from one state to another."""
        assert fused == 1
        assert not labels.get("label_bytes")
        for first, level in self.groups():
            offset = first * self.cells * self.configuration.cell_bytes
            given = _STRUCT.pack(
                *level,
                source.data_ptr() + offset,
                target.data_ptr() + offset,
                *self.raw_pointers(),
                first_step,
                0,
            )
            self._kernel_1.launch("kernel_1", -(-level[3] * self.cells // 128), given)


def _struct() -> Any:
    import struct

    from nnunet_octreenca.ops.cuda_program import LEVEL_LAYOUT

    return struct.Struct(f"{LEVEL_LAYOUT}2Q5Q2I")


_STRUCT = _struct()


if __name__ == "__main__":
    print(__doc__)
