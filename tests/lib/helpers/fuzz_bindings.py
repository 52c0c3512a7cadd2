"""Arguments of every kind for the native modules: a call returns, or raises with a sentence.

    python tests/lib/helpers/fuzz_bindings.py PATH_OF__cpu.so 2000

A crash ends the process. Needs NumPy and hypothesis only, so that it runs under sanitizers.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

REFUSALS = (ValueError, TypeError, MemoryError, OverflowError)
ABSURD = (-1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**64, -(2**63))


def often(value: Any, *others: st.SearchStrategy) -> st.SearchStrategy:
    """The value that fits, mostly."""
    return st.one_of(*[st.just(value)] * 8, *others)


def absurd() -> st.SearchStrategy:
    """Numbers that fit nothing."""
    return st.sampled_from((*ABSURD, 1.5, None, "7"))


class Given:
    """Draws arguments; the module's kernels are asked for once."""

    def __init__(self, data: st.DataObject, module: ModuleType) -> None:
        self.draw = data.draw
        self.module = module

    def number(self, *usual: int) -> Any:
        """One of some numbers, or one that fits nothing."""
        return self.draw(st.one_of(*[st.sampled_from(usual)] * 8, absurd()))

    def sizes(self, axes: int) -> tuple[int, ...]:
        return tuple(self.draw(st.sampled_from((1, 2, 3, 7, 0))) for _ in range(axes))

    def text(self, *usual: str) -> str:
        return self.draw(st.one_of(*[st.sampled_from(usual)] * 8, st.text(max_size=4)))

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """An array of the shape, or one that is odd in some way."""
        plain = np.zeros(shape, dtype)
        kind = self.draw(often("plain", st.sampled_from(sorted(ODD))))
        return plain if kind == "plain" else ODD[kind](plain, self.draw)

    def kernels(self) -> str:
        return self.text(*self.module.kernels())

    def weights(self, dimension: int, channels: int, inputs: int, hidden: int, dtype: Any) -> Any:
        kernel = (3,) * dimension
        shapes = [
            (channels, *kernel), (channels,), (hidden, 2 * channels), (hidden,),
            (max(channels - inputs, 0), hidden),
        ]  # fmt: skip
        if self.draw(often(False, st.just(True))):
            shapes.pop()
        return [self.array(shape, dtype) for shape in shapes]


def _strided(plain: np.ndarray, draw: Any) -> np.ndarray:
    """Strides of any number of bytes within a buffer that is large enough."""
    strides = [draw(st.sampled_from((0, 1, 3, 4, 6, 8, 12, 64))) for _ in plain.shape]
    size = sum(s * max(n - 1, 0) for s, n in zip(strides, plain.shape, strict=True))
    memory = np.zeros(size + 64, np.uint8)[: (size + 64) // 8 * 8].view(plain.dtype)
    return as_strided(memory, plain.shape, strides)


def _unaligned(plain: np.ndarray, draw: Any) -> np.ndarray:
    memory = np.zeros(plain.nbytes + 8, np.uint8)[1 : 1 + plain.nbytes]
    return memory.view(plain.dtype).reshape(plain.shape)


def _huge(plain: np.ndarray, draw: Any) -> np.ndarray:
    """As many cells as an index can count, all of them the same number."""
    shape = list(plain.shape) or [1]
    shape[draw(st.integers(0, len(shape) - 1))] = draw(st.sampled_from((2**31 - 1, 2**31, 2**40)))
    return np.broadcast_to(np.zeros((), plain.dtype), shape)


def _read_only(plain: np.ndarray, draw: Any) -> np.ndarray:
    plain.flags.writeable = False
    return plain


ODD: dict[str, Any] = {
    "strided": _strided,
    "unaligned": _unaligned,
    "huge": _huge,
    "read-only": _read_only,
    "reversed": lambda plain, draw: plain[tuple(slice(None, None, -1) for _ in plain.shape)],
    "Fortran": lambda plain, draw: np.asfortranarray(plain),
    "wider": lambda plain, draw: plain.astype(np.float64),
    "swapped": lambda plain, draw: plain.astype(plain.dtype.newbyteorder()),
    "fewer axes": lambda plain, draw: plain[0] if plain.ndim and len(plain) else plain,
    "more axes": lambda plain, draw: plain[None],
    "longer": lambda plain, draw: np.concatenate([plain, plain]) if plain.ndim else plain,
    "empty": lambda plain, draw: plain[:0] if plain.ndim else plain,
    "none": lambda plain, draw: None,
    "list": lambda plain, draw: [1, 2],
}


def call(function: Any, *arguments: Any) -> Any:
    """What it returns; None where it refuses, with a sentence."""
    try:
        return function(*arguments)
    except MemoryError:
        return None
    except REFUSALS as error:
        sentence = str(error)
    assert sentence.strip(), "no sentence"
    return None


# ------------------------------------------------------------------ one binding each


def copy(given_: Given) -> None:
    """`copy`"""
    dtype = given_.draw(st.sampled_from((np.float32, np.float64)))
    shape = given_.sizes(given_.draw(st.integers(1, 5)))
    call(
        given_.module.copy, given_.array(shape, dtype), given_.array(shape, dtype),
        given_.number(1, 2),
    )  # fmt: skip


def level(given_: Given) -> SimpleNamespace:
    """What the steps of a level, forward and backward, take alike."""
    dimension = given_.draw(st.sampled_from((2, 3)))
    channels = given_.draw(st.sampled_from((1, 2, 5, 16)))
    inputs = given_.draw(st.integers(0, channels - 1))
    hidden = given_.draw(st.sampled_from((1, 3, 64)))
    dtype = given_.draw(st.sampled_from((np.float32, np.float64)))
    batch, steps = given_.draw(st.integers(0, 2)), given_.number(0, 1, 2)
    shape = (batch, *given_.sizes(dimension), channels)
    count = steps if isinstance(steps, int) and 0 <= steps < 4 else 1
    return SimpleNamespace(
        state=given_.array(shape, dtype),
        shape=shape,
        dtype=dtype,
        weights=given_.weights(dimension, channels, inputs, hidden, dtype),
        gradients=given_.weights(dimension, channels, inputs, hidden, dtype),
        draws=(given_.number(0, 7), given_.number(0, 3), given_.number(0, 2**31, 2**32)),
        steps=steps,
        origins=[[given_.number(0, 5) for _ in range(dimension)] for _ in range(batch)],
        log=given_.array((count, *shape[:-1], channels - inputs), dtype),
    )


def steps_forward(given_: Given) -> None:
    """`steps_forward`"""
    at = level(given_)
    call(
        given_.module.steps_forward, at.state, at.weights, at.steps, *at.draws, at.origins,
        given_.draw(st.sampled_from((at.log, None))), given_.kernels(), given_.number(1, 2),
        given_.text("auto", "sweep", "wavefront"), given_.draw(st.booleans()),
    )  # fmt: skip


def steps_backward(given_: Given) -> None:
    """`steps_backward`"""
    at = level(given_)
    call(
        given_.module.steps_backward, at.state, at.log, given_.array(at.shape, at.dtype),
        at.weights, at.gradients, at.steps, *at.draws, at.origins, given_.kernels(),
        given_.number(1, 2), given_.draw(st.booleans()),
    )  # fmt: skip


def between_levels(given_: Given) -> None:
    """`enter`, `enter_backward`, `hand_down`, `heads`, `heads_backward`"""
    dimension = given_.draw(st.sampled_from((2, 3)))
    channels = given_.draw(st.sampled_from((1, 3, 16)))
    inputs = given_.draw(st.integers(0, channels))
    batch = given_.draw(st.integers(0, 2))
    dtype = given_.draw(st.sampled_from((np.float32, np.float64)))
    above = given_.sizes(dimension)
    factor = [given_.number(1, 2) for _ in range(dimension)]
    below = tuple(2 * n if f == 2 else n for n, f in zip(above, factor, strict=True))

    def array(*shape: int) -> Any:
        return given_.array(shape, dtype)

    def origins() -> list[list[Any]]:
        return [[given_.number(0, 0, 0, 2) for _ in range(dimension)] for _ in range(batch)]

    more = given_.draw(st.sampled_from((channels, channels, channels + 4)))
    parents = array(batch, *above, more)
    state = array(batch, *below, channels)
    matrix = None
    if given_.draw(often(more != channels, st.booleans())):
        matrix = array(max(channels - inputs, 0), max(more - inputs, 0))
    call(
        given_.module.enter, array(batch, inputs, *below), origins(), state, origins(),
        given_.draw(st.sampled_from((parents, None))), origins(), factor, matrix,
        given_.kernels(), given_.number(1, 2),
    )  # fmt: skip
    call(
        given_.module.enter_backward,
        state,
        origins(),
        parents,
        origins(),
        given_.number(inputs, 0),
        factor,
        given_.draw(often(parents, st.none())),
        matrix,
        given_.draw(often(matrix, st.none())),
        given_.kernels(),
        given_.number(1, 2),
    )
    call(
        given_.module.hand_down, array(*above, more), array(channels, more),
        array(*above, channels), given_.kernels(), given_.number(1, 2),
    )  # fmt: skip
    values = array(batch, given_.draw(st.integers(0, 4)), *below)
    background = given_.draw(st.booleans())
    rest = (given_.number(inputs, 0), background)
    call(given_.module.heads, state, *rest, values, given_.number(1, 2))
    call(given_.module.heads_backward, values, *rest, state, given_.number(1, 2))


def fire_mask(given_: Given) -> None:
    """`fire_mask`"""
    shape = given_.sizes(3)
    fired = given_.draw(
        often(given_.array(shape, np.uint8), st.just(np.empty((2**31 - 1, 2**31 - 1, 0), np.uint8)))
    )
    call(
        given_.module.fire_mask, fired, given_.number(0, 9), given_.number(1, 2**31),
        *(given_.number(0, 2**32 - 1) for _ in range(3)), given_.number(1, 2),
    )  # fmt: skip


def small_calls(given_: Given) -> None:
    """`ring_slots`, `burn`, `lanes`, `native_bf16`"""
    module = given_.module
    axes = [given_.number(1, 7, 100) for _ in range(given_.draw(st.integers(0, 4)))]
    call(module.ring_slots, axes, given_.number(0, 1, 10))
    call(module.lanes, given_.kernels())
    call(module.native_bf16, given_.kernels())
    rounds = given_.draw(st.sampled_from((0, 1, 100, -1, -(2**63), 2**63, None)))
    call(module.burn, given_.kernels(), given_.number(1, 2), rounds)


def network(given_: Given) -> tuple[int, int, int, tuple[Any, ...]]:
    """Dimension, image channels, logits, and the arguments that octrees take alike."""
    dimension = given_.draw(st.sampled_from((2, 3)))
    channels = given_.draw(st.sampled_from((2, 5, 16)))
    inputs = given_.draw(st.integers(0, channels - 1))
    levels = given_.draw(often(2, st.sampled_from((0, 1, 3, 40))))
    hidden = given_.draw(st.sampled_from((1, 3, 64)))
    drawn = min(levels, 3)
    weights = [
        given_.weights(dimension, channels, inputs, hidden, np.float32) for _ in range(drawn)
    ]
    steps = [given_.number(0, 1, 2) for _ in range(drawn)]
    factors = [[given_.number(1, 2) for _ in range(dimension)] for _ in range(drawn - 1)]
    if levels > drawn:
        weights, steps, factors = weights[:1] * levels, [1] * levels, factors[:1] * (levels - 1)
    logits = given_.number(1, channels - inputs)
    maps = [given_.draw(often(None, st.just(np.zeros((1, 1), "f4")))) for _ in factors]
    shared = (weights, steps, factors, maps, given_.number(0, 7), given_.number(0, 2**31, 2**32))
    return dimension, inputs, logits, (*shared, given_.number(0, 1), logits)


def result(given_: Given, shape: tuple[int, ...], logits: Any, background: Any) -> tuple[Any, Any]:
    """Labels and values, one of them None."""
    if given_.draw(st.booleans()):
        dtype = given_.draw(st.sampled_from((np.uint8, np.int16, np.float32)))
        return given_.array(shape, dtype), given_.draw(often(None, st.just(np.zeros(1, "f4"))))
    heads = (logits if isinstance(logits, int) and 0 < logits < 99 else 1) + bool(background)
    return None, given_.array((heads, *shape))


def octree_forward(given_: Given) -> None:
    """`octree_forward`"""
    dimension, inputs, logits, shared = network(given_)
    shape = given_.sizes(dimension)
    background = given_.draw(st.booleans())
    call(
        given_.module.octree_forward, given_.array((inputs, *shape)), *shared, background,
        *result(given_, shape, logits, background), given_.kernels(), given_.number(1, 2),
        given_.text("auto", "sweep", "wavefront"), *(given_.draw(st.booleans()) for _ in range(3)),
    )  # fmt: skip


def octree_stream(given_: Given) -> None:
    """`OctreeStream`, its calls in any order"""
    dimension, inputs, logits, shared = network(given_)
    shape = tuple(given_.draw(st.sampled_from((1, 5, 9, 16))) for _ in range(dimension))
    background = given_.draw(st.booleans())
    axes = given_.draw(often(list(shape), st.just([given_.number(3, 9) for _ in shape])))
    stream = call(
        given_.module.OctreeStream, axes, *shared, background, given_.kernels(),
        given_.number(1, 2), *(given_.draw(st.booleans()) for _ in range(3)),
    )  # fmt: skip
    if stream is None:
        return
    in_order = given_.draw(st.booleans())
    image = np.zeros((inputs, *shape), np.float32)
    if in_order:
        call(stream.pool, image, 0)
        call(stream.prepare)
        call(stream.begin, 0, shape[0])
    for _ in range(given_.draw(st.integers(1, 6))):
        first = given_.number(0, 1, 4, 8)
        rows = given_.draw(st.sampled_from((1, 4, 8, shape[0])))
        band = (inputs, rows, *shape[1:])
        action = given_.draw(st.sampled_from(("pool", "prepare", "begin", "ready", "advance")))
        if action == "pool":
            call(stream.pool, given_.array(band), first)
        elif action == "prepare":
            call(stream.prepare)
        elif action == "begin":
            call(stream.begin, first, given_.number(1, shape[0]))
        elif action == "ready":
            call(stream.ready, given_.number(0, 3, shape[0]))
        else:
            done = given_.draw(st.sampled_from((0, 1, rows, shape[0])))
            call(
                stream.advance, given_.array(band), first,
                *result(given_, (done, *shape[1:]), logits, background),
            )  # fmt: skip
        assert stream.factor >= 1
        assert all(0 <= found <= checked for found, checked in stream.non_finite())


BINDINGS = (
    copy, steps_forward, steps_backward, between_levels, fire_mask, small_calls, octree_forward,
    octree_stream,
)  # fmt: skip


def fuzz(binding: Any, module: ModuleType, examples: int) -> None:
    """Call a binding so often, with the same arguments in every run."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        binding(Given(data, module))

    run()


def load(path: str) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("_cpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    tested = load(sys.argv[1])
    for one in BINDINGS:
        fuzz(one, tested, int(sys.argv[2]))
        print(f"{one.__name__}: no crash in {sys.argv[2]} calls", flush=True)
