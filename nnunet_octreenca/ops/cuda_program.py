"""What of `cuda/` is compiled for a network, and how its kernels are launched.

One program holds the kernels of a level's (dimension, C, n_in, H, precision) on one architecture,
and levels of the same sizes share it: a few lines of source that name the templates, and for every
kernel its threads and shared memory. The arguments' layouts stand here and, as structs, in
`cuda/*.cuh`; the sources check the sizes.
"""

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.ops.native import STATE_VARIABLE

MOST_SAMPLES = 16  # of a launch: their origins travel as arguments
# "tf32_rounded" is the ladder's: the engine splits numbers by a mask.
_CLASSES = {"half": "Float16", "tf32": "Tf32", "tf32_rounded": "RoundedTf32", "plain": "Plain"}
_BLOCK_WORDS = {"half": 128, "tf32": 512, "tf32_rounded": 512, "plain": 256}

# Dynamic shared memory that a block can have, bytes (CUDA C++ Programming Guide, table "Technical
# Specifications per Compute Capability", less the 1 KiB that the system keeps).
SHARED_BYTES = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    88: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    103: 227 << 10,
    110: 227 << 10,
    120: 99 << 10,
    121: 99 << 10,
}
_SYSTEM_BYTES = 1 << 10  # of every block's shared memory, from compute capability 8.0 on
_OLDEST_FAST = 75  # whose tensor cores have the fast mode's instruction

# Cells of a tile along x, y, z; the first that leaves room for a second block is taken.
_TILES = {
    2: ((32, 16, 1), (16, 16, 1), (16, 8, 1), (8, 8, 1), (8, 4, 1)),
    3: ((16, 8, 4), (8, 8, 4), (8, 4, 4), (4, 4, 4), (4, 4, 2)),
}
# Without lists: blocks of 8 x 4 cells fill the box of the first of two steps, a cell larger all
# round.
_DENSE_TILES = {2: ((30, 22, 1), (30, 14, 1), (14, 14, 1), (14, 6, 1))}
_WARPS = (4, 2, 1)
# Blocks that a multiprocessor shall have registers for: with these the compiler spills nothing at
# the paper's sizes (its own choice spills 8 bytes here and there, one block more up to 300).
_RESIDENT_SMALL, _RESIDENT_LARGE = 3, 2


def padded_channels(channels: int) -> int:
    """Channels from one cell of a state to the next: C in whole groups of 16."""
    return -(-channels // 16) * 16


def single_precision(architecture: int) -> str:
    """float32: on tensor cores where they multiply TF32."""
    return "tf32" if architecture >= 80 else "plain"


class Configuration(NamedTuple):
    """What a program is compiled for: C, n_in and H are the network's."""

    dimension: int
    channels: int
    inputs: int
    hidden: int
    precision: str  # "half", "tf32", "tf32_rounded" or "plain"

    @property
    def padded(self) -> int:
        """Channels from one cell of a state to the next: C in whole groups of 16."""
        return padded_channels(self.channels)

    @property
    def padded_hidden(self) -> int:
        """H in whole groups of 16."""
        return -(-self.hidden // 16) * 16

    @property
    def taps(self) -> int:
        """Cells of a neighbourhood."""
        return 9 if self.dimension == 2 else 27

    @property
    def cell_bytes(self) -> int:
        """Bytes of a cell's state."""
        return self.padded * (2 if self.precision == "half" else 4)

    def weight_words(self, backward: bool) -> int:
        """32-bit words of the packed weights (`Network::kForwardWords`, `kWords`)."""
        blocks = 3 * (self.padded // 16) * (self.padded_hidden // 16) * (2 if backward else 1)
        return (
            2 * self.padded_hidden
            + self.taps * self.cell_bytes // 4
            + blocks * _BLOCK_WORDS[self.precision]
            + (4 * self.padded_hidden if self.precision == "half" else 0)
        )

    def sums(self, warps: int) -> int:
        """Numbers that a block of the backward pass sums up (`Sums::kCount`)."""
        return (3 * self.padded + 1) * self.padded_hidden + warps * self.taps * self.padded


class Schedule(NamedTuple):
    """How the forward kernels do their work (`Schedule` in `cuda/forward.cuh`): all do the same.

    The first is the plainest; `benchmarks/cuda_ladder.py` times one choice after the other.
    """

    ahead: bool = False  # the next tile is copied while this one's last step runs
    by_bank: bool = False  # fired cells are listed by the bank of shared memory that they lie in
    pairs: bool = False  # resting cells are copied by neighbouring lanes
    product: bool = False  # the bias is a product; in float16 only
    chunks: int = 1  # of 16 cells, for which weights are read once
    dense: bool = False  # no lists: every cell is computed, and those that rest keep their state

    @property
    def source(self) -> str:
        """As the device code names it."""
        flags = (self.ahead, self.by_bank, self.pairs, self.product, self.chunks, self.dense)
        return f"Schedule<{', '.join(str(flag).lower() for flag in flags)}>"


class TileLayout(NamedTuple):
    """How a kernel cuts a level: cells of a tile (x, y, z), warps of a block, its shared memory."""

    tile: tuple[int, int, int]
    warps: int
    shared: int


def schedule_of(configuration: Configuration, steps: int) -> Schedule:
    """The engine's choice for the kernel that does `steps` steps a launch.

    By counts of instructions and of passes of the memory pipe (docs/results/kernel_counts.json);
    no GPU has timed it.
    """
    dimension, precision = configuration.dimension, configuration.precision
    # Two chunks where no register is spilled for them. In 3-D there are too many taps to keep.
    half = precision == "half"
    two = dimension == 2 and configuration.padded == 16 and precision != "plain"
    chunks = 2 if two and (half or steps == 2) else 1
    return Schedule(ahead=True, by_bank=True, pairs=True, product=half, chunks=chunks)


def dense_schedule(configuration: Configuration) -> Schedule | None:
    """The same without lists, where there are such kernels: fast mode, 2-D, C at most 16."""
    dimension, precision = configuration.dimension, configuration.precision
    if dimension != 2 or precision != "half" or configuration.padded != 16:
        return None
    if configuration.inputs == 0:  # no image: the compiler spills 16 to 32 bytes there
        return None
    return Schedule(ahead=True, by_bank=True, pairs=True, product=True, chunks=2, dense=True)


def _region(dimension: int, tile: Sequence[int], halo: int) -> int:
    x, y, z = tile
    return (x + 2 * halo) * (y + 2 * halo) * (z + 2 * halo * (dimension == 3))


def forward_layout(
    configuration: Configuration, architecture: int, steps: int, dense: bool = False
) -> TileLayout | None:
    """Of the kernel that does `steps` steps a launch; None where it does not fit the GPU.

    Args:
        dense: without lists.
    """
    warps = _WARPS[0]
    tiles = (_DENSE_TILES if dense else _TILES)[configuration.dimension]

    def shared(tile: Sequence[int], _: int) -> int:
        cells = _region(configuration.dimension, tile, steps)
        lists = 0 if dense else (cells + 64 * warps) * 2
        rows = 8 * steps * cells // (tile[0] + 2 * steps)
        return cells * configuration.cell_bytes * steps + rows + lists

    return _choose(tiles, architecture, shared, (warps,))


def backward_layout(configuration: Configuration, architecture: int) -> TileLayout | None:
    """Of the kernel that does one step of the backward pass; None where it does not fit."""

    def shared(tile: Sequence[int], warps: int) -> int:
        cells = _region(configuration.dimension, tile, 1)
        stage = 16 * (4 * configuration.padded + 2 * configuration.padded_hidden + 20)
        listed = -(-tile[0] * tile[1] * tile[2] // warps)
        rows = 8 * cells // (tile[0] + 2)
        return 4 * (cells * configuration.padded + warps * (stage + 1)) + rows + 2 * warps * listed

    return _choose(_TILES[configuration.dimension], architecture, shared, _WARPS)


def _choose(
    tiles: Sequence[tuple[int, int, int]],
    architecture: int,
    shared: Callable[[tuple[int, int, int], int], int],
    warps: Sequence[int],
) -> TileLayout | None:
    """The largest tile and most warps that leave room for a second block, else that fit."""
    limit = SHARED_BYTES.get(architecture, min(SHARED_BYTES.values()))
    system = _SYSTEM_BYTES if architecture >= 80 else 0
    for room in ((limit + system) // 2 - system, limit):
        for count in warps:
            for tile in tiles:
                if shared(tile, count) <= room:
                    return TileLayout(tile, count, shared(tile, count))
    return None


def _resident(configuration: Configuration, steps: int, architecture: int, dense: bool) -> int:
    # From 12.0 on shared memory holds two blocks anyway.
    fast_2d = (
        configuration.dimension == 2 and configuration.precision == "half" and architecture < 120
    )
    large = (
        (steps > 1 and not fast_2d)
        or configuration.padded > 16
        or configuration.precision == "plain"
        or (configuration.dimension == 3 and architecture >= 120)
        or (dense and architecture >= 100)
    )
    return _RESIDENT_LARGE if large else _RESIDENT_SMALL


class KernelLaunch(NamedTuple):
    """Threads of a block and its shared memory in bytes."""

    threads: int
    shared: int


class Program(NamedTuple):
    """The source to compile, and its kernels."""

    name: str
    source: str
    kernels: dict[str, KernelLaunch]
    forward: dict[int, TileLayout]  # by steps a launch
    backward: TileLayout | None


class DoesNotFitError(ValueError):
    """The network's tiles do not fit the GPU's shared memory."""


@cache
def program(
    configuration: Configuration,
    architecture: int,
    backward: bool,
    schedule: Schedule | None = None,
) -> Program:
    """The program of a configuration.

    Args:
        architecture: compute capability as a number, 90 for 9.0.
        backward: for training (one step a launch, and the gradient), else for inference.
        schedule: of the forward pass; the engine's choice if left out.

    Raises:
        DoesNotFitError: C and H are too large for this GPU.
        EnvironmentMismatchError: the fast mode on a GPU that lacks its instructions.
    """
    dimension, channels, inputs, hidden, precision = configuration
    if precision == "half" and architecture < _OLDEST_FAST:
        raise EnvironmentMismatchError(
            f"states in float16 (the fast mode) need a GPU of compute capability "
            f"{_OLDEST_FAST / 10:.1f} or later, and this one has {architecture / 10:.1f}: use "
            f"float32 (state='float32', or unset {STATE_VARIABLE})"
        )
    lines = [f'#include "{name}.cuh"' for name in ("forward", "backward", "octree")]
    lines += [
        "using namespace octreenca;",
        f"using N = Network<{dimension}, {channels}, {inputs}, {hidden}, {_CLASSES[precision]}>;",
        f"static_assert(N::{'kWords' if backward else 'kForwardWords'} == "
        f"{configuration.weight_words(backward)});",
    ]
    kernels: dict[str, KernelLaunch] = {}

    def add(
        name: str, threads: int, shared: int, arguments: str, function: str, resident: int = 0
    ) -> None:
        size = ARGUMENT_BYTES[arguments]
        lines.append(f"static_assert(sizeof({arguments}) == {size});")
        lines.append(f"OCTREENCA_KERNEL({name}, {threads}, {resident}, {arguments}, {function})")
        kernels[name] = KernelLaunch(threads, shared)

    add("pack", 128, 0, "PackArguments", "pack<N>")
    add("draw", 128, 0, "DrawArguments", "draw<N>")
    forward = {}
    for steps in (1,) if backward else (1, 2):
        chosen = schedule or schedule_of(configuration, steps)
        layout = forward_layout(configuration, architecture, steps, chosen.dense)
        if layout is None:
            continue
        forward[steps] = layout
        lines.append(f"using Tile{steps} = Tile<{', '.join(map(str, layout.tile))}>;")
        lines.append(
            f"static_assert(ForwardMemory<N, Tile{steps}, {steps}, {layout.warps}, "
            f"{str(chosen.dense).lower()}>::kBytes == "
            f"{layout.shared});"
        )
        add(
            f"forward_{steps}",
            32 * layout.warps,
            layout.shared,
            "StepsArguments",
            f"forward<N, Tile{steps}, {steps}, {layout.warps}, {chosen.source}>",
            _resident(configuration, steps, architecture, chosen.dense),
        )
    back = backward_layout(configuration, architecture) if backward else None
    if 1 not in forward or (backward and back is None):
        raise DoesNotFitError(
            f"{channels} channels and {hidden} hidden units do not fit the shared memory of a "
            f"GPU of compute capability {architecture / 10:.1f}"
        )
    if back is not None:
        lines.append(f"using TileBack = Tile<{', '.join(map(str, back.tile))}>;")
        lines.append(
            f"static_assert(BackwardMemory<N, TileBack, {back.warps}>::kBytes == {back.shared});"
        )
        lines.append(
            f"static_assert(Sums<N, {back.warps}>::kCount == {configuration.sums(back.warps)});"
        )
        function = f"backward_cells<N, TileBack, {back.warps}>"
        threads = 32 * back.warps
        add("backward_cells", threads, back.shared, "BackwardArguments", function, _RESIDENT_LARGE)
        add("backward_perceive", 128, 0, "BackwardArguments", "backward_perceive<N>")
        add("reduce", 128, 0, "ReduceArguments", f"reduce<N, {back.warps}>")
    else:
        add("enter", 128, 0, "EnterArguments", "enter<N>")
        add("map", 128, 0, "MapArguments", "map_parents<N>")
        add("leave", 128, 0, "LeaveArguments", "leave<N>")
    name = f"octreenca_{dimension}d_{channels}_{inputs}_{hidden}_{precision}.cu"
    return Program(name, "\n".join(lines) + "\n", kernels, forward, back)


@cache
def map_program(channels: int, precision: str) -> Program:
    """The kernel that maps parents to children of so many channels, without an image."""
    network = f"Network<2, {channels}, 0, 16, {_CLASSES[precision]}>"
    source = (
        f'#include "octree.cuh"\n'
        f"using namespace octreenca;\n"
        f"static_assert(sizeof(MapArguments) == {ARGUMENT_BYTES['MapArguments']});\n"
        f"OCTREENCA_KERNEL(map, 128, 0, MapArguments, map_parents<{network}>)\n"
    )
    name = f"octreenca_map_{channels}_{precision}.cu"
    return Program(name, source, {"map": KernelLaunch(128, 0)}, {}, None)


# ---------------------------------------------------------------- arguments

LEVEL_LAYOUT = "3iI2Q2I64I"
_RAW = "5Q"
_LAYOUTS = {
    "PackArguments": f"{_RAW}Qq",
    "DrawArguments": f"{LEVEL_LAYOUT}Q2I",
    "StepsArguments": f"{LEVEL_LAYOUT}4QI5i",
    "BackwardArguments": f"{LEVEL_LAYOUT}5Q2I",
    "ReduceArguments": f"Qq{_RAW}5Q",
    "EnterArguments": "7q4i3Q",
    "MapArguments": "2q3Q",
    "LeaveArguments": "2q2Q2i",
}
_STRUCTS = {name: struct.Struct(layout) for name, layout in _LAYOUTS.items()}
ARGUMENT_BYTES = {name: layout.size for name, layout in _STRUCTS.items()}


def arguments(name: str, *values: int) -> bytes:
    """The bytes of an argument struct."""
    return _STRUCTS[name].pack(*values)


def level_arguments(
    shape: Sequence[int],
    threshold: int,
    seed: int,
    level: int,
    first_sample: int,
    origins: Sequence[Sequence[int]],
) -> tuple[int, ...]:
    """The numbers of `Level`, as `arguments` takes them.

    Args:
        shape: cells per axis of the level.
        threshold: of the fire draws, of 2^32.
        first_sample: number in the batch of the first sample of this launch.
        origins: of the samples of this launch, at most 16, coordinates per axis.
    """
    depth, height, width = (1,) * (3 - len(shape)) + tuple(shape)
    places = [0] * (4 * MOST_SAMPLES)
    for i, origin in enumerate(origins):
        padded = (0,) * (3 - len(origin)) + tuple(origin)
        places[4 * i : 4 * i + 3] = [c % (1 << 32) for c in padded]
    return (
        depth,
        height,
        width,
        len(origins),
        threshold,
        seed % (1 << 64),
        level,
        first_sample,
        *places,
    )
