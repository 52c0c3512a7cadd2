"""Registration: found after, gone after --undo, and stock trainers never notice."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.integration import nnunet_version, register

LOOK_UP = """
import json, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
trainer = find(sys.argv[1])
method = nnUNetPredictor.predict_sliding_window_return_logits
print(json.dumps({
    "module": trainer.__module__,
    "ours_imported": any(name.startswith("nnunet_octreenca") for name in sys.modules),
    "stock_predictor": not hasattr(method, "octreenca_wrapped"),
}))
"""
FIND_PLANNER = """
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
folder = nnunetv2.__path__[0] + "/experiment_planning"
print(find(folder, "OctreeNCAPlanner", "nnunetv2.experiment_planning"))
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def look_up(trainer: str, **environment: str) -> dict:
    done = python(LOOK_UP, trainer, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def unregistered(tmp_path, monkeypatch):
    """A copy of nnU-Net without our shims, for this process and its children.

    The installed one is left alone: other tests may be using it at this moment.
    """
    copy = tmp_path / "nnunetv2"
    ours = [shim.target.name for shim in register.shims()]
    ignored = shutil.ignore_patterns("__pycache__", *ours)
    shutil.copytree(register.nnunet_folder(), copy, ignore=ignored)
    monkeypatch.setattr(register, "nnunet_folder", lambda: copy)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.mark.slow
@pytest.mark.usefixtures("unregistered")
@pytest.mark.nightly
def test_stock_trainers_never_notice():
    """Not before, not after register, not after --undo is anything of ours even imported."""
    untouched = {
        "module": "nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs",
        "ours_imported": False,
        "stock_predictor": True,
    }
    assert look_up("nnUNetTrainer_5epochs") == untouched
    assert main(["register"]) == 0
    assert look_up("nnUNetTrainer_5epochs") == untouched
    assert look_up("OctreeNCATrainer")["module"] == "nnunet_octreenca.integration.trainer"
    assert look_up("OctreeNCATrainer_5epochs")["stock_predictor"] is False
    assert "planner.OctreeNCAPlanner" in python(FIND_PLANNER).stdout
    assert main(["register", "--undo"]) == 0
    assert look_up("nnUNetTrainer_5epochs") == untouched
    assert "Could not find requested nnunet trainer" in python(LOOK_UP, "OctreeNCATrainer").stderr
    assert python(FIND_PLANNER).stdout.strip() == "None"


@pytest.mark.slow
@pytest.mark.usefixtures("unregistered")
def test_broken_plugin_cannot_break_stock_trainers():
    """A plugin whose import fails hurts only those who ask for it."""
    register.register()
    broken = "import sys; sys.modules['nnunet_octreenca'] = None\n" + LOOK_UP
    done = python(broken, "nnUNetTrainer")
    assert json.loads(done.stdout.splitlines()[-1])["stock_predictor"] is True
    done = python(broken, "OctreeNCATrainer")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "nnunet_octreenca" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("unregistered")
def test_external_trainer_folder_does_without_registration():
    line = register.external_trainer_line()
    name, _, value = line.partition("=")
    found = python(LOOK_UP, "OctreeNCATrainer_20epochs", **{name: value})
    assert found.returncode == 0, found.stderr
    assert "nnunet_octreenca.integration.trainer_variants" in found.stdout


@pytest.mark.usefixtures("unregistered")
def test_check_tells_by_exit_code(capsys):
    assert main(["register", "--check"]) == 1
    assert "missing" in capsys.readouterr().out
    assert main(["register"]) == 0
    assert main(["register"]) == 0  # again does no harm
    assert main(["register", "--check"]) == 0
    shim = register.shims()[0]
    shim.target.write_text("# of an older version\n")
    assert main(["register", "--check"]) == 1
    assert "outdated" in capsys.readouterr().out
    assert main(["register"]) == 0
    assert shim.state == "registered"


@pytest.mark.usefixtures("unregistered")
def test_read_only_nnunet_gets_the_other_way(monkeypatch, capsys):
    """A sentence with the line to set, and nothing half-registered."""
    stock_shims = register.shims()

    def unwritable():
        first, second, *_ = stock_shims
        return [first, second._replace(target=second.target / "not" / "a" / "folder")]

    monkeypatch.setattr(register, "shims", unwritable)
    assert main(["register"]) == 1
    assert "nnUNet_extTrainer=" in capsys.readouterr().err
    assert stock_shims[0].state == "missing"


@pytest.mark.parametrize("installed", ["2.5.1", "2.7"])
def test_old_nnunet_is_refused(monkeypatch, capsys, installed):
    monkeypatch.setattr(nnunet_version, "version", lambda name: installed)
    with pytest.raises(EnvironmentMismatchError, match=f"{installed} is too old.*2.8"):
        nnunet_version.nnunet_version()
    assert main(["register", "--check"]) == 1
    assert capsys.readouterr().err.startswith(f"ERROR: nnU-Net {installed} is too old")


@pytest.mark.parametrize("installed", ["2.8", "2.8.1", "2.10.0", "3.0"])
def test_new_nnunet_is_welcome(monkeypatch, installed):
    monkeypatch.setattr(nnunet_version, "version", lambda name: installed)
    assert nnunet_version.nnunet_version() == installed
