import pytest
from helpers.oracle import native_kernels

from nnunet_octreenca.ops.native import KERNELS_VARIABLE


@pytest.fixture(scope="module")
def same_rounding():
    """The page's fused products are AVX2's; a machine without has nothing to compare with."""
    patch = pytest.MonkeyPatch()
    if "avx2" in native_kernels():
        patch.setenv(KERNELS_VARIABLE, "avx2")
    yield
    patch.undo()
