"""Every rung of the ladder compiles and spills nothing; what is counted falls from rung to rung."""

from collections import Counter

import pytest
from cuda_ladder import RUNGS
from kernel_counts import (
    blocks_of,
    conflicts,
    count,
    disassembler,
    outermost_loops,
    passes,
)

from nnunet_octreenca.errors import CudaError
from nnunet_octreenca.ops.cuda_compiler import nvrtc
from nnunet_octreenca.ops.native import cuda_module

CODE = """
.text.kernel:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/                   LDS.64 R2, [R4] ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0040*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0050*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0060*/                   LDS.64 R6, [R4] ;
.L_x_4:
        /*0070*/                   HMMA.16816.F32 R8, R4, R6, RZ ;
        /*0080*/               @P1 BRA `(.L_x_4) ;
.L_x_3:
        /*0090*/                   STS [R4], R8 ;
        /*00a0*/               @P2 BRA `(.L_x_1) ;
        /*00b0*/                   EXIT ;
//--------------------- .text.other
"""


def test_the_way_round_a_loop():
    """The way with most work, not the shortest; the loop over hidden units counts four times."""
    (counted,) = outermost_loops(blocks_of(CODE, "kernel"), "HMMA", ("HMMA",), ("BAR",))
    assert counted == Counter({"LDS.64": 2, "BRA": 6, "HMMA.16816.F32": 4, "STS": 1})
    (shortest,) = outermost_loops(blocks_of(CODE, "kernel"), "HMMA", ("IADD3",), ("BAR",))
    assert shortest == Counter({"LDS.64": 1, "IADD3": 2, "BRA": 3, "STS": 1})
    assert sum(passes(name) * number for name, number in counted.items()) == 5
    assert passes("LDG.E.128") == 4


def test_conflicts_of_what_chance_picks():
    assert conflicts(False, 1) == 1
    # Two cells that are drawn one after the other: an even number of places apart in a third.
    assert abs(conflicts(False, 2) - 4 / 3) < 0.03
    assert 1 <= conflicts(True, 2) < 1.05
    assert 1 <= conflicts(True, 4) < 1.15 < 1.6 < conflicts(False, 4)


@pytest.mark.nightly
@pytest.mark.slow
def test_every_rung_spills_nothing_and_passes_fall():
    if cuda_module() is None:
        pytest.skip("the module is not there")
    try:
        nvrtc()
        disassembler()
    except (CudaError, SystemExit) as error:
        pytest.skip(str(error))
    rows = [count(rung, 2, 90) for rung in RUNGS]
    assert all(row["stack_bytes"] == 0 for row in rows)
    by_number = {row["rung"]: row for row in rows}
    for numbers in (range(5, 11), range(11, 15)):
        several = [by_number[number] for number in numbers]
        assert len({row["warps_resident"] for row in several}) == 1
        each = [
            row["chunk_of_step_1"]["passes"] / row["chunk_of_step_1"]["cells"] for row in several
        ]
        assert each == sorted(each, reverse=True)
        assert each[-1] < 0.6 * each[0]
    # For 32 cells of which half fire, with lists and without.
    lists, dense = (by_number[number] for number in (10, 15))
    listed = lists["chunk_of_step_1"]["passes"] / 2
    listed += lists["list_of_step_1"]["passes_without_conflicts"]
    assert dense["chunk_of_step_1"]["cells"] == lists["chunk_of_step_1"]["cells"] == 32
    assert dense["chunk_of_step_1"]["passes"] < 0.75 * listed
    assert dense["warps_resident"] == lists["warps_resident"]
    split, rounded = (by_number[n]["chunk_of_step_1"]["instructions"] for n in (14, 13))
    assert split < 0.8 * rounded
