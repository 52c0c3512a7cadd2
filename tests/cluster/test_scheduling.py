"""How the client takes what comes back of its tasks."""

from types import SimpleNamespace

import pytest

from nnunet_octreenca.cluster.scheduling import Scheduling
from nnunet_octreenca.cluster.session import MEMORY, plugin_name
from nnunet_octreenca.cluster.workers import Workers
from nnunet_octreenca.errors import WorkerError


def future(status, answer):
    def result(timeout):
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(status=status, result=result)


def test_what_is_finished_is_fetched_in_one_call():
    asked = []

    def gather(futures):
        asked.append(sorted(futures))
        return {key: each.result(1) for key, each in futures.items()}

    schedule = Scheduling(SimpleNamespace(gather=gather), "run", SimpleNamespace())
    died = WorkerError("its worker died")
    futures = {"a": future("finished", 1), "b": future("error", died), "c": future("finished", 3)}
    assert schedule._results(futures) == {"a": 1, "b": died, "c": 3}
    assert asked == [["a", "c"]]


def test_one_result_that_is_gone_costs_only_its_own():
    def gather(futures):
        raise OSError("a worker has gone")

    schedule = Scheduling(SimpleNamespace(gather=gather), "run", SimpleNamespace())
    gone = TimeoutError("gone")
    futures = {"a": future("finished", 1), "b": future("finished", gone)}
    assert schedule._results(futures) == {"a": 1, "b": gone}


@pytest.mark.parametrize("takes_a_number", [True, False])
def test_all_workers_count_whatever_the_client_keeps_of_them(takes_a_number):
    def about(number):
        has = {plugin_name("run"): 1, MEMORY: 100 * (number + 1)} if number < 7 else {MEMORY: 5}
        return {"resources": has, "nthreads": 1}

    workers = {f"tcp://w{number}": about(number) for number in range(9)}

    def identity(n_workers=None):
        if not takes_a_number and n_workers is not None:
            raise TypeError("identity() got an unexpected keyword argument 'n_workers'")
        return {"id": "scheduler", "workers": workers}

    client = SimpleNamespace(
        scheduler=SimpleNamespace(identity=identity),
        sync=lambda call, **given: call(**given),
        processing=dict,
        scheduler_info=lambda **given: {"id": "scheduler", "workers": {}},  # as just replaced
    )
    found = Workers(client, "run")
    found.refresh()
    assert (found.count, found.shares) == (7, [100, 200, 300, 400, 500, 600, 700])
