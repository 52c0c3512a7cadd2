"""Every example in a docstring gives what it says."""

import doctest
import pkgutil
from importlib import import_module

import pytest
from helpers.example_folder import make_example_folder

import nnunet_octreenca
from nnunet_octreenca.integration import register

PACKAGES = (
    "octree",
    "ops",
    "network",
    "planning",
    "training",
    "inference",
    "images",
    "labels",
    "prediction",
    "cluster",
    "stores",
    "preprocessing",
    "datasets",
)


def modules():
    for name in PACKAGES:
        package = import_module(f"nnunet_octreenca.{name}")
        yield package
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield import_module(module.name)
    for name in (
        "bands",
        "cli.check",
        "cli.cluster",
        "cli.extend_plans",
        "cli.convert",
        "integration.model",
        "integration.register",
        "locks",
    ):
        yield import_module(f"nnunet_octreenca.{name}")


EXAMPLES = [
    test
    for module in modules()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if test.examples
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_example_folder(tmp_path_factory.mktemp("examples"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_example(example, folder, monkeypatch):
    monkeypatch.chdir(folder)
    # An example must not change the nnU-Net that runs the tests.
    for shim in register.shims():
        inside = shim.target.relative_to(register.nnunet_folder())
        (folder / "nnunetv2" / inside.parent).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(register, "nnunet_folder", lambda: folder / "nnunetv2")
    outcome = doctest.DocTestRunner(verbose=False).run(example, out=print)
    assert outcome.attempted == len(example.examples)
    assert outcome.failed == 0


def test_every_public_name_has_an_example():
    shown = {test.name for test in EXAMPLES}
    for name in nnunet_octreenca.__all__:
        if name != "__version__":
            thing = getattr(nnunet_octreenca, name)
            assert f"{thing.__module__}.{thing.__qualname__}" in shown, name


def test_the_examples_are_found():
    names = {test.name.removeprefix("nnunet_octreenca.") for test in EXAMPLES}
    assert {
        "bands.split_range",
        "octree.shapes.level_shapes",
        "ops.operator.nca_steps",
        "network.octreenca.OctreeNCA",
        "planning.rules.level_factors",
        "planning.settings.Settings.from_plans",
        "training.schedule.learning_rate",
        "inference.whole_image.mirrorings",
        "cli.extend_plans.parse_settings",
    } <= names
