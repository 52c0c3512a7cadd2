"""The script that tests other versions: what it chooses, counts, reports and returns."""

import json
import os
import stat
import sys
from pathlib import Path

import matrix
import pytest
from helpers.doc_blocks import ROOT

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NAMES = [combination.name for combination in matrix.COMBINATIONS]


def attempt(states):
    """Stands in for building an environment; the result of a combination by its name."""

    def one(uv, combination, folder, selection, *, interpreters, keep):
        assert selection == [*matrix.SMOKE, "-m", "smoke"]
        return matrix.Result(
            combination.name, combination.python, states[combination.name], passed=3,
            versions={"torch": "2.5.0"}, detail=[f"{Path.home()}/secret", "a::test"],
        )  # fmt: skip

    return one


@pytest.fixture(autouse=True)
def uv(tmp_path, monkeypatch):
    """A program of that name on PATH."""
    program = tmp_path / "bin" / ("uv.exe" if os.name == "nt" else "uv")
    program.parent.mkdir()
    program.write_text("")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("state", "code"), [("passed", 0), ("failed", 1), ("broken", 1), ("not run", 2)]
)
def test_exit_code(state, code):
    name = NAMES[0]
    assert matrix.main(["--only", name], attempt({name: state})) == code


def test_results_of_others_stay_in_the_file_and_paths_do_not_get_there(tmp_path):
    path = tmp_path / "matrix.json"
    first, second = NAMES[0], NAMES[-1]
    matrix.main(["--only", second, "--json", str(path)], attempt({second: "failed"}))
    matrix.main(["--only", first, "--json", str(path)], attempt({first: "passed"}))
    rows = json.loads(path.read_text())
    assert [(row["name"], row["state"]) for row in rows] == [
        (first, "passed"), (second, "failed"),
    ]  # fmt: skip
    assert rows[1]["detail"] == ["a::test"]


def test_a_name_that_is_none_is_refused():
    with pytest.raises(SystemExit, match=r"no combination lowest-2\.7; there are newest-3\.10"):
        matrix.main(["--only", "lowest-2.7"], attempt({}))


def test_an_interpreter_of_another_version_is_not_taken(tmp_path):
    assert matrix.find_python(VERSION, [Path(sys.executable)]) == Path(sys.executable)
    assert matrix.find_python("2.4", [Path(sys.executable), tmp_path / "python2.4"]) is None


def test_without_an_interpreter_nothing_is_tested(tmp_path):
    combination = matrix.Combination("old", "2.4")
    result = matrix.try_combination("uv", combination, tmp_path, ["tests"])
    assert result.state == "not run"
    assert "no Python 2.4 was found" in result.detail[0]


def test_what_cannot_be_installed_is_broken_and_says_why(tmp_path, monkeypatch):
    def fail(*given):
        raise matrix.CommandFailedError("no versions fit together")

    monkeypatch.setattr(matrix, "install", fail)
    combination = matrix.Combination("this", VERSION)
    result = matrix.try_combination(
        "uv", combination, tmp_path, ["tests"], interpreters=[Path(sys.executable)]
    )
    assert (result.state, result.detail) == ("broken", ["no versions fit together"])


def test_counts(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="one"/>'
        '<testcase classname="tests.a" name="two"><failure/></testcase>'
        '<testcase classname="tests.b" name="three"><error/></testcase>'
        '<testcase classname="tests.b" name="four"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    assert matrix.counts(report) == (1, 2, 1, ["tests.a::two", "tests.b::three"])


def test_variables_that_lead_out_of_an_environment_are_left_out(tmp_path):
    given = {
        "PYTHONPATH": "/sources",
        "PATH": "/usr/bin",
        "OCTREENCA_ENGINE": "torch",
        "HOME": "/h",
    }
    cleaned = matrix.clean_environment(tmp_path, given)
    assert set(cleaned) == {"PATH", "HOME", "OMP_WAIT_POLICY"}
    assert cleaned["PATH"].split(os.pathsep) == [str(matrix.programs(tmp_path)), "/usr/bin"]


def test_an_older_wheel_than_its_sources_is_built_again(tmp_path, monkeypatch):
    wheel = tmp_path / "package-1-cp399-cp399-linux.whl"
    wheel.touch()
    built = []
    monkeypatch.setattr(matrix, "run", lambda command, **options: built.append(wheel.touch()))
    assert matrix.build_wheel("uv", Path("python"), "3.99", tmp_path) == wheel
    assert not built
    os.utime(wheel, (0, 0))
    assert matrix.build_wheel("uv", Path("python"), "3.99", tmp_path) == wheel
    assert len(built) == 1


def test_a_wheel_without_native_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "run", lambda *given: (tmp_path / "a-1-py3-none-any.whl").touch())
    with pytest.raises(matrix.CommandFailedError, match="no wheel with native code for Python"):
        matrix.build_wheel("uv", Path("python"), "3.9", tmp_path)


def test_every_python_of_the_package_is_in_the_matrix():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={matrix.PYTHONS[0]}"' in project
    assert {c.python for c in matrix.COMBINATIONS} == set(matrix.PYTHONS)
    assert len(set(NAMES)) == len(NAMES)
    assert any(c.lowest for c in matrix.COMBINATIONS)


def test_oldest_releases_are_those_of_pyproject():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    bound = matrix.oldest("torch").removeprefix("torch==").removesuffix(".*")
    assert f'"torch>={bound}"' in project
    with pytest.raises(LookupError, match="no lower bound for setuptools"):
        matrix.oldest("setuptools")


def test_sources_and_what_the_tests_need_are_there():
    for name in (*matrix.SOURCES, *matrix.NEEDED_BY_TESTS):
        assert (ROOT / name).exists()


def test_every_smoke_test_is_where_the_script_looks():
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.smoke" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    assert len(marked) >= 3
    assert all(any(name.startswith(part) for part in matrix.SMOKE) for name in marked)
    assert all(any(name.startswith(part) for name in marked) for part in matrix.SMOKE)
