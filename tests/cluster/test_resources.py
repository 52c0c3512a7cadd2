"""Cases go to workers that have what they need, and announce it for this very run."""

import re
import shutil

import pytest

from nnunet_octreenca.cluster.session import GPU, MEMORY
from nnunet_octreenca.errors import InputError

NAMES = tuple("abc")


def announced(client):
    """What each worker announces, by its name."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {about["name"]: dict(about["resources"]) for about in workers}


def runs(resources):
    return {name for name in resources if name.startswith("octreenca-")}


def test_cases_for_gpus_go_to_workers_that_have_one(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    cluster.add()
    cluster.add(resources={GPU: 1})  # says so, but PyTorch finds none
    cluster.wait()
    source, seen = pictures(*NAMES), []
    with pytest.raises(InputError, match=r"no worker can be used; .* has no GPU, and the run asks"):
        segment(cluster, source, device="cuda")
    on_cpus = segment(cluster, source)
    assert {ended.state for ended in on_cpus.records} == {"done"}
    shutil.rmtree(tmp_path / "out")

    cluster.add(gpu=True)
    cluster.add(gpu=True, resources={GPU: 2}, threads=2)
    cluster.wait()
    found = segment(
        cluster, source, device="cuda", tick=lambda found, client: seen.append(announced(client))
    )
    assert {ended.case: ended.state for ended in found.records} == dict.fromkeys(NAMES, "done")
    assert {ended.process for ended in found.records} <= set(cluster.workers[2:])
    assert same_as_one_process(source) == len(NAMES)
    pattern = r"worker tcp://\S+ on \S+ gets no case: it has no GPU, and the run asks for .*"
    assert len(found.told) == 2
    assert all(re.fullmatch(pattern, line) for line in found.told)
    # The memory of the run before is still announced, but nobody takes tasks of this one for it.
    without, unfounded, one, two = (seen[-1][f"w{number}"] for number in range(4))
    assert MEMORY in without
    assert runs(without) == runs(unfounded)
    assert runs(one) == runs(two)
    assert not runs(without) & runs(one)
    assert [has.get(GPU) for has in (without, unfounded, one, two)] == [None, 1, 1, 2]
