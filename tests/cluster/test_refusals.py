"""What cannot be used is refused by name, in one sentence, and nothing is lost."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from helpers.clusters import (
    free_port,
    interrupt,
    kill,
    no_mounts,
    running,
    shared,
    states,
    wait_until,
)

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.cluster import client, scheduling
from nnunet_octreenca.cluster.address import checked_address, connected
from nnunet_octreenca.cluster.journal import RUN
from nnunet_octreenca.cluster.scheduling import Scheduling
from nnunet_octreenca.errors import InputError, LockedError, WorkerError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.prediction.options import Options

NAMES = ("a", "b")


@pytest.fixture
def late_workers(monkeypatch):
    """Workers come long after the first ones, as they do from a job system."""
    monkeypatch.setattr(client, "ALL_HERE", 200.0)


@pytest.mark.parametrize(
    ("address", "config", "sentence"),
    [
        ("local:0", None, "needs a number of workers, such as local:4"),
        ("slurm:many", "jobs.yml", "needs a number of workers, such as slurm:4"),
        ("slurm:4", None, "--dask slurm:32 and --dask-config FILE belong together"),
        ("tcp://head:8786", "jobs.yml", "--dask-config is for slurm:32"),
        ("head", None, "is no address and no scheduler file; give tcp://HOST:8786"),
        ("tcp://head", None, "is no address and no scheduler file"),
    ],
)
def test_addresses(address, config, sentence):
    with pytest.raises(InputError, match=sentence):
        checked_address(address, config)


def test_nobody_listens(model_path, pictures, tmp_path, capsys):
    source, address = pictures(*NAMES), f"tcp://127.0.0.1:{free_port()}"
    arguments = ["-m", str(model_path), "-i", str(source), "-o", str(tmp_path / "out")]
    assert main(["predict", *arguments, "--dask", address]) == 1
    said = capsys.readouterr().err
    assert f"ERROR: no dask scheduler answers at {address}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--attach"], "--attach needs --dask ADDRESS"),
        (["--dask", "local:2", "--attach"], "give --continue instead of --attach"),
        (["--dask", "local:2", "--isolate"], "--isolate is for one process"),
        (["--dask", "local:2", "--split-above", "much"], "--split-above much is no number"),
    ],
)
def test_flags_that_do_not_go_together(flags, sentence, tmp_path, capsys):
    arguments = ["-m", "model", "-i", "in", "-o", str(tmp_path / "out")]
    assert main(["predict", *arguments, *flags]) == 1
    assert sentence in capsys.readouterr().err


def test_a_job_description_that_is_none(tmp_path):
    config = tmp_path / "jobs.yml"
    config.write_text("cores: [")
    with pytest.raises(InputError, match=r"jobs\.yml cannot be read"), connected("slurm:2", config):
        pass
    config.write_text("cores: 2\nmemory: 4GB\nkitchen: yes\n")
    with (
        pytest.raises(InputError, match=r"jobs\.yml has kitchen, which"),
        connected("slurm:2", config),
    ):
        pass


@pytest.mark.usefixtures("late_workers")
def test_a_worker_of_another_version_is_named_and_left_out(cluster, pictures, segment):
    cluster.add(version="0.0.1")
    cluster.add()
    found = segment(cluster, pictures(*NAMES))
    assert states(found) == dict.fromkeys(NAMES, "done")
    (line,) = found.told
    assert re.search("nnunet_octreenca was .* and is 0.0.1: first the client's", line)
    assert {ended.process for ended in found.records} == {cluster.workers[1]}


def test_no_worker_that_can_be_used(cluster, pictures, segment, tmp_path):
    cluster.add(version="0.0.1")
    with pytest.raises(InputError, match=r"no worker can be used; .* is 0\.0\.1"):
        segment(cluster, pictures(*NAMES))
    assert not (tmp_path / "out" / "a.png").exists()


@pytest.mark.skipif(bool(no_mounts()), reason=no_mounts())
@pytest.mark.usefixtures("late_workers")
def test_a_worker_that_cannot_write_is_named_and_left_out(cluster, pictures, segment, tmp_path):
    (tmp_path / "out").mkdir()
    cluster.add(read_only=str(tmp_path / "out"))
    cluster.wait()  # the one that can comes later
    cluster.add()
    found = segment(cluster, pictures(*NAMES))
    assert states(found) == dict.fromkeys(NAMES, "done")
    (line,) = found.told
    assert "out cannot be written to" in line
    assert "Read-only file system" in line


@pytest.mark.usefixtures("late_workers")
def test_memory_that_no_worker_has(cluster, segment, tmp_path):
    cluster.add(memory=100 << 20)
    cluster.add(memory=2 << 30)
    source = tmp_path / "in"
    source.mkdir()
    tifffile.imwrite(source / "small.tif", np.ones((40, 44, 3), np.uint8), photometric="rgb")
    # 10 GB that take no room on the disk.
    huge = {"shape": (60_000, 60_000, 3), "dtype": np.uint8, "photometric": "rgb"}
    tifffile.memmap(source / "large.tif", **huge)
    found = segment(cluster, source)
    assert states(found) == {"large": "failed", "small": "done"}
    (line,) = found.told
    assert "of memory are taken before the first case" in line
    (failure,) = found.run.failed
    assert failure.error == "OutOfMemoryError"
    assert "large.tif" in failure.sentence
    assert all(map(running, cluster.workers)), "nobody died of it"


def test_two_clients_on_one_folder(cluster, pictures, segment, tmp_path):
    cluster.add()
    place = shared(tmp_path / "out", RUN).parent
    with (
        FolderLock(place, "the client of a cluster", name="client.lock", subject="out"),
        pytest.raises(LockedError, match="out is in use by the client of a cluster"),
    ):
        segment(cluster, pictures(*NAMES))


def test_nothing_to_come_back_to(cluster, pictures, segment):
    with pytest.raises(InputError, match=r"no run on a cluster is at .*; leave out --attach"):
        segment(cluster, pictures(*NAMES), attach=True)


def test_the_scheduler_goes_and_another_one_takes_over(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    cluster.add()
    source = pictures("slow_c", *NAMES)

    def tick(found, client):
        if found.records and running(cluster.scheduler):
            kill(cluster.scheduler)

    with pytest.raises(WorkerError, match=r"the scheduler has gone, or was .* with --attach"):
        segment(cluster, source, tick=tick)
    kill(cluster.workers[0])  # which would end by itself, in its own time
    cluster.start_scheduler()
    cluster.add()
    with pytest.raises(InputError, match="give --attach to go on with it, or --continue"):
        segment(cluster, source)
    other = Options(mirror=False, seeds=(5,))
    with pytest.raises(InputError, match=r"is another one \(settings was .*\); give the same"):
        segment(cluster, source, attach=True, options=other)
    found = segment(cluster, source, attach=True)
    assert sorted(states(found)) == ["a", "b", "slow_c"]
    assert not found.run.failed
    assert same_as_one_process(source) == 3
    assert not shared(tmp_path / "out", RUN).exists()


def test_a_scheduler_that_is_started_again_at_once_knows_nothing(
    cluster, pictures, segment, same_as_one_process
):
    """The client finds it at the same address, with no task; or it cannot connect again at all.

    The latter where distributed fails at that moment, which a busy machine brings about.
    """
    cluster.add()
    source = pictures("slow_c", *NAMES)
    first = cluster.scheduler

    def tick(found, client):
        if found.records and cluster.scheduler == first:
            kill(first)
            cluster.start_scheduler()

    with pytest.raises(WorkerError, match=r"was started again.* --attach"):
        segment(cluster, source, tick=tick)
    kill(cluster.workers[0])
    cluster.add()
    found = segment(cluster, source, attach=True)
    assert sorted(states(found)) == ["a", "b", "slow_c"]
    assert not found.run.failed
    assert same_as_one_process(source) == 3


def test_ctrl_c_stops_at_the_end_of_a_band(cluster, pictures, segment, tmp_path):
    cluster.add()
    source = pictures("slow_a", "slow_b", "slow_c")

    with pytest.raises(KeyboardInterrupt):
        segment(cluster, source, tick=interrupt)
    out = tmp_path / "out"
    pictures_done = {path.stem for path in out.glob("*.png")}
    records = {path.stem for path in (out / ".octreenca").glob("*.json")}
    assert pictures_done == records
    assert len(records) < 3
    wait_until(lambda: not list((out / ".octreenca").glob("*.attempts")))
    found = segment(cluster, source, resume=True)
    assert {ended.case for ended in found.records if ended.state == "finished before"} == records
    assert not found.run.failed


def test_a_client_that_fails_at_connecting_again_is_not_waited_for(monkeypatch):
    """As distributed's does where futures are added at that moment."""
    monkeypatch.setattr(scheduling, "_RECONNECT", 0.3)
    stuck = SimpleNamespace(status="connecting")
    schedule = Scheduling(stuck, "run", SimpleNamespace(shares=[1], at_work=lambda keys: True))
    with pytest.raises(WorkerError, match="the scheduler has gone"):
        list(schedule.outcomes([Case("a", ())]))
