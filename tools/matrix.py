"""Test the package in environments of other Pythons and other versions of its dependencies.

    pip install uv
    python tools/matrix.py --list                      what would be tested
    python tools/matrix.py --json matrix.json          every combination, one after the other
    python tools/matrix.py --only lowest-3.11 --keep   one, and leave its environment
    python tools/matrix.py --only lowest-3.11 --tests tests/labels tests/images -m "not slow"

Each combination gets an environment of its own, made by uv: dependencies are resolved from
pyproject.toml (to the newest or, with `lowest`, to the oldest release each requirement allows),
the wheel is built for that Python and installed, and the tests run from a copy of `tests`, so that
they import what is installed and not the sources. An environment takes up to 8 GB of disk, of
which uv's cache shares most, and is deleted after its tests.

Exit code: 0 if all that ran passed, 1 if something failed, 2 if nothing ran.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# Versions that the table shows; the JSON file has them too.
SHOWN = ("torch", "nnunetv2", "numpy", "zarr", "pydicom")
SOURCES = ("nnunet_octreenca", "cpu", "cuda", "plans", "CMakeLists.txt", "pyproject.toml")
NEEDED_BY_TESTS = ("tests", "benchmarks", "setup.cfg")
# Where tests marked `smoke` are; to collect all others takes longer than to run these.
SMOKE = ("tests/golden", "tests/ops", "tests/integration/test_smoke.py")
# What the shell that starts this may have set, and a user's machine has not.
CLEARED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OCTREENCA_ENGINE", "nnUNet_extTrainer")


@dataclass(frozen=True)
class Combination:
    """One environment.

    Attributes:
        name: what `--only` selects.
        python: "3.11".
        pins: further requirements, such as "torch==2.5.*".
        lowest: whether every direct dependency is the oldest that pyproject.toml allows.
    """

    name: str
    python: str
    pins: tuple[str, ...] = ()
    lowest: bool = False


def oldest(name: str) -> str:
    """A requirement of the oldest releases that pyproject.toml allows: "torch==2.6.*".

    Raises:
        LookupError: pyproject.toml has no lower bound for it.
    """
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'^  "{name}>=([\d.]+)"', project, re.M)
    if found is None:
        raise LookupError(f"pyproject.toml has no lower bound for {name}")
    return f"{name}=={found[1]}.*"


# Below Python 3.12 not every library's oldest release has to be compiled.
COMBINATIONS = (
    *(Combination(f"newest-{python}", python) for python in PYTHONS),
    Combination("lowest-3.10", "3.10", lowest=True),
    Combination("lowest-3.11", "3.11", lowest=True),
    Combination("old-torch-new-numpy", "3.11", (oldest("torch"), "numpy>=2")),
    Combination("new-torch-old-numpy", "3.11", (oldest("numpy"),)),
    Combination(
        "old-core-3.12", "3.12", (oldest("torch"), f"{oldest('nnunetv2')[:-2]}.0", oldest("numpy"))
    ),
)


@dataclass
class Result:
    """What became of a combination.

    Attributes:
        state: "passed", "failed" (tests), "broken" (could not be installed) or "not run".
        detail: why it is broken or was not run; the failed tests.
        versions: of everything installed.
        seconds: of the tests alone.
    """

    name: str
    python: str
    state: str
    detail: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    cpu_engine: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


class CommandFailedError(Exception):
    """A command ended with another exit code than 0; the message is the end of its output."""


def run(command: Sequence[object], **options: object) -> str:
    """A command's standard output.

    Raises:
        CommandFailedError: its exit code is not 0.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, encoding="utf-8", errors="replace", check=False, **options
    )
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise CommandFailedError(f"{' '.join(words[:4])} ...: exit code {done.returncode}\n{end}")
    return done.stdout


def find_python(version: str, given: Sequence[Path] = ()) -> Path | None:
    """An interpreter of a version such as "3.12": one that is given, on PATH, or of pyenv."""
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        *given,
        *([Path(on_path)] if on_path else []),
        *sorted(pyenv.glob(f"{version}.*/bin/python{version}")),
    ]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        try:
            if run([candidate, "-c", ask]).strip() == version:
                return candidate
        except (CommandFailedError, OSError):  # pyenv's shims of versions that are not active
            continue
    return None


def newest_change(paths: Iterable[Path]) -> float:
    """When the newest of some files, or of the files in some folders, was written."""
    files = (
        file
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file() and file.suffix not in (".so", ".pyd", ".pyc")
    )
    return max(file.stat().st_mtime for file in files)


def build_wheel(uv: str, python: Path, version: str, folder: Path) -> Path:
    """The package's wheel for a Python; built unless the folder has one of these sources.

    Raises:
        CommandFailedError: it cannot be built.
    """
    tag = f"cp{version.replace('.', '')}"
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob(f"*-{tag}-*.whl"):
        if wheel.stat().st_mtime > newest_change(ROOT / source for source in SOURCES):
            return wheel
        wheel.unlink()
    run([uv, "build", "--wheel", "--python", python, "--out-dir", folder, ROOT])
    wheels = list(folder.glob(f"*-{tag}-*.whl"))
    if not wheels:
        names = ", ".join(sorted(path.name for path in folder.glob("*.whl")))
        raise CommandFailedError(
            f"no wheel with native code for Python {version} was built, only {names}; is there a "
            f"C++ compiler?"
        )
    return wheels[0]


def resolve(uv: str, combination: Combination, python: Path, folder: Path) -> Path:
    """A file of pinned requirements for a combination.

    Raises:
        CommandFailedError: no versions fit together.
    """
    constraints, lock = folder / "constraints.txt", folder / "lock.txt"
    constraints.write_text("\n".join(combination.pins) + "\n", encoding="utf-8")
    resolution = "lowest-direct" if combination.lowest else "highest"
    run(
        [
            *(uv, "pip", "compile", ROOT / "pyproject.toml", "--extra", "test"),
            *("--python", python, "--resolution", resolution),
            *("--constraints", constraints, "--output-file", lock),
        ]
    )
    return lock


def programs(environment: Path) -> Path:
    """The folder of an environment's commands."""
    return environment / ("Scripts" if os.name == "nt" else "bin")


def clean_environment(environment: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Variables for commands in an environment, without those that would lead out of it."""
    kept = {name: value for name, value in base.items() if name not in CLEARED}
    path = f"{programs(environment)}{os.pathsep}{base.get('PATH', '')}"
    return {**kept, "PATH": path, "OMP_WAIT_POLICY": "PASSIVE"}


def install(uv: str, combination: Combination, python: Path, folder: Path, wheels: Path) -> Path:
    """Make the environment; the package is the wheel.

    Raises:
        CommandFailedError: something cannot be built or installed.
    """
    wheel = build_wheel(uv, python, combination.python, wheels)
    lock = resolve(uv, combination, python, folder)
    environment = folder / "environment"
    run([uv, "venv", "--clear", "--python", python, environment])
    inside = programs(environment) / "python"
    run([uv, "pip", "install", "--python", inside, "-r", lock])
    run([uv, "pip", "install", "--python", inside, "--no-deps", wheel])
    return environment


def counts(report: Path) -> tuple[int, int, int, list[str]]:
    """Passed, failed and skipped tests in a JUnit file of pytest, and the names of the failed."""
    passed = skipped = 0
    failed: list[str] = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, len(failed), skipped, failed


def run_tests(environment: Path, folder: Path, selection: Sequence[str], result: Result) -> None:
    """Run the tests in an environment and enter what came of them.

    Raises:
        CommandFailedError: a command before the tests failed, or pytest could not start.
    """
    variables = clean_environment(environment, os.environ)
    inside = programs(environment)
    copy = folder / "copy"
    for name in NEEDED_BY_TESTS:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    options = {"env": variables, "cwd": copy}
    listing = (
        "import json, importlib.metadata as m; "
        "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    )
    result.versions = dict(
        sorted(json.loads(run([inside / "python", "-c", listing], **options)).items())
    )
    run([inside / "nnunet_octreenca", "register"], **options)
    rows = json.loads(run([inside / "nnunet_octreenca", "doctor", "--json"], **options))
    result.cpu_engine = next(row["state"] for row in rows if row["what"] == "CPU engine")
    report = folder / "report.xml"
    started = time.monotonic()
    done = subprocess.run(
        [inside / "pytest", *selection, f"--junitxml={report}", "-p", "no:cacheprovider"],
        **options, capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    result.seconds = round(time.monotonic() - started, 1)
    (folder / "pytest.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not report.exists():
        raise CommandFailedError("\n".join((done.stdout + done.stderr).strip().splitlines()[-25:]))
    result.passed, result.failed, result.skipped, result.detail = counts(report)
    fine = done.returncode == 0 and result.passed and result.cpu_engine == "ok"
    if result.cpu_engine != "ok":
        result.detail.append("the C++ engine is missing from the wheel")
    result.state = "passed" if fine else "failed"


def try_combination(
    uv: str,
    combination: Combination,
    folder: Path,
    selection: Sequence[str],
    *,
    interpreters: Sequence[Path] = (),
    keep: bool = False,
) -> Result:
    """Build, install and test a combination; never raises for what a combination does wrong."""
    result = Result(combination.name, combination.python, "not run")
    python = find_python(combination.python, interpreters)
    if python is None:
        result.detail = [f"no Python {combination.python} was found; name one with --interpreter"]
        return result
    own = folder / combination.name
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    try:
        environment = install(uv, combination, python, own, folder / "wheels")
        run_tests(environment, own, selection, result)
    except CommandFailedError as error:
        result.state, result.detail = "broken", str(error).splitlines()
    finally:
        if not keep:
            shutil.rmtree(own / "environment", ignore_errors=True)
            shutil.rmtree(own / "copy", ignore_errors=True)
    return result


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table; libraries that an environment lacks show as a dash."""
    head = ["combination", "Python", *SHOWN, "passed", "failed", "skipped", "s", ""]
    rows = [
        [
            result.name,
            result.python,
            *(result.versions.get(name, "-") for name in SHOWN),
            *(str(number) for number in (result.passed, result.failed, result.skipped)),
            f"{result.seconds:.0f}",
            result.state,
        ]
        for result in results
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def without_paths(result: Result) -> dict[str, object]:
    """A result for the JSON file; local paths in versions and messages are left out."""
    kept = asdict(result)
    home = (str(ROOT), str(Path.home()))
    kept["detail"] = [line for line in result.detail if not any(part in line for part in home)]
    return kept


def chosen(names: Sequence[str]) -> list[Combination]:
    """The combinations of these names, or all.

    Raises:
        SystemExit: there is no such combination.
    """
    known = {combination.name: combination for combination in COMBINATIONS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no combination {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(COMBINATIONS)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these combinations")
    parser.add_argument("--list", action="store_true", help="print the combinations and stop")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix",
                        help="for environments and wheels (default: build/matrix)")  # fmt: skip
    parser.add_argument("--interpreter", type=Path, nargs="+", default=[], metavar="PATH",
                        help="further Pythons to choose from")  # fmt: skip
    parser.add_argument("--tests", nargs="+", default=SMOKE, metavar="PATH",
                        help=f"what pytest runs (default: {' '.join(SMOKE)})")  # fmt: skip
    parser.add_argument("-m", dest="marker", default="smoke", metavar="MARKERS",
                        help="pytest's -m (default: smoke)")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep environments")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write the results; others in it stay")  # fmt: skip
    return parser.parse_args(given)


def merged(path: Path, results: Sequence[Result]) -> list[dict[str, object]]:
    """Results for the JSON file, in the order of COMBINATIONS, with what it held of others."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    by_name = {row["name"]: row for row in earlier}
    by_name |= {result.name: without_paths(result) for result in results}
    return [by_name[c.name] for c in COMBINATIONS if c.name in by_name]


def main(
    given: Sequence[str] | None = None, attempt: Callable[..., Result] = try_combination
) -> int:
    """Run the combinations and print the table."""
    args = arguments(given)
    combinations = chosen(args.only)
    if args.list:
        for combination in combinations:
            pins = "lowest" if combination.lowest else " ".join(combination.pins) or "newest"
            print(f"{combination.name:22} Python {combination.python:5} {pins}")
        return 0
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise SystemExit("uv is not installed; run `pip install uv`")
    selection = [*args.tests, "-m", args.marker]
    results = []
    for combination in combinations:
        results.append(
            attempt(
                uv,
                combination,
                args.folder.resolve(),
                selection,
                interpreters=args.interpreter,
                keep=args.keep,
            )
        )
        last = results[-1]
        print(f"{last.name}: {last.state}", *last.detail[-25:], sep="\n  ", flush=True)
        if args.json:
            text = json.dumps(merged(args.json, results), indent=1)
            args.json.write_text(text + "\n", encoding="utf-8")
    print(table(results))
    states = {result.state for result in results}
    if states <= {"not run"}:
        return 2
    return 1 if states & {"failed", "broken"} else 0


if __name__ == "__main__":
    sys.exit(main())
