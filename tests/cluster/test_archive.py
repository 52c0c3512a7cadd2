"""An archive on four machines, on a bad day: all that can go wrong at once."""

import json
import time

import pytest
from helpers.clusters import HOST, Cluster, cut, kill, namespaces, no_namespaces, running, states
from untrained_model import model_folder

from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.result_record import RECORDS

NAMES = tuple(f"c{number:03d}" for number in range(200))
CUT_OFF = 15.0  # seconds; the scheduler waits for 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of few steps: its margins are narrow, and small pictures can be split."""
    return load_model(model_folder(tmp_path_factory.mktemp("models") / "archive", steps=1))


@pytest.mark.nightly
@pytest.mark.skipif(bool(no_namespaces()), reason=no_namespaces())
def test_two_hundred_cases_and_a_slide_on_four_machines(
    forker, pictures, segment, same_as_one_process, tmp_path
):
    """One worker is killed, one cut off for a while, one has too little memory, a case is poison.

    The poison ends two workers more; others take their places, as a batch system starts them.
    """
    pictures("slow_slide", shape=(1500, 60))
    source = pictures("poison", *NAMES)
    records = tmp_path / "out" / RECORDS
    with namespaces(4) as places:
        cluster = Cluster(forker, host=HOST, worker_ttl="3s")
        done: dict[str, object] = {}
        exchanged = set()

        def at_work(place):
            """The process of a machine that is at a case of its own."""
            for path in records.glob("c*.attempts"):
                try:
                    (*_, last) = json.loads(path.read_text())
                except (OSError, ValueError):  # it has just ended
                    continue
                if last["process"] == cluster.workers[place]:
                    return last["process"]
            return None

        def tick(found, client):
            parts = (tmp_path / "out").glob(".octreenca/cluster/*/slow_slide_*/*.npz")
            exchanged.update(path.name for path in parts)
            if "killed" not in done and (process := at_work(0)):
                kill(process)
                done["killed"] = process
            if "cut" not in done and at_work(1):
                cut(places[1])
                done["cut"] = time.monotonic()
            if "back" not in done and "cut" in done and time.monotonic() - done["cut"] > CUT_OFF:
                cut(places[1], off=False)
                done["back"] = True
            alive = sum(map(running, cluster.workers))
            if alive < 5 and len(cluster.workers) < 9:
                cluster.add(**places[len(cluster.workers) % 4])

        try:
            for place in places:
                cluster.add(**place)
            small = cluster.add(memory=200 << 20, **places[3])
            found = segment(cluster, source, tick=tick, split_above=10_000)
        finally:
            cluster.close()
    assert {"killed", "cut"} <= done.keys()
    assert len(exchanged) > 3, "the slide's coarsest level and several bands"
    good = ("slow_slide", *NAMES)
    assert len(found.records) == len(good) + 1, "each once"
    assert states(found) == {"poison": "failed", **dict.fromkeys(good, "done")}
    (failure,) = found.run.failed
    assert (failure.case, failure.error) == ("poison", "PoisonedError")
    assert small not in {ended.process for ended in found.records}
    assert same_as_one_process(source, but=("poison",)) == len(good)
    assert not list((tmp_path / "out").glob(".octreenca/cluster*"))
