"""How the client takes what comes back of its tasks."""

from types import SimpleNamespace

from nnunet_octreenca.cluster.scheduling import Scheduling
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
