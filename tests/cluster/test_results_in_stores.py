"""Results, journal and locks of a run in a store: each case once, whatever dies meanwhile."""

import json
from contextlib import suppress

import pytest
from helpers.clusters import interrupt, kill, running, states, wait_until

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import InputError, LockedError
from nnunet_octreenca.stores.store import store_of
from nnunet_octreenca.stores.store_lock import StoreLock

NAMES = tuple("abcd")
OUT = "s3://bucket/out"
SECRET = b"a+very/secret=key"


@pytest.fixture
def same(same_as_one_process, s3, tmp_path):
    """Asserts that the store holds the files that one process writes, and nothing else."""

    def compare(source, *, but=()):
        for key in s3.keys("out"):
            path = tmp_path / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get(key))
        cases = same_as_one_process(source, but=but)
        records = [f"out/.octreenca/{path.stem}.json" for path in source.glob("*.png")]
        found = s3.keys("out/.octreenca")
        assert found == sorted(key for key in records if not key.endswith(tuple(map(ending, but))))
        assert not list(tmp_path.glob("out/**/.*.tmp"))
        return cases

    return compare


def ending(name):
    """Of the record of a case."""
    return f"/{name}.json"


@pytest.fixture
def noted(s3):
    """Who is at a case, as the store says: `noted("a")`."""

    def at(case):
        key = f"out/.octreenca/{case}.attempts"
        return json.loads(s3.get(key)) if key in s3.keys("out/.octreenca") else []

    return at


def test_from_bucket_to_bucket(cluster, pictures, segment, same, s3):
    for _ in range(2):
        cluster.add(environ=s3.environ)
    source = pictures(*NAMES)
    url, asked = s3.upload(source, "in"), []

    def fails(method, path):
        asked.append(path)
        return 503 if len(asked) % 7 == 6 else None

    s3.fails = fails
    found = segment(cluster, url, output=OUT)
    s3.fails = lambda method, path: None
    assert states(found) == dict.fromkeys(NAMES, "done")
    assert same(source) == len(NAMES)
    assert found.run.done[0].outputs[0].startswith(f"{OUT}/")
    again = segment(cluster, url, output=OUT, resume=True)
    assert states(again) == dict.fromkeys(NAMES, "finished before")
    third = segment(cluster, f"{url}/a.png", output=OUT)
    assert "s3://bucket/out/a.png exists already" in third.run.failed[0].sentence


def test_workers_that_die_at_a_case_and_while_they_put_its_results(
    cluster, pictures, segment, same, s3, noted
):
    workers = [cluster.add(environ=s3.environ) for _ in range(5)]
    source, killed = pictures("a", "slow_b", "poison"), []

    def tick(found, client):
        at = noted("slow_b")
        if at and len(killed) == 1:
            killed.append(at[-1]["process"])
            kill(killed[-1])

    def fails(method, path):
        if method == "PUT" and path.endswith("a_overlay.png") and not killed:
            killed.append(noted("a")[-1]["process"])
            kill(killed[0])
        return None

    s3.fails = fails
    found = segment(cluster, s3.upload(source, "in"), output=OUT, tick=tick)
    assert states(found) == {"poison": "failed", "a": "done", "slow_b": "done"}
    assert found.run.failed[0].error == "PoisonedError"
    assert "delete s3://bucket/out/.octreenca/poison.attempts" in found.run.failed[0].sentence
    assert len(noted("poison")) == 2
    s3.client.delete_object(Bucket="bucket", Key="out/.octreenca/poison.attempts")
    s3.client.delete_object(Bucket="bucket", Key="out/.octreenca/poison.lock")
    assert same(source, but=("poison",)) == 2
    assert sum(map(running, workers)) == 1


def test_credentials_that_expire_while_results_are_put(
    cluster, pictures, segment, same, s3, monkeypatch
):
    """Another worker puts them all again, though some are there."""
    monkeypatch.setattr("nnunet_octreenca.cluster.client.ALL_HERE", 200.0)
    cluster.add(environ={**s3.environ, "AWS_ACCESS_KEY_ID": "AKIAEXPIRES"})
    source, aged = pictures("a"), []

    def fails(method, path):
        if method == "PUT" and path.endswith("_overlay.png") and not s3.refused:
            s3.refused.add("AKIAEXPIRES")
            cluster.add(environ=s3.environ)
            return 403
        return None

    s3.fails = fails

    def tick(found, client):
        for lock in [key for key in s3.keys("out") if key.endswith(".lock") and not aged]:
            if found.told and "client" not in lock:  # it has withdrawn, five minutes ago
                s3.put(lock, json.dumps({**json.loads(s3.get(lock)), "alive": 1.0}).encode())
                aged.append(lock)

    found = segment(cluster, s3.upload(source, "in"), output=OUT, tick=tick)
    assert states(found) == {"a": "done"}
    assert {ended.process for ended in found.records} == {cluster.workers[1]}
    (line,) = found.told
    assert "takes no more cases, for access to s3://bucket/" in line
    assert aged
    assert same(source) == 1


def test_a_client_comes_back_to_a_run_in_a_store(cluster, pictures, same, model_path, s3, tmp_path):
    for _ in range(2):
        cluster.add(environ=s3.environ)
    source = pictures("slow_a", *NAMES)
    url, report = s3.upload(source, "in"), tmp_path / "run.json"
    arguments = ("-m", model_path, "-i", url, "-o", OUT, "--disable_tta", "-device", "cpu")
    dask = (*arguments, "--dask", cluster.address)

    def client(*flags, output):
        return cluster.client(*dask, *flags, output=tmp_path / output, environ=s3.environ)

    first = client(output="first.txt")
    wait_until(lambda: [key for key in s3.keys("out/.octreenca/cluster") if key.count("/") == 4])
    seen = []
    for key in s3.keys("out"):
        with suppress(s3.client.exceptions.NoSuchKey):  # locks and notes come and go
            seen.append(s3.get(key))
    kill(first)
    other = client(output="other.txt")
    wait_until(lambda: not running(other))
    assert "--attach" in (tmp_path / "other.txt").read_text()
    second = client("--attach", "--report", report, output="second.txt")
    wait_until(lambda: not running(second))
    assert "5 done" in (tmp_path / "second.txt").read_text()
    assert same(source) == 5
    content = json.loads(report.read_text())
    outputs = {row["case"]: row["outputs"] for row in content["cluster"]["cases"]}
    assert outputs["a"][0] == f"{OUT}/a.png"
    seen += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in seen if SECRET in text]


def test_ctrl_c_with_results_in_a_store(cluster, pictures, segment, s3):
    cluster.add(environ=s3.environ)
    url = s3.upload(pictures("slow_a", "slow_b", "slow_c"), "in")

    with pytest.raises(KeyboardInterrupt):
        segment(cluster, url, output=OUT, tick=interrupt)
    wait_until(lambda: not [key for key in s3.keys("out") if key.endswith(("attempts", "lock"))])
    records = [key for key in s3.keys("out/.octreenca") if key.count("/") == 2]
    assert len(records) < 3
    assert all(json.loads(s3.get(key))["state"] == "finished" for key in records)
    found = segment(cluster, url, output=OUT, resume=True)
    assert len([1 for ended in found.records if ended.state == "finished before"]) == len(records)
    assert not found.run.failed


def test_nobody_may_write(cluster, pictures, segment, s3):
    cluster.add(environ={**s3.environ, "AWS_ACCESS_KEY_ID": "AKIASTRANGER"})
    s3.refused = {"AKIASTRANGER"}
    source = pictures("a")
    with pytest.raises(InputError, match=r"no worker can be used; .*s3://bucket/out/.* is denied"):
        segment(cluster, source, output=OUT)
    assert not s3.keys("out")


def test_two_clients_at_one_url(cluster, pictures, segment, s3):
    cluster.add(environ=s3.environ)
    store = store_of(OUT)
    lock = StoreLock(store, store.below(".octreenca/cluster/client.lock"), OUT, "the client")
    with lock, pytest.raises(LockedError, match=f"{OUT} is in use by the client"):
        segment(cluster, pictures("a"), output=OUT)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-o", "sftp://host/out"], "only s3://, gs:// and abfs:// say which of them was first"),
        (["-o", "https://host/out?sig=hidden-word"], "https://host/out?*** holds a user"),
        (["-o", OUT, "--split-above", "1G"], "leave out --split-above, or give a folder on a disk"),
    ],
)
def test_results_that_are_refused(flags, sentence, capsys):
    assert main(["predict", "-m", "model", "-i", "in", "--dask", "local:2", *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "hidden-word" not in said
