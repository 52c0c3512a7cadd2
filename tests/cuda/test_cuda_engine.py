"""The CUDA engine against the PyTorch engine, on this processor.

The templates that NVRTC compiles are compiled as C++ (shim.hpp): a block's threads run one after
the other from barrier to barrier, and the tensor cores have a twin with the layouts of the PTX
manual. What only a GPU can show (timing, its memory, true concurrency) benchmarks/gpu_engine.py
checks on one.
"""

import itertools
import math
import mmap
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from helpers.host_device import HostDevice
from helpers.lost_cells import by_pytorch
from helpers.oracle import CASES, LEVEL, SEED, difference, make, make_network, oracle
from helpers.streams import segmented

from nnunet_octreenca.errors import EnvironmentMismatchError, NotFiniteError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.inference.ensemble import Ensemble
from nnunet_octreenca.inference.stream import WindowStream, open_stream
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import image_pyramid
from nnunet_octreenca.ops import (
    FireDraws,
    Part,
    cuda_device,
    cuda_engine,
    cuda_level,
    cuda_octree,
    fire_mask,
    nca_steps,
    torch_engine,
)
from nnunet_octreenca.ops.cuda_program import (
    _TILES,
    SHARED_BYTES,
    Configuration,
    DoesNotFitError,
    KernelLaunch,
    Program,
    _choose,
    arguments,
    backward_layout,
    dense_schedule,
    forward_layout,
    level_arguments,
    program,
)
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.fire import fire_threshold
from nnunet_octreenca.planning import Output, inference_bytes

if shutil.which("g++") is None:
    pytest.skip("g++ compiles the kernels for this processor", allow_module_level=True)

TENSOR_CORES, TURING = 90, 75  # float32 as three TF32 products, and by multiplying and adding
QUICK = [CASES[3]]  # the paper's sizes, three samples
assert all(case[1] == 16 and case[3] == 64 for case in QUICK)


@pytest.fixture(scope="session")
def devices(tmp_path_factory):
    """Devices by compute capability; what they compile is kept for the session."""
    folder = tmp_path_factory.mktemp("kernels")
    return {number: HostDevice(folder, number) for number in (TENSOR_CORES, TURING)}


@pytest.fixture
def network_on_host(devices, monkeypatch):
    """Everything that takes CPU tensors goes to the CUDA engine."""
    monkeypatch.setattr(cuda_device, "device_of", lambda tensor: devices[TENSOR_CORES])
    monkeypatch.setattr(cuda_engine, "supports", lambda tensor, weights: True)
    monkeypatch.setattr("nnunet_octreenca.ops.cpu_engine.supports", lambda tensor, weights: False)
    return devices[TENSOR_CORES]


def compare(device, spatial, channels, n_in, hidden, batch, steps, rate):
    state, weights = make(spatial, channels, n_in, hidden, batch)
    origin = [1000 * a + 7 * s for s in range(batch) for a in range(len(spatial))]
    grad_out = torch.randn(state.shape, generator=torch.Generator().manual_seed(1))
    wanted, wanted_grad, wanted_grads = oracle(state, weights, grad_out, steps, rate, origin)
    given, given_grad = state.clone(), grad_out.clone()

    draws = FireDraws(rate, SEED, LEVEL, origin)
    out, trajectory = cuda_engine.forward(state, weights, steps, draws, True, device=device)
    assert torch.equal(state, given)
    assert torch.equal(out[..., :n_in], state[..., :n_in])
    assert difference(out.double(), wanted) < 3e-6
    again, none = cuda_engine.forward(state, weights, steps, draws, False, device=device)
    assert torch.equal(again, out)
    assert none.numel() == 0

    results = [
        cuda_engine.backward(grad_out, out, trajectory, weights, draws, device=device)
        for _ in range(2)
    ]
    assert torch.equal(grad_out, given_grad)
    (grad, grads), (second, seconds) = results
    assert torch.equal(grad, second)
    assert all(torch.equal(a, b) for a, b in zip(grads, seconds, strict=True))
    assert difference(grad.double(), wanted_grad) < 1e-5
    for name, ours, theirs in zip(grads._fields, grads, wanted_grads, strict=True):
        assert ours.shape == theirs.shape
        assert difference(ours.double(), theirs) < 1e-5 or not (ours.any() or theirs.any()), name


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_both_passes_equal_the_oracle(case, devices):
    compare(devices[TENSOR_CORES], *case)


# Both dimensions; few and many channels, no multiple of 16, more than 32; thin and tiny levels.
EVERY_PUSH = {0, 3, 5, 9, 12, 13, 16, 19, 22, 25}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if number in EVERY_PUSH else pytest.mark.nightly, id=str(case))
        for number, case in enumerate(CASES)
    ],
)
def test_both_passes_equal_the_oracle_for_all_sizes(case, devices):
    compare(devices[TENSOR_CORES], *case)


# Only the products differ from those of newer GPUs, and the tiles: theirs are smaller.
@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [CASES[0], *(pytest.param(CASES[i], marks=pytest.mark.nightly) for i in (9, 25))],
    ids=str,
)
def test_both_passes_equal_the_oracle_on_older_gpus(case, devices):
    compare(devices[TURING], *case)


def run_forward(device, state, weights, precision, steps, fused, **options):
    """All steps in launches of `fused`, from and to a state in the precision's type."""
    spatial = state.shape[1:-1]
    origin = options.get("origin", (5,) * (state.shape[0] * len(spatial)))
    draws = FireDraws(options.get("rate", 0.5), SEED, LEVEL, origin)
    run = cuda_level.LevelLaunches(
        device, weights, precision, False, shape=spatial, batch=state.shape[0],
        draws=draws, schedule=options.get("schedule"),
    )  # fmt: skip
    kept = torch.float16 if precision == "half" else torch.float32
    current = cuda_level.padded(state.to(kept), run.configuration.padded)
    for number in range(0, steps, fused):
        target = torch.full_like(current, float("nan"))
        run.forward(current, target, number, min(fused, steps - number))
        current = target
    return current[..., : weights.channels]


@pytest.mark.parametrize(
    ("spatial", "precision"),
    [
        pytest.param(spatial, precision, marks=() if every_push else pytest.mark.nightly)
        for precision in ("half", "tf32")
        for spatial, every_push in [
            ((37, 50), precision == "half"),
            ((9, 70), False),
            ((1, 40), precision == "tf32"),
            ((5, 1), False),
            ((2, 2), False),
            ((9, 10, 11), True),
        ]
    ],
)
@pytest.mark.slow
@pytest.mark.nightly
def test_two_steps_a_launch_change_no_bit(spatial, precision, devices):
    """A halo of two cells is enough, at the level's borders too."""
    state, weights = make(spatial, 16, 3, 64, 2)
    for steps in (2, 5):
        one = run_forward(devices[TENSOR_CORES], state, weights, precision, steps, 1)
        two = run_forward(devices[TENSOR_CORES], state, weights, precision, steps, 2)
        assert torch.equal(one, two)
        assert not one.isnan().any()


@pytest.mark.parametrize(
    "spatial", [(37, 50), pytest.param((9, 10, 11), marks=pytest.mark.slow)], ids=str
)
def test_float16_is_as_near_as_its_digits_allow(spatial, devices):
    state, weights = make(spatial, 16, 3, 64, 1)
    draws = FireDraws(0.5, SEED, LEVEL, [5] * len(spatial))
    wanted, _ = torch_engine.forward(state, weights, 10, draws, False)
    found = run_forward(devices[TENSOR_CORES], state, weights, "half", 10, 1)
    error = difference(found.float(), wanted)
    assert 1e-6 < error < 3e-3  # ten roundings to 11 bits
    assert torch.equal(found[..., :3], state[..., :3].half())


@pytest.mark.parametrize(
    ("spatial", "channels", "hidden"),
    [
        ((37, 50), 16, 64),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ((64, 66), 16, 64), ((30, 22), 16, 64), ((61, 31), 16, 64), ((1, 40), 16, 64),
                ((5, 1), 16, 64), ((2, 2), 16, 64), ((1, 1), 16, 64), ((3, 70), 13, 37),
                ((33, 20), 16, 80),
            ]
        ),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "architecture", [TENSOR_CORES, pytest.param(TURING, marks=pytest.mark.slow)]
)
@pytest.mark.nightly
def test_without_lists_every_bit_is_the_same(spatial, channels, hidden, architecture, devices):
    """Crops of two samples; blocks that overlap, that lie across the level's end and beyond it."""
    device = devices[architecture]
    state, weights = make(spatial, channels, 3, hidden, 2)
    origin = (1000, 7, 3, 2**32 - 5)
    dense = dense_schedule(cuda_level.configuration_of(weights, "half"))
    assert dense is not None
    for rate in (0.5, 1.0, 0.05):
        wanted, _ = torch_engine.forward(
            state, weights, 5, FireDraws(rate, SEED, LEVEL, origin), False
        )
        listed = run_forward(device, state, weights, "half", 5, 2, rate=rate, origin=origin)
        for fused in (1, 2):
            found = run_forward(
                device, state, weights, "half", 5, fused, rate=rate, origin=origin, schedule=dense
            )
            assert torch.equal(found, listed)
        assert 1e-6 < difference(found.float(), wanted) < 3e-3


@pytest.mark.parametrize("bytes_a_label", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_without_lists_labels_and_lost_cells_are_the_same(bytes_a_label, devices):
    """Each cell is counted once, those of overlapping blocks too; ties and NaN as with lists."""
    state, weights = make((37, 50), 16, 3, 64, 2)
    state[0, 5, 7, 4] = float("nan")
    state[1, 30:36, 44:, 9] = float("inf")
    draws = FireDraws(0.5, SEED, LEVEL, (5, 6, 7, 8))
    results = []
    for schedule in (None, dense_schedule(Configuration(2, 16, 3, 64, "half"))):
        run = cuda_level.LevelLaunches(
            devices[TENSOR_CORES], weights, "half", False, shape=(37, 50), batch=2, draws=draws,
            schedule=schedule,
        )  # fmt: skip
        for fused, label_bytes in itertools.product((1, 2), (0, bytes_a_label)):
            kind = {0: torch.float16, 1: torch.uint8, 2: torch.int16}[label_bytes]
            out = torch.full((2, 37, 50, *((16,) * (label_bytes == 0))), 77, dtype=kind)
            counter = torch.zeros(1, dtype=torch.int64)
            run.forward(
                state.half(), out, 3, fused, label_bytes=label_bytes, logits=5, background=True,
                counter=counter.data_ptr(), counted=(4, 36),
            )  # fmt: skip
            results.append((out, int(counter)))
    for (out, count), (wanted, wanted_count) in zip(results[4:], results[:4], strict=True):
        assert torch.equal(out.nan_to_num(), wanted.nan_to_num())
        assert torch.equal(out.isnan(), wanted.isnan())
        assert count == wanted_count > 36


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("spatial", [(6, 45), (3, 5, 17)])
def test_fire_draws_are_the_same_bits(spatial, rate, devices):
    batch, step, first = 3, 7, 40
    configuration = Configuration(len(spatial), 16, 3, 64, "half")
    loaded = devices[TENSOR_CORES].load(configuration, False)
    fired = torch.full((batch, *spatial), 2, dtype=torch.uint8)
    origins = [[2**32 - 2, 3, 5][-len(spatial) :], [0] * len(spatial), [7] * len(spatial)]
    level = level_arguments(spatial, fire_threshold(rate), SEED, LEVEL, first, origins)
    loaded.launch("draw", 2, arguments("DrawArguments", *level, fired.data_ptr(), step, 0))
    for sample, origin in enumerate(origins):
        wanted = fire_mask(
            spatial, fire_rate=rate, seed=SEED, level=LEVEL, step=step, sample=first + sample,
            origin=origin, native=False,
        )  # fmt: skip
        assert torch.equal(fired[sample], wanted.to(torch.uint8))


@pytest.mark.slow
@pytest.mark.nightly
def test_more_samples_than_a_launch_takes(devices):
    state, weights = make((5, 6), 16, 1, 64, 19)
    origin = list(range(38))
    grad_out = torch.randn(state.shape, generator=torch.Generator().manual_seed(1))
    wanted, wanted_grad, wanted_grads = oracle(state, weights, grad_out, 3, 0.5, origin)
    options = {"device": devices[TENSOR_CORES]}
    draws = FireDraws(0.5, SEED, LEVEL, origin)
    out, kept = cuda_engine.forward(state, weights, 3, draws, True, **options)
    grad, grads = cuda_engine.backward(grad_out, out, kept, weights, draws, **options)
    assert difference(out.double(), wanted) < 3e-6
    assert difference(grad.double(), wanted_grad) < 1e-5
    assert difference(grads.hidden_weight.double(), wanted_grads.hidden_weight) < 1e-5


@pytest.mark.slow
def test_the_number_of_blocks_changes_no_bit_of_a_state(devices, tmp_path):
    """Tiles are computed alike whoever computes them."""
    state, weights = make((40, 70), 16, 1, 64, 1)
    other = HostDevice(devices[TENSOR_CORES].folder, TENSOR_CORES, blocks=50)
    results = [
        cuda_engine.forward(state, weights, 3, FireDraws(0.5, 0, 0, [0, 0]), False, device=device)[
            0
        ]
        for device in (devices[TENSOR_CORES], other)
    ]
    assert torch.equal(*results)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_order_of_the_threads_changes_no_bit(tmp_path):
    """Run from the last thread to the first: a barrier that is missing shows.

    So does a copy that is begun too early or not waited for: one order copies at once, the other
    at the last moment.
    """
    import subprocess
    import sys

    script = tmp_path / "steps.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from helpers.host_device import HostDevice\n"
        "from helpers.oracle import make\n"
        "from nnunet_octreenca.ops import FireDraws, cuda_engine, cuda_level\n"
        "from nnunet_octreenca.ops.cuda_program import dense_schedule\n"
        "device = HostDevice(Path(sys.argv[1]), 90)\n"
        "results = []\n"
        "for spatial in ((37, 50), (9, 10, 11)):\n"
        "    state, weights = make(spatial, 16, 3, 64, 2)\n"
        "    draws = FireDraws(0.5, 1, 0, [0] * (2 * len(spatial)))\n"
        "    out, kept = cuda_engine.forward(state, weights, 4, draws, True, device=device)\n"
        "    grad, grads = cuda_engine.backward(state, out, kept, weights, draws, device=device)\n"
        "    results += [out, grad, *grads]\n"
        "    every = dense_schedule(cuda_level.configuration_of(weights, 'half'))\n"
        "    for precision, kind, schedule in (('half', torch.float16, None),\n"
        "            ('tf32', torch.float32, None), ('half', torch.float16, every)):\n"
        "        run = cuda_level.LevelLaunches(device, weights, precision, False,\n"
        "            shape=spatial, batch=2, draws=draws, schedule=schedule)\n"
        "        target = torch.empty_like(state, dtype=kind)\n"
        "        run.forward(state.to(kind), target, 0, 2)\n"
        "        results.append(target)\n"
        "torch.save(results, sys.argv[2])\n"
    )
    paths = os.pathsep.join(sys.path)
    for order in ("forward", "reverse"):
        subprocess.run(
            [sys.executable, script, str(tmp_path), str(tmp_path / f"{order}.pt")],
            env={**os.environ, "SHIM_ORDER": order, "PYTHONPATH": paths},
            check=True,
        )
    one, other = (torch.load(tmp_path / f"{order}.pt") for order in ("forward", "reverse"))
    assert len(one) == 20
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


ONE_PIECE = """
#include "octree.cuh"
using namespace octreenca;
using N = Network<{dimension}, 16, 3, 64, {precision}>;
struct OnePiece {{
  EnterArguments all;
  u64 number, wide;
}};
template <class N>
__device__ void one_piece(const OnePiece& given) {{
  enter_piece<N>(given.all, given.wide ? row_piece(given.all, given.number)
                                       : row_piece(given.all, static_cast<u32>(given.number)));
}}
OCTREENCA_KERNEL(one_piece, 32, 0, OnePiece, one_piece<N>)
"""


def sparse(numbers, kind):
    """Zeros, of which the system provides only those pages that are touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    try:
        return np.frombuffer(mmap.mmap(-1, numbers * np.dtype(kind).itemsize, flags), kind)
    except (OSError, ValueError) as error:
        pytest.skip(f"the system does not promise so much memory: {error}")


@pytest.mark.parametrize(
    ("shape", "precision"),
    [
        ((1, 70_000, 70_001), "Float16"),
        ((70_000, 70_001, 1), "Float16"),
        ((1, 60_001, 50_003), "Tf32"),
    ],
    ids=str,
)  # fmt: skip
def test_levels_of_more_than_two_to_the_32_cells_are_entered(shape, precision, tmp_path):
    """The last piece of the last row, where numbers of cells and of rows need 64 bits."""
    depth, height, width = shape
    factor = [min(2, length) for length in shape]
    parent_shape = [-(-a // b) for a, b in zip(shape, factor, strict=True)]
    cells, parents = math.prod(shape), math.prod(parent_shape)
    assert 16 * cells > 2**31
    kind = np.float16 if precision == "Float16" else np.float32
    state, parent = sparse(16 * cells, kind), sparse(16 * parents, kind)
    image = sparse(3 * cells, np.float32)
    pieces = -(-width // 128)
    number = pieces * height * depth - 1
    assert (pieces * height * depth > 2**32) == (width == 1)
    count = width - 128 * (pieces - 1)
    draws = np.random.default_rng(0)
    wanted = draws.normal(size=(count, 16)).astype(kind)
    row = parent[16 * (parents - parent_shape[2]) :].reshape(-1, 16)  # the parents' last
    row[:] = draws.normal(size=row.shape)
    for x in range(count):
        wanted[x] = row[(width - count + x) // factor[2]]
    for c in range(3):
        pixels = image[(c + 1) * cells - count : (c + 1) * cells]
        pixels[:] = draws.normal(size=count)
        wanted[:, c] = pixels
    source = ONE_PIECE.format(dimension=2 if depth == 1 else 3, precision=precision)
    loaded = HostDevice(tmp_path).load_program(
        Program("one_piece.cu", source, {"one_piece": KernelLaunch(32, 0)}, {}, None)
    )
    values = (*shape, *parent_shape, 1, *factor, 0, image.ctypes.data, parent.ctypes.data)
    for wide in (1,) if number >= 2**32 else (0, 1):
        given = arguments("EnterArguments", *values, state.ctypes.data)
        loaded.launch("one_piece", 1, given + struct.pack("QQ", number, wide))
        assert np.array_equal(state[16 * (cells - count) :].reshape(-1, 16), wanted)
        assert not state[16 * (cells - count) - 64 : 16 * (cells - count)].any()
        state[16 * (cells - count) :] = 0


# ------------------------------------------------------------------ operator and network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((37, 50), {}),
        pytest.param((9, 1), {}, marks=pytest.mark.nightly),
        pytest.param((6, 13, 10), {}, marks=pytest.mark.nightly),
        pytest.param((21, 18), {"channels": 20, "classes": 6}, marks=pytest.mark.nightly),
        pytest.param(
            (9, 8, 7),
            {"constant_background": False, "channels": 13, "hidden": 21},
        ),
    ],
    ids=str,
)
def test_a_network_trains_and_predicts_as_with_pytorch(shape, options, network_on_host):
    """Logits and gradients of all parameters; whole octrees in inference."""
    network, image = make_network(shape, **options)
    image = image.requires_grad_()
    values = network(image, seed=3)
    towards = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    values.backward(towards)
    found = [image.grad, *(p.grad for p in network.parameters())]
    with torch.no_grad():
        whole = network(image, seed=3)

    exact = OctreeNCA(
        network.input_channels, network.num_classes, dimension=network.dimension,
        factors=network.factors, steps=network.steps, channels=network.level_channels,
        hidden=network.level_hidden, constant_background=network.constant_background,
    ).double()  # fmt: skip
    exact.load_state_dict(network.state_dict())
    pixels = image.detach().double().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_engine, "supports", lambda tensor, weights: False)
        wanted = exact(pixels, seed=3)
        wanted.backward(towards.double())
        wanted = wanted.detach()
    assert difference(values.detach().double(), wanted) < 3e-6
    assert difference(whole.double(), wanted) < 3e-6
    for ours, theirs in zip(
        found, [pixels.grad, *(p.grad for p in exact.parameters())], strict=True
    ):
        assert difference(ours.double(), theirs) < 1e-5


@pytest.mark.parametrize("state", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
@pytest.mark.parametrize(
    ("shape", "classes"),
    [
        ((37, 50), 3),
        pytest.param((6, 13, 10), 4, marks=pytest.mark.slow),
        pytest.param((20, 9), 14, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_labels_are_the_largest_logits(shape, classes, state, network_on_host, monkeypatch):
    network, image = make_network(shape, n_in=1 if len(shape) == 3 else 3, classes=classes,
                                  channels=16 if classes < 12 else 32)  # fmt: skip
    monkeypatch.setenv("OCTREENCA_STATE", state)
    with torch.no_grad():
        values = network(image, seed=3)
    labels = network.segment(image, seed=3)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, values.argmax(1).to(torch.uint8))
    assert labels.unique().numel() > 1
    assert network_on_host.architecture == TENSOR_CORES


@pytest.mark.slow
def test_labels_of_two_bytes_and_steps_of_none(network_on_host):
    network, image = make_network((9, 8), classes=300, channels=304, hidden=16, steps=(2, 1))
    with torch.no_grad():
        values = network(image)
    labels = network.segment(image)
    assert labels.dtype == torch.int16
    assert torch.equal(labels, values.argmax(1).to(torch.int16))
    network, image = make_network((9, 8), steps=(0, 3))
    with torch.no_grad():
        assert torch.equal(network.segment(image), network(image).argmax(1).to(torch.uint8))


@pytest.mark.slow
def test_no_more_than_two_states_of_the_finest_level(network_on_host, monkeypatch):
    """What DESIGN promises: never a third buffer of the finest level's size."""
    network, image = make_network((64, 96))
    alive, peak = {}, [0]
    empty, empty_like = torch.empty, torch.empty_like

    def count(tensor):
        import weakref

        alive[id(tensor)] = tensor.numel() * tensor.element_size()
        weakref.finalize(tensor, alive.pop, id(tensor), None)
        peak[0] = max(peak[0], sum(alive.values()))
        return tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: count(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: count(empty_like(*a, **k)))
    for state, allowed in (("float16", 70), ("float32", 135)):
        alive.clear()
        peak[0] = 0
        network.segment(image, state=state)
        per_cell = (peak[0] - 4 * 16000) / image[:, 0].numel()  # less the packed weights
        assert allowed / 2 - 10 < per_cell < allowed, state

    # The memory model, which errors quote: logits instead of labels, with all levels' images.
    assert network.engine() is cuda_engine
    alive.clear()
    peak[0] = 0
    with torch.no_grad():
        values = network(image[:1])
    seen = peak[0] - 4 * 16000 + 4 * (values.numel() + image[:1].numel() * 21 // 16)
    model = inference_bytes(
        image.shape[2:], factors=network.factors, steps=network.steps, channels=16,
        hidden=64, input_channels=3,
        num_classes=3, engine="cuda",
    )  # fmt: skip
    assert 0.9 < model / seen < 1.1


@pytest.mark.slow
def test_bad_numbers_spread_and_nothing_crashes(devices):
    state, weights = make((12, 12), 16, 1, 64, 1)
    state[0, 5, 5, 0] = float("nan")
    for precision in ("tf32", "half"):
        out = run_forward(devices[TENSOR_CORES], state, weights, precision, 2, 1, rate=1.0)
        wrong = out.isnan().any(-1)[0]
        assert wrong[3:8, 3:8].all()
        assert not wrong[:2].any()


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "logits"])
@pytest.mark.parametrize(
    ("shape", "state", "fused"),
    [
        ((40, 70), "float16", 1),
        pytest.param((40, 70), "float16", 2, marks=pytest.mark.slow),
        pytest.param((40, 70), "float32", 1, marks=pytest.mark.slow),
        ((20, 9, 10), "float16", 1),
        pytest.param((20, 9, 10), "float32", 1, marks=pytest.mark.nightly),
    ],
)
def test_lost_cells_are_counted_on_every_level(shape, state, fused, labels, network_on_host):
    """As many as in PyTorch, whose states are the same; in the last launch of every level."""
    network, image = make_network(shape, n_in=1 if len(shape) == 3 else 3, steps=(3, 1, 2))
    image[(1, 0, *(7, 3, 2)[: len(shape)])] = float("inf")
    wanted = by_pytorch(network, image)
    assert min(wanted[0]) > 0
    assert wanted[0][0] < wanted[1][0] / 2  # not merely all cells
    cells = NonFiniteCells(3)
    kind = torch.uint8 if labels else torch.float32
    heads = () if labels else (3,)
    result = torch.empty(2, *heads, *shape, dtype=kind)
    cuda_octree.octree(
        image, network.automaton(), 3, state=state, fused=fused, non_finite=cells,
        **{"labels" if labels else "values": result},
    )  # fmt: skip
    assert (cells.found.tolist(), cells.checked) == wanted
    with pytest.raises(NotFiniteError, match=r"on level 2 \(0 is the full.* after 2 steps"):
        network.segment(image, state=state)


def test_lost_cells_are_counted_without_steps(network_on_host):
    network, image = make_network((9, 8), steps=(2, 0))
    image[0, 1, 4, 4] = float("nan")
    assert by_pytorch(network, image)[0][1] == 1
    with pytest.raises(NotFiniteError, match=r"5 % of the cells on level 1 .* after 0 steps"):
        network.infer(image[:1])


def test_float16_that_overflows_is_refused_in_bands(network_on_host):
    """The state of a stream, which is counted in windows; its margins do not count."""
    network, image = make_network((61, 20))
    network.requires_grad_(False)
    source = ArraySource(image[0].numpy())
    labels = dict(Ensemble([network], band_rows=24, state="float16").segment(source))
    assert sum(map(len, labels.values())) == 61
    for weight in network.parameters():
        weight.mul_(4)
    for band_rows in (24, 1000):
        with pytest.raises(NotFiniteError, match="float32 instead of float16"):
            list(Ensemble([network], band_rows=band_rows, state="float16").segment(source))


def test_operator_passes_pytorchs_own_checks(network_on_host):
    """Fake tensors, autograd and mutation, as torch.compile and export rely on them."""
    state, weights = make((5, 6), 16, 1, 64, 2)
    inputs = [t.requires_grad_() for t in (state, *weights)]
    torch.library.opcheck(
        torch.ops.nnunet_octreenca.nca_steps,
        (*inputs, 3, 0.5, 0, 0, [0] * 4, True, "cuda"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    out = nca_steps(state.movedim(-1, 1), weights, 2)
    assert out.requires_grad


# ------------------------------------------------------------------ layouts


SIZES = [(16, 64), (20, 80), (32, 128), (52, 208)]


@pytest.mark.parametrize("architecture", sorted(SHARED_BYTES))
@pytest.mark.parametrize(("channels", "hidden"), SIZES)
@pytest.mark.parametrize("dimension", [2, 3])
def test_tiles_fit_the_shared_memory(architecture, channels, hidden, dimension):
    single = "tf32" if architecture >= 80 else "plain"
    for precision in ("half", single):
        configuration = Configuration(dimension, channels, 3, hidden, precision)
        layout = forward_layout(configuration, architecture, 1)
        assert layout is not None
        assert layout.shared <= SHARED_BYTES[architecture]
    back = backward_layout(configuration, architecture)
    if back is None:
        assert (channels, hidden) == (52, 208)
        assert architecture == TURING
    else:
        assert back.shared <= SHARED_BYTES[architecture]


@pytest.mark.parametrize("architecture", sorted(SHARED_BYTES))
def test_tiles_for_two_blocks_leave_the_systems_memory(architecture):
    """From 8.0 on a block takes 1 KiB more than it asks for, of 1 KiB more than it can have."""
    system = 1024 if architecture >= 80 else 0
    whole = SHARED_BYTES[architecture] + system
    for room in range(1, whole - system, 97):

        def shared(tile, warps, room=room):
            return room if tile == (32, 16, 1) else 1

        layout = _choose(_TILES[2], architecture, shared, (4,))
        assert (layout.shared == room) == (room == 1 or 2 * (room + system) <= whole)


def test_the_fast_mode_says_where_it_cannot_run(network_on_host, monkeypatch, tmp_path):
    volta = HostDevice(tmp_path, 70)  # on which nothing was loaded before
    monkeypatch.setattr(cuda_device, "device_of", lambda tensor: volta)
    network, image = make_network((9, 8))
    told = r"float16 \(the fast mode\) need .* 7\.5 or later, and this one has 7\.0: use float32"
    with pytest.raises(EnvironmentMismatchError, match=told):
        network.segment(image, state="float16")
    assert network.segment(image, state="float32").shape == (2, 9, 8)


def test_a_network_that_fits_no_tile_is_refused():
    with pytest.raises(DoesNotFitError, match="1000 channels and 4000 hidden units do not fit"):
        program(Configuration(3, 1000, 1, 4000, "plain"), 75, True)


def test_pyramid_is_emptied_on_the_way(network_on_host):
    """So that an image's coarser copies do not lie beside the finest level's states."""
    network, image = make_network((20, 20))
    pyramid = image_pyramid(image, network.factors)
    labels = torch.empty(2, 20, 20, dtype=torch.uint8)
    cuda_octree.run_levels(
        pyramid, network.automaton(), 0, Part(0, [0] * 3), labels, None, None, None, None
    )
    assert pyramid == []
    assert set(itertools.chain(labels.unique().tolist())) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("shape", "band_rows", "state"),
    [
        pytest.param((61, 20), 7, "float32", marks=pytest.mark.slow),
        ((61, 20), 24, "float16"),
        pytest.param((23, 6, 5), 5, "float16", marks=pytest.mark.slow),
    ],
)
def test_stream_gives_the_labels_of_one_pass(network_on_host, shape, band_rows, state):
    """Windows with their margins, whatever the height of a band."""
    network, image = make_network(shape)
    image = image[:1]
    whole = network.segment(image, state=state)[0].numpy()
    stream = open_stream(network, shape, Output.LABELS, state=state)
    assert isinstance(stream, WindowStream)
    assert np.array_equal(segmented(stream, image[0].numpy(), band_rows), whole)
    logits = open_stream(network, shape, Output.LOGITS, state="float32")
    expected = network(image)[0].detach().numpy()
    assert np.array_equal(segmented(logits, image[0].numpy(), band_rows), expected)
