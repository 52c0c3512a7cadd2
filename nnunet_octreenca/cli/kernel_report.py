"""`nnunet_octreenca doctor --compile sm_90`: every CUDA kernel compiled, without a GPU."""

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from nnunet_octreenca.errors import CudaError, EnvironmentMismatchError
from nnunet_octreenca.files import JsonObject

# (dimension, C, n_in, H): the paper's three tasks, and what the planner chooses for five image
# channels and thirty classes.
Network = tuple[int, int, int, int]
NETWORKS: tuple[Network, ...] = ((2, 16, 3, 64), (3, 16, 1, 64), (3, 16, 3, 64), (3, 44, 5, 176))


def architecture_of(name: str) -> int:
    """90 of "sm_90", "90" or "9.0".

    Raises:
        EnvironmentMismatchError: it names no architecture that can be compiled for.
    """
    from nnunet_octreenca.ops.cuda_compiler import nvrtc

    found = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)", name.strip())
    known = nvrtc().architectures()
    number = int(found[1] + found[2]) if found else 0
    if number not in known or number < 75:
        raise EnvironmentMismatchError(
            f"--compile {name}: this NVRTC compiles for "
            f"{', '.join(f'sm_{n}' for n in known if n >= 75)}"
        )
    return number


def programs(architecture: int, networks: Iterable[Network] = NETWORKS) -> Iterator[Any]:
    """(configuration, name of the pass, program) of everything that is run on an architecture."""
    from nnunet_octreenca.ops.cuda_program import (
        Configuration,
        DoesNotFitError,
        dense_schedule,
        program,
    )

    single = "tf32" if architecture >= 80 else "plain"
    for network in networks:
        for precision, backward in (("half", False), (single, False), (single, True)):
            configuration = Configuration(*network, precision)
            dense = None if backward else dense_schedule(configuration)
            try:
                name = "training" if backward else "inference"
                yield configuration, name, program(configuration, architecture, backward)
                if dense is not None:
                    name = "inference, every cell"
                    yield configuration, name, program(configuration, architecture, False, dense)
            except DoesNotFitError:  # such a network runs in PyTorch there
                continue


def compile_kernels(architecture: int, networks: Iterable[Network] = NETWORKS) -> list[JsonObject]:
    """One row a kernel: what it was compiled for, and what came out.

    The cache is not used: every kernel is compiled.

    Raises:
        CudaError: the compiler refuses.
    """
    from nnunet_octreenca.ops.cubin import kernel_figures
    from nnunet_octreenca.ops.cuda_compiler import compile_uncached

    rows = []
    for configuration, name, wanted in programs(architecture, networks):
        begun = time.perf_counter()
        cubin = compile_uncached(wanted.name, wanted.source, architecture)
        seconds = time.perf_counter() - begun
        figures = kernel_figures(cubin)
        for kernel, launch in wanted.kernels.items():
            if kernel not in figures:
                raise CudaError(f"{wanted.name}: no kernel {kernel} in what NVRTC compiled")
            rows.append(
                {
                    "architecture": f"sm_{architecture}",
                    "dimension": configuration.dimension,
                    "channels": configuration.channels,
                    "input_channels": configuration.inputs,
                    "hidden": configuration.hidden,
                    "precision": configuration.precision,
                    "pass": name,
                    "kernel": kernel,
                    "threads": launch.threads,
                    "registers": figures[kernel].registers,
                    "stack_bytes": figures[kernel].stack_bytes,
                    "shared_bytes": launch.shared,
                    "code_bytes": figures[kernel].code_bytes,
                    "program_seconds": round(seconds, 2),
                }
            )
    return rows


def print_kernels(rows: list[JsonObject]) -> None:
    """A table with a part for every network, precision and pass."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numbers = {
        "threads": "threads",
        "registers": "registers",
        "stack_bytes": "spill",
        "shared_bytes": "shared",
        "code_bytes": "code",
    }
    table = Table(title=f"{rows[0]['architecture']}, networks as C/n_in/H")
    table.add_column("kernel", no_wrap=True)
    for title in numbers.values():
        table.add_column(title, justify="right", no_wrap=True)
    seconds: dict[str, float] = {}
    for row in rows:
        sizes = "/".join(str(row[key]) for key in ("channels", "input_channels", "hidden"))
        name = f"{row['dimension']}-D {sizes} {row['precision']} {row['pass']}"
        if name not in seconds:
            table.add_section()
            table.add_row(Text(name, "bold"))
        seconds[name] = row["program_seconds"]
        table.add_row(f"  {row['kernel']}", *(str(row[number]) for number in numbers))
    Console().print(table)
    total = sum(seconds.values())
    print(f"spill, shared memory and code in bytes; {len(seconds)} programs in {total:.1f} s")
