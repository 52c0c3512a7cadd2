"""A run killed at any moment, and continued: all results, each whole, and nothing else."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from helpers.killed_runs import killed_runs
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.hashes import content_hash, file_hash
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.result_record import RECORDS, read_case_record

CASES, KILLS = 6, 10
FORMATS = ("png", "coco.json", "ome.zarr")

_IMPORTS = """
import torch
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.folder import predict
import nnunet_octreenca.cli.predict, ome_zarr.writer, pycocotools.mask, zarr
"""
_WORK = """
    model, images, out, *formats = sys.argv[1:]
    run = predict(images, out, model, formats=formats, resume=True, mirror=False)
    for failure in run.failed:
        print(failure.sentence, file=sys.stderr, flush=True)
    return len(run.failed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_run_that_is_killed_again_and_again(tmp_path):
    model, images, out = model_folder(tmp_path / "model"), tmp_path / "in", tmp_path / "out"
    images.mkdir()
    for seed in range(CASES):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 44, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"p{seed}.png")
    undisturbed = predict(images, tmp_path / "undisturbed", model, formats=FORMATS, mirror=False)
    one = sum(undisturbed.done[-1].seconds.values())
    moments = random.Random(0)
    with killed_runs(_IMPORTS, _WORK, [model, images, out, *FORMATS]) as runs:
        codes = [runs.run(moments.uniform(0.02, 3 * one)) for _ in range(KILLS)]
        last = runs.run(60)
    assert set(codes) <= {0, -9}
    assert codes.count(-9) >= KILLS // 2, "most runs ended before they were killed"
    assert last == 0
    _check_whole(out, undisturbed)


def _check_whole(out, undisturbed):
    expected = names_in(Path(undisturbed.destination.folder))
    assert names_in(out) == expected
    for case in undisturbed.done:
        record = read_case_record(out / RECORDS / f"{case.case}.json")
        assert (record.state, record.labels) == ("finished", case.labels_sha256)
        for name, recorded in record.outputs.items():
            assert content_hash([out / name]) == recorded, "the record is of another file"
        for name in (f"{case.case}.png", f"{case.case}.coco.json"):
            assert file_hash(out / name) == case.outputs_sha256[name]


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
