"""JavaScript modules as one script, for a page that loads nothing.

Each module becomes a function of its own, so that names within it stay its own.
"""

import re
from pathlib import Path

PAGE = Path(__file__).parent / "page"

_IMPORT = re.compile(r"^import \{([^}]*)\} from '\./(\w+)\.js';\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:const|class|function) (\w+))", re.MULTILINE)


def bundled(entry: str, folder: Path = PAGE) -> str:
    """A module and all that it imports.

    Args:
        entry: name of the module, without its ending.
        folder: of the modules.

    Returns:
        A script.

    Raises:
        ValueError: modules import one another in a circle, or a line that begins with `import`
            or `export` in another form than `import { name } from './module.js'` and
            `export const/class/function name`.
    """
    done: dict[str, str] = {}
    _add(entry, folder, done, ())
    return "'use strict';\n" + "".join(done.values())


def _add(name: str, folder: Path, done: dict[str, str], above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"modules import one another in a circle: {' -> '.join((*above, name))}")
    if name in done:
        return
    text = (folder / f"{name}.js").read_text(encoding="utf-8")
    for match in _IMPORT.finditer(text):
        _add(match[2], folder, done, (*above, name))
    exported = _EXPORT.findall(text)
    text = _EXPORT.sub("", _IMPORT.sub(r"const {\1} = module_\2;\n", text))
    if left := re.search(r"^(?:import|export)\b.*", text, re.MULTILINE):
        raise ValueError(f"{name}.js cannot be bundled: {left[0]!r}")
    done[name] = (
        f"const module_{name} = (() => {{\n{text}return {{ {', '.join(exported)} }};\n}})();\n"
    )
