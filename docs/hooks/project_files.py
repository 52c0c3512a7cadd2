"""Pages of the site that lie in the project's top folder: changelog and contributing guide."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"(\]\()docs/")  # written relative to the top folder


def on_files(files: Files, config: Any, **context: Any) -> Files:
    """mkdocs' hook: add the pages."""
    top = Path(config.config_file_path).parent
    for page, name in PAGES.items():
        content = LINK.sub(r"\1", (top / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=content))
    return files
