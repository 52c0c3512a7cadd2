"""The paper's three set-ups, in the form of a plans file's configuration (`plans/`)."""

import json
from pathlib import Path

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.planning.recipe import RECIPES


def _folder() -> Path:
    """Where the presets lie: inside an installed package, next to it in a source tree."""
    installed = Path(__file__).parent.parent / "plans"
    return installed if installed.is_dir() else installed.parent.parent / "plans"


def preset_names() -> list[str]:
    """Names that `load_preset` takes."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def load_preset(name: str) -> JsonObject:
    """One of the paper's set-ups: `patch_size`, `batch_size`, `architecture`, `octreenca`.

    Raises:
        PlansError: there is no preset of this name.
    """
    path = _folder() / f"{name}.json"
    if name not in preset_names():
        recipes = [name for name in RECIPES if name != "default"]
        known = ", ".join([*recipes, *preset_names()])
        raise PlansError(f"there is no preset {name!r}; choose from {known}")
    preset: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    return preset
