"""A SLURM of one node on this machine, for as long as a test runs."""

import getpass
import os
import platform
import secrets
import shutil
import subprocess
from pathlib import Path

from helpers.clusters import free_port, wait_until

CPUS, MEGABYTES = 64, 256_000  # that the node says it has
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
_PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
# No accounting and no control groups: a test may run where neither is to be had.
_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=10
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def no_slurm() -> str:
    """Why there is none; empty where there is one."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (`apt-get install slurm-wlm munge`)"
    return ""


class Slurm:
    """Its daemons, as the user who runs the tests.

    Args:
        folder: for its files; a short path, for it holds a socket.
        gpus: that the node says it has.

    Attributes:
        environment: variable and value that let SLURM's commands find it.
    """

    def __init__(self, folder: Path, gpus: int = 4) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = ("SLURM_CONF", str(folder / "slurm.conf"))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "key").write_bytes(secrets.token_bytes(64))
        (folder / "key").chmod(0o600)
        text = _CONFIG.format(
            host=platform.node().partition(".")[0],
            folder=folder,
            user=getpass.getuser(),
            controller_port=free_port(),
            node_port=free_port(),
            cpus=CPUS,
            memory=MEGABYTES,
            gpus=gpus,
        )
        (folder / "slurm.conf").write_text(text)
        for number in range(gpus):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")

    def start(self) -> None:
        """Begin, and wait until the node takes jobs."""
        files = {
            "socket": "munge", "key-file": "key", "pid-file": "munge.pid", "log-file": "munge.log",
            "seed-file": "munge.seed",
        }  # fmt: skip
        options = [f"--{name}={self._folder / file}" for name, file in files.items()]
        self._begin("munged", "--foreground", "--force", *options)
        wait_until((self._folder / "munge").exists, 20)
        self._begin("slurmctld", "-D")
        self._begin("slurmd", "-D")
        wait_until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T"), 60)

    def _begin(self, program: str, *options: str) -> None:
        path = shutil.which(program, path=_PATH)
        assert path is not None
        with (self._folder / f"{program}.txt").open("w") as log:
            daemon = subprocess.Popen(
                [path, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict([self.environment])},
            )
        self._daemons.append(daemon)

    def run(self, *command: str) -> str:
        """What one of SLURM's commands writes, errors too."""
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **dict([self.environment])},
        )
        return done.stdout.strip()

    def jobs(self, *states: str) -> list[str]:
        """Numbers of the jobs in these states, or of those that have not ended."""
        chosen = [f"--states={','.join(states)}"] if states else []
        return sorted(self.run("squeue", "--noheader", "--format=%i", *chosen).split(), key=int)

    def states(self, job: str) -> list[str]:
        """Such as "TIMEOUT", of a job or of the tasks of an array."""
        return self.run(
            "squeue", "--noheader", "--states=all", "--array", "--format=%T", f"--jobs={job}"
        ).split()

    def state(self, job: str) -> str:
        """The one state of a job that is no array."""
        (state,) = self.states(job)
        return state

    def empty(self) -> None:
        """End all jobs, and wait until they are gone."""
        for job in self.jobs():
            self.run("scancel", job)
        wait_until(lambda: not self.jobs(), 60)

    def close(self) -> None:
        """End all jobs, then the daemons."""
        try:
            self.empty()
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
