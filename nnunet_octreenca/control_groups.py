"""Limits of Linux control groups (a container, a batch job, a systemd slice), versions 1 and 2.

Groups are nested, and each may have a limit of its own: what counts is the smallest on the way
from this process's group up to the root. Every function takes the root of the file system, below
which it reads /proc/self/cgroup and /sys/fs/cgroup.
"""

from collections.abc import Iterator
from math import ceil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")
# Where the controllers of version 1 are mounted, and version 2 (the second: beside version 1).
_MOUNTS = {"memory": ("memory",), "cpu": ("cpu", "cpu,cpuacct"), "": ("", "unified")}
_UNLIMITED = 1 << 60  # version 1 writes a number of this size where there is no limit


class MemoryLimit(NamedTuple):
    """Bytes that a group may use, and bytes of them that are free; None: the usage is unknown."""

    total: int
    free: int | None


def memory_limits(root: Path = ROOT) -> Iterator[MemoryLimit]:
    """Every limit of memory that holds for this process."""
    for folder in _groups("", root):
        # From memory.high on the kernel takes memory back so eagerly that nothing else is done.
        limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
        yield from _memory_limit(folder, limits, "memory.current", "inactive_file")
    for folder in _groups("memory", root):
        limits = [_number(folder / "memory.limit_in_bytes")]
        # Of ancestors too, of which a container may see no files.
        limits.append(_table(folder / "memory.stat").get("hierarchical_memory_limit"))
        yield from _memory_limit(folder, limits, "memory.usage_in_bytes", "total_inactive_file")


def processor_quota(root: Path = ROOT) -> int | None:
    """Processors' worth of time that this process may use, rounded up; None for no limit."""
    shares = []
    for folder in _groups("", root):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            shares.append((int(words[0]), int(words[1])))
    for folder in _groups("cpu", root):
        quota = _number(folder / "cpu.cfs_quota_us")  # -1: no limit
        shares.append((quota or -1, _number(folder / "cpu.cfs_period_us") or 0))
    quotas = [ceil(quota / period) for quota, period in shares if quota > 0 and period > 0]
    return max(1, min(quotas)) if quotas else None


def _memory_limit(
    folder: Path, limits: list[int | None], usage_file: str, cache: str
) -> Iterator[MemoryLimit]:
    known = [limit for limit in limits if limit is not None and limit < _UNLIMITED]
    if not known:
        return
    usage = _number(folder / usage_file)
    # Cached files count as used, and are given back when memory is asked for.
    cached = _table(folder / "memory.stat").get(cache, 0)
    yield MemoryLimit(min(known), None if usage is None else min(known) - usage + cached)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's group and of those around it, up to the one that is mounted.

    Args:
        controller: of version 1; empty for version 2.
        root: of the file system.
    """
    mount = root / "sys/fs/cgroup"
    path = _path_of(controller, root)
    for name in _MOUNTS[controller]:
        # In a container the path may be the host's, and the mounted folder is the group itself.
        for ancestor in [path, *path.parents]:
            found = mount / name / ancestor.relative_to("/")
            if found.is_dir():
                yield found


def _path_of(controller: str, root: Path) -> PurePosixPath:
    """The group's path below the mount, as /proc says ("number:controllers:path")."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            # Leading "..": the group lies outside this process's name space.
            return PurePosixPath("/", *(part for part in path.split("/") if part not in ("", "..")))
    return PurePosixPath("/")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:  # "max": no limit
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    words = [line.split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in words if len(row) == 2 and row[1].isdigit()}
