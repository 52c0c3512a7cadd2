"""A large case that several workers share has the bits of one process."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.clusters import SharerDies
from untrained_model import model_folder

from nnunet_octreenca.bands import Rows
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.ops.native import ENGINE_VARIABLE
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.prediction.segmentation import Segmentation

REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def image(shape, channels=3):
    values = np.random.default_rng(3).integers(1, 255, (channels, *shape), np.uint8)
    return ArraySource(values)


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize(
    ("about", "options"),
    [
        ({}, Options(mirror=False)),
        ({}, Options(mirror=True, seeds=(1, 2))),
        ({"labels": REGIONS, "regions": (1, 2)}, Options(mirror=False)),
    ],
    ids=["one pass", "ensemble", "regions"],
)
def test_rows_are_those_of_the_whole(tmp_path, monkeypatch, engine, about, options):
    monkeypatch.setenv(ENGINE_VARIABLE, engine)
    model = load_model(model_folder(tmp_path / "model", steps=2, **about))
    source = image((150, 37))
    whole = Segmentation(source, model, options)
    expected = whole.run()
    coarse = whole.coarse()
    height = whole.prepared.image(0).shape[0]
    cuts = [0, 40, 41, 100, height]
    parts = []
    for first, end in pairwise(cuts):
        other = Segmentation(source, model, options, whole.prepared.statistics)
        parts.append(other.rows(Rows(first, end), coarse))
    assert len(np.unique(expected)) > 1
    assert np.array_equal(whole.assembled(parts), expected)


def test_planes_of_a_volume_too(tmp_path):
    folder = model_folder(
        tmp_path / "model", patch=(8, 16, 16), channels=1, ending=".nii.gz", steps=1
    )
    model, options = load_model(folder), Options(mirror=False)
    whole = Segmentation(image((20, 19, 18), 1), model, options)
    parts = [whole.rows(Rows(a, b), whole.coarse()) for a, b in ((0, 7), (7, 20))]
    assert np.array_equal(whole.assembled(parts), whole.run())


def test_the_coarsest_level_of_another_image_is_refused(tmp_path):
    model = load_model(model_folder(tmp_path / "model", steps=1))
    options = Options(mirror=False)
    coarse = Segmentation(image((90, 80)), model, options).coarse()
    with pytest.raises(ValueError, match="that of another image, or of other kernels"):
        Segmentation(image((180, 80)), model, options).rows(Rows(0, 90), coarse)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of few steps: its margins are narrow, and small pictures can be split."""
    return load_model(model_folder(tmp_path_factory.mktemp("models") / "split", steps=1))


def test_a_slide_is_shared_though_a_worker_dies(
    cluster, pictures, segment, same_as_one_process, tmp_path
):
    workers = [cluster.add() for _ in range(3)]
    source = pictures("slow_large", shape=(1500, 60))
    tick = SharerDies(tmp_path / "out", "slow_large", workers[2])
    found = segment(cluster, source, tick=tick, split_above=10_000)
    assert len(tick.seen) > 3, "the coarsest level and several bands"
    assert [ended.state for ended in found.records] == ["done"]
    assert same_as_one_process(source) == 1
    assert not list((tmp_path / "out").glob(".octreenca/cluster*"))
