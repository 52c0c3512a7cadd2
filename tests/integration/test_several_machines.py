"""Training on two machines, each a network namespace of its own: torchrun, gloo, nnU-Net."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress

import pytest
import torch

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.integration import distributed
from nnunet_octreenca.waiting import LIMIT_VARIABLE

MODULE = "nnunet_octreenca.integration.distributed"
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


class Machine:
    """A network namespace with one cable to the other one."""

    def __init__(self, number: int) -> None:
        self.name = f"octreenca-{os.getpid()}-{number}"
        self.cable = f"oct{os.getpid() % 100000}.{number}"
        self.address = f"10.213.47.{number + 1}"

    def command(self, *words: object) -> list[str]:
        return ["ip", "netns", "exec", self.name, *map(str, words)]


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise OSError(done.stderr.strip())


@pytest.fixture(scope="module")
def machines():
    """Two of them that see nothing but one another."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (Debian's iproute2) here")
    pair = [Machine(0), Machine(1)]
    try:
        try:
            for machine in pair:
                ip("netns", "add", machine.name)
            ip("link", "add", pair[0].cable, "type", "veth", "peer", "name", pair[1].cable)
            for machine in pair:
                inside = ("-n", machine.name)
                ip("link", "set", machine.cable, "netns", machine.name)
                ip(*inside, "address", "add", f"{machine.address}/24", "dev", machine.cable)
                ip(*inside, "link", "set", machine.cable, "up")
                ip(*inside, "link", "set", "lo", "up")
        except OSError as error:
            pytest.skip(f"no network namespaces can be made here ({error})")
        yield pair
    finally:
        for machine in pair:
            with suppress(OSError):
                ip("netns", "delete", machine.name)


def environments_of(machines, port, *, limit):
    """What torchrun sets for one process on each machine; `limit` of every wait in seconds."""
    return [
        {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0",
         "MASTER_ADDR": machines[0].address, "MASTER_PORT": str(port), LIMIT_VARIABLE: limit}
        for rank in (0, 1)
    ]  # fmt: skip


def run_on_both(machines, environments, *words, timeout=900, meanwhile=lambda: None):
    """Exit code and output of a command on each machine; all its processes end with it.

    As soon as it has failed on one, it ends on the other too: its exit code is then None.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in machines]
        processes = [
            subprocess.Popen(
                machine.command(*(part(number) if callable(part) else part for part in words)),
                env={**environment, "GLOO_SOCKET_IFNAME": machine.cable, "OMP_NUM_THREADS": "1"},
                stdout=logs[number],
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for number, (machine, environment) in enumerate(
                zip(machines, environments, strict=True)
            )
        ]
        try:
            until = time.monotonic() + timeout
            while True:
                codes = [process.poll() for process in processes]
                if None not in codes or any(codes):
                    break
                assert time.monotonic() < until, "it takes too long"
                meanwhile()
                time.sleep(0.1)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for log in logs:
            log.seek(0)
        return [(code, log.read()) for code, log in zip(codes, logs, strict=True)]


@pytest.mark.slow
def test_two_machines_train_one_network(nnunet, machines):
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1),
        *("--node-rank", lambda number: number),
        *("--master-addr", machines[0].address, "--master-port", 29517, "-m", MODULE),
    )
    training = ("901", "3d_fullres", 3, "-tr", "OctreeNCATrainer", "-p", "nnUNetOctreeNCAPlans")
    results = run_on_both(
        machines, [nnunet.environment] * 2, *torchrun, *training, "-device", "cpu", "--c"
    )
    for code, output in results:
        assert code == 0, output[-3000:]
        assert "The world size is 2" in output
    fold = nnunet.model() / "fold_3"
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["octreenca_weight_average"]["updates"] == 6
    assert not any(key.startswith("module.") for key in checkpoint["network_weights"])
    # Each machine predicted one of the two validation cases.
    assert [output.count(", shape ") for _, output in results] == [1, 1]
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert not list(nnunet.results.glob(".octreenca_*"))


JOIN = f"""
import sys
from pathlib import Path
from torch import distributed
from {MODULE} import join, require_shared
from nnunet_octreenca.errors import OctreeNCAError
join("cpu")
try:
    require_shared(Path(sys.argv[1]))
    print("shared")
except OctreeNCAError as error:
    print(f"ERROR: {{error}}")
distributed.destroy_process_group()
"""


def test_results_that_the_machines_do_not_share(machines, tmp_path):
    """The same name on both, on different disks: each would find some validation cases only."""
    folders = [tmp_path / "one", tmp_path / "other"]
    environments = environments_of(machines, 29518, limit="300")
    (tmp_path / "join.py").write_text(JOIN)
    words = (sys.executable, tmp_path / "join.py", lambda number: folders[number])
    for code, output in run_on_both(machines, environments, *words, timeout=600):
        assert code == 0, output
        assert f"ERROR: {folders[1]} on " in output
        assert "set nnUNet_results to one on a disk that all machines share" in output
    assert list(folders[0].iterdir()) == []
    folders[1] = folders[0]
    results = run_on_both(machines, environments, *words, timeout=600)
    assert [output.strip().splitlines()[-1] for _, output in results] == ["shared"] * 2


EXCHANGE = f"""
import os, sys, time
from pathlib import Path
import torch
from torch import distributed
from {MODULE} import join
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])

def wait_for(*names):
    while not all((folder / name).exists() for name in names):
        time.sleep(0.05)

(folder / f"started {{rank}}").touch()
wait_for("started 0", "started 1")
join("cpu")
distributed.barrier()
(folder / f"joined {{rank}}").touch()
wait_for("cut")
if rank == 1:
    time.sleep(1000)
distributed.all_reduce(torch.zeros(1))
"""


def test_a_machine_that_is_cut_off_does_not_hold_up_the_others(machines, tmp_path):
    (tmp_path / "exchange.py").write_text(EXCHANGE)
    cut = tmp_path / "cut"

    def pull_the_cable():
        if not cut.exists() and all((tmp_path / f"joined {rank}").exists() for rank in (0, 1)):
            ip("-n", machines[1].name, "link", "set", machines[1].cable, "down")
            cut.touch()

    try:
        (code, output), _ = run_on_both(
            machines,
            environments_of(machines, 29520, limit="8"),
            *(sys.executable, tmp_path / "exchange.py", tmp_path),
            timeout=600,
            meanwhile=pull_the_cable,
        )
    finally:
        ip("-n", machines[1].name, "link", "set", machines[1].cable, "up")
    assert cut.exists(), output[-2000:]
    assert code not in (None, 0)
    assert "timed out" in output.lower(), output[-2000:]


def set_torchrun(monkeypatch, **values):
    for name, value in {**TORCHRUN, "MASTER_PORT": "29519", **values}.items():
        monkeypatch.setenv(name, value)


def test_without_torchrun(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentMismatchError, match=rf"start this with torchrun .* -m {MODULE}"):
        distributed.main(["4", "3d_fullres", "0", "-device", "cpu"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-num_gpus", "4"], "leave it out, and give torchrun --nproc-per-node 4"),
        (["-device", "mps"], "-device mps cannot be shared by machines; give cpu or cuda"),
    ],
)
def test_flags_that_start_other_things(flags, sentence):
    with pytest.raises(InputError, match=sentence):
        distributed.main(["4", "3d_fullres", "0", *flags])


def test_more_processes_than_gpus(monkeypatch):
    set_torchrun(monkeypatch, LOCAL_RANK="3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EnvironmentMismatchError, match="has no GPU, of which there are 2"):
        distributed.main(["4", "3d_fullres", "0"])


def test_a_first_machine_that_does_not_answer(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    set_torchrun(monkeypatch, RANK="1", MASTER_PORT=port)
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    with pytest.raises(EnvironmentMismatchError, match=rf"127\.0\.0\.1 port {port} can be reached"):
        distributed.main(["4", "3d_fullres", "0", "-device", "cpu"])
