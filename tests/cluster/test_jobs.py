"""What becomes of SLURM's jobs, by a queue and a cluster that are played here."""

import asyncio
import threading
from itertools import count
from types import SimpleNamespace

import pytest

from nnunet_octreenca.cluster import jobs
from nnunet_octreenca.cluster.jobs import FRUITLESS, Jobs, NoJobsError, State


class Played:
    """As much of a `SLURMCluster` as `Jobs` uses, and SLURM's queue."""

    name, new_spec = "cluster", "a job"

    def __init__(self, number):
        self._numbers = count(1)
        self.refusal = ""
        self.states: dict[str, State] | None = {}
        self.worker_spec = {f"cluster-{each}": self.new_spec for each in range(number)}
        self.workers: dict[str, SimpleNamespace] = {}
        self.sync(self._correct)

    def sync(self, function):
        asyncio.run(function())

    def __await__(self):
        return self._correct().__await__()

    async def _correct(self):
        for name in [name for name in self.workers if name not in self.worker_spec]:
            del self.workers[name]
        for name in self.worker_spec:
            if name not in self.workers:
                job = None if self.refusal else str(next(self._numbers))
                self.workers[name] = SimpleNamespace(job_id=job, refusal=self.refusal)
                if job is not None:
                    self.states[job] = State("RUNNING", "None")

    def alive(self):
        return sorted(job for job, state in self.states.items() if state.name == "RUNNING")


@pytest.fixture
def watched():
    """Of three jobs and many cases."""
    cluster = Played(3)
    found = Jobs(cluster, lambda: cluster.states)
    found.left = 100
    return cluster, found


def looks(found, number=2):
    for _ in range(number):
        found.look()
    return list(found.news())


def test_a_job_at_its_time_limit_is_submitted_again(watched):
    cluster, found = watched
    cluster.states["2"] = State("TIMEOUT", "TimeLimit")
    assert looks(found, 1) == [], "one that is requeued is ended for a moment"
    assert looks(found, 1) == ["SLURM job 2 has ended (TIMEOUT); job 4 takes its place"]
    assert cluster.alive() == ["1", "3", "4"]
    assert sorted(cluster.worker_spec) == ["cluster-0", "cluster-2", "cluster-again-1"]
    assert looks(found, 5) == []


def test_a_job_that_is_requeued_stays_what_it_is(watched):
    cluster, found = watched
    for name in ("PREEMPTED", "PENDING", "NODE_FAIL", "RUNNING"):
        cluster.states["2"] = State(name, "None")
        assert looks(found, 1) == []
    assert cluster.alive() == ["1", "2", "3"]


def test_a_job_that_slurm_has_forgotten(watched):
    cluster, found = watched
    looks(found)
    del cluster.states["2"]
    (line,) = looks(found)
    assert line == "SLURM job 2 has ended (it is no longer in the queue); job 4 takes its place"


def test_jobs_of_which_squeue_never_told_are_let_be(watched):
    """As those of another cluster, to which `sbatch -M` has given them."""
    cluster, found = watched
    cluster.states.clear()
    assert looks(found, 5) == []
    assert len(cluster.worker_spec) == 3


def test_a_queue_that_does_not_answer(watched):
    cluster, found = watched
    cluster.states = None
    assert looks(found, 5) == []
    found.require()


def test_no_more_jobs_than_cases(watched):
    cluster, found = watched
    found.left = 2
    cluster.states["1"] = State("TIMEOUT", "TimeLimit")
    assert looks(found) == []
    assert cluster.alive() == ["2", "3"]
    cluster.states["2"] = State("TIMEOUT", "TimeLimit")
    (line,) = looks(found)
    assert "takes its place" in line
    assert cluster.alive() == ["3", "4"]


def test_a_job_that_was_cancelled_is_not_submitted_again(watched):
    cluster, found = watched
    cluster.states["1"] = State("CANCELLED", "None")
    assert looks(found) == ["SLURM job 1 has ended (CANCELLED), and is not submitted again"]
    found.require()
    for job in ("2", "3"):
        cluster.states[job] = State("CANCELLED", "None")
    assert len(looks(found)) == 2
    with pytest.raises(NoJobsError, match="no job is left: they were cancelled; run this again"):
        found.require()


def test_jobs_that_end_without_a_case_are_not_submitted_for_ever(watched):
    cluster, found = watched
    submitted = 3
    while cluster.alive():
        for job in cluster.alive():
            cluster.states[job] = State("FAILED", "NonZeroExitCode")
        looks(found)
        submitted += len(cluster.alive())
    assert submitted == 3 * FRUITLESS
    said = r"no job is left: look at what job 9 wrote \(slurm-9\.out\), and give jobs more time"
    with pytest.raises(NoJobsError, match=said):
        found.require()


def test_a_job_that_has_done_a_case_begins_the_count_anew(watched):
    cluster, found = watched
    for _ in range(4 * FRUITLESS):
        job = max(cluster.alive(), key=int)
        found.note(job)
        cluster.states[job] = State("TIMEOUT", "TimeLimit")
        (line,) = looks(found)
        assert "takes its place" in line
    assert len(cluster.alive()) == 3


def test_a_job_that_sbatch_refuses_is_asked_for_again_later(watched, monkeypatch):
    cluster, found = watched
    now = [0.0]
    monkeypatch.setattr(jobs, "monotonic", lambda: now[0])
    cluster.refusal = "sbatch: error: the controller is down"
    cluster.states["2"] = State("NODE_FAIL", "None")
    (line,) = looks(found)
    assert line == (
        "SLURM job 2 has ended (NODE_FAIL); `sbatch` takes no other one for now (sbatch: error: "
        "the controller is down)"
    )
    cluster.refusal = ""
    assert looks(found, 5) == []
    now[0] = 61.0
    assert looks(found, 1) == ["SLURM job 2 has ended (NODE_FAIL); job 4 takes its place"]
    assert cluster.alive() == ["1", "3", "4"]


def test_what_waits_is_told_once_for_each_reason(watched):
    cluster, found = watched
    for job in ("2", "3"):
        cluster.states[job] = State("PENDING", "Priority")
    assert looks(found, 3) == ["2 of 3 jobs wait in SLURM's queue (Priority)"]
    cluster.states["3"] = State("RUNNING", "None")
    assert looks(found) == []
    assert found.waiting == "1 of 3 jobs wait in SLURM's queue (Priority)"
    cluster.states["2"] = State("RUNNING", "None")
    looks(found)
    assert found.waiting == ""


def test_a_fault_of_the_thread_is_the_clients(watched, monkeypatch):
    cluster, found = watched
    monkeypatch.setattr(jobs, "INTERVAL", 0.01)
    cluster.states = 7  # no queue at all
    with found.watched():
        for thread in [each for each in threading.enumerate() if each.name == "jobs"]:
            thread.join(10)
    with pytest.raises(AttributeError):
        found.require()


def test_what_squeue_writes(tmp_path, monkeypatch):
    program = tmp_path / "squeue"
    text = "CLUSTER: here\n17|RUNNING|None\n18|PENDING|ReqNodeNotAvail, UnavailableNodes:n[1-2]\n"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert jobs.queue() == {
        "17": State("RUNNING", "None"),
        "18": State("PENDING", "ReqNodeNotAvail, UnavailableNodes:n[1-2]"),
    }
    program.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    assert jobs.queue() is None
