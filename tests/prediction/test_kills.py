"""A run killed at any moment, and continued: all results, each whole, and nothing else."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.hashes import content_hash, file_hash
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.result_record import RECORDS, read_case_record

CASES, KILLS = 6, 10
FORMATS = ("png", "coco.json", "ome.zarr")

# Imports everything once and forks a run each time: a start would take longer than all runs.
# Nothing has computed in it before a fork, whose threads would be lost.
_RUNS = """
import os, signal, sys, time
import torch
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.prediction.folder import predict
import nnunet_octreenca.cli.predict, ome_zarr.writer, pycocotools.mask, zarr
model, images, out, *formats = sys.argv[1:]
for line in sys.stdin:
    seconds = float(line)
    child = os.fork()
    if not child:
        run = predict(images, out, model, formats=formats, resume=True, mirror=False)
        for failure in run.failed:
            print(failure.sentence, file=sys.stderr, flush=True)
        os._exit(len(run.failed))
    end = time.monotonic() + seconds
    ended = 0
    while not ended:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    print(os.waitstatus_to_exitcode(status), flush=True)
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
    command = [sys.executable, "-W", "ignore", "-c", _RUNS, model, images, out, *FORMATS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as runs:
        codes = [_run(runs, moments.uniform(0.02, 3 * one)) for _ in range(KILLS)]
        last = _run(runs, 60)
        runs.stdin.close()
    assert set(codes) <= {0, -9}
    assert codes.count(-9) >= KILLS // 2, "most runs ended before they were killed"
    assert last == 0
    _check_whole(out, undisturbed)


def _run(runs, seconds):
    """Let a run work for some seconds at most; its exit code."""
    print(seconds, file=runs.stdin, flush=True)
    return int(runs.stdout.readline())


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
