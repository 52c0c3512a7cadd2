"""Memory against size: what one pass takes, and that an image that takes too much ends it."""

import pytest
import untrained_model
from memory_against_size import conditions, rows_of, unet

from nnunet_octreenca.comparison.trained.memory import (
    SHAPES,
    MemoryMeasuringError,
    Sizes,
    measure_sizes,
    sizes_table,
)
from nnunet_octreenca.files import write_json
from nnunet_octreenca.integration import memory_job
from nnunet_octreenca.integration.register import TRAINER_SHIMS
from nnunet_octreenca.ops.native import cpu_module
from nnunet_octreenca.planning import extend_plans


def job(trainer: str, axes: int = 2, **options) -> dict:
    """A method's job, with plans as nnU-Net makes them."""
    channels = 3 if axes == 2 else 1
    plans = untrained_model.stock_plans((64,) * axes, channels)
    (configuration,) = plans["configurations"].values()
    configuration["architecture"] = unet(axes, residual=False)
    labels = options.get("labels", {"background": 0, "a": 1, "b": 2})
    regions = "regions_class_order" in options
    if trainer == "OctreeNCATrainer":
        plans = extend_plans(
            plans, input_channels=channels, num_classes=3 - regions, foreground_labels=2,
            has_regions=regions,
        )  # fmt: skip
    described = {
        "channel_names": {str(c): "c" for c in range(channels)},
        "labels": labels,
        "numTraining": 1,
        "file_ending": ".png",
        **{key: value for key, value in options.items() if key == "regions_class_order"},
    }
    return {
        "trainer": trainer,
        "plans": plans,
        "dataset": described,
        "configuration": "2d" if axes == 2 else "3d_fullres",
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def _trainers_are_known(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINER_SHIMS))


def taken(asked: dict, *sides: int) -> list[dict]:
    """What a job answers in this process."""
    axes = 2 if asked["configuration"] == "2d" else 3
    first, *rows = memory_job.measured({**asked, "shapes": [[side] * axes for side in sides]})
    assert first["resident"] > 1 << 20
    return rows


@pytest.mark.parametrize(
    ("trainer", "axes", "shape", "parameters"),
    [
        ("OctreeNCATrainer", 2, [60, 60], 4 * 3136),
        ("MedNCATrainer", 2, [60, 60], 6208),
        ("M3DNCATrainer", 3, [60, 60, 60], 7168),
        ("TinyUNetTrainer", 2, [64, 64], 36_000),
        ("nnUNetTrainer", 2, [128, 128], 33_000_000),
    ],
)
def test_every_network_takes_its_whole_image(trainer, axes, shape, parameters):
    """Sizes are rounded up to what a network divides; automata take them as they are."""
    (row,) = taken(job(trainer, axes), 60)
    assert row["shape"] == shape
    assert row["voxels"] == shape[0] ** axes
    assert row["parameters"] == pytest.approx(parameters, rel=0.35)


def test_making_a_network_does_not_count():
    """VGG11 comes with a classifier of 0.4 GB, which no segmentation keeps."""
    pytest.importorskip("segmentation_models_pytorch")
    (row,) = taken(job("UNetVGG11Trainer"), 64)
    assert row["bytes"] < 5 * 4 * row["parameters"]


def test_regions_have_no_argmax():
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    asked = job("OctreeNCATrainer", labels=labels, regions_class_order=[1, 2])
    assert taken(asked, 64)[0]["shape"] == [64, 64]


@pytest.mark.skipif(cpu_module() is None, reason="the C++ engine is not built")
def test_the_engine_holds_what_it_promises():
    """A float32 image of three channels, some 20 bytes a pixel, and little that does not grow."""
    small, large = (row["bytes"] for row in taken(job("OctreeNCATrainer"), 512, 2048))
    each = (large - small) / (2048**2 - 512**2)
    assert 12 < each < 45


def test_what_takes_too_much_is_ended(tmp_path):
    """Features of 8 channels and more, so a hundred bytes a pixel at least: 64 megapixels do not
    fit in 300 MB."""
    shapes = [(128, 128), (256, 256), (8192, 8192)]
    found = measure_sizes(job("TinyUNetTrainer"), shapes, 300_000_000, tmp_path / "log")
    assert [row["shape"] for row in found.rows] == [[128, 128], [256, 256]]
    assert found.too_large == (8192, 8192)
    assert found.too_slow is None
    assert found.curve()["points"][0][0] == pytest.approx(0.016384)


def test_what_takes_too_long_is_no_question_of_memory(tmp_path):
    """4096 x 4096 pixels take a second and more, but less than 16 GB."""
    shapes = [(64, 64), (4096, 4096), (8192, 8192)]
    found = measure_sizes(job("TinyUNetTrainer"), shapes, 16 << 30, tmp_path / "log", seconds=0.2)
    assert found.too_large is None
    assert found.too_slow == shapes[len(found.rows)]
    row = {"shape": [64, 64], "voxels": 4096, "bytes": 4096 * 300}
    table = sizes_table({"A": Sizes(5, (row,), None, (4096, 4096))}, 16 << 30)
    assert table.rows[0][1].text == "64 x 64 or more (time ended it)"


def test_rows_measured_otherwise_are_not_mixed(tmp_path):
    path = tmp_path / "rows.json"
    common = conditions("cpu", 1 << 30, 300.0)
    assert rows_of(path, common) == []
    write_json(path, {**common, "rows": [{"method": "A"}]})
    assert rows_of(path, common) == [{"method": "A"}]
    with pytest.raises(SystemExit, match=r"limit_bytes 1073741824, not 2147483648; give --into"):
        rows_of(path, conditions("cpu", 2 << 30, 300.0))


def test_what_fails_otherwise_says_so(tmp_path):
    asked = job("MedNCATrainer", 3)
    with pytest.raises(MemoryMeasuringError, match=r"MedNCATrainer cannot .*: .*is for 2-D images"):
        measure_sizes(asked, SHAPES[3], 1 << 30, tmp_path / "log")


def test_the_papers_figures_stand_below():
    row = {"shape": [256, 256], "voxels": 65536, "bytes": 65536 * 30}
    rows = sizes_table({"A": Sizes(5, (row,), None), "B": Sizes(0, (), (256, 256))}, 1 << 30).rows
    assert [cell.text for cell in rows[0]] == ["A", "256 x 256 or more", "0.07", "0.00", "30"]
    assert rows[1][1].text == "–"
    paper = {row[0].text: row[4].text for row in rows[2:]}
    assert paper["paper: U-Net"] == "2,745"
    assert paper["paper: OctreeNCA, their CUDA kernel"] == "139"
