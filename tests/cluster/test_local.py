"""`--dask local:2`: a scheduler and workers that begin and end with the command."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.nightly
def test_workers_end_without_a_word(pictures, model_path, same_as_one_process, tmp_path):
    source = pictures("a", "b", "c")
    words = ["-m", model_path, "-i", source, "-o", tmp_path / "out", "-device", "cpu"]
    command = [sys.executable, "-m", "nnunet_octreenca.cli.main", "predict", *map(str, words)]
    command += ["--disable_tta", "--dask", "local:2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3 done" in done.stdout
    assert not done.stderr
    assert same_as_one_process(source) == 3
