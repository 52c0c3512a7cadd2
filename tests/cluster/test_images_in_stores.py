"""Images that every worker reads from a store itself: the labels of one process, and no secrets."""

import json
import os
from itertools import count

import numpy as np
import psutil
import pytest
import tifffile
from helpers.clusters import SharerDies, interrupt, kill, running, shared, states, wait_until
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.cluster.journal import RUN
from nnunet_octreenca.errors import InputError, WorkerError
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.result_record import RECORDS

NAMES = tuple("abcdef")
SECRET = "a+very/secret=key"


@pytest.fixture
def scratch(tmp_path):
    """A folder in which workers leave nothing."""
    folder = tmp_path / "scratch"
    yield folder
    wait_until(lambda: not list(folder.glob("*")), 30)


@pytest.fixture
def as_user(s3):
    """`as_user("AKIA...")` is the environment of a worker with credentials of its own."""
    return lambda key: {**s3.environ, "AWS_ACCESS_KEY_ID": key}


def test_each_worker_reads_its_cases_itself(
    cluster, pictures, segment, same_as_one_process, s3, as_user, scratch
):
    keys = {"AKIAWORKERONE", "AKIAWORKERTWO"}
    for key in keys:
        cluster.add(environ=as_user(key))
    source = pictures(*NAMES)
    url = s3.upload(source, "in")
    asked = count()
    s3.fails = lambda method, path: 503 if next(asked) % 5 == 4 else None
    found = segment(cluster, url, scratch=str(scratch))
    s3.fails = lambda method, path: None
    assert states(found) == dict.fromkeys(NAMES, "done")
    assert same_as_one_process(source) == len(NAMES)
    done = {case.case: case for case in found.run.done}
    assert done["a"].files == list(done["a"].input_sha256) == [f"{url}/a.png"]
    assert keys <= s3.keys_seen.keys()
    most = 2 * (source / "a.png").stat().st_size + 1000
    assert s3.sent["/bucket/in/a.png"] < most, "once for the header, once for the pixels"
    s3.put("in/a.png", (source / "b.png").read_bytes())
    again = segment(cluster, url, resume=True, scratch=str(scratch))
    assert states(again) == {"a": "done", **dict.fromkeys(NAMES[1:], "finished before")}


@pytest.mark.usefixtures("scratch")
def test_workers_that_cannot_reach_the_store_are_named_and_left_out(
    cluster, pictures, segment, same_as_one_process, s3, as_user, monkeypatch
):
    """The third one's credentials expire on the way: another worker does its cases."""
    monkeypatch.setattr("nnunet_octreenca.cluster.client.ALL_HERE", 200.0)
    s3.refused = {"AKIASTRANGER"}
    cluster.add(missing="s3fs", environ=as_user("AKIALIBRARY"))
    cluster.add(environ=as_user("AKIASTRANGER"))
    cluster.add(environ=as_user("AKIAEXPIRES"))
    cluster.wait()  # the one that lasts comes later
    source = pictures("slow_a", "slow_b", *NAMES)

    def tick(found, client):
        if found.records and "AKIAEXPIRES" not in s3.refused:
            s3.refused.add("AKIAEXPIRES")
            cluster.add(environ=as_user("AKIALASTS"))

    found = segment(cluster, s3.upload(source, "in"), tick=tick)
    names = ("slow_a", "slow_b", *NAMES)
    assert states(found) == dict.fromkeys(names, "done")
    assert same_as_one_process(source) == len(names)
    assert {ended.process for ended in found.records} == set(cluster.workers[2:])
    told = sorted(line.partition(": ")[2] for line in found.told)
    lines = "\n".join(found.told)
    assert len(told) == 3, lines
    assert "s3fs cannot be imported" in lines
    assert 'run pip install "nnunet-octreenca[cluster]"' in lines
    assert "gets no case: access to s3://bucket/in/a.png is denied" in lines
    assert "takes no more cases, for access to s3://bucket/in/" in lines
    assert "set AWS_PROFILE" in lines


def test_nobody_may_read(cluster, pictures, segment, s3, as_user):
    s3.refused = {"AKIASTRANGER"}
    cluster.add(environ=as_user("AKIASTRANGER"))
    url = s3.upload(pictures("a"), "in")
    with pytest.raises(
        InputError, match=r"no worker can be used; .*s3://bucket/in/a.png is denied"
    ):
        segment(cluster, url)


def test_a_picture_that_nobody_may_read_fails_alone(cluster, pictures, segment, s3):
    cluster.add(environ=s3.environ)
    url = s3.upload(pictures("a", "b"), "in")
    ours = set(cluster.workers)

    def tick(found, client):
        s3.fails = lambda method, path: 403 if path.endswith("a.png") else None

    found = segment(cluster, url, tick=tick)
    assert states(found) == {"a": "failed", "b": "done"}
    assert "access to s3://bucket/in/a.png is denied" in found.run.failed[0].sentence
    assert {ended.process for ended in found.records} == ours


@pytest.mark.usefixtures("scratch")
def test_what_dies(cluster, pictures, segment, same_as_one_process, s3, tmp_path, scratch):
    """A worker is killed, and a case ends two more."""
    workers = [cluster.add(environ=s3.environ) for _ in range(4)]
    source, killed = pictures("slow_a", "poison", "b"), []

    def tick(found, client):
        begun = list((tmp_path / "out" / RECORDS).glob("slow_a.attempts"))
        if begun and not killed:
            killed.append(json.loads(begun[0].read_text())[0]["process"])
            kill(killed[0])

    found = segment(cluster, s3.upload(source, "in"), tick=tick, scratch=str(scratch))
    assert states(found) == {"poison": "failed", "slow_a": "done", "b": "done"}
    assert found.run.failed[0].error == "PoisonedError"
    assert found.run.failed[0].files == ["s3://bucket/in/poison.png"]
    assert same_as_one_process(source, but=("poison",)) == 2
    assert sum(map(running, workers)) == 1
    for path in scratch.glob("*"):  # which killed processes have left, an hour ago
        os.utime(path, (0, 0))
    cluster.add(environ=s3.environ)
    segment(cluster, "s3://bucket/in/b.png", resume=True, scratch=str(scratch))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Of few steps: its margins are narrow, and small pictures can be split."""
    return load_model(model_folder(tmp_path_factory.mktemp("models") / "split", steps=1))


class TestSplit:
    """A slide that several workers share, each reading its ranges."""

    @pytest.fixture
    def model(self, narrow):
        """What `segment` takes."""
        return narrow

    def test_a_slide_is_shared_though_a_worker_dies(self, cluster, segment, model, s3, tmp_path):
        workers = [cluster.add(environ=s3.environ) for _ in range(3)]
        source = tmp_path / "in"
        source.mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (1500, 64, 3), np.uint8)
        tiles = {"tile": (64, 64), "photometric": "rgb"}
        tifffile.imwrite(source / "slow_large.tif", pixels, **tiles)
        tick = SharerDies(tmp_path / "out", "slow_large", workers[2])
        found = segment(cluster, s3.upload(source, "in"), tick=tick, split_above=10_000)
        assert len(tick.seen) > 3, "the coarsest level and several bands"
        alone = predict(source, tmp_path / "alone", model, mirror=False)
        labels = [case.labels_sha256 for case in alone.done]
        assert [case.labels_sha256 for case in found.run.done] == labels
        assert not list((tmp_path / "out").glob(".octreenca/cluster*"))


def test_a_client_comes_back_and_no_secret_is_anywhere(
    cluster, pictures, same_as_one_process, model_path, s3, tmp_path
):
    for _ in range(2):
        cluster.add(environ=s3.environ)
    source, out = pictures("slow_a", *NAMES), tmp_path / "out"
    arguments = ("-m", model_path, "-i", s3.upload(source, "in"), "-o", out, "--disable_tta")
    dask = (*arguments, "-device", "cpu", "--dask", cluster.address)
    seen = []

    def client(*flags, output):
        return cluster.client(*dask, *flags, output=tmp_path / output, environ=s3.environ)

    first = client(output="first.txt")
    wait_until(lambda: list(shared(out, RUN).parent.glob("*/*.json")))
    files = [path for path in (out / RECORDS).rglob("*") if path.is_file()]
    seen += [path.read_bytes() for path in files if path.exists()]
    seen += [" ".join(psutil.Process(pid).cmdline()).encode() for pid in (first, *cluster.workers)]
    kill(first)
    report = tmp_path / "run.json"
    second = client("--attach", "--report", report, output="second.txt")
    wait_until(lambda: not running(second))
    assert "7 done" in (tmp_path / "second.txt").read_text()
    assert same_as_one_process(source) == 1 + len(NAMES)
    assert not shared(out, RUN).exists()
    rows = json.loads(report.read_text())["cluster"]["cases"]
    assert {row["case"]: row["files"] for row in rows}["b"] == ["s3://bucket/in/b.png"]
    seen += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(seen) > 30
    assert not [text for text in seen if SECRET.encode() in text]


def test_ctrl_c(cluster, pictures, segment, s3, scratch, tmp_path):
    cluster.add(environ=s3.environ)
    url = s3.upload(pictures("slow_a", "slow_b", "slow_c"), "in")

    with pytest.raises(KeyboardInterrupt):
        segment(cluster, url, tick=interrupt, scratch=str(scratch))
    records = {path.stem for path in (tmp_path / "out" / RECORDS).glob("*.json")}
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == records
    assert len(records) < 3
    found = segment(cluster, url, resume=True, scratch=str(scratch))
    assert {ended.case for ended in found.records if ended.state == "finished before"} == records
    assert not found.run.failed


def test_a_store_that_answers_no_more_ends_the_run_and_fails_no_case(
    cluster, pictures, segment, s3, tmp_path
):
    cluster.add(environ=s3.environ)
    url = s3.upload(pictures(*NAMES), "in")

    def tick(found, client):
        if found.records:
            s3.fails = lambda method, path: 503

    with pytest.raises(WorkerError, match=r"no worker is left that takes .*did not answer 6 reque"):
        segment(cluster, url, tick=tick)
    s3.fails = lambda method, path: None
    cluster.add(environ=s3.environ)
    found = segment(cluster, url, resume=True)
    assert not found.run.failed
    assert set(states(found)) == set(NAMES)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("https://me:hidden-word@host/a.tif", "https://***@host/a.tif holds a user, a password"),
        ("https://host/a.tif?sig=hidden-word", "https://host/a.tif?*** holds a user, a password"),
        ("memory://in", "memory://in lies in this process"),
    ],
)
def test_urls_that_are_refused(source, sentence, tmp_path, capsys):
    arguments = ["-m", "model", "-i", source, "-o", str(tmp_path / "out"), "--dask", "local:2"]
    assert main(["predict", *arguments]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "hidden-word" not in said
