"""`nca_steps` against the same mathematics written with autograd and dense masks.

Every test runs with every engine that there is for CPU tensors; tests/ops/test_cpu_engine.py
compares the engines with one another.
"""

import pytest
import torch
from helpers.oracle import pad
from torch.nn import functional

from nnunet_octreenca.ops import StepWeights, fire_mask, nca_steps, operator
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, cpu_module, cpu_module_problem

OPERATOR = torch.ops.nnunet_octreenca.nca_steps
NAMES = ("state", *StepWeights._fields)


ENGINES = ["torch", "cpu"]
only_torch = pytest.mark.parametrize("engine", ["torch"], indirect=True)


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request, monkeypatch):
    """The engine that the test runs with."""
    if request.param == "cpu" and cpu_module() is None:
        pytest.skip(f"the C++ module is not there: {cpu_module_problem()}")
    monkeypatch.setenv(ENGINE_VARIABLE, request.param)
    return request.param


def make(spatial, channels=6, n_in=2, hidden=9, batch=2, dtype=torch.float64, seed=0):
    """A random state and random weights, small enough that ten steps do not explode."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=draws, dtype=torch.float64) * scale).to(dtype)

    kernel = (3,) * len(spatial)
    weights = StepWeights(
        normal(channels, *kernel, scale=0.2),
        normal(channels, scale=0.2),
        normal(hidden, 2 * channels, scale=0.3),
        normal(hidden, scale=0.2),
        normal(channels - n_in, hidden, scale=0.1),
    )
    return normal(batch, channels, *spatial), weights


def reference(state, weights, steps, fire_rate, seed=0, level=0, origins=None):
    """DESIGN section 1, step by step, every cell computed, differentiable by autograd."""
    batch, channels, *spatial = state.shape
    n_in = channels - weights.update_weight.shape[0]
    convolve = functional.conv2d if len(spatial) == 2 else functional.conv3d
    for step in range(steps):
        perceived = convolve(
            pad(state), weights.perceive_weight[:, None], weights.perceive_bias, groups=channels
        )
        cells = torch.cat([state, perceived], 1).movedim(1, -1)
        hidden = torch.relu(cells @ weights.hidden_weight.T + weights.hidden_bias)
        update = (hidden @ weights.update_weight.T).movedim(-1, 1)
        fired = torch.stack(
            [
                fire_mask(
                    spatial,
                    fire_rate=fire_rate,
                    seed=seed,
                    level=level,
                    step=step,
                    sample=sample,
                    origin=None if origins is None else origins[sample],
                    native=False,
                )
                for sample in range(batch)
            ]
        )[:, None]
        image, rest = state[:, :n_in], state[:, n_in:]
        state = torch.cat([image, rest + update * fired.to(state.dtype)], 1)
    return state


def difference(result, expected):
    """Largest difference relative to the largest value."""
    return float((result - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


CASES = [
    # spatial, channels, n_in, hidden, batch, steps, rate, seed
    ((5, 7), 6, 1, 9, 1, 1, 1.0, 0),
    ((5, 7), 6, 2, 9, 3, 3, 0.5, 1),
    ((16, 9), 16, 3, 64, 1, 10, 0.5, 2**63 + 5),
    ((1, 8), 7, 5, 5, 3, 3, 0.3, 2),
    ((6, 1), 8, 4, 16, 1, 10, 0.5, 3),
    ((1, 1), 6, 1, 9, 3, 3, 0.5, 4),
    ((2, 2), 6, 3, 9, 1, 3, 1.0, 5),
    ((70, 67), 6, 1, 8, 1, 1, 1.0, 6),  # more fired cells than a chunk holds
    ((5, 7), 6, 1, 9, 3, 0, 0.5, 7),
    ((5, 7), 6, 1, 9, 3, 3, 0.0, 8),
    ((3, 4, 5), 6, 1, 9, 1, 1, 1.0, 9),
    ((3, 4, 5), 6, 2, 9, 3, 3, 0.5, 10),
    ((6, 7, 9), 16, 1, 64, 1, 10, 0.5, 11),
    ((1, 5, 4), 7, 5, 5, 3, 3, 0.3, 12),
    ((4, 1, 1), 8, 4, 16, 1, 10, 0.5, 13),
    ((1, 1, 1), 6, 1, 9, 3, 3, 0.5, 14),
    ((2, 1, 3), 6, 3, 9, 1, 3, 1.0, 15),
    ((18, 17, 16), 6, 1, 8, 1, 1, 1.0, 16),
    ((3, 4, 5), 6, 1, 9, 3, 0, 0.5, 17),
    ((3, 4, 5), 6, 1, 9, 3, 3, 0.0, 18),
]
each_case = pytest.mark.parametrize(
    ("spatial", "channels", "n_in", "hidden", "batch", "steps", "rate", "seed"), CASES, ids=str
)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["f64", "f32"]
)
@each_case
def test_forward(spatial, channels, n_in, hidden, batch, steps, rate, seed, dtype, tolerance):
    state, weights = make(spatial, channels, n_in, hidden, batch, dtype)
    given = state.clone()
    result = nca_steps(state, weights, steps, rate, seed, level=2)
    expected = reference(given, weights, steps, rate, seed, level=2)
    assert result.dtype == dtype
    assert difference(result, expected) < tolerance
    assert torch.equal(state, given)
    assert torch.equal(result[:, :n_in], given[:, :n_in])
    if steps == 0 or rate == 0:
        assert torch.equal(result, given)
    else:
        assert difference(result, given) > 1e-3


def gradients(function, state, weights, grad_out):
    tensors = [tensor.clone().requires_grad_() for tensor in (state, *weights)]
    return torch.autograd.grad(function(tensors[0], StepWeights(*tensors[1:])), tensors, grad_out)


@each_case
def test_gradients(spatial, channels, n_in, hidden, batch, steps, rate, seed):
    state, weights = make(spatial, channels, n_in, hidden, batch)
    grad_out = torch.randn(state.shape, dtype=state.dtype, generator=torch.Generator())
    ours = gradients(lambda s, w: nca_steps(s, w, steps, rate, seed, 1), state, weights, grad_out)
    if steps == 0 or rate == 0:
        expected = [grad_out, *(torch.zeros_like(weight) for weight in weights)]
    else:
        expected = gradients(
            lambda s, w: reference(s, w, steps, rate, seed, 1), state, weights, grad_out
        )
    for name, grad, wanted in zip(NAMES, ours, expected, strict=True):
        assert difference(grad, wanted) < 1e-11, name


@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 5)])
def test_float32_gradients(spatial):
    state, weights = make(spatial, dtype=torch.float32)
    ours = gradients(lambda s, w: nca_steps(s, w, 5), state, weights, torch.ones_like(state))
    expected = gradients(lambda s, w: reference(s, w, 5, 0.5), state, weights, state * 0 + 1)
    for name, grad, wanted in zip(NAMES, ours, expected, strict=True):
        assert difference(grad, wanted) < 2e-6, name


@pytest.mark.parametrize("spatial", [(3, 2), (1, 4), (2, 3, 2), (1, 1, 3)])
def test_gradcheck(spatial):
    state, weights = make(spatial, channels=3, n_in=1, hidden=4, batch=2)
    inputs = [tensor.requires_grad_() for tensor in (state, *weights)]
    assert torch.autograd.gradcheck(
        lambda s, *w: nca_steps(s, StepWeights(*w), 2, 0.5, seed=5), inputs
    )


def operator_arguments(engine, spatial, steps, keep, dtype=torch.float64, requires_grad=True):
    state, weights = make(spatial, dtype=dtype)
    tensors = [t.requires_grad_(requires_grad) for t in (state.movedim(1, -1), *weights)]
    origin = [0] * (len(spatial) * state.shape[0])
    return (*tensors, steps, 0.5, 3, 1, origin, keep, engine)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("spatial", [(5, 6), (3, 4, 5)])
def test_a_trajectory_kept_or_recomputed_gives_the_same_gradients(engine, spatial, steps):
    results = []
    for keep in (True, False):
        arguments = operator_arguments(engine, spatial, steps, keep)
        out, trajectory = OPERATOR(*arguments)
        channels = 6 if engine == "torch" else 4  # the C++ engine keeps those that change
        assert trajectory.numel() == (steps * out.numel() * channels // 6 if keep else 0)
        results.append((out, *torch.autograd.grad(out.square().sum(), arguments[:6])))
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


@only_torch
def test_the_trajectory_holds_the_input_state_of_every_step(engine):
    arguments = operator_arguments(engine, (4, 5), 3, keep=True, requires_grad=False)
    _, trajectory = OPERATOR(*arguments)
    state, weights = arguments[0].movedim(-1, 1), StepWeights(*arguments[1:6])
    for step in range(3):
        expected = reference(state, weights, step, 0.5, 3, 1)
        assert difference(trajectory[step].movedim(-1, 1), expected) < 1e-12


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("spatial", [(12, 11), (5, 6, 7)])
def test_nothing_but_input_states_and_weights_is_stored(engine, spatial, steps):
    state, weights = make(spatial, channels=16, n_in=1, hidden=64, dtype=torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (state, *weights)]
    stored = {}

    def pack(tensor):
        stored[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nca_steps(inputs[0], StepWeights(*inputs[1:]), steps)
    # The C++ engine: the last state, and room for the 15 channels that change.
    states = steps if engine == "torch" else 1 + steps * 15 / 16
    assert sum(stored.values()) == 4 * (
        states * state.numel() + sum(weight.numel() for weight in weights)
    )


def test_nothing_is_stored_without_gradients():
    state, weights = make((4, 5))
    with torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("stored"), lambda t: t):
        assert not nca_steps(state, weights, 3).requires_grad


def test_the_trajectory_gets_no_gradient_of_zeros():
    """Autograd would allocate as much as the trajectory itself."""
    state, weights = make((4, 5), dtype=torch.float32)
    out = nca_steps(state.requires_grad_(), weights, 50)
    with torch.profiler.profile(profile_memory=True) as profile:
        out.sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 50 * state.numel() * 4


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("spatial", [(4, 5), (3, 1, 4)])
def test_opcheck(engine, spatial, keep):
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if engine == "torch" or not keep:  # the unused end of the log differs from run to run
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(
        OPERATOR.default, operator_arguments(engine, spatial, 2, keep), test_utils=checks
    )


@pytest.mark.parametrize("spatial", [(4, 5), (3, 1, 4)])
def test_opcheck_of_the_backward(engine, spatial):
    arguments = operator_arguments(engine, spatial, 2, True, requires_grad=False)
    out, trajectory = OPERATOR(*arguments)
    torch.library.opcheck(
        torch.ops.nnunet_octreenca.nca_steps_backward.default,
        (torch.ones_like(out), out, trajectory, *arguments[1:6], *arguments[7:11], engine),
    )


@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 5)])
@pytest.mark.smoke
def test_compiled_equals_eager(spatial):
    state, weights = make(spatial)

    def loss(s, *w):
        return nca_steps(s.sin(), StepWeights(*w), 3, seed=9).cos().sum()

    torch.compiler.reset()  # a graph keeps the engine it was compiled with
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    inputs = [tensor.requires_grad_() for tensor in (state, *weights)]
    eager, traced = loss(*inputs), compiled(*inputs)
    assert torch.equal(eager, traced)
    for one, other in zip(
        torch.autograd.grad(eager, inputs), torch.autograd.grad(traced, inputs), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("spatial", "origin", "shape"),
    [
        ((24, 20), (5, 4), (12, 13)),
        ((24, 20), (0, 7), (9, 13)),  # reaches the upper and right border
        ((15, 17, 14), (3, 2, 1), (10, 11, 13)),
    ],
)
def test_a_crop_with_a_halo_equals_the_inside_of_the_whole(spatial, origin, shape, dtype):
    """A step carries information one cell further: with `steps` cells of halo nothing is lost."""
    steps = 3
    state, weights = make(spatial, channels=16, n_in=1, hidden=64, dtype=dtype)
    whole = nca_steps(state, weights, steps, seed=7, level=1)
    box = (..., *(slice(o, o + n) for o, n in zip(origin, shape, strict=True)))
    crop = nca_steps(state[box], weights, steps, seed=7, level=1, origin=origin, full_shape=spatial)
    inside = (
        ...,
        *(
            slice(0 if o == 0 else steps, n if o + n == full else n - steps)
            for o, n, full in zip(origin, shape, spatial, strict=True)
        ),
    )
    result, expected = crop[inside], whole[box][inside]
    if dtype == torch.float32:
        assert torch.equal(result, expected)
    else:  # MKL's float64 product depends on the number of rows, in the last bit
        assert difference(result, expected) < 1e-14


def test_a_crop_of_a_single_fired_cell_equals_the_whole_bit_for_bit():
    """MKL's product of a handful of rows rounds otherwise than that of many."""
    state, weights = make((30, 30), 16, 1, 64, 1, torch.float32)
    whole = nca_steps(state, weights, 1, 0.1, seed=3)
    for y in range(28):
        for x in range(28):
            box = (..., slice(y, y + 3), slice(x, x + 3))
            crop = nca_steps(state[box], weights, 1, 0.1, seed=3, origin=(y, x))
            assert torch.equal(crop[..., 1, 1], whole[..., y + 1, x + 1])


@pytest.mark.parametrize("spatial", [(131, 97), (17, 35, 29), (3, 3, 3)])
def test_the_number_of_threads_changes_no_bit(spatial):
    state, weights = make(spatial, 16, 1, 64, 1, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(nca_steps(state, weights, 3, seed=4))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("spatial", [(5, 6), (3, 4, 5)])
def test_every_sample_has_its_own_origin_and_draws(spatial):
    state, weights = make(spatial, batch=3)
    origins = [[11] * len(spatial), [0] * len(spatial), list(range(len(spatial)))]
    result = nca_steps(state, weights, 3, seed=7, origin=origins)
    assert difference(result, reference(state, weights, 3, 0.5, 7, 0, origins)) < 1e-12
    shared = nca_steps(state, weights, 3, seed=7, origin=origins[0])
    assert torch.equal(shared[0], result[0])
    assert difference(shared, reference(state, weights, 3, 0.5, 7, 0, origins[:1] * 3)) < 1e-12
    assert difference(shared[1], result[1]) > 1e-3


def test_autocast_changes_nothing():
    state, weights = make((6, 7), dtype=torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (state, *weights)]
    plain = nca_steps(inputs[0], StepWeights(*inputs[1:]), 3)
    plain_grads = torch.autograd.grad(plain.sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        result = nca_steps(inputs[0], StepWeights(*inputs[1:]), 3)
        grads = torch.autograd.grad(result.sum(), inputs)
    assert torch.equal(result, plain)
    assert all(torch.equal(a, b) for a, b in zip(grads, plain_grads, strict=True))


@pytest.mark.parametrize("layout", ["channels-first", "channels-last", "a strided view"])
def test_the_memory_layout_does_not_matter(layout):
    state, weights = make((6, 7), dtype=torch.float32)
    expected = nca_steps(state, weights, 2)
    if layout == "channels-last":
        state = state.contiguous(memory_format=torch.channels_last)
    elif layout == "a strided view":
        state = state.repeat_interleave(2, -1)[..., ::2]
    assert torch.equal(nca_steps(state, weights, 2), expected)


GOOD, WEIGHTS = make((4, 5))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"state": GOOD[:, :5]}, r"state \(2, 5, 4, 5\) must be \(N, 6, y, x\)"),
        ({"state": GOOD[0]}, r"state \(6, 4, 5\)"),
        ({"state": GOOD[..., None]}, r"state \(2, 6, 4, 5, 1\)"),
        ({"steps": -1}, r"steps \(-1\)"),
        ({"fire_rate": 1.5}, r"fire_rate \(1.5\)"),
        ({"origin": (0, 2), "full_shape": (4, 6)}, "axis 1: cells 2 to 6 .* the level's 6"),
        ({"origin": (-1, 0), "full_shape": (9, 9)}, "axis 0: cells -1 to 2"),
        ({"origin": [(0, 0), (0, 2)], "full_shape": (4, 6)}, "axis 1: cells 2 to 6"),
        ({"origin": (0, 0, 0)}, r"origin \(0, 0, 0\) must be 2 coordinates"),
        ({"origin": [(0, 0)]}, r"each of the 2 samples"),
    ],
)
def test_errors_name_the_values(arguments, named):
    with pytest.raises(ValueError, match=named):
        nca_steps(**{"state": GOOD, "weights": WEIGHTS, "steps": 1, **arguments})


@pytest.mark.parametrize(
    ("field", "shape", "named"),
    [
        ("perceive_weight", (6, 5, 5), r"kernel \(5, 5\)"),
        ("perceive_bias", (5,), r"perceive_bias \(5,\) must be \(6,\)"),
        ("hidden_weight", (9, 11), r"hidden_weight \(9, 11\) must have 12 columns"),
        ("hidden_bias", (8,), r"hidden_bias \(8,\) must be \(9,\)"),
        ("update_weight", (4, 8), r"update_weight \(4, 8\) must have 9 columns"),
        ("update_weight", (7, 9), "update_weight has 7 rows for 6 channels"),
        ("update_weight", (0, 9), "update_weight has 0 rows for 6 channels"),
    ],
)
def test_weights_that_do_not_fit_are_named(field, shape, named):
    weights = WEIGHTS._replace(**{field: torch.zeros(shape, dtype=torch.float64)})
    with pytest.raises(ValueError, match=named):
        nca_steps(GOOD, weights, 1)


def test_weights_tell_their_sizes():
    _, weights = make((2, 2, 2), channels=7, n_in=3, hidden=5)
    assert (weights.dimension, weights.channels, weights.input_channels) == (3, 7, 3)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 cannot derive them")
@pytest.mark.parametrize("name", ["_nca_steps", "_nca_steps_backward"])
def test_schemas_written_out_are_those_of_the_signatures(name):
    function = getattr(operator, name)
    given = str(function._opoverload._schema)
    derived = torch.library.infer_schema(function._init_fn, mutates_args=())
    assert given.partition("(")[2] == derived.partition("(")[2]
