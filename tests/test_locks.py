"""Locks of folders: who gets them, when they are stale, and that they go with their holder."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress

import pytest

from nnunet_octreenca import locks
from nnunet_octreenca.errors import LockedError, OutputError
from nnunet_octreenca.locks import LOCK_NAME, FolderLock, is_locked

# Imports what the module needs and nothing of torch, so that a process starts at once.
_HOLDER = """
import signal, sys, time
# Ignored where a shell started us with &, or nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
getattr(signal, "SIGHUP", None) and signal.signal(signal.SIGHUP, signal.SIG_DFL)
from nnunet_octreenca.locks import FolderLock
with FolderLock(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"held"
    yield process
    process.kill()
    process.communicate()


def lock_of(folder, **changes):
    """Write a lock file as another holder's, by default one on another machine."""
    content = {
        "purpose": "predict", "host": "other", "machine": "other 1", "pid": 7, "started": 1.0,
        "created": "2026-01-02T03:04:05+00:00", "token": "t",
    }  # fmt: skip
    path = folder / LOCK_NAME
    path.write_text(json.dumps({**content, **changes}))
    return path


def content(folder):
    return json.loads((folder / LOCK_NAME).read_text())


def test_a_lock_says_who_and_goes(tmp_path):
    folder = tmp_path / "new" / "folder"
    with FolderLock(folder, "predict") as lock:
        said = content(folder)
        assert (said["purpose"], said["pid"]) == ("predict", os.getpid())
        assert is_locked(folder)
        assert lock.held()
        with pytest.raises(LockedError, match=rf"predict \(process {os.getpid()} on "):
            FolderLock(folder, "predict").acquire()
        with FolderLock(folder, "predict", name="other.lock"):
            pass
        assert lock.held()
    assert not list(folder.iterdir())
    assert not is_locked(folder)
    lock.release()
    with lock:
        assert content(folder)["token"] != said["token"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_releases_it(tmp_path, error):
    with pytest.raises(error), FolderLock(tmp_path, "predict"):
        raise error
    assert not list(tmp_path.iterdir())


def test_another_process_refuses_and_is_named(tmp_path, holder):
    with pytest.raises(LockedError) as caught:
        FolderLock(tmp_path, "predict").acquire()
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path} is in use by training (process {holder.pid} on ")
    assert f"delete {tmp_path / LOCK_NAME}" in sentence
    assert is_locked(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_end_by_signal_removes_it(tmp_path, holder, number):
    holder.send_signal(number)
    assert holder.wait(10) == -number
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("waited_for", [True, False])
def test_a_killed_holder_is_stale(tmp_path, holder, waited_for):
    holder.kill()
    if waited_for:
        holder.wait()
    else:  # a zombie
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / LOCK_NAME).exists()
    assert not is_locked(tmp_path)
    with FolderLock(tmp_path, "predict"):
        assert content(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_number_given_to_another_process_is_stale(tmp_path, holder):
    lock_of(tmp_path, **{**content(tmp_path), "started": 1.0})
    assert not is_locked(tmp_path)
    with FolderLock(tmp_path, "predict") as lock:
        assert lock.held()


def test_an_earlier_lock_of_this_process_is_stale(tmp_path):
    with FolderLock(tmp_path, "predict"):
        said = content(tmp_path)
    lock_of(tmp_path, **said)
    assert not is_locked(tmp_path)
    with FolderLock(tmp_path, "predict"):
        assert content(tmp_path)["token"] != said["token"]


def test_a_fresh_lock_of_another_machine_holds(tmp_path):
    path = lock_of(tmp_path)
    before = path.read_text()
    with pytest.raises(LockedError, match=r"predict \(process 7 on other, since 2026-01-02T03"):
        FolderLock(tmp_path, "predict").acquire()
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == [LOCK_NAME]


@pytest.mark.parametrize("shift", [-1000, 1000])
@pytest.mark.parametrize("alive", [True, False])
def test_an_old_lock_of_another_machine_is_watched(tmp_path, shift, alive):
    """Old, or of the future after a clock was set back: its holder's touches decide."""
    path = lock_of(tmp_path)
    now = time.time()
    os.utime(path, (now + shift, now + shift))
    end = threading.Event()

    def touch():
        step = 0
        while not end.wait(0.05):
            step += 1
            os.utime(path, (now + shift + step, now + shift + step))

    other = threading.Thread(target=touch)
    if alive:
        other.start()
    lock = FolderLock(tmp_path, "predict", heartbeat=0.1, limit=60)
    try:
        if alive:
            with pytest.raises(LockedError):
                lock.acquire()
            assert content(tmp_path)["host"] == "other"
        else:
            with lock:
                assert content(tmp_path)["pid"] == os.getpid()
    finally:
        end.set()
        if alive:
            other.join()


def test_a_lock_is_never_seen_without_its_content(tmp_path, monkeypatch):
    """A holder killed between two steps would leave a lock of nobody."""
    seen, link = [], os.link

    def watched(source, target):
        seen.append((target.exists(), json.loads(source.read_text())["purpose"]))
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    with FolderLock(tmp_path, "predict"):
        assert [file.name for file in tmp_path.iterdir()] == [LOCK_NAME]
    assert seen == [(False, "predict")]


def test_a_disk_without_links(tmp_path, monkeypatch):
    def refuses(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    with FolderLock(tmp_path, "predict") as lock:
        assert lock.held()
        with pytest.raises(LockedError):
            FolderLock(tmp_path, "predict").acquire()
        assert [file.name for file in tmp_path.iterdir()] == [LOCK_NAME]
    assert not list(tmp_path.iterdir())


def test_a_network_disk_that_lost_its_answer(tmp_path, monkeypatch):
    link = os.link

    def lost(source, target):
        link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", lost)
    with FolderLock(tmp_path, "predict") as lock:
        assert lock.held()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_what_cannot_be_read_holds_while_it_is_fresh(tmp_path, text):
    path = tmp_path / LOCK_NAME
    path.write_text(text)
    with pytest.raises(LockedError, match="another process, which has just begun"):
        FolderLock(tmp_path, "predict").acquire()
    assert is_locked(tmp_path)
    os.utime(path, (time.time() - 11,) * 2)
    assert not is_locked(tmp_path)
    with FolderLock(tmp_path, "predict", heartbeat=0.02):
        pass


def test_the_holder_touches_it(tmp_path):
    with FolderLock(tmp_path, "predict", heartbeat=0.02):
        os.utime(tmp_path / LOCK_NAME, (1, 1))
        patience = time.monotonic() + 60
        while (tmp_path / LOCK_NAME).stat().st_mtime < 2 and time.monotonic() < patience:
            time.sleep(0.01)
        assert abs((tmp_path / LOCK_NAME).stat().st_mtime - time.time()) < 60


def test_a_lock_that_was_taken_stays_the_takers(tmp_path):
    with FolderLock(tmp_path, "predict", heartbeat=0.02) as lock:
        lock.require_held()
        path = lock_of(tmp_path)
        os.utime(path, (1, 1))
        time.sleep(0.1)
        assert path.stat().st_mtime == 1
        with pytest.raises(LockedError, match="no longer locked by this process"):
            lock.require_held()
    assert content(tmp_path)["host"] == "other"


@pytest.mark.parametrize("guard", [False, True])
def test_one_of_many_breaks_a_stale_lock(tmp_path, monkeypatch, guard):
    """The breakers see the same stale lock; none removes the fresh one of another."""
    if guard:
        monkeypatch.setattr(locks, "_system_lock", lambda file: None)
        monkeypatch.setattr(locks, "_breaking", nullcontext())
    for _ in range(50):
        with FolderLock(tmp_path, "predict"):
            said = content(tmp_path)
        lock_of(tmp_path, **said)
        start, got = threading.Barrier(6), []

        def take(start=start, got=got):
            lock = FolderLock(tmp_path, "predict")
            start.wait()
            with suppress(LockedError):
                got.append(lock.acquire())

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([lock for lock in got if lock.held()]) == 1
        assert len(got) == 1
        got[0].release()
        assert not list(tmp_path.iterdir())


def test_a_lock_that_changes_hands_meanwhile_stays(tmp_path, monkeypatch):
    """Between the look at a stale lock and its removal, another process took it over."""
    lock_of(tmp_path)
    lock = FolderLock(tmp_path, "predict")

    def is_stale(holder):
        lock_of(tmp_path, host="third", token="u")
        return True

    monkeypatch.setattr(lock, "_is_stale", is_stale)
    monkeypatch.setattr(locks, "_ATTEMPTS", 1)
    with pytest.raises(LockedError, match="several other processes"):
        lock.acquire()
    assert content(tmp_path)["host"] == "third"
    assert [file.name for file in tmp_path.iterdir()] == [LOCK_NAME]


def test_a_breaker_that_was_killed_blocks_for_a_minute_only(tmp_path, monkeypatch):
    lock_of(tmp_path)
    os.utime(tmp_path / LOCK_NAME, (1, 1))
    guard = tmp_path / f"{LOCK_NAME}.breaking"
    guard.mkdir()
    monkeypatch.setattr(locks, "_ATTEMPTS", 3)
    monkeypatch.setattr(locks, "_system_lock", lambda file: None)
    with pytest.raises(LockedError, match="several other processes"):
        FolderLock(tmp_path, "predict", heartbeat=0.01).acquire()
    os.utime(guard, (1, 1))
    with FolderLock(tmp_path, "predict", heartbeat=0.01) as lock:
        assert lock.held()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="no such locks there")
def test_a_breaker_that_was_killed_blocks_nobody(tmp_path):
    """The system gives its lock back with the process; another one's breaking is waited for."""
    path = lock_of(tmp_path)
    os.utime(path, (1, 1))
    code = (
        "import sys, time; from pathlib import Path; from nnunet_octreenca import locks\n"
        "with locks._alone_with(Path(sys.argv[1])) as alone:\n"
        "    print(alone, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as breaker:
        assert breaker.stdout.readline().strip() == b"True"
        with pytest.raises(LockedError, match="several other processes"):
            FolderLock(tmp_path, "predict", heartbeat=0.002).acquire()
        breaker.kill()
    with FolderLock(tmp_path, "predict", heartbeat=0.002) as lock:
        assert lock.held()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_leaves_its_parents_lock(tmp_path):
    """In a process of its own: the test's has threads, which a fork would lose."""
    code = f"""
import os, signal
from nnunet_octreenca.locks import FolderLock
lock = FolderLock({str(tmp_path)!r}, "predict").acquire()
for end in (lock.release, lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: exit(0)):
    child = os.fork()
    if not child:
        end()
        os._exit(0)
    os.waitpid(child, 0)
    lock.require_held()
print("held", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("held", 0), done.stderr
    assert not list(tmp_path.iterdir()), "released at the end"


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be locked"):
        FolderLock(tmp_path / "file", "predict").acquire()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_processes_end_as_without_a_lock(tmp_path):
    """A handler in Python can miss the SIGTERM that ends a pool's process."""

    def tell(pipe):
        pipe.send(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with FolderLock(tmp_path, "test"):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            forking = multiprocessing.get_context("fork")
            here, there = forking.Pipe(duplex=False)
            process = forking.Process(target=tell, args=(there,))
            process.start()
            assert here.poll(60)
            assert here.recv()
            process.join()
    finally:
        signal.signal(signal.SIGTERM, before)
