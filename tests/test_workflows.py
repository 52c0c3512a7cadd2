"""The forge's workflows: what they call exists, and what they use is pinned."""

import argparse
import ast
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import matrix
import pytest
from helpers.doc_blocks import ROOT

from nnunet_octreenca.cli.main import build_parser

yaml = pytest.importorskip("yaml")

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.yml")
}
JOBS = {
    f"{name} {job}": body for name, workflow in WORKFLOWS.items() for job, body in
    workflow["jobs"].items()
}  # fmt: skip
STEPS = {
    f"{name} {number}": step for name, job in JOBS.items() for number, step in
    enumerate(job["steps"])
}  # fmt: skip
RUN = {name: step for name, step in STEPS.items() if "run" in step}
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PINNED = re.compile(r"[\w.-]+/[\w./-]+@(v\d+(\.\d+)*|[0-9a-f]{40})")
# Programs that the forge's machines have, or that a step before has installed.
PROGRAMS = {"cibuildwheel", "gh", "mkdocs", "mypy", "nnunet_octreenca", "pip", "pipx", "pytest",
            "python", "ruff", "sudo"}  # fmt: skip

each_run = pytest.mark.parametrize("step", RUN.values(), ids=list(RUN))


def words_of(step: dict) -> list[str]:
    """A step's one command; the forge's expressions as one word."""
    assert "\n" not in step["run"].strip(), "one command a step: a failing one then stands out"
    return shlex.split(re.sub(r"\$\{\{[^}]*\}\}", "EXPRESSION", step["run"]))


def markers() -> set[str]:
    """The markers that setup.cfg declares."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["tool:pytest"]["markers"].strip().splitlines()
    return {line.partition(":")[0].strip() for line in lines}


def test_the_workflows_are_found():
    assert set(WORKFLOWS) >= {"docs.yml", "nightly.yml", "release.yml", "tests.yml"}
    assert len(RUN) > 15


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=list(WORKFLOWS))
def test_a_workflow_may_only_read_unless_a_job_says_otherwise(workflow):
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(
    "step", [s for s in STEPS.values() if "uses" in s], ids=lambda s: s["uses"]
)
def test_actions_are_pinned(step):
    assert PINNED.fullmatch(step["uses"]), step["uses"]
    if step["uses"].startswith("actions/checkout"):
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", JOBS)
def test_jobs_wait_for_jobs_that_are_there(name):
    needs = JOBS[name].get("needs", [])
    for needed in [needs] if isinstance(needs, str) else needs:
        assert f"{name.split()[0]} {needed}" in JOBS


@each_run
def test_what_a_step_runs_is_there(step):
    words = words_of(step)
    program = Path(words[0]).name
    assert program in PROGRAMS
    if program == "nnunet_octreenca":
        build_parser().parse_args(words[1:])
    for word in words:
        for extra in re.findall(r"^\.\[([\w,]+)\]$", word):
            for one in extra.split(","):
                assert f"\n{one} = [" in PROJECT, f"pyproject.toml has no extra {one}"
        if re.match(r"(tools|benchmarks|tests|docs)/", word):
            assert (ROOT / word).exists(), f"{word} is not there"


@each_run
def test_a_step_of_pytest_selects_by_markers_that_are_declared(step):
    words = words_of(step)
    if words[0] != "pytest":
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", default="")
    parser.add_argument("--durations", type=int)
    parser.add_argument("-n", type=int)
    parser.add_argument("--nightly", action="store_true")
    chosen = set(re.findall(r"\w+", parser.parse_args(words[1:]).m)) - {"not", "and", "or"}
    assert chosen <= markers()


@each_run
def test_a_step_of_our_tools_parses(step):
    words = words_of(step)
    if "tools/matrix.py" in words:
        matrix.arguments(words[2:])
    if "tools/licences.py" in words:
        assert set(words[words.index("tools/licences.py") + 1 :]) <= {
            "--json",
            ">",
            "licences.json",
        }


def test_pythons_are_those_of_the_package():
    quick = WORKFLOWS["tests.yml"]["jobs"]["quick"]["strategy"]["matrix"]["python"]
    assert tuple(quick) == matrix.PYTHONS
    for name, step in STEPS.items():
        version = step.get("with", {}).get("python-version", "")
        assert not version or "${{" in version or version in matrix.PYTHONS, name


def test_the_nightly_run_has_every_combination():
    included = WORKFLOWS["nightly.yml"]["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert [(row["combination"], row["python"]) for row in included] == [
        (combination.name, combination.python) for combination in matrix.COMBINATIONS
    ]


def test_wheels_are_built_for_every_python_and_tried():
    step = next(s for s in RUN.values() if s["run"].startswith("cibuildwheel"))
    tags = {f"cp{python.replace('.', '')}-*" for python in matrix.PYTHONS}
    assert set(step["env"]["CIBW_BUILD"].split()) == tags
    words = shlex.split(step["env"]["CIBW_TEST_COMMAND"])
    assert words[:2] == ["python", "-c"]
    exec(compile(ast.parse(words[2]), "CIBW_TEST_COMMAND", "exec"), {})


def test_a_release_is_attested_and_carries_what_was_built():
    jobs = WORKFLOWS["release.yml"]["jobs"]
    release = jobs["release"]
    assert release["permissions"] == {
        "contents": "write", "id-token": "write", "attestations": "write",
    }  # fmt: skip
    uses = [step["uses"].partition("@")[0] for step in release["steps"] if "uses" in step]
    assert {"actions/attest-build-provenance", "actions/attest-sbom"} <= set(uses)
    assert set(release["needs"]) == set(jobs) - {"release"}
    uploads = [
        step["with"] for name in release["needs"] for step in jobs[name]["steps"]
        if step.get("uses", "").startswith("actions/upload-artifact")
    ]  # fmt: skip
    downloads = [
        step["with"] for step in release["steps"]
        if step.get("uses", "").startswith("actions/download-artifact")
    ]  # fmt: skip
    assert {upload["name"].split("-")[0] for upload in uploads} == {"dist", "contents"}
    assert {d.get("name", d.get("pattern", "")).split("-")[0] for d in downloads} == {
        "dist", "contents",
    }  # fmt: skip
    assert all(upload["if-no-files-found"] == "error" for upload in uploads)
