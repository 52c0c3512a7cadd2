"""Prediction in a control group, as containers and schedulers make them: refused, not killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained_model import model_folder

LIMIT = 1_600_000_000  # bytes; Python and its libraries take some 0.9 GB of it

# Joins the group before anything is imported, then becomes the command.
_JOIN = """
import os, sys
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def group():
    """The file `cgroup.procs` of a group with `LIMIT` of memory, below this process's own."""
    names = dict(line.split(":", 2)[1:] for line in _lines(Path("/proc/self/cgroup")))
    base = Path("/sys/fs/cgroup")
    if "memory" in names:
        folder, limit = base / "memory" / names["memory"].lstrip("/"), "memory.limit_in_bytes"
    else:
        folder, limit = base / names.get("", "").lstrip("/"), "memory.max"
    folder /= f"octreenca-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error})")
    try:
        try:
            (folder / limit).write_text(str(LIMIT))
        except OSError as error:
            pytest.skip(f"no memory limit can be set here ({error})")
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def run(group: Path | None, *words: object) -> subprocess.CompletedProcess:
    """`python WORDS` in a group, or in this process's own."""
    command = [sys.executable, *map(str, words)]
    if group is not None:
        command = [sys.executable, "-c", _JOIN, str(group), *command[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_groups_limit_is_this_machines_memory(group):
    code = "from nnunet_octreenca.resources import total_memory; print(total_memory())"
    done = run(group, "-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == pytest.approx(LIMIT, rel=1e-3)  # whole pages


def test_what_does_not_fit_is_refused_and_the_rest_is_done(group, tmp_path):
    """The large image would be killed with its process; the small one has the usual labels."""
    model, images = model_folder(tmp_path / "model"), tmp_path / "in"
    images.mkdir()
    Image.fromarray(np.zeros((16_000, 20_000, 3), np.uint8)).save(images / "large.png")
    pixels = np.random.default_rng(0).integers(0, 255, (400, 300, 3), np.uint8)
    Image.fromarray(pixels).save(images / "small.png")
    words = ["-m", "nnunet_octreenca.cli.main", "predict", "-m", model, "--disable_tta"]
    done = run(group, *words, "-i", images, "-o", tmp_path / "out")
    assert done.returncode == 3, (done.returncode, done.stderr[-2000:])
    assert "large" in done.stderr
    assert "memory" in done.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"small.png"}
    free = run(None, *words, "-i", images / "small.png", "-o", tmp_path / "free")
    assert free.returncode == 0, free.stderr[-2000:]
    found, expected = (
        np.asarray(Image.open(tmp_path / name / "small.png")) for name in ("out", "free")
    )
    np.testing.assert_array_equal(found, expected)
