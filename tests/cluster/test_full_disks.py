"""A worker whose disk is full hands its case back and takes no more."""

import errno
import os
import re

import pytest
from helpers.clusters import no_mounts, running, shared, states, tiny_disk, wait_until

from nnunet_octreenca.cluster import room
from nnunet_octreenca.cluster.journal import RUN
from nnunet_octreenca.cluster.room import Room, is_full
from nnunet_octreenca.cluster.scheduling import WithdrawnError
from nnunet_octreenca.errors import InputError, NoRoomError, OutputError
from nnunet_octreenca.result_record import RECORDS

NAMES = tuple("abcd")
needs_mounts = pytest.mark.skipif(bool(no_mounts()), reason=no_mounts())


def assert_each_done_once(found, names, worker, out):
    assert sorted(ended.case for ended in found.records) == sorted(names)
    assert states(found) == dict.fromkeys(names, "done")
    assert {ended.process for ended in found.records} == {worker}
    assert {path.stem for path in out.glob("*.png")} == set(names)
    assert {path.name for path in (out / RECORDS).iterdir()} == {f"{name}.json" for name in names}


def test_what_is_handed_back_is_done_by_another_worker(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    """The disks are found full after the labels have been written."""
    cluster.add(full="ENOSPC")
    cluster.add(full="EDQUOT")
    cluster.wait()
    source, out = pictures(*NAMES), tmp_path / "out"
    added = []

    def tick(found, client):  # a good worker comes when the others have withdrawn
        if len(found.told) == 2 and not added:
            assert not list(out.glob("*.png")), "nothing half done is left"
            added.append(cluster.add())

    found = segment(cluster, source, tick=tick)
    assert_each_done_once(found, NAMES, cluster.workers[2], out)
    assert same_as_one_process(source) == len(NAMES)
    pattern = r"worker tcp://\S+ on \S+ takes no more cases, for its disk is full: (.*)"
    said = {re.fullmatch(pattern, line)[1] for line in found.told}
    assert said == {str(OSError(n, os.strerror(n))) for n in (errno.ENOSPC, errno.EDQUOT)}
    assert all(map(running, cluster.workers))


@pytest.mark.nightly
@needs_mounts
def test_disks_that_are_full_or_too_small_for_a_result(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    cluster.add(tiny={"folder": str(out), "size": "16k"})
    cluster.add(tiny={"folder": str(out), "size": "1m"})
    cluster.wait()
    cluster.add()
    source = pictures(*NAMES)
    found = segment(cluster, source)
    assert_each_done_once(found, NAMES, cluster.workers[2], out)
    assert same_as_one_process(source) == len(NAMES)
    full, small = sorted(found.told, key=lambda line: "takes no more" in line)
    assert re.search(r"gets no case: .*No space left on device.*; free some space there", full)
    assert "takes no more cases, for its disk is full" in small
    assert "out has 1 MB left, and the results need some 8 MB" in small


@needs_mounts
def test_a_disk_of_all_workers_ends_the_run_and_it_goes_on(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    for _ in range(2):
        cluster.add()
    source, out = pictures("slow_a", *NAMES), tmp_path / "out"
    filler, done = out / "filler", []

    def tick(found, client):
        if found.records and not filler.exists():
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(bytes(60 << 20))
            done.extend(ended.case for ended in found.records)

    with tiny_disk(out, "20m"):
        with pytest.raises(WithdrawnError, match=r"no worker is left .*; then run .* --continue"):
            segment(cluster, source, tick=tick)
        assert done
        assert not shared(out, RUN).exists()
        filler.unlink()
        wait_until(lambda: not list((out / RECORDS).glob("*.lock")))
        found = segment(cluster, source, resume=True)
        assert len(found.records) == 1 + len(NAMES)
        assert set(done) <= {name for name, state in states(found).items() if state != "done"}
        assert not found.run.failed
        assert same_as_one_process(source, but=done) == 1 + len(NAMES) - len(done)


def test_what_counts_as_a_full_disk(tmp_path, monkeypatch):
    full = OutputError("a.png cannot be written")
    full.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert is_full(full)
    assert not is_full(PermissionError(errno.EACCES, "no"))
    found = Room(tmp_path)
    assert found.is_over(full)
    assert not found.is_over(InputError("a.png is damaged"))
    assert list(tmp_path.iterdir()) == [], "nothing is left of the attempt to write"
    assert not found.is_over(None)
    # A case that needs more than is left is alone with that, unless the next one needs it too.
    monkeypatch.setattr(room, "free_disk", lambda folder: 5 << 30)
    refusals = [found.is_over(NoRoomError("maps of 8 GB")), found.is_over(None)]
    refusals += [found.is_over(NoRoomError("maps of 8 GB")) for _ in range(2)]
    assert refusals == [False, False, False, True]
    monkeypatch.setattr(room, "free_disk", lambda folder: 5 << 20)
    assert Room(tmp_path).is_over(NoRoomError("labels of 8 MB"))
