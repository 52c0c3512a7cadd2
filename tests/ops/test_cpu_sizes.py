"""What the memory model assumes of the C++ engine against what the engine says."""

import pytest

from nnunet_octreenca.ops import cpu_sizes
from nnunet_octreenca.ops.native import cpu_kernels, cpu_module, cpu_module_problem

MODULE = cpu_module()


def without_the_module(monkeypatch):
    monkeypatch.setattr(cpu_sizes, "cpu_module", lambda: None)


@pytest.mark.skipif(MODULE is None, reason=f"the C++ module is not there: {cpu_module_problem()}")
@pytest.mark.parametrize(
    "shape", [(4000, 3000), (64, 500), (64, 501), (64, 90), (64, 10), (9, 20, 31), (64, 2, 3)]
)
@pytest.mark.parametrize("steps", [0, 1, 10, 33])
def test_rings_are_as_long_with_and_without_the_module(shape, steps, monkeypatch):
    native = cpu_sizes.ring_slots(shape, steps)
    assert native == MODULE.ring_slots(list(shape), steps)
    without_the_module(monkeypatch)
    assert cpu_sizes.ring_slots(shape, steps) == native


@pytest.mark.skipif(MODULE is None, reason=f"the C++ module is not there: {cpu_module_problem()}")
def test_vectors_are_as_long_with_and_without_the_module(monkeypatch):
    assert cpu_sizes.lanes() == MODULE.lanes(cpu_kernels())
    if "avx2" not in MODULE.kernels():
        pytest.skip("this processor has no AVX2, whose vectors the memory model assumes")
    monkeypatch.setenv("OCTREENCA_CPU_KERNELS", "avx2")
    native = cpu_sizes.lanes()
    without_the_module(monkeypatch)
    assert cpu_sizes.lanes() == native == 8


def test_a_ring_written_out():
    """Ten steps, each two rows behind the one before; two batches of two rows of 500 cells."""
    assert cpu_sizes.computed_ring_slots((64, 500), 10) == 20 + 4 + 2 * 2
