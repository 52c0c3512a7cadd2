"""nnU-Net's pools: a process that is killed or hangs ends the command with a sentence."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
from helpers.faults import kill_oneself, sleep_forever, stop_oneself
from nnunetv2.inference import data_iterators
from nnunetv2.utilities import utils
from nnunetv2.utilities.file_path_utilities import check_workers_alive_and_busy

from nnunet_octreenca.errors import InputError, WorkerError
from nnunet_octreenca.integration.worker_pools import patient, watched_pools
from nnunet_octreenca.waiting import LIMIT_VARIABLE


def add(a, b):
    return a + b


def compute(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def refuse(*_):
    raise InputError("no such image")


@pytest.fixture
def module(monkeypatch):
    """Like a module of nnU-Net, but with the start method that takes no seconds."""
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: forking)
    return SimpleNamespace(multiprocessing=multiprocessing)


@pytest.fixture
def run(module):
    """Calls a function with a pool that is opened as nnU-Net does."""

    def call(function, processes=2):
        with (
            watched_pools(export=module),
            module.multiprocessing.get_context("spawn").Pool(processes) as pool,
        ):
            return function(pool)

    return call


def collect(pool, result):
    """As the trainer does: without a limit."""
    return result.get()


def collect_in_turns(pool, result):
    """As the predictor does: asks again and again."""
    while True:
        try:
            return result.get(timeout=0.1)
        except multiprocessing.TimeoutError:
            pass


def collect_when_ready(pool, result):
    """As preprocessing does."""
    while not result.ready():
        time.sleep(0.01)
    return result.get()


COLLECT = pytest.mark.parametrize("collect", [collect, collect_in_turns, collect_when_ready])


@COLLECT
def test_results_are_a_pools(run, collect):
    def work(pool):
        yield collect(pool, pool.apply_async(add, (1, 2)))
        yield collect(pool, pool.starmap_async(add, [(1, 2), (3, 4)]))
        yield pool.starmap(add, [(5, 6)])
        yield pool.map(compute, [0, 0])

    assert run(lambda pool: list(work(pool))) == [3, [3, 7], [11], [0, 0]]
    with pytest.raises(InputError, match="no such image"):
        run(lambda pool: collect(pool, pool.apply_async(refuse)))


@COLLECT
def test_a_killed_process_ends_the_wait(run, collect):
    with pytest.raises(WorkerError, match=r"export process \d+ ended unexpectedly .signal 9."):
        run(lambda pool: collect(pool, pool.apply_async(kill_oneself)))
    assert not multiprocessing.active_children()


def test_a_killed_idle_process_holds_the_lock_of_all_tasks(run):
    """With a stock pool, ending it would wait for ever."""

    def work(pool):
        pool.starmap(add, [(1, 2)] * 4)
        for process in pool._first:
            os.kill(process.pid, signal.SIGKILL)
        pool.starmap(add, [(1, 2)])

    with pytest.raises(WorkerError, match="signal 9"):
        run(work)


@COLLECT
@pytest.mark.parametrize("fault", [sleep_forever, stop_oneself])
def test_a_process_that_hangs_ends_the_wait(run, monkeypatch, collect, fault):
    monkeypatch.setenv(LIMIT_VARIABLE, "0.7")
    begun = time.monotonic()
    with pytest.raises(WorkerError, match=r"the export processes have done nothing for .* s"):
        run(lambda pool: collect(pool, pool.apply_async(fault)))
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()


def test_an_interrupt_does_not_wait_for_a_stopped_process(run):
    """A stock pool would wait for it to end, for ever."""

    def work(pool):
        os.kill(pool._first[0].pid, signal.SIGSTOP)
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()


def test_a_process_that_computes_does_not_hang(run, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0.8")
    assert run(lambda pool: pool.apply_async(compute, (2.5,)).get(), 1) == 2.5


def test_nnunets_own_look_at_the_processes_gives_the_same_sentence(run, module):
    def work(pool):
        processes = list(pool._pool)
        os.kill(processes[0].pid, signal.SIGKILL)
        processes[0].join()
        check_workers_alive_and_busy(pool, processes, [])

    with pytest.raises(WorkerError, match="signal 9") as caught:
        run(work)
    assert "no longer alive" in str(caught.value.__cause__)
    assert module.multiprocessing is multiprocessing


def test_a_module_that_opens_pools_by_their_class():
    before = utils.Pool
    with watched_pools(listing=utils), utils.Pool(processes=1) as pool:
        assert pool.starmap(add, [(1, 2)]) == [3]
        with pytest.raises(WorkerError, match="listing process"):
            pool.apply_async(kill_oneself).get()
    assert utils.Pool is before


def followed(cases):
    with patient(cases) as watched:
        return [case["number"] for case in watched]


def test_cases_are_waited_for_with_a_limit(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0.6")

    def cases():
        yield {"number": 1}
        while True:
            data_iterators.sleep(0.01)

    with pytest.raises(WorkerError, match=r"the next case has done nothing for .* s"):
        followed(cases())
    assert data_iterators.sleep is time.sleep


def test_a_case_whose_process_computes_is_waited_for(monkeypatch):
    """nnU-Net's iterator knows the process by these names."""
    monkeypatch.setenv(LIMIT_VARIABLE, "0.6")

    def cases(work):
        processes = [multiprocessing.get_context("fork").Process(target=work, args=(2,))]
        worker_ctr = 0
        processes[worker_ctr].start()
        try:
            while processes[worker_ctr].is_alive():
                data_iterators.sleep(0.01)
        finally:
            processes[worker_ctr].kill()
        yield {"number": 1}

    assert followed(cases(compute)) == [1]
    with pytest.raises(WorkerError, match="has done nothing"):
        followed(cases(sleep_forever))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("Background workers died. Look", WorkerError, "preprocesses images ended unexpectedly"),
        ("of another kind", RuntimeError, "of another kind"),
    ],
)
def test_cases_whose_process_died(words, error, message):
    def cases():
        yield {"number": 1}
        raise RuntimeError(words)

    with pytest.raises(error, match=message):
        followed(cases())
    assert followed(iter([{"number": 1}, {"number": 2}])) == [1, 2]
