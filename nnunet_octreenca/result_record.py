"""The pictures of the folder `overlays` say which results an output folder holds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "overlays"
ENDING = "_overlay.png"
_KEY = "nnunet_octreenca"


@dataclass(frozen=True)
class ResultRecord:
    """The results of one case, in a text of its overlay picture, which is written last.

    Attributes:
        kind: of the image: "slide", "picture", "video" or "volume".
        outputs: names of the files and folders that were written, without the picture.
    """

    kind: str
    outputs: tuple[str, ...]

    def png_text(self) -> Any:
        """What Pillow's `save(pnginfo=...)` takes."""
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_text(_KEY, json.dumps({"kind": self.kind, "outputs": self.outputs}))
        return text


def overlay_path(folder: Path, case_name: str) -> Path:
    """Where a case's picture lies. Not beside the results: nnU-Net evaluates every `.png` there."""
    return folder / FOLDER / f"{case_name}{ENDING}"


def read_record(overlay: Path) -> ResultRecord | None:
    """What a picture says; None where it is missing, damaged or not ours."""
    from PIL import Image

    try:
        with Image.open(overlay, formats=("PNG",)) as image:
            content = json.loads(image.info[_KEY])
        return ResultRecord(content["kind"], tuple(content["outputs"]))
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return None


def recorded_results(folder: Path) -> set[str]:
    """Names of the results in a folder that its overlay pictures tell of."""
    overlays = folder / FOLDER
    found: set[str] = set()
    if overlays.is_dir():
        for overlay in overlays.iterdir():
            record = read_record(overlay) if overlay.name.endswith(ENDING) else None
            found.update(record.outputs if record else ())
    return found


def is_overlay_folder(folder: Path) -> bool:
    """Whether a folder holds overlay pictures and nothing else."""
    if folder.name != FOLDER or not folder.is_dir():
        return False
    return all(file.name.endswith(ENDING) or file.name[0] == "." for file in folder.iterdir())
