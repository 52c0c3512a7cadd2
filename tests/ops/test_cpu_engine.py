"""The C++ engine against the PyTorch engine, on every instruction set this machine has."""

import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle import LEVEL, SEED, difference, each_case, make, make_network, oracle
from helpers.steps_in_a_child import put_steps

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.ops import FireDraws, StepWeights, cpu_engine, nca_steps, torch_engine
from nnunet_octreenca.ops.native import (
    ENGINE_VARIABLE,
    KERNELS_VARIABLE,
    cpu_engine_wanted,
    cpu_kernels,
    cpu_module,
    cpu_module_problem,
)

MODULE = cpu_module()
if MODULE is None:
    pytest.skip(f"the C++ module is not there: {cpu_module_problem()}", allow_module_level=True)
KERNELS = MODULE.kernels()
NAMES = ("state", *StepWeights._fields)


@pytest.fixture
def threads():
    """Set the number of threads; it is put back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


each_kernel = pytest.mark.parametrize("kernels", KERNELS)


@pytest.mark.smoke
@each_kernel
@each_case
def test_both_passes_equal_the_oracle(
    spatial, channels, n_in, hidden, batch, steps, rate, kernels, monkeypatch, threads
):
    """Float32 to rounding; over 1, 2 and 3 threads and both schedules, bit for bit."""
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    state, weights = make(spatial, channels, n_in, hidden, batch)
    origin = [1000 * a + 7 * s for s in range(batch) for a in range(len(spatial))]
    grad_out = torch.randn(state.shape, generator=torch.Generator().manual_seed(1))
    wanted, wanted_grad, wanted_grads = oracle(state, weights, grad_out, steps, rate, origin)
    draws = FireDraws(rate, SEED, LEVEL, origin)
    given, outs, grads = state.clone(), [], []
    for count in (1, 2, 3):
        threads(count)
        for schedule in ("wavefront", "sweep"):
            out, log = cpu_engine.forward(state, weights, steps, draws, True, schedule=schedule)
            outs.append(out)
        assert torch.equal(state, given)
        assert torch.equal(out[..., :n_in], state[..., :n_in])
        before = out.clone()
        result = cpu_engine.backward(grad_out, out, log, weights, draws)
        again = cpu_engine.backward(grad_out, out, log, weights, draws)
        assert torch.equal(out, before)
        grads.append(result)
        for one, other in zip(result[1], again[1], strict=True):
            assert torch.equal(one, other)
    assert all(torch.equal(outs[0], out) for out in outs[1:])
    assert difference(outs[0].double(), wanted) < 3e-6
    for grad, weight_grads in grads:
        assert difference(grad.double(), wanted_grad) < 1e-5
        for name, ours, theirs in zip(NAMES[1:], weight_grads, wanted_grads, strict=True):
            assert difference(ours.double(), theirs) < 1e-5 or not (ours.any() or theirs.any()), (
                name
            )


@pytest.mark.parametrize("spatial", [(40, 31), (9, 10, 11)])
@pytest.mark.parametrize("steps", range(1, 21))
def test_every_number_of_steps(spatial, steps, threads):
    threads(2)
    state, weights = make(spatial, 16, 1, 64, 1)
    draws = FireDraws(0.5, 1, 0, [0] * len(spatial))
    wanted, _ = torch_engine.forward(state, weights, steps, draws, False)
    for schedule in ("wavefront", "sweep"):
        out, _ = cpu_engine.forward(state, weights, steps, draws, False, schedule=schedule)
        assert difference(out, wanted) < 3e-6


@pytest.mark.parametrize("spatial", [(61, 40), (9, 10, 11)])
def test_kernels_that_fuse_multiplication_and_addition_agree_bit_for_bit(spatial, monkeypatch):
    """The order of the additions is the same for every width of vector."""
    state, weights = make(spatial, 16, 1, 64, 1)
    results = []
    for kernels in KERNELS:
        if kernels == "plain":
            continue
        monkeypatch.setenv(KERNELS_VARIABLE, kernels)
        results.append(
            cpu_engine.forward(state, weights, 5, FireDraws(0.5, 1, 0, [0] * len(spatial)), False)[
                0
            ]
        )
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_the_log_takes_no_memory_where_nothing_fired():
    """Its shape is what would be needed if every cell fired in every step."""
    state, weights = make((50, 40), 16, 1, 64, 1)
    log = torch.full((4, 1, 50, 40, 15), float("nan"))
    MODULE.steps_forward(
        state.numpy(), [w.numpy() for w in weights], 4, 0, 0, 2**31, [[0, 0]], log.numpy(),
        KERNELS[0], 1, "auto", False,
    )  # fmt: skip
    written = (~log.isnan()).flatten()
    count = int(written.sum())
    assert 0.45 < count / log.numel() < 0.55
    assert written[:count].all()


def test_cpu_tensors_go_to_the_engine_unless_told_otherwise(monkeypatch):
    calls = []
    forward = cpu_engine.forward
    monkeypatch.setattr(cpu_engine, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    state, weights = make((4, 5), 6, 1, 9, 1)
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    first = nca_steps(state.movedim(-1, 1), weights, 2)
    assert calls == [1]
    nca_steps(state.movedim(-1, 1).double(), StepWeights(*(w.double() for w in weights)), 2)
    assert calls == [1, 1]
    monkeypatch.setenv(ENGINE_VARIABLE, "torch")
    second = nca_steps(state.movedim(-1, 1), weights, 2)
    assert calls == [1, 1]
    assert difference(first, second) < 1e-6
    half = nca_steps(state.movedim(-1, 1).half(), StepWeights(*(w.half() for w in weights)), 1)
    assert half.dtype == torch.float16


def test_variables_that_name_nothing_are_refused(monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "cuda12")
    with pytest.raises(EnvironmentMismatchError, match=r"OCTREENCA_ENGINE is 'cuda12'.*'torch'"):
        cpu_engine_wanted()
    monkeypatch.setenv(KERNELS_VARIABLE, "sse9")
    with pytest.raises(EnvironmentMismatchError, match=r"OCTREENCA_CPU_KERNELS is 'sse9'.*plain"):
        cpu_kernels()


def test_a_module_that_is_not_there_is_said(monkeypatch):
    from nnunet_octreenca.ops import native

    monkeypatch.setattr(native, "cpu_module", lambda: None)
    monkeypatch.setattr(native, "cpu_module_problem", lambda: "no such file")
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    assert not native.cpu_engine_wanted()
    monkeypatch.setenv(ENGINE_VARIABLE, "cpu")
    with pytest.raises(EnvironmentMismatchError, match=r"no such file.*C\+\+ compiler"):
        native.cpu_engine_wanted()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_are_forked_or_spawned_compute_the_same(method, threads):
    """nnU-Net starts its workers both ways, also after the parent has used threads."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    threads(2)
    state, weights = make((40, 40, 40), 16, 1, 64, 1)
    state = state.movedim(-1, 1)
    wanted = nca_steps(state, weights, 4)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=put_steps, args=(queue, state, weights))
    child.start()
    try:
        result = queue.get(timeout=60)
    finally:  # a child that waits for threads it does not have would wait for ever
        child.kill()
    assert np.array_equal(result, wanted.numpy())


def test_python_goes_on_while_the_engine_works(threads):
    threads(1)
    state, weights = make((200, 200), 16, 1, 64, 1)
    ticks = []
    done = threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-3)

    other = threading.Thread(target=tick)
    other.start()
    begun = time.perf_counter()
    cpu_engine.forward(state, weights, 20, FireDraws(0.5, 0, 0, [0, 0]), False)
    ended = time.perf_counter()
    done.set()
    other.join()
    during = [t for t in ticks if begun < t < ended]
    assert len(during) > (ended - begun) * 1e3 / 20  # a twentieth of what an idle machine gives


def test_no_thread_is_left_over(threads):
    threads(3)
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("counts threads in /proc")
    state, weights = make((200, 100), 16, 1, 64, 1)
    before = len(list(tasks.iterdir()))
    cpu_engine.forward(state, weights, 4, FireDraws(0.5, 0, 0, [0, 0]), False)
    assert len(list(tasks.iterdir())) == before


def test_values_that_are_not_finite_spread_and_nothing_crashes():
    state, weights = make((12, 12), 16, 1, 64, 1)
    state[0, 5, 5, 0] = float("nan")
    out, _ = cpu_engine.forward(state, weights, 2, FireDraws(1.0, 0, 0, [0, 0]), False)
    wrong = out.isnan().any(-1)[0]
    assert wrong[3:8, 3:8].all()
    assert not wrong[:2].any()


GOOD, GOOD_WEIGHTS = make((4, 5), 6, 1, 9, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"state": torch.zeros(2, 4, 5, 7)}, "state must be"),
        ({"origins": [[0, 0]]}, "one origin a sample"),
        ({"origins": [[0], [0]]}, "wrong length"),
        ({"weights": GOOD_WEIGHTS._replace(hidden_bias=torch.zeros(8))}, "hidden_bias"),
        ({"weights": GOOD_WEIGHTS._replace(update_weight=torch.zeros(7, 9))}, "update_weight"),
        ({"log": torch.zeros(3)}, "log has 3 numbers and needs"),
        ({"kernels": "sse9"}, "no kernels 'sse9'"),
        ({"schedule": "chaos"}, "schedule 'chaos'"),
        ({"threads": 0}, "threads must be 1 to 4096, got 0"),
        ({"threshold": 2**33}, "at most 2\\^32"),
        ({"steps": -1}, "steps must be 0 to 1048576, got -1"),
    ],
)
def test_the_binding_refuses_what_does_not_fit(change, named):
    """It checks for itself: a wrong shape would be read beyond its end."""
    arguments = {
        "state": GOOD.clone(),
        "weights": GOOD_WEIGHTS,
        "steps": 1,
        "seed": 0,
        "level": 0,
        "threshold": 2**31,
        "origins": [[0, 0], [0, 0]],
        "log": None,
        "kernels": KERNELS[0],
        "threads": 1,
        "schedule": "auto",
        "bf16": False,
        **change,
    }
    arguments["state"] = arguments["state"].numpy()
    arguments["weights"] = [w.numpy() for w in arguments["weights"]]
    if arguments["log"] is not None:
        arguments["log"] = arguments["log"].numpy()
    with pytest.raises(ValueError, match=named):
        MODULE.steps_forward(*arguments.values())


def test_a_type_that_the_engine_has_not_is_refused():
    with pytest.raises(TypeError):
        MODULE.steps_forward(
            GOOD.int().numpy(), [w.numpy() for w in GOOD_WEIGHTS], 1, 0, 0, 2**31,
            [[0, 0], [0, 0]], None, KERNELS[0], 1, "auto", False,
        )  # fmt: skip


def half(tensor):
    return tensor.half()


def elsewhere(tensor):
    return torch.empty(tensor.shape, device="meta")


@pytest.mark.parametrize("field", StepWeights._fields)
@pytest.mark.parametrize("change", [half, elsewhere])
def test_weights_unlike_the_state_are_refused(field, change, monkeypatch):
    """Gradients of half weights were lost in a copy; weights elsewhere gave whatever lay there."""
    monkeypatch.setenv(ENGINE_VARIABLE, "cpu")
    state, weights = make((4, 5), 16, 3, 64, 1)
    mixed = weights._replace(**{field: change(getattr(weights, field))})
    draws = FireDraws(0.5, 0, 0, [0, 0])
    assert cpu_engine.supports(state, weights)
    assert not cpu_engine.supports(state, mixed)
    assert f"{field} is" in cpu_engine.unsupported_reason(state, mixed)
    told = f"{field} is .*, but the (state|gradient) is torch.float32 on cpu"
    out, log = cpu_engine.forward(state, weights, 2, draws, True)
    with pytest.raises(ValueError, match=told):
        cpu_engine.forward(state, mixed, 2, draws, True)
    with pytest.raises(ValueError, match=told):
        cpu_engine.backward(state, out, log, mixed, draws)
    with pytest.raises(ValueError, match=told):
        nca_steps(state.movedim(-1, 1), mixed, 2)


def test_octrees_unlike_their_weights_are_refused():
    network, image = make_network((9, 8))
    labels = torch.zeros(2, 9, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"the image must be torch\.float32 on cpu, but .*64"):
        cpu_engine.octree(image.double(), network.automaton(), 0, labels=labels)
    network.levels[1].half()
    with pytest.raises(ValueError, match=r"perceive_weight is torch\.float16 .* the image is"):
        cpu_engine.octree(image, network.automaton(), 0, labels=labels)
    with pytest.raises(ValueError, match=r"perceive_weight is torch\.float16 .* the image is"):
        cpu_engine.octree_stream((9, 8), network.automaton(), 0)


@pytest.mark.parametrize("type_", [torch.float16, torch.float64, torch.uint8])
def test_an_image_is_computed_in_the_networks_type(type_):
    network, image = make_network((9, 8))
    image = (50 * image).abs().to(type_)
    with torch.no_grad():
        wanted = network(image.float())
        assert torch.equal(network(image), wanted)
        assert torch.equal(network.segment(image), network.segment(image.float()))
        assert network.double()(image).dtype == torch.float64
