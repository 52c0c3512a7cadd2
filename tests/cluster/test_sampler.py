"""Dask's sampler of call stacks rests on the workers of a run, and samples again after it."""

from distributed import Client


def running_callbacks(client):
    """Names of what each worker does regularly."""

    def names(dask_worker):  # not of a module, which workers could not import
        found = dask_worker.periodic_callbacks.items()
        return sorted(name for name, callback in found if callback.is_running())

    return [*client.run(names).values()]


def test_workers_are_not_sampled_during_a_run(cluster, pictures, segment):
    cluster.add()
    seen = []

    def tick(found, client):
        if found.records and len(cluster.workers) == 1:
            cluster.add()  # one that joins sets up the run before its callbacks are started
        if len({ended.process for ended in found.records}) == 2 and not seen:
            seen.extend(running_callbacks(client))

    segment(cluster, pictures("a", *(f"slow_{number}" for number in range(8))), tick=tick)
    assert len(seen) == 2
    assert all("tick" in names and "profile" not in names for names in seen)
    with Client(cluster.address) as client:
        after = running_callbacks(client)
    assert len(after) == 2
    assert all({"tick", "profile", "profile-cycle"} <= {*names} for names in after)
