"""Lists or every cell: what the variable, timings and the cache choose. Timings are made up."""

import shutil

import pytest
import torch
from helpers.host_device import HostDevice
from helpers.oracle import make, make_network

from nnunet_octreenca.errors import CudaError, EnvironmentMismatchError
from nnunet_octreenca.ops import cuda_cells, cuda_device, cuda_engine
from nnunet_octreenca.ops.cuda_compiler import CACHE_VARIABLE
from nnunet_octreenca.ops.cuda_program import Configuration, dense_schedule
from nnunet_octreenca.ops.native import CELLS_VARIABLE, cuda_module

if shutil.which("g++") is None or cuda_module() is None:
    pytest.skip("g++ compiles the kernels for this processor", allow_module_level=True)

DENSE = dense_schedule(Configuration(2, 16, 3, 64, "half"))
LISTS_FASTER = [9.0, 1.0, 1.1, 1.0, 1.2, 8.0, 9.0, 2.0, 2.1, 0.1, 2.0, 2.0]
DENSE_FASTER = LISTS_FASTER[6:] + LISTS_FASTER[:6]


class MadeUpClock:
    """Runs the work, and answers what it was given; an exception is raised."""

    def __init__(self, times, identity="GPU, 9.0, driver 1"):
        self.times = list(times)
        self.identity = identity
        self.free = True

    def is_free(self):
        return self.free

    def milliseconds(self, before, work):
        before()
        work()
        time = self.times.pop(0)
        if isinstance(time, Exception):
            raise time
        return time


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return HostDevice(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def choose(device, monkeypatch, tmp_path):
    """The choice for a network, in a process of its own as far as memory goes."""
    monkeypatch.setattr(cuda_cells, "SHAPE", (9, 17))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(CELLS_VARIABLE, raising=False)
    _, weights = make((1, 1), 16, 3, 64, 1)

    def choose(clock, rate=0.5):
        monkeypatch.setattr(cuda_cells, "_chosen", {})
        monkeypatch.setattr(device, "clock", clock)
        return cuda_cells.schedule_for(device, weights, "half", rate)

    return choose


def entries(tmp_path):
    return sorted((tmp_path / "cache").glob("*.cells"))


@pytest.mark.parametrize(
    ("times", "wanted"), [(LISTS_FASTER, None), (DENSE_FASTER, DENSE), ([1.0] * 12, None)]
)
def test_the_faster_one_is_chosen_once(times, wanted, choose, tmp_path):
    """By the median without the first; as fast is not faster. The next process reads the choice."""
    state = torch.random.get_rng_state()
    clock = MadeUpClock(times)
    assert choose(clock) == wanted
    assert clock.times == []
    assert choose(MadeUpClock([])) == wanted
    assert len(entries(tmp_path)) == 1
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("identity", "rate"), [("another GPU, 9.0, driver 1", 0.5), ("GPU, 9.0, driver 1", 0.9)]
)
def test_another_gpu_or_fire_rate_is_measured_too(identity, rate, choose, tmp_path):
    assert choose(MadeUpClock(DENSE_FASTER)) == DENSE
    assert choose(MadeUpClock(LISTS_FASTER, identity), rate) is None
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize(
    "error", [CudaError("refused"), RuntimeError("CUDA error"), torch.OutOfMemoryError("full")]
)
def test_lists_stay_where_timing_fails(error, choose, tmp_path):
    """Nothing is kept of it, and the process does not try again."""
    assert choose(MadeUpClock([*DENSE_FASTER[:8], error])) is None
    assert entries(tmp_path) == []
    assert len(cuda_cells._chosen) == 1
    assert choose(MadeUpClock(DENSE_FASTER)) == DENSE


def test_lists_stay_where_bits_differ(choose, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    assert choose(MadeUpClock(DENSE_FASTER)) is None


@pytest.mark.parametrize("content", [b"", b"dense", b"octreenca-cubin-1\n" + bytes(40)])
def test_an_unreadable_choice_is_measured_again(content, choose, tmp_path):
    assert choose(MadeUpClock(DENSE_FASTER)) == DENSE
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(content)
    assert choose(MadeUpClock(DENSE_FASTER)) == DENSE
    assert entry.read_bytes() == whole


def test_lists_stay_where_no_choice_can_be_kept(choose, tmp_path, monkeypatch):
    """Nothing is timed: every process would do it."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    clock = MadeUpClock(DENSE_FASTER)
    assert choose(clock) is None
    assert len(clock.times) == 12

    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
    monkeypatch.setattr(cuda_cells.tempfile, "TemporaryFile", refuse)
    assert choose(clock) is None
    assert len(clock.times) == 12


def test_a_choice_is_read_from_a_read_only_cache(choose, monkeypatch):
    assert choose(MadeUpClock(DENSE_FASTER)) == DENSE
    monkeypatch.setattr(cuda_cells, "_can_keep", lambda folder: False)
    assert choose(MadeUpClock([])) == DENSE


def test_nothing_is_timed_in_a_graph(choose):
    """Nor remembered: after it the choice is made."""
    clock = MadeUpClock(DENSE_FASTER)
    clock.free = False
    assert choose(clock) is None
    assert cuda_cells._chosen == {}
    clock.free = True
    assert choose(clock) == DENSE


def test_the_variable_decides_alone(choose, device, monkeypatch):
    for wanted, schedule in (("dense", DENSE), ("lists", None)):
        monkeypatch.setenv(CELLS_VARIABLE, wanted)
        assert choose(MadeUpClock([])) == schedule
    monkeypatch.setenv(CELLS_VARIABLE, "dense")
    for shape, channels, n_in, precision in (
        ((1, 1), 16, 1, "tf32"), ((1, 1), 20, 1, "half"), ((1, 1), 16, 0, "half"),
        ((1, 1, 1), 16, 1, "half"),
    ):  # fmt: skip
        _, weights = make(shape, channels, n_in, 64, 1)
        assert cuda_cells.schedule_for(device, weights, precision, 0.5) is None
    monkeypatch.setenv(CELLS_VARIABLE, "masked")
    with pytest.raises(EnvironmentMismatchError, match=r"OCTREENCA_CUDA_CELLS is 'masked'.*dense"):
        choose(MadeUpClock([]))


def test_a_segmentation_is_the_same_either_way(device, monkeypatch):
    monkeypatch.setattr(cuda_device, "device_of", lambda tensor: device)
    monkeypatch.setattr(cuda_engine, "supports", lambda tensor, weights: True)
    monkeypatch.setattr("nnunet_octreenca.ops.cpu_engine.supports", lambda tensor, weights: False)
    monkeypatch.setenv("OCTREENCA_STATE", "float16")
    network, image = make_network((37, 50))
    labels = []
    for wanted in ("lists", "dense"):
        monkeypatch.setenv(CELLS_VARIABLE, wanted)
        configuration = Configuration(2, 16, 3, 64, "half")
        kernels = device.load(configuration, False, DENSE if wanted == "dense" else None)
        before = len(kernels.launches)
        labels.append(network.segment(image, seed=3))
        assert "forward_2" in kernels.launches[before:]
    assert torch.equal(*labels)
    assert len(labels[0].unique()) > 1
