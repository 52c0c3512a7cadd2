"""The file that makes our trainers known to nnU-Net, imported as nnU-Net imports it."""

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from nnunet_octreenca.integration.register import TRAINER_SHIMS


def load_shim() -> ModuleType:
    """The module of the trainers' shim."""
    spec = spec_from_file_location("trainers_shim", TRAINER_SHIMS / "octreenca_trainers.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
