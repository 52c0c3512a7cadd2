"""Dask's sampler of call stacks rests on the workers of a run, and samples again after it."""

from distributed import Client


def sampled(dask_worker):
    return sorted(
        name for name, call in dask_worker.periodic_callbacks.items() if call.is_running()
    )


def test_workers_are_not_sampled_during_a_run(cluster, pictures, segment):
    cluster.add()
    seen = []

    def tick(found, client):
        if found.records and len(cluster.workers) == 1:
            cluster.add()  # one that joins sets up the run before its callbacks are started
        if len({ended.process for ended in found.records}) == 2 and not seen:
            seen.extend(client.run(sampled).values())

    segment(cluster, pictures("a", *(f"slow_{number}" for number in range(8))), tick=tick)
    assert len(seen) == 2
    assert all("tick" in names and "profile" not in names for names in seen)
    with Client(cluster.address) as client:
        after = [*client.run(sampled).values()]
    assert len(after) == 2
    assert all({"tick", "profile", "profile-cycle"} <= {*names} for names in after)
