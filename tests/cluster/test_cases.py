"""Cases on a cluster: each done once, with the labels of one process, whatever dies meanwhile."""

import json
import os
import signal

import pyarrow.parquet
from helpers.clusters import kill, running, shared, states, wait_until

from nnunet_octreenca.cluster.attempts import attempts_name
from nnunet_octreenca.cluster.journal import RUN
from nnunet_octreenca.result_record import RECORDS

NAMES = tuple("abcdefgh")


def leftovers(folder):
    """What is neither a result nor a record of a case."""
    return [path.name for path in (folder / RECORDS).iterdir() if path.suffix != ".json"]


def test_every_case_is_done_once_with_the_labels_of_one_process(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    for _ in range(2):
        cluster.add()
    cluster.add(threads=2)
    source, most = pictures(*NAMES), []

    def tick(found, client):
        most.append(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

    found = segment(cluster, source, tick=tick, window=3)
    assert states(found) == dict.fromkeys(NAMES, "done")
    assert same_as_one_process(source) == len(NAMES)
    assert max(most) <= 3, "the scheduler holds a window"
    assert leftovers(tmp_path / "out") == []
    versions = found.run.identity.versions
    for ended in found.records:
        assert (ended.versions["torch"], ended.process in cluster.workers) == (
            versions["torch"],
            True,
        )
        assert ended.reserved > 0
    again = segment(cluster, source, resume=True)
    assert states(again) == dict.fromkeys(NAMES, "finished before")


def test_a_killed_worker_costs_nothing(cluster, pictures, segment, same_as_one_process, tmp_path):
    workers = [cluster.add() for _ in range(2)]
    source = pictures("slow_a", "slow_b", *NAMES)

    def tick(found, client):
        begun = list((tmp_path / "out" / RECORDS).glob("slow*.attempts"))
        if begun and all(map(running, workers)):
            kill(json.loads(begun[0].read_text())[0]["process"])

    found = segment(cluster, source, tick=tick)
    assert sum(map(running, workers)) == 1
    assert states(found) == dict.fromkeys(("slow_a", "slow_b", *NAMES), "done")
    assert same_as_one_process(source) == 2 + len(NAMES)
    assert leftovers(tmp_path / "out") == []


def test_workers_that_come_when_all_others_have_died_get_their_cases(
    cluster, pictures, segment, same_as_one_process, monkeypatch, tmp_path
):
    monkeypatch.setenv("nnUNet_octreenca_wait_limit", "40")
    workers = [cluster.add()]
    source = pictures("slow_a", *NAMES[:2])

    def tick(found, client):
        if len(workers) == 1 and list((tmp_path / "out" / RECORDS).glob("*.attempts")):
            kill(workers[0])
            wait_until(lambda: not client.scheduler_info(n_workers=-1)["workers"])
            workers.append(cluster.add())

    found = segment(cluster, source, tick=tick)
    assert states(found) == dict.fromkeys(("slow_a", *NAMES[:2]), "done")
    assert {ended.process for ended in found.records} <= set(workers)
    assert same_as_one_process(source) == 3


def test_a_poisoned_case_ends_two_workers_and_no_more(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    for _ in range(4):
        cluster.add()
    source = pictures("poison", *NAMES)
    found = segment(cluster, source)
    assert states(found) == {"poison": "failed", **dict.fromkeys(NAMES, "done")}
    (failure,) = found.run.failed
    assert (failure.case, failure.error) == ("poison", "PoisonedError")
    assert "ended the process that segmented it 2 times" in failure.sentence
    assert sum(map(running, cluster.workers)) == 2
    again = segment(cluster, source, resume=True)
    assert states(again) == {"poison": "failed", **dict.fromkeys(NAMES, "finished before")}
    assert sum(map(running, cluster.workers)) == 2, "nothing dies again"
    assert shared(tmp_path / "out", attempts_name("poison")).exists()
    # Another file of that name is another image.
    (source / "a.png").rename(source / "poison.png")
    cluster.add()
    third = segment(cluster, source, resume=True)
    assert third.run.failed[0].error == "PoisonedError"
    assert sum(map(running, cluster.workers)) == 1


def test_a_case_is_not_blamed_for_workers_that_others_end(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    """A scheduler that goes, or a time limit, ends workers in the middle of a band."""
    workers, path = [cluster.add(long=True)], shared(tmp_path / "out", attempts_name("long_a"))
    source = pictures("long_a", "b")

    def tick(found, client):
        known = json.loads(path.read_text()) if path.exists() else [{"process": 0}]
        if len(workers) == 3 or known[-1]["process"] != workers[-1]:
            return
        if len(workers) == 1:  # as when the scheduler has gone, but for the half minute of patience
            client.run(
                lambda dask_worker: dask_worker.loop.add_callback(dask_worker.close, timeout=0.5)
            )
        else:
            os.kill(workers[-1], signal.SIGTERM)
        wait_until(lambda: not running(workers[-1]))
        assert json.loads(path.read_text())[-1]["excused"]
        workers.append(cluster.add(long=len(workers) == 1))

    found = segment(cluster, source, tick=tick)
    assert states(found) == dict.fromkeys(("long_a", "b"), "done")
    assert same_as_one_process(source) == 2
    assert leftovers(tmp_path / "out") == []


def test_a_client_that_was_killed_comes_back(
    cluster, pictures, segment, same_as_one_process, model_path, tmp_path
):
    for _ in range(2):
        cluster.add()
    source, out = pictures("slow_a", *NAMES), tmp_path / "out"
    arguments = ("-m", model_path, "-i", source, "-o", out, "--disable_tta", "-device", "cpu")
    dask = (*arguments, "--dask", cluster.address)
    first = cluster.client(*dask, output=tmp_path / "first.txt")
    wait_until(lambda: list(shared(out, RUN).parent.glob("*/*.json")))
    kill(first)
    other = cluster.client(*dask, output=tmp_path / "other.txt")
    wait_until(lambda: not running(other))
    assert "--attach" in (tmp_path / "other.txt").read_text()
    report = tmp_path / "run.json"
    second = cluster.client(*dask, "--attach", "--report", report, output=tmp_path / "second.txt")
    wait_until(lambda: not running(second))
    assert "9 done" in (tmp_path / "second.txt").read_text()
    assert same_as_one_process(source) == 1 + len(NAMES)
    assert not shared(out, RUN).exists()
    content = json.loads(report.read_text())
    assert sorted(case["case"] for case in content["cases"]) == sorted(("slow_a", *NAMES))
    table = pyarrow.parquet.read_table(report.with_suffix(".parquet")).to_pylist()
    rows = {row["case"]: row for row in content["cluster"]["cases"]}
    assert {row["case"]: row["labels_sha256"] for row in table} == {
        name: row["labels_sha256"] for name, row in rows.items()
    }
    assert all(row["version_torch"] and row["host"] and row["seconds"] > 0 for row in table)
