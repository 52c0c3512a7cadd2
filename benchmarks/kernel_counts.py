"""What a GPU has to do for every rung of the ladder, counted from the machine code: no GPU needed.

    python benchmarks/kernel_counts.py                     sm_90, the paper's sizes
    python benchmarks/kernel_counts.py --json > docs/results/kernel_counts.json

NVRTC compiles each rung; `nvdisasm` (of the CUDA toolkit or of triton's package) disassembles it.
Counted is the shortest way once round two loops: the one that takes 16 fired cells (or as many as
`cells` says) through perceive and update, and the one that lists them and copies those that rest.
Without lists there is one loop, whose cells need not fire.
Counted are instructions, those of them for the tensor cores, and passes of the pipe that shared
memory and cache share (128 bytes a clock and multiprocessor). A read or write of 4, 8 or 16 bytes a
lane takes 1, 2 or 4 passes at least; reads of states in shared memory that meet in a bank take
more: `conflicts` is their mean factor, from lists of fired cells that are drawn here as the kernels
draw them. Counts are no times: what is slow is measured by `gpu_engine.py --only ladder`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cuda_ladder import RUNGS, Rung, kernel_1_program

from nnunet_octreenca.ops.cubin import kernel_figures
from nnunet_octreenca.ops.cuda_compiler import compile_uncached, nvrtc
from nnunet_octreenca.ops.cuda_program import Configuration, program

HIDDEN_GROUPS, PLANES = 4, 3  # trips of the loops over 16 hidden units, and over planes of taps
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)(.*);")


def disassembler() -> str:
    """The path of nvdisasm.

    Raises:
        SystemExit: it is nowhere.
    """
    candidates = [shutil.which("nvdisasm")]
    candidates += map(str, Path("/usr/local").glob("cuda*/bin/nvdisasm"))
    spec = find_spec("triton")
    for place in spec.submodule_search_locations or () if spec else ():
        candidates.append(str(Path(place) / "backends" / "nvidia" / "bin" / "nvdisasm"))
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    sys.exit("nvdisasm is nowhere: install the CUDA toolkit, or triton, whose package has it")


class Block(NamedTuple):
    """Instructions that run one after the other, and the blocks that may follow."""

    operations: list[str]
    following: list[int]


def blocks_of(code: str, kernel: str) -> list[Block]:
    """The basic blocks of a kernel, in the order of their addresses."""
    begin = code.index(f".text.{kernel}:\n")
    end = code.find("//-----", begin)
    starts: dict[str, int] = {}
    rows: list[tuple[list[str], str | None, bool]] = [([], None, True)]  # target, falls through
    for line in code[begin : end if end > 0 else None].splitlines()[1:]:
        label = re.match(r"^(\.L_x_\d+):", line)
        if label:
            if rows[-1][0] or rows[-1][1]:
                rows.append(([], None, True))
            starts[label[1]] = len(rows) - 1
            continue
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        predicate, operation, rest = found.groups()
        rows[-1][0].append(operation)
        target = re.search(r"`\((\.L_x_\d+)\)", rest)
        ends = operation in ("EXIT", "RET.REL.NODEC") and not predicate
        if operation.startswith("BRA") or ends:
            always = ends or (operation in ("BRA", "BRA.U") and not predicate and not re.match(
                r"\s+!?U?P", rest))  # fmt: skip
            rows[-1] = (rows[-1][0], target[1] if target and not ends else None, not always)
            rows.append(([], None, True))
    result = []
    for number, (operations, target, falls) in enumerate(rows):
        following = [starts[target]] if target else []
        if falls and number + 1 < len(rows):
            following.append(number + 1)
        result.append(Block(operations, following))
    return result


def loops_of(blocks: Sequence[Block]) -> dict[int, set[int]]:
    """By header, the blocks of every loop: those from which a jump backwards is reached."""
    before = defaultdict(list)
    for number, block in enumerate(blocks):
        for other in block.following:
            before[other].append(number)
    loops: dict[int, set[int]] = defaultdict(set)
    for number, block in enumerate(blocks):
        for header in (other for other in block.following if other <= number):
            members, waiting = {header}, [number]
            while waiting:
                member = waiting.pop()
                if member not in members:
                    members.add(member)
                    waiting += before[member]
            if max(members) <= number or min(members) >= header:
                loops[header] |= members
    return loops


def passes(operation: str) -> int:
    """Of the pipe that shared memory and cache share, at least."""
    name, *suffixes = operation.split(".")
    if name not in ("LDS", "STS", "LDG", "STG", "LDGSTS", "LD", "ST", "SHFL", "LDSM"):
        return 0
    return 4 if "128" in suffixes else 2 if "64" in suffixes else 1


def once_round(
    blocks: Sequence[Block], loops: dict[int, set[int]], header: int, wanted: tuple[str, ...]
) -> Counter[str]:
    """Operations on a way once round a loop: of those with the most operations of the `wanted`
    names the shortest. Loops inside of it count as often as they run."""
    members = loops[header]
    inner = {h: m for h, m in loops.items() if h != header and h in members and m < members}
    outermost = {h: m for h, m in inner.items() if not any(m < o for o in inner.values())}
    ways: dict[int, Counter[str] | None] = {}

    def worth(way: Counter[str]) -> tuple[int, int]:
        return -sum(way[name] for name in way if name.startswith(wanted)), way.total()

    def to_the_end(here: int) -> Counter[str] | None:
        if here in ways:
            return ways[here]
        ways[here] = None  # back to where we come from is no way on
        own, leaving = Counter(blocks[here].operations), set(blocks[here].following)
        if here in outermost:
            own = once_round(blocks, loops, here, wanted)
            trips = HIDDEN_GROUPS if tensor(own) else PLANES
            own = Counter({name: trips * count for name, count in own.items()})
            leaving = {n for m in outermost[here] for n in blocks[m].following}
            leaving -= outermost[here]
        found: list[Counter[str]] = [Counter()] if header in leaving else []
        for following in (leaving & members) - {header}:
            way = to_the_end(following)
            if way is not None:
                found.append(way)
        ways[here] = own + min(found, key=worth) if found else None
        return ways[here]

    sys.setrecursionlimit(100_000)
    return to_the_end(header) or Counter()


def tensor(counted: Counter[str]) -> int:
    """Instructions for the tensor cores."""
    return sum(count for name, count in counted.items() if name.startswith("HMMA"))


def outermost_loops(
    blocks: Sequence[Block], has: str, wanted: tuple[str, ...], lacks: tuple[str, ...]
) -> list[Counter[str]]:
    """Once round each of the outermost loops that have one operation and lack others."""
    loops = loops_of(blocks)

    def fits(members: set[int]) -> bool:
        names = {name.split(".")[0] for member in members for name in blocks[member].operations}
        return has in names and not names & set(lacks)

    fitting = {header: members for header, members in loops.items() if fits(members)}
    return [
        once_round(blocks, loops, header, wanted)
        for header, members in sorted(fitting.items())
        if not any(members < other for other in fitting.values())
    ]


def conflicts(by_bank: bool, banks: int, rounds: int = 400) -> float:
    """Passes of a read of `banks` listed cells over those of one without conflicts, on average."""
    draws = torch.Generator().manual_seed(0)
    total = counted = 0
    for _ in range(rounds):
        fired = torch.nonzero(torch.rand(160, generator=draws) < 0.5).flatten()
        own = fired % banks
        if by_bank:
            lists = [fired[own == bank] for bank in range(banks)]
            rows = -(-len(fired) // 16) * (16 // banks)
            placed = torch.full((rows, banks), -1)
            for bank, cells in enumerate(lists):
                placed[: len(cells[:rows]), bank] = cells[:rows]
            spare = torch.cat([cells[rows:] for cells in lists])
            gaps = [(b, r) for b in range(banks) for r in range(rows) if placed[r, b] < 0]
            for (bank, row), cell in zip(gaps, spare.tolist(), strict=False):
                placed[row, bank] = cell
            reads = [read[read >= 0] for read in placed]
        else:
            reads = list(fired.split(banks))
        for read in reads:
            if len(read):
                total += int((read % banks).bincount().max())
                counted += 1
    return total / counted


def count(rung: Rung, dimension: int, architecture: int) -> dict[str, Any]:
    """A row of the table."""
    precision = rung.precision or "plain"
    configuration = Configuration(dimension, 16, 3 if dimension == 2 else 1, 64, precision)
    schedule = rung.schedule
    if rung.precision is None:
        wanted, kernel = kernel_1_program(configuration), "kernel_1"
    else:
        wanted = program(configuration, architecture, False, schedule)
        kernel = f"forward_{rung.steps(dimension)}"
    cubin = compile_uncached(wanted.name, wanted.source, architecture)
    figures = kernel_figures(cubin)[kernel]
    launch = wanted.kernels[kernel]
    resident = 65536 // (launch.threads * -(-figures.registers // 8) * 8)
    if launch.shared:
        resident = min(resident, (228 << 10) // (launch.shared + 1024))
    result: dict[str, Any] = {
        "rung": rung.number,
        "name": rung.name,
        "dimension": dimension,
        "precision": precision,
        "registers": figures.registers,
        "stack_bytes": figures.stack_bytes,
        "shared_bytes": launch.shared,
        "code_bytes": figures.code_bytes,
        "warps_resident": resident * launch.threads // 32,
    }
    if precision == "plain":  # its loops have nothing to be told by
        return result
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = subprocess.run(
            [disassembler(), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    factor = 1.0  # cells side by side
    if not schedule.dense:
        factor = conflicts(schedule.by_bank, 4 if precision == "half" else 2)
    blocks = blocks_of(code, kernel)
    width = ".64" if precision == "half" else ".128"
    work = ("HMMA", f"LDS{width}")
    for step, counted in enumerate(outermost_loops(blocks, "HMMA", work, ("BAR",)), 1):
        state = sum(
            passes(name) * number for name, number in counted.items() if name == f"LDS{width}"
        )
        fixed = sum(passes(name) * number for name, number in counted.items())
        result[f"chunk_of_step_{step}"] = {
            "cells": 16 * schedule.chunks,
            "instructions": counted.total(),
            "tensor_instructions": tensor(counted),
            "passes_without_conflicts": fixed,
            "conflicts": round(factor, 2),
            "passes": round(fixed + (factor - 1) * state, 1),
        }
    copies = ("LDS.128", "STS.128", "STG.E.128")
    lists = outermost_loops(blocks, "VOTE", copies, ("BAR", "HMMA"))
    for step, counted in enumerate(lists, 1):
        # A round may take 32 cells several times.
        votes = sum(number for name, number in counted.items() if name.startswith("VOTE"))
        groups = votes / (2 if schedule.by_bank else 1)
        result[f"list_of_step_{step}"] = {
            "cells": 32,
            "instructions": counted.total() / groups,
            "passes_without_conflicts": sum(
                passes(name) * number for name, number in counted.items()
            ) / groups,
        }  # fmt: skip
    return result


def rows(architecture: int) -> Iterator[dict[str, Any]]:
    """All rungs in both dimensions."""
    for dimension in (2, 3):
        for rung in RUNGS:
            known = architecture >= 80 or not (rung.precision or "").startswith("tf32")
            if known and rung.exists(dimension):
                yield count(rung, dimension, architecture)


def main() -> None:
    """Count, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--architecture", type=int, default=90, help="default: 90, for sm_90")
    arguments = parser.parse_args()
    counted = list(rows(arguments.architecture))
    version = ".".join(map(str, nvrtc().version()))
    if arguments.json:
        result = {"architecture": arguments.architecture, "nvrtc": version, "rows": counted}
        print(json.dumps(result, indent=4))
        return
    for row in counted:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
