"""Every example in a docstring of the core gives what it says."""

import doctest
import pkgutil
from importlib import import_module

import pytest

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
    "preprocessing",
    "datasets",
)


def modules():
    for name in PACKAGES:
        package = import_module(f"nnunet_octreenca.{name}")
        yield package
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield import_module(module.name)
    for name in ("bands", "cli.extend_plans", "cli.convert"):
        yield import_module(f"nnunet_octreenca.{name}")


EXAMPLES = [
    test
    for module in modules()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_example(example):
    outcome = doctest.DocTestRunner(verbose=False).run(example, out=print)
    assert outcome.attempted == len(example.examples)
    assert outcome.failed == 0


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
