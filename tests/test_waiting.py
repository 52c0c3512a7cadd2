import os
import subprocess
import sys
import time
from math import inf

import pytest

from nnunet_octreenca import waiting
from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.waiting import DEFAULT_LIMIT, LIMIT_VARIABLE, Patience, advice, wait_limit


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(waiting, "monotonic", clock)
    return clock


def looks(patience, clock, times, step):
    """What `over` says at looks that are `step` seconds apart."""
    said = []
    for _ in range(times):
        clock.now += step
        said.append(patience.over())
    return said


def test_patience_ends_after_its_limit(clock):
    patience = Patience(limit=3)
    assert looks(patience, clock, 4, 1.0) == [False, False, True, True]
    patience.restart()
    assert looks(patience, clock, 3, 1.0) == [False, False, True]


def test_a_machine_that_slept_does_not_use_patience_up(clock):
    """Hours between two looks count as a few seconds: others slept too."""
    assert looks(Patience(limit=11), clock, 3, 3600.0) == [False, False, True]


def test_a_clock_that_is_set_changes_nothing(clock, monkeypatch):
    patience = Patience(limit=3)
    for day in (-1, 1, -400):
        monkeypatch.setattr(time, "time", lambda day=day: 86_400.0 * day)
        assert not patience.over()
    assert looks(patience, clock, 4, 1.0) == [False, False, True, True]


def test_a_process_that_computes_or_reads_is_waited_for(clock, monkeypatch):
    activity = [(0.0, 0)]
    monkeypatch.setattr(waiting, "_activity", lambda processes: activity[0])
    patience = Patience([1], limit=3)
    for done in ((1.0, 0), (1.0, 1 << 20), (2.0, 1 << 20)):
        assert looks(patience, clock, 2, 1.0) == [False, False]
        activity[0] = done
    assert looks(patience, clock, 4, 1.0) == [False, False, False, True]


def test_what_a_process_does():
    program = (
        "import time\n"
        "end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\n"
        "open('/dev/zero', 'rb').read(1 << 20)\n"
        "print(flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        seconds, read = waiting._activity([process.pid])
        process.communicate(b"\n")
    assert 0.25 < seconds < 5
    if sys.platform == "linux":
        assert read > 1 << 20
    assert waiting._activity([process.pid]) == (0.0, 0)  # it has ended
    assert waiting._activity([os.getpid()])[0] > 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("", DEFAULT_LIMIT), ("90", 90), ("0.5", 0.5), ("0", inf)]
)
def test_the_limit_from_the_environment(monkeypatch, text, seconds):
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    assert wait_limit() == seconds
    assert LIMIT_VARIABLE in advice()


@pytest.mark.parametrize("text", ["-1", "long", "nan"])
def test_limits_that_are_none(monkeypatch, text):
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(EnvironmentMismatchError, match=f"'{text}', but must be a number"):
        wait_limit()
