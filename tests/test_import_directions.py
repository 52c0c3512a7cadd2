"""Imports inside the package point one way, along the data: the layout's contract (DESIGN 7)."""

import ast
from pathlib import Path

import pytest

import nnunet_octreenca

PACKAGE = Path(nnunet_octreenca.__file__).parent
# A folder imports from its own row's folders before it and from every row above. Modules beside
# the folders (errors, files, ...) may be imported anywhere, and import one another only.
ROWS = [
    ["octree"],
    ["ops"],
    ["network"],
    ["planning", "training"],
    ["images", "labels"],
    ["preprocessing"],
    ["inference"],
    ["integration"],
    ["baselines"],
    ["stores"],
    ["prediction", "datasets", "comparison", "export"],
    ["cluster"],
    ["cli"],
    ["io"],  # the former path of open_image, nothing else
]
ORDER = {folder: place for place, row in enumerate(ROWS) for folder in row}
# The core does without nnunetv2 altogether.
CORE = {"octree", "ops", "network"}
CORE_IMPORTS = {"torch", "numpy", "nnunet_octreenca"}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def folder_of(path: Path) -> str:
    """The package's folder that a file lies in; empty for the modules beside them."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "shims" not in path.parent.name]


@pytest.mark.parametrize("folder", [*ORDER, ""])
def test_imports_point_one_way(folder):
    files = [path for path in FILES if folder_of(path) == folder and path.name != "__init__.py"]
    assert files
    wrong = []
    for path in files:
        for module in imported_modules(path):
            name, *rest = module.split(".")
            target = rest[0] if name == "nnunet_octreenca" and rest else ""
            if target in ORDER and target != folder:
                allowed = folder and ORDER[target] < ORDER[folder]
                if not allowed:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_every_folder_has_its_place():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ORDER)


def test_the_core_needs_torch_and_numpy_only():
    import sys

    for path in FILES:
        if folder_of(path) in CORE:
            outside = {module.split(".")[0] for module in imported_modules(path)}
            assert outside <= CORE_IMPORTS | set(sys.stdlib_module_names), path


def test_nnunet_is_touched_in_one_folder():
    touching = {
        folder_of(path)
        for path in FILES
        if any(module.split(".")[0] == "nnunetv2" for module in imported_modules(path))
    }
    assert touching == {"integration"}
