"""The memory model against what the operating system measures (benchmarks/memory_model.py)."""

import importlib.util
import sys
from pathlib import Path

import pytest

from nnunet_octreenca.octree import Crop
from nnunet_octreenca.ops.native import cpu_module, cpu_module_problem
from nnunet_octreenca.planning import Output, inference_bytes, stream_bytes, training_bytes

_PATH = Path(__file__).parents[2] / "benchmarks" / "memory_model.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("memory_model", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Each task, each engine and the options that change the sum most.
EVERY_PUSH = (
    "hippocampus, C++",
    "radiology, cropped",
    "20 classes, a loss on every level, C++",
    "one slide, C++",
    "one volume",
    "streamed slide, C++",
    "hippocampus, wide coarse levels, C++",
)
NIGHTLY = (
    "hippocampus, wide coarse levels",
    "streamed slide, wide coarse levels, C++",
    "one volume, C++",
    "pathology, C++",
    "radiology, cropped, a loss on every level",
    "hippocampus",
    "pathology",
    "20 classes, C++",
    "20 classes",
    "150 classes",
    "large slide",
    "one slide",
    "40 classes, mirrored",
    "streamed volume, C++",
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    "case", [*EVERY_PUSH, *(pytest.param(case, marks=pytest.mark.nightly) for case in NIGHTLY)]
)
def test_the_model_is_right_within_15_percent(benchmark, case):
    if benchmark.CASES[case].engine == "cpu" and cpu_module() is None:
        pytest.skip(f"the C++ module is not there: {cpu_module_problem()}")
    row = benchmark.measure(case)
    assert 0.85 < row["ratio"] < 1.15, row


SMALL = {"channels": 16, "hidden": 64, "input_channels": 1, "num_classes": 2}
CHUNK = 4096 * (4 * 16 + 3 * 64) * 4


def test_training_bytes_written_out():
    """Ten states kept on level 0, eight more at work; three kept on level 1; the images."""
    needed = training_bytes((40, 50), factors=[(2, 2)], steps=[10, 3], batch_size=2, **SMALL)
    fine, coarse = 2 * 40 * 50, 2 * 20 * 25
    states = 16 * 4 * (10 * fine + 3 * coarse + 8 * fine)
    assert needed == states + 4 * (fine + coarse) + CHUNK


def test_a_crop_counts_on_its_levels_and_the_whole_image_is_kept():
    needed = training_bytes(
        (40, 50), factors=[(2, 2)], steps=[10, 3], batch_size=2, crop=Crop((8, 10), 1), **SMALL
    )
    crop, fine, coarse = 2 * 8 * 10, 2 * 40 * 50, 2 * 20 * 25
    states = 16 * 4 * (10 * crop + 3 * coarse + 8 * coarse)
    assert needed == states + 4 * (fine + coarse) + CHUNK


def test_a_loss_on_every_level_counts_logits_and_truth():
    """Seven copies of 40 classes' logits on both levels, and the truth of the coarse one."""
    sizes = {**SMALL, "num_classes": 40}
    network = {"factors": [(2, 2)], "steps": [1, 1], "batch_size": 2}
    needed = training_bytes((40, 50), **network, **sizes, every_level=True)
    fine, coarse = 2 * 40 * 50, 2 * 20 * 25
    heads = 40 * 4 * (7 * (fine + coarse) + coarse)
    assert needed == 16 * 4 * (fine + coarse) + heads + 4 * (fine + coarse) + CHUNK


def test_inference_needs_the_same_for_any_number_of_steps_and_little_a_pixel():
    """DESIGN section 5: PyTorch OctreeNCA took its authors 269 bytes per pixel, U-Net 2,745."""
    sizes = {"factors": [(2, 2)] * 4, "channels": 16, "hidden": 64, "num_classes": 2}
    sizes["steps"] = [10, 10, 10, 10, 20]
    whole = inference_bytes((4000, 3000), input_channels=3, **sizes)
    half = inference_bytes((2000, 3000), input_channels=3, **sizes)
    assert (whole - half) / 6e6 == pytest.approx(5.3 * 64 + 2 * 2 * 4 + 3 * 4 * 4 / 3, rel=1e-3)


def test_the_cpp_engine_keeps_what_fires_and_changes():
    """Of ten steps half the cells, 15 of 16 channels; the last state; 2 states at work."""
    needed = training_bytes(
        (40, 50), factors=[(2, 2)], steps=[10, 3], batch_size=2, engine="cpu", **SMALL
    )
    fine, coarse = 2 * 40 * 50, 2 * 20 * 25
    log = 15 * 4 * 0.5 * (10 * fine + 3 * coarse)
    assert needed == log + 64 * (fine + coarse) + 2 * 64 * fine + 4 * (fine + coarse)


@pytest.mark.parametrize("engine", ["torch", "cpu", "cuda"])
def test_every_level_counts_with_its_own_channels(engine):
    """A list of equal numbers is the number; wide coarse levels alone need less than all wide."""
    rest = {"factors": [(2, 2)] * 2, "steps": [3, 3, 5], "input_channels": 1, "num_classes": 3}
    training = {"batch_size": 2, "engine": engine}
    streaming = {"band_rows": 40, "engine": engine}

    def needed(channels, hidden):
        sizes = {"channels": channels, "hidden": hidden, **rest}
        return (
            training_bytes((200, 300), **sizes, **training),
            inference_bytes((200, 300), **sizes, engine=engine),
            sum(stream_bytes((200, 300), **sizes, **streaming)),
        )

    narrow, wide = needed(16, 64), needed(48, 192)
    assert needed([16] * 3, [64] * 3) == narrow
    between = needed([16, 32, 48], [64, 128, 192])
    assert all(low <= here < high for low, here, high in zip(narrow, between, wide, strict=True))
    assert narrow[0] < between[0]


def test_a_slide_needs_its_parents_and_some_rows_in_the_cpp_engine():
    sizes = {"factors": [(2, 2)] * 4, "channels": 16, "hidden": 64, "num_classes": 2}
    sizes["steps"] = [10, 10, 10, 10, 20]
    whole = inference_bytes((4000, 3000), input_channels=3, engine="cpu", **sizes)
    half = inference_bytes((2000, 3000), input_channels=3, engine="cpu", **sizes)
    # A quarter of the cells are parents; two float heads; the images of all levels.
    assert (whole - half) / 6e6 == pytest.approx(64 / 4 + 2 * 4 + 12 * 4 / 3, rel=1e-3)


STREAM = {
    "factors": [(2, 2)] * 4, "steps": [10, 10, 10, 10, 20], "channels": 16, "hidden": 64,
    "input_channels": 3, "num_classes": 2, "band_rows": 64,
}  # fmt: skip


def test_a_streamed_slide_grows_by_its_coarsest_level():
    """16 x 16 pixels to a node of 64 bytes: a quarter of a byte a pixel."""
    once = stream_bytes((16_000, 8_000), **STREAM)
    twice = stream_bytes((32_000, 8_000), **STREAM)
    assert (twice.host - once.host) / (16_000 * 8_000) == pytest.approx(64 / 256, rel=0.01)
    assert once.device == 0


@pytest.mark.parametrize("engine", ["cpu", "cuda", "torch"])
def test_what_makes_a_stream_larger(engine):
    def needed(**changes):
        return sum(stream_bytes((4_000, 8_000), **{**STREAM, "engine": engine, **changes}))

    assert needed(band_rows=512) > needed()
    logits = needed(output=Output.LOGITS)
    assert needed(passes=4, output=Output.LOGITS) > logits > needed()
    if engine != "torch":
        assert needed(half=True) < needed()
