"""What goes wrong in another process: functions that a spawned process can import."""

import os
import signal
import time


def kill_oneself(*arguments, **options):
    """As the system does when the memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_oneself(*arguments, **options):
    """As a debugger does; SIGTERM does not end such a process."""
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_forever(*arguments, **options):
    """As on a disk that does not answer."""
    time.sleep(1e6)
