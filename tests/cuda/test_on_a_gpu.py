"""The CUDA engine on a real GPU against PyTorch; skipped where there is none.

benchmarks/gpu_engine.py runs this file before it times anything.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_ladder import RUNGS
from helpers.oracle import CASES, LEVEL, SEED, difference, make, make_network, oracle

from nnunet_octreenca.network.walk import walk
from nnunet_octreenca.ops import (
    FireDraws,
    StepWeights,
    cuda_cells,
    cuda_engine,
    cuda_level,
    cuda_octree,
    nca_steps,
    torch_engine,
)
from nnunet_octreenca.ops.cuda_compiler import CACHE_VARIABLE
from nnunet_octreenca.ops.cuda_program import dense_schedule
from nnunet_octreenca.ops.native import ENGINE_VARIABLE

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)


# Tensor cores truncate where the processor's twin of them rounds: with sums of 25 bits the largest
# error of a state is 2.5e-6, on the processor 1e-6.
STATE, GRADIENT = 1e-5, 3e-5


@pytest.fixture(autouse=True)
def _the_engine_or_nothing(monkeypatch):
    """Never compare PyTorch with itself."""
    monkeypatch.setenv(ENGINE_VARIABLE, "cuda")
    # The oracle shall not round to TF32 either.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def on_gpu(weights):
    return StepWeights(*(weight.cuda() for weight in weights))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_passes_equal_the_oracle(case):
    spatial, channels, n_in, hidden, batch, steps, rate = case
    state, weights = make(spatial, channels, n_in, hidden, batch)
    origin = [1000 * a + 7 * s for s in range(batch) for a in range(len(spatial))]
    grad_out = torch.randn(state.shape, generator=torch.Generator().manual_seed(1))
    wanted, wanted_grad, wanted_grads = oracle(state, weights, grad_out, steps, rate, origin)
    draws = FireDraws(rate, SEED, LEVEL, origin)
    out, kept = cuda_engine.forward(state.cuda(), on_gpu(weights), steps, draws, True)
    assert difference(out.cpu().double(), wanted) < STATE
    results = [
        cuda_engine.backward(grad_out.cuda(), out, kept, on_gpu(weights), draws) for _ in range(2)
    ]
    (grad, grads), (second, seconds) = results
    assert torch.equal(grad, second)
    assert all(torch.equal(a, b) for a, b in zip(grads, seconds, strict=True))
    assert difference(grad.cpu().double(), wanted_grad) < GRADIENT
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        error = difference(ours.cpu().double(), theirs)
        assert error < GRADIENT or not (ours.any() or theirs.any())


@pytest.mark.parametrize("spatial", [(21, 34), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_every_rung_of_the_ladder_equals_pytorch(rung, spatial):
    """Kernel 1 and `Plain` too, which the engine itself never chooses on a new GPU."""
    state, weights = make(spatial, 16, 3, 64, 2)
    draws = FireDraws(0.5, SEED, LEVEL, [3] * (2 * len(spatial)))
    wanted, _ = torch_engine.forward(state, weights, 4, draws, False)
    weights = on_gpu(weights)
    device = cuda_engine.cuda_device.device_of(weights.hidden_weight)
    if (rung.precision or "").startswith("tf32") and device.architecture < 80:
        pytest.skip("no TF32 before compute capability 8.0")
    if not rung.exists(len(spatial)):
        pytest.skip("in 2-D only")
    run = rung.level(device, weights, shape=spatial, batch=2, draws=draws)
    current = state.cuda().to(torch.float16 if rung.precision == "half" else torch.float32)
    for step in range(0, 4, rung.steps(len(spatial))):
        target = torch.full_like(current, float("nan"))
        run.forward(current, target, step, rung.steps(len(spatial)))
        current = target
    error = difference(current.float().cpu(), wanted)
    assert error < (3e-3 if rung.precision == "half" else STATE)


@pytest.mark.parametrize("spatial", [(301, 257), (37, 50), (1, 40), (2, 2)], ids=str)
@pytest.mark.parametrize("rate", [0.5, 1.0, 0.05])
def test_without_lists_every_bit_is_the_same(spatial, rate):
    state, weights = make(spatial, 16, 3, 64, 2)
    weights = on_gpu(weights)
    device = cuda_engine.cuda_device.device_of(weights.hidden_weight)
    draws = FireDraws(rate, SEED, LEVEL, [3] * 4)
    results = []
    for schedule in (None, dense_schedule(cuda_level.configuration_of(weights, "half"))):
        run = cuda_level.LevelLaunches(
            device, weights, "half", False, shape=spatial, batch=2, draws=draws, schedule=schedule
        )
        for fused in (1, 2):
            current = state.cuda().half()
            for step in range(0, 4, fused):
                target = torch.full_like(current, float("nan"))
                run.forward(current, target, step, fused)
                current = target
            results.append(current)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_both_kernels_are_timed(monkeypatch, tmp_path):
    """They give the same bits, times are positive, and the choice is the faster one's."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cuda_cells, "_chosen", {})
    _, weights = make((1, 1), 16, 3, 64, 1)
    weights = on_gpu(weights)
    device = cuda_engine.cuda_device.device_of(weights.hidden_weight)
    dense = dense_schedule(cuda_level.configuration_of(weights, "half"))
    seen = []

    def measure(*given):
        seen.append(measured(*given))
        return seen[-1]

    measured = cuda_cells.measure
    monkeypatch.setattr(cuda_cells, "measure", measure)
    chosen = cuda_cells.schedule_for(device, weights, "half", 0.5)
    ((lists, every, same_bits),) = seen
    assert same_bits
    assert min(lists, every) > 0
    assert chosen == (dense if every <= cuda_cells.GAIN * lists else None)
    assert len(list(tmp_path.glob("*.cells"))) == 1


SHAPES = [(37, 50), (301, 257), (1, 40), (9, 1), (6, 13, 10), (33, 20, 71)]


@pytest.mark.parametrize("channels", [16, [16, 24, 40], [20, 9, 9]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("state", ["float32", "float16"])
def test_whole_octrees(shape, state, channels, monkeypatch):
    network, image = make_network(shape, classes=4, channels=channels)
    with torch.no_grad():
        wanted = network.double()(image.double(), seed=3)
    network.float().cuda()
    monkeypatch.setenv("OCTREENCA_STATE", state)
    with torch.no_grad():
        values = network(image.cuda(), seed=3)
    assert difference(values.cpu().double(), wanted) < (STATE if state == "float32" else 1e-2)
    labels = network.segment(image.cuda(), seed=3)
    assert torch.equal(labels, values.argmax(1).to(torch.uint8))


@pytest.mark.parametrize("shape", [(37, 50), (6, 13, 10)], ids=str)
def test_levels_that_differ_in_channels_train_as_the_oracle(shape):
    """The gradients of all parameters, those of the maps between levels among them."""
    network, image = make_network(shape, channels=[16, 24, 40])
    twin, _ = make_network(shape, channels=[16, 24, 40])
    twin.double().load_state_dict(network.state_dict())
    network.cuda()
    for own, given in ((network, image.cuda()), (twin, image.double())):
        with pytest.MonkeyPatch.context() as patch:
            if own is twin:
                patch.delenv(ENGINE_VARIABLE)
            own(given, seed=3)[:, 1].square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, ours in network.named_parameters():
        assert difference(ours.grad.cpu().double(), theirs[name].grad) < GRADIENT, name


def test_the_walk_has_the_bits_of_the_pass():
    network, image = make_network((37, 50), channels=[16, 24, 40])
    network.cuda().requires_grad_(False)
    last = [moment.state for moment in walk(network, image.cuda(), seed=3, every=None)][-1]
    assert torch.equal(network.automaton().head(last), network(image.cuda(), seed=3))


def test_the_same_bits_as_without_a_gpu_for_the_draws():
    """A state that only counts how often it fired."""
    weights = StepWeights(
        torch.zeros(2, 3, 3), torch.zeros(2), torch.zeros(1, 4), torch.ones(1), torch.ones(1, 1)
    )
    state = torch.zeros(3, 2, 130, 257)
    arguments = {"steps": 20, "fire_rate": 0.4, "seed": 9, "level": 3}
    counted = nca_steps(state.cuda(), on_gpu(weights), **arguments).cpu()
    os.environ[ENGINE_VARIABLE] = ""
    assert torch.equal(counted, nca_steps(state, weights, **arguments))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_more_than_two_to_the_31_numbers(precision):
    """The far corner of a state that 32-bit indices cannot reach, against a crop of it."""
    side = 11_700
    if torch.cuda.mem_get_info()[0] < 2.5 * side**2 * 16 * 4:
        pytest.skip("needs 22 GB of the GPU's memory")
    _, weights = make((1, 1), 16, 3, 64, 1)
    weights = on_gpu(weights)
    kind, name = (torch.float16, "half") if precision == "float16" else (torch.float32, "tf32")
    state = torch.rand(1, side, side, 16, device="cuda", dtype=kind)
    assert state.numel() > 2**31
    crop = 64
    corner = state[:, -crop:, -crop:].float().contiguous()
    device = cuda_engine.cuda_device.device_of(state)
    if device.architecture < 80 and name == "tf32":
        name = "plain"
    run = cuda_level.LevelLaunches(
        device, weights, name, False, shape=(side, side), batch=1,
        draws=FireDraws(0.5, SEED, LEVEL, (0, 0)),
    )  # fmt: skip
    out = torch.empty_like(state)
    image = torch.rand(1, 3, side, side, device="cuda")
    cuda_octree._enter(run, image, out, state, (side, side), ((1, 1),), 0)
    entered = out[:, -crop:, -crop:].float()
    assert torch.equal(entered[..., 3:], corner[..., 3:])
    pixels = image[:, :, -crop:, -crop:].to(kind).float()
    assert torch.equal(entered[..., :3], pixels.movedim(1, -1))
    del image
    run.forward(state, out, 0, 1)
    wanted, _ = torch_engine.forward(
        corner, weights, 1, FireDraws(0.5, SEED, LEVEL, [side - crop, side - crop]), False
    )
    found = out[:, -crop + 1 :, -crop + 1 :].float()
    error = difference(found, wanted[:, 1:, 1:])
    assert error < (STATE if precision == "float32" else 2e-3)


def train(network, image, scaler=None, iterations=3):
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for number in range(iterations):
        optimizer.zero_grad()
        with torch.autocast("cuda", enabled=scaler is not None):
            loss = network(image, seed=number).square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return [p.detach().clone() for p in network.parameters()]


def test_autocast_and_gradscaler_change_nothing():
    network, image = make_network((20, 24))
    network.cuda()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plain = train(network, image.cuda())
    network.load_state_dict(before)
    scaled = train(network, image.cuda(), torch.amp.GradScaler("cuda", init_scale=1024.0))
    assert all(difference(a, b) < 1e-4 for a, b in zip(plain, scaled, strict=True))


def test_a_cuda_graph():
    network, image = make_network((40, 33))
    network.cuda().eval()
    image = image.cuda()
    with torch.no_grad():
        wanted = network(image, seed=1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            network(image, seed=1)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = network(image, seed=1)
    result.zero_()
    graph.replay()
    assert torch.equal(result, wanted)


def test_another_stream():
    network, image = make_network((300, 200))
    network.cuda().eval()
    image = image.cuda()
    wanted = network.segment(image, seed=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = [network.segment(image, seed=1) for _ in range(5)]
    stream.synchronize()
    assert all(torch.equal(result, wanted) for result in results)


def test_torch_compile():
    network, image = make_network((20, 24))
    network.cuda()
    image = image.cuda()
    wanted = network(image, seed=2)
    compiled = torch.compile(network, backend="aot_eager")
    found = compiled(image, seed=2)
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


SANITIZED = """\
import torch
from helpers.oracle import make
from nnunet_octreenca.ops import FireDraws, StepWeights, cuda_cells, cuda_engine, cuda_level
for spatial in ((37, 50), (7, 8, 9)):
    state, weights = make(spatial, 16, 3, 64, 2)
    weights = StepWeights(*(weight.cuda() for weight in weights))
    draws = FireDraws(0.5, 0, 0, [0] * (2 * len(spatial)))
    out, kept = cuda_engine.forward(state.cuda(), weights, 2, draws, True)
    cuda_engine.backward(out, out, kept, weights, draws)
    device = cuda_engine.cuda_device.device_of(out)
    every = cuda_cells.dense_schedule(cuda_level.configuration_of(weights, "half"))
    for kind, name, schedule in (
        (torch.float16, "half", None), (torch.float32, "tf32", None), (torch.float16, "half", every)
    ):
        run = cuda_level.LevelLaunches(
            device, weights, name, False, shape=spatial, batch=2, draws=draws, schedule=schedule)
        a = state.to("cuda", kind)
        run.forward(a, torch.empty_like(a), 0, 2)
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_sees_nothing(tool, tmp_path):
    program = shutil.which("compute-sanitizer") or next(
        map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None
    )
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    script = tmp_path / "sanitized.py"
    script.write_text(SANITIZED)
    # PyTorch asks for symbols that a driver may lack: an error of the API that means nothing.
    options = [f"--tool={tool}", "--report-api-errors=no", "--error-exitcode=9"]
    done = subprocess.run(
        [program, *options, sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
             "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
