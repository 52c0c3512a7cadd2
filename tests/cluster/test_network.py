"""Workers on machines of their own, as far as the network is concerned."""

import pytest
from helpers.clusters import HOST, Cluster, cut, namespaces, no_namespaces, running

from nnunet_octreenca.result_record import RECORDS

NAMES = tuple("abcdef")
pytestmark = pytest.mark.skipif(bool(no_namespaces()), reason=no_namespaces())


@pytest.fixture
def places():
    with namespaces(2) as places:
        yield places


@pytest.mark.slow
def test_a_worker_that_is_cut_off_costs_nothing(
    forker, places, pictures, segment, same_as_one_process, tmp_path
):
    cluster = Cluster(forker, host=HOST, worker_ttl="3s")
    try:
        for place in places:
            cluster.add(**place)
        source, off = pictures("slow_a", "slow_b", *NAMES), []

        def tick(found, client):
            if not off and list((tmp_path / "out" / RECORDS).glob("slow_*.attempts")):
                off.append(places[0])
                cut(places[0])

        found = segment(cluster, source, tick=tick)
        assert off
        names = ("slow_a", "slow_b", *NAMES)
        assert sorted(ended.case for ended in found.records) == sorted(names)
        assert not found.run.failed
        assert same_as_one_process(source) == len(names)
        assert running(cluster.workers[1])
    finally:
        cluster.close()
