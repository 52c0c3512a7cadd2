import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from nnunet_octreenca import resources
from nnunet_octreenca.resources import (
    available_memory,
    decoding_threads,
    free_disk,
    peak_memory,
    physical_memory,
    processors,
    resident_memory,
    total_memory,
)

GIB = 1 << 30
VERSION_2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
VERSION_1 = (
    "memory/memory.limit_in_bytes",
    "memory/memory.usage_in_bytes",
    "memory/memory.stat",
    "total_inactive_file",
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """16 GiB, of which 8 are available, and no control group yet."""
    memory = SimpleNamespace(total=16 * GIB, available=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    return memory


def write_group(folder, version, limit, usage=None, cached=0):
    limit_file, usage_file, stat_file, cache = version
    (folder / limit_file).write_text(f"{limit}\n")
    if usage is not None:
        (folder / usage_file).write_text(f"{usage}\n")
        (folder / stat_file).write_text(f"anon 12\n{cache} {cached}\nodd line of words\n")


def test_without_a_control_group_the_machine_sets_the_limit(machine):
    assert physical_memory() == total_memory() == 16 * GIB
    assert available_memory() == (8 * GIB, "free memory")


@pytest.mark.parametrize("version", [VERSION_2, VERSION_1], ids=["version 2", "version 1"])
def test_a_control_group_sets_the_limit(machine, tmp_path, version):
    write_group(tmp_path, version, 3 * GIB, GIB, cached=GIB // 2)
    assert physical_memory() == 16 * GIB
    assert total_memory() == 3 * GIB
    assert available_memory() == (5 * GIB // 2, "the control group's limit")
    machine.available = GIB
    assert available_memory() == (GIB, "free memory")


@pytest.mark.parametrize(
    ("version", "limit"), [(VERSION_2, "max"), (VERSION_1, 9223372036854771712)]
)
def test_a_control_group_without_a_limit(machine, tmp_path, version, limit):
    write_group(tmp_path, version, limit, GIB)
    assert total_memory() == 16 * GIB
    assert available_memory() == (8 * GIB, "free memory")


def test_a_control_group_larger_than_the_machine(machine, tmp_path):
    write_group(tmp_path, VERSION_2, 64 * GIB, GIB)
    assert total_memory() == 16 * GIB
    assert available_memory() == (8 * GIB, "free memory")


def test_a_limit_whose_usage_cannot_be_read(machine, tmp_path):
    write_group(tmp_path, VERSION_2, 3 * GIB)
    assert total_memory() == 3 * GIB
    assert available_memory() == (8 * GIB, "free memory")


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
    assert processors() == len(mask)
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
