"""What this machine can hold and how many threads decode, asked before anything is allocated."""

import os
from pathlib import Path

from nnunet_octreenca.errors import InputError

# Deflate cannot do better than one bit for 258 / 2 bytes, 1032 : 1; a header that promises more
# than that of a compressed file is wrong.
DEFLATE_AT_BEST = 1032

_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def memory_limit() -> int:
    """Bytes of memory this process may use at most: the machine's, or its container's if fewer."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CGROUP_LIMITS:
        try:
            text = (Path("/sys/fs/cgroup") / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # "max" means no limit
            limits.append(int(text))
    return min(limits, default=2**63 - 1)


def require_memory(path: Path, wanted: int) -> None:
    """Refuse what does not fit.

    Args:
        path: of the file; named in the error.
        wanted: bytes that reading it would allocate at once.

    Raises:
        InputError: the machine has less.
    """
    limit = memory_limit()
    if wanted > limit:
        raise InputError(
            f"{path} needs {wanted / 1e9:,.1f} GB in memory and this machine has "
            f"{limit / 1e9:,.1f} GB; check that the file's header is right"
        )


def require_deflated(path: Path, promised: int, stored: int) -> None:
    """Refuse a header that promises more than a deflated file of this size can hold.

    Args:
        path: of the file; named in the error.
        promised: bytes after decompression, as the header has it.
        stored: bytes of the file.

    Raises:
        InputError: no deflated data are so small.
    """
    if promised > DEFLATE_AT_BEST * stored:
        raise InputError(
            f"the header of {path} promises {promised:,} bytes, which the file's {stored:,} bytes "
            f"cannot hold; it is damaged or truncated"
        )


def threads() -> int:
    """How many threads decode: the processors this process may run on, 16 at most."""
    if hasattr(os, "sched_getaffinity"):
        return min(16, len(os.sched_getaffinity(0)))
    return min(16, os.cpu_count() or 1)
