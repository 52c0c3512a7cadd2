"""What the tests share: a folder tree for nnU-Net, its commands, one prepared data set."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before torch is imported, here and in all child processes: on tiny tensors two threads only
# wait for one another. nnU-Net's commands set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
DATASET = "Dataset901_Phantoms"
PLANS = "nnUNetOctreeNCAPlans"
# Trainings of a few seconds: what is tested is that they run and what they write.
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1}


def _data_folder(name: str) -> Path:
    for base in (os.environ.get("OCTREENCA_DATA"), ROOT.parent / "shared" / "data"):
        if base and (Path(base) / name).is_dir():
            return Path(base) / name
    pytest.skip(f"no real data: {name}/ is in neither $OCTREENCA_DATA nor ../shared/data")


class NNUNet:
    """nnU-Net's three folders and its commands, run as a user runs them."""

    def __init__(self, folder: Path) -> None:
        self.raw, self.preprocessed, self.results = (
            folder / name for name in ("raw", "preprocessed", "results")
        )
        for path in (self.raw, self.preprocessed, self.results):
            path.mkdir(parents=True)
        from nnunet_octreenca.integration.register import TRAINER_SHIMS

        self.folders = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
        }
        self.environment = {
            **os.environ,
            **self.folders,
            "nnUNet_extTrainer": str(TRAINER_SHIMS),
            "nnUNet_def_n_proc": "1",  # each process more imports torch
            "nnUNet_n_proc_DA": "1",
        }

    def run(
        self,
        command: str,
        *arguments: object,
        fails: bool = False,
        environment: dict[str, str] | None = None,
        timeout: float = 600,
    ) -> SimpleNamespace:
        """Run an installed command (or `python`); its output and exit code."""
        program = sys.executable
        if command != "python":
            found = shutil.which(command, path=str(Path(sys.executable).parent))
            assert found, f"{command} is not installed beside {sys.executable}"
            program = found
        done = subprocess.run(
            [program, *map(str, arguments)],
            env=self.environment if environment is None else environment,
            capture_output=True,
            encoding="utf-8",  # whatever the locale: libraries change it while tests run
            errors="replace",
            timeout=timeout,
            check=False,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"exit code {done.returncode}\n{output[-4000:]}"
        return SimpleNamespace(output=output, stderr=done.stderr, code=done.returncode)

    def train(self, configuration: str, fold: int | str, *flags: object, **options) -> str:
        """`nnUNetv2_train` with our trainer and plans on the CPU."""
        arguments = [DATASET, configuration, fold, "-p", PLANS, "-device", "cpu", *flags]
        if "-tr" not in flags:
            arguments += ["-tr", "OctreeNCATrainer"]
        return self.run("nnUNetv2_train", *arguments, **options).output

    def model(self, configuration: str = "3d_fullres", trainer: str = "OctreeNCATrainer") -> Path:
        """A trained model's folder."""
        return self.results / DATASET / f"{trainer}__{PLANS}__{configuration}"

    def edit_plans(self, name: str, change, dataset: str = DATASET) -> None:
        """Change a plans file in place."""
        path = self.preprocessed / dataset / f"{name}.json"
        plans = json.loads(path.read_text())
        change(plans)
        path.write_text(json.dumps(plans))


def pytest_configure() -> None:
    """Ctrl-C does what it does in a terminal, though a shell ignores it in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="also run the variants marked `nightly`"
    )


def _group(nodeid: str) -> str:
    """What stays in one process with `-n`: a module, and all tests of nnU-Net's commands."""
    return "integration" if nodeid.startswith("tests/integration/") else nodeid.split("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With `-n`, deal the tests to the processes group by group, in the order collected."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect `nightly` tests without --nightly; with `-n`, groups with slow tests come first.

    A long group that started last would leave the other processes idle.
    """
    if not config.getoption("--nightly"):
        nightly = [item for item in items if "nightly" in item.keywords]
        if nightly:
            config.hook.pytest_deselected(items=nightly)
            items[:] = [item for item in items if "nightly" not in item.keywords]
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(_group(item.nodeid) for item in items if "slow" in item.keywords)
        items.sort(key=lambda item: -slow[_group(item.nodeid)])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same weights and data in every run, whether a test runs alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """Finds a folder of real data by name, or skips the test."""
    return _data_folder


@pytest.fixture(scope="session")
def new_nnunet() -> type[NNUNet]:
    """`new_nnunet(folder)` makes empty folders for nnU-Net, with its commands."""
    return NNUNet


def add_lowres_and_cascade(plans: dict) -> None:
    """What nnU-Net's planner adds where images are large, for images that are small."""
    fullres = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_lowres"] = {
        **fullres,
        "data_identifier": fullres["data_identifier"].replace("fullres", "lowres"),
        "spacing": [2 * s for s in fullres["spacing"]],
        "median_image_size_in_voxels": [n / 2 for n in fullres["median_image_size_in_voxels"]],
        "next_stage": "3d_cascade_fullres",
    }
    plans["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory: pytest.TempPathFactory) -> NNUNet:
    """nnU-Net with one small data set of phantoms, planned and preprocessed by its commands."""
    from nnunet_octreenca.datasets.phantoms import make_phantoms

    nnunet = NNUNet(tmp_path_factory.mktemp("nnunet"))
    make_phantoms(nnunet.raw / DATASET, training=10, test=3, shape=(10, 33, 29))
    nnunet.run("nnUNetv2_extract_fingerprint", "-d", 901, "-np", 1)
    nnunet.run("nnUNetv2_plan_experiment", "-d", 901)
    nnunet.edit_plans("nnUNetPlans", add_lowres_and_cascade)
    nnunet.run(
        "nnUNetv2_preprocess", "-d", 901, "-c", "2d", "3d_fullres", "3d_lowres", "-np", 1, 1, 1
    )
    settings = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    nnunet.run("nnunet_octreenca", "extend_plans", "-d", 901, "--batch_size", 2, *settings)
    return nnunet


@pytest.fixture(scope="session")
def trained(nnunet: NNUNet) -> NNUNet:
    """The same with folds 0 and 1 of 3d_fullres trained."""
    for fold in (0, 1):
        nnunet.train("3d_fullres", fold, "--npz")
    return nnunet
