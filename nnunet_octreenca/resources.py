"""What this process may use: memory, processors and disk, of the machine or of its container.

psutil knows the machine on every platform. It does not know the limit of a control group (a
container, or a batch job), which is read here, in both versions of the kernel's interface.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
# Versions 2 and 1: files of the limit, of the usage and of its parts, and the part that is
# cached files.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
        "memory/memory.stat", "total_inactive_file",
    ),
)  # fmt: skip
_UNLIMITED = 1 << 60  # version 1 writes a number of this size where there is no limit


def physical_memory() -> int:
    """Bytes of memory in the machine."""
    return int(psutil.virtual_memory().total)


def total_memory() -> int:
    """Bytes that this process may use at most: the machine's, or its control group's if fewer."""
    return min([physical_memory(), *(limit for limit, _ in _cgroup_limits())])


def available_memory() -> tuple[int, str]:
    """Bytes that can be allocated now, and what sets that limit, as words for a message."""
    limits = [(int(psutil.virtual_memory().available), "free memory")]
    for _, free in _cgroup_limits():
        if free is not None:
            limits.append((free, "the control group's limit"))
    return min(limits)


def resident_memory() -> int:
    """Bytes of memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """The most bytes of memory that this process has held; 0 where the system does not report it.

    psutil reports the peak on Windows only.
    """
    try:
        # `getrusage` would count what another program held in this process before.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processors() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decoding_threads() -> int:
    """How many threads decode an image: one for each processor, 16 at most."""
    return min(16, processors())


def free_disk(folder: str | Path) -> int:
    """Bytes that can still be written below an existing folder."""
    return shutil.disk_usage(folder).free


def _cgroup_limits() -> Iterator[tuple[int, int | None]]:
    """Of each control group that limits memory: bytes in all, and bytes that are free.

    None: the usage cannot be read.
    """
    for limit_file, usage_file, stat_file, cache in _CGROUP_FILES:
        limit, usage = _number(CGROUP / limit_file), _number(CGROUP / usage_file)
        if limit is None or limit >= _UNLIMITED:
            continue
        # Cached files count as used, and are given back when memory is asked for.
        cached = _table(CGROUP / stat_file).get(cache, 0)
        yield limit, None if usage is None else limit - usage + cached


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in words if len(row) == 2 and row[1].isdigit()}
