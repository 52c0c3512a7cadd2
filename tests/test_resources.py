import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from nnunet_octreenca import resources
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.resources import (
    available_memory,
    checked_threads,
    decoding_threads,
    free_disk,
    peak_memory,
    physical_memory,
    processors,
    resident_memory,
    total_memory,
)

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch):
    """16 GiB, of which 8 are available, and 8 processors."""
    memory = SimpleNamespace(total=16 * GIB, available=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    return memory


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def version_2(root, path, limit, usage=None, cached=0, high="max"):
    """The group of a path like "/user.slice/job"."""
    folder = f"sys/fs/cgroup{path}"
    write(root, {f"{folder}/memory.max": limit, f"{folder}/memory.high": high})
    if usage is not None:
        stat = f"anon 12\ninactive_file {cached}\nodd line of words"
        write(root, {f"{folder}/memory.current": usage, f"{folder}/memory.stat": stat})


def version_1(root, path, limit, usage=None, cached=0, ancestors=9223372036854771712):
    folder = f"sys/fs/cgroup/memory{path}"
    write(root, {f"{folder}/memory.limit_in_bytes": limit})
    if usage is not None:
        stat = f"cache 12\ntotal_inactive_file {cached}\nhierarchical_memory_limit {ancestors}"
        write(root, {f"{folder}/memory.usage_in_bytes": usage, f"{folder}/memory.stat": stat})


VERSIONS = pytest.mark.parametrize(
    ("group", "line"),
    [(version_2, "0::{}"), (version_1, "7:memory:{}")],
    ids=["version 2", "version 1"],
)
GROUP = "the control group's limit"


def test_without_a_control_group_the_machine_sets_the_limit(machine, tmp_path):
    assert physical_memory() == total_memory(tmp_path) == 16 * GIB
    assert available_memory(tmp_path) == (8 * GIB, "free memory")


@VERSIONS
def test_a_control_group_sets_the_limit(machine, tmp_path, group, line):
    """Seen from inside a container: the group is the mounted folder."""
    write(tmp_path, {"proc/self/cgroup": line.format("/")})
    group(tmp_path, "", 3 * GIB, GIB, cached=GIB // 2)
    assert physical_memory() == 16 * GIB
    assert total_memory(tmp_path) == 3 * GIB
    assert available_memory(tmp_path) == (5 * GIB // 2, GROUP)
    machine.available = GIB
    assert available_memory(tmp_path) == (GIB, "free memory")


@VERSIONS
@pytest.mark.parametrize("limited", ["/slurm", "/slurm/job_7", "/slurm/job_7/step_0"])
def test_the_smallest_limit_up_to_the_root_counts(machine, tmp_path, group, line, limited):
    """SLURM limits the job, systemd a slice, and the process is in a group further down."""
    write(
        tmp_path, {"proc/self/cgroup": "1:name=systemd:/x\n" + line.format("/slurm/job_7/step_0")}
    )
    group(tmp_path, "", 15 * GIB, 5 * GIB)
    for path in ("/slurm", "/slurm/job_7", "/slurm/job_7/step_0", "/slurm/job_8"):
        group(tmp_path, path, (2 if path == limited else 12) * GIB, GIB)
    group(tmp_path, "/slurm/job_8", GIB, GIB)  # a neighbour's
    assert total_memory(tmp_path) == 2 * GIB
    assert available_memory(tmp_path) == (GIB, GROUP)


@VERSIONS
@pytest.mark.parametrize("path", ["/docker/0123abc", "/../../kubepods/pod1"])
def test_a_path_of_the_host_that_a_container_cannot_see(machine, tmp_path, group, line, path):
    write(tmp_path, {"proc/self/cgroup": line.format(path)})
    group(tmp_path, "", 3 * GIB, GIB)
    assert total_memory(tmp_path) == 3 * GIB


def test_the_version_2_part_of_a_machine_with_both(machine, tmp_path):
    write(tmp_path, {"proc/self/cgroup": "4:memory:/a\n0::/b"})
    version_1(tmp_path, "/a", 5 * GIB, GIB)
    write(tmp_path, {"sys/fs/cgroup/unified/b/memory.max": 4 * GIB})
    assert total_memory(tmp_path) == 4 * GIB


def test_high_limits_as_max_does(machine, tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/a"})
    version_2(tmp_path, "/a", 6 * GIB, GIB, high=2 * GIB)
    assert total_memory(tmp_path) == 2 * GIB
    assert available_memory(tmp_path) == (GIB, GROUP)


def test_a_limit_of_ancestors_that_are_not_mounted(machine, tmp_path):
    write(tmp_path, {"proc/self/cgroup": "3:memory:/"})
    version_1(tmp_path, "", 9223372036854771712, GIB, ancestors=2 * GIB)
    assert total_memory(tmp_path) == 2 * GIB


@VERSIONS
@pytest.mark.parametrize("limit", ["max", 9223372036854771712, "", "?"])
def test_a_control_group_without_a_limit(machine, tmp_path, group, line, limit):
    write(tmp_path, {"proc/self/cgroup": line.format("/")})
    group(tmp_path, "", limit, GIB)
    assert total_memory(tmp_path) == 16 * GIB
    assert available_memory(tmp_path) == (8 * GIB, "free memory")


@VERSIONS
def test_a_control_group_larger_than_the_machine(machine, tmp_path, group, line):
    group(tmp_path, "", 64 * GIB, GIB)
    assert total_memory(tmp_path) == 16 * GIB
    assert available_memory(tmp_path) == (8 * GIB, "free memory")


@VERSIONS
def test_a_limit_whose_usage_cannot_be_read(machine, tmp_path, group, line):
    group(tmp_path, "", 3 * GIB)
    assert total_memory(tmp_path) == 3 * GIB
    assert available_memory(tmp_path) == (8 * GIB, "free memory")


def test_a_group_over_its_limit_has_nothing_free(machine, tmp_path):
    version_2(tmp_path, "", 3 * GIB, 4 * GIB)
    assert available_memory(tmp_path) == (0, GROUP)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "5000 100000"}, 1),
        ({"sys/fs/cgroup/a/cpu.max": "max 100000", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/a/cpu.max": "100000 100000", "sys/fs/cgroup/cpu.max": "200000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "6400000 100000"}, 8),
        ({"sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_quota_us": "300000",
          "sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_period_us": "100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)  # fmt: skip
def test_a_quota_of_processor_time(machine, tmp_path, files, expected):
    write(tmp_path, {"proc/self/cgroup": "2:cpu,cpuacct:/j\n0::/a", **files})
    assert processors(tmp_path) == expected


@pytest.mark.parametrize("threads", [-1, 0, 1025, 1_000_000])
def test_numbers_of_threads_that_are_refused(machine, tmp_path, threads):
    with pytest.raises(InputError, match=rf"^{threads} threads .* 8 processor.*; give 1 to 8$"):
        checked_threads(threads, tmp_path)
    write(tmp_path, {"sys/fs/cgroup/cpu.max": "200000 100000"})
    with pytest.raises(InputError, match=r"8 processor.s., of which .* use 2; give 1 to 2"):
        checked_threads(threads, tmp_path)


def test_numbers_of_threads_that_are_taken(machine, tmp_path):
    taken = [checked_threads(threads, tmp_path) for threads in (1, 8, 9, 1024)]
    assert taken == [1, 8, 8, 8]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize(
    ("name", "words"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")]
)
def test_limits_of_the_process(name, words):
    """In a child: a limit cannot be lifted again. What is left can be allocated, and no more."""
    program = (
        "import resource, psutil\n"
        "from nnunet_octreenca.resources import available_memory, total_memory\n"
        "assert 'ulimit' not in available_memory()[1]\n"
        f"limit = psutil.Process().memory_info().vms + (64 << 20)\n"
        f"resource.setrlimit(resource.{name}, (limit, limit))\n"
        "free, words = available_memory()\n"
        "assert total_memory() == limit\n"
        "try:\n"
        "    bytearray(free + (1 << 20)), print('too much')\n"
        "except MemoryError:\n"
        "    bytearray(free - (4 << 20)), print(words)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert words in run.stdout


def test_this_machine_has_some_memory():
    assert 2**26 < total_memory() <= physical_memory() < 2**60
    assert 0 < available_memory()[0] <= physical_memory()
    assert resident_memory() < physical_memory()


def test_this_process_holds_what_it_allocates():
    # A child: what other tests have freed could hide a peak here.
    program = (
        "from nnunet_octreenca.resources import peak_memory, resident_memory\n"
        "before = resident_memory()\n"
        "held = bytearray(b'1') * (1 << 28)\n"
        "during = resident_memory()\n"
        "del held\n"
        "print(before, during, resident_memory(), peak_memory())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    before, during, after, peak = map(int, run.stdout.split())
    assert during - before == pytest.approx(1 << 28, rel=0.02)
    assert after - before < 1 << 24
    assert peak == pytest.approx(during, rel=0.02)
    assert peak_memory() >= resident_memory() * 0.9


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_processors_are_those_that_this_process_may_run_on():
    mask = os.sched_getaffinity(0)
    assert processors() <= len(mask)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert processors() == decoding_threads() == 1
    finally:
        os.sched_setaffinity(0, mask)


def test_at_most_sixteen_threads_decode(monkeypatch):
    monkeypatch.setattr(resources, "processors", lambda: 64)
    assert decoding_threads() == 16


def test_free_disk_is_what_the_system_reports(monkeypatch, tmp_path):
    asked = []

    def usage(folder):
        asked.append(folder)
        return SimpleNamespace(total=9, used=2, free=7)

    monkeypatch.setattr(resources.shutil, "disk_usage", usage)
    assert free_disk(tmp_path) == 7
    assert asked == [tmp_path]
