"""Pages that open without a network, filled from templates, and files that are written together."""

from collections.abc import Mapping
from pathlib import Path

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.files import JsonMapping, atomic_write

PAGE = Path(__file__).parent / "page"


def filled(template: str, content: JsonMapping) -> str:
    """A page; all texts but figures, styles and scripts are escaped.

    Args:
        template: its file in `PAGE`.
        content: the template's variables.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **content,
        style=(PAGE / "style.css").read_text(encoding="utf-8"),
        script=(PAGE / "script.js").read_text(encoding="utf-8"),
    )


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files by name into a folder, each whole or not at all; the folder is made.

    Raises:
        OutputError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"the report cannot be written to {folder} ({error})") from error
