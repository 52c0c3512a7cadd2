"""What this process may use: memory, processors and disk, of the machine or of its container.

psutil knows the machine on every platform. It does not know the limits of control groups (a
container, or a batch job; see control_groups) nor of the shell (`ulimit`). `root` is the root of
the file system that the former are read from.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from nnunet_octreenca.control_groups import ROOT, memory_limits, processor_quota
from nnunet_octreenca.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


MOST_THREADS = 1024
FULL_DISK = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Numbers of the errors of a disk that is full, or of a quota that is used up."""


def physical_memory() -> int:
    """Bytes of memory in the machine."""
    return int(psutil.virtual_memory().total)


def total_memory(root: Path = ROOT) -> int:
    """Bytes that this process may use at most: the machine's, or fewer where a limit is set."""
    groups = [limit.total for limit in memory_limits(root)]
    return min([physical_memory(), *groups, *(limit for limit, _, _ in _process_limits())])


def available_memory(root: Path = ROOT) -> tuple[int, str]:
    """Bytes that can be allocated now, and what sets that limit, as words for a message."""
    limits = [(int(psutil.virtual_memory().available), "free memory")]
    for group in memory_limits(root):
        if group.free is not None:
            limits.append((max(group.free, 0), "the control group's limit"))
    limits += [(max(limit - used, 0), name) for limit, used, name in _process_limits()]
    return min(limits)


def allocatable_memory(root: Path = ROOT) -> tuple[int, str]:
    """As `available_memory`, but what the machine can swap out counts as available too.

    Beyond that the system ends a process without a word.
    """
    free, source = available_memory(root)
    machine = int(psutil.virtual_memory().available)
    if free < machine:
        return free, source
    return free + int(psutil.swap_memory().free), source


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
    if resource is None:
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Count this process' peak memory from now on; whether the system does (Linux, glibc).

    Freed memory goes back to the system first, or what was held earlier would hide what is
    allocated next.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def processors(root: Path = ROOT) -> int:
    """Logical processors that this process may keep busy: by its affinity and its quota of time."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return min(allowed, processor_quota(root) or allowed)


def checked_threads(threads: int, root: Path = ROOT) -> int:
    """A number of threads that a user asked for; no more than the machine has processors.

    Labels do not depend on it: a command written for a larger machine runs on a smaller one.

    Raises:
        InputError: below 1, or more than any machine has processors.
    """
    machine, allowed = max(os.cpu_count() or 1, processors(root)), processors(root)
    if 1 <= threads <= MOST_THREADS:
        return min(threads, machine)
    own = "" if allowed == machine else f", of which this process may use {allowed}"
    raise InputError(
        f"{threads} threads cannot be used: this machine has {machine} processor(s){own}; give "
        f"1 to {allowed}"
    )


def decoding_threads() -> int:
    """How many threads decode an image: one for each processor, 16 at most."""
    return min(16, processors())


def free_disk(folder: str | Path) -> int:
    """Bytes that can still be written below an existing folder."""
    return shutil.disk_usage(folder).free


def _process_limits() -> Iterator[tuple[int, int, str]]:
    """Of each limit of this process (`ulimit`): bytes in all, bytes used, and its name."""
    if resource is None:
        return
    memory = psutil.Process().memory_info()
    for name, used, words in (
        ("RLIMIT_AS", memory.vms, "the limit of address space, `ulimit -v`"),
        ("RLIMIT_DATA", getattr(memory, "data", memory.rss), "the limit of data, `ulimit -d`"),
    ):
        limit = resource.getrlimit(getattr(resource, name))[0] if hasattr(resource, name) else -1
        if 0 <= limit != resource.RLIM_INFINITY:
            yield limit, int(used), words
