"""A model of the zoo as a page of the site, with a made image to try it on."""

import tempfile
from pathlib import Path
from typing import Any

from fundus import fundus
from mkdocs.structure.files import File, Files

from nnunet_octreenca import load_model
from nnunet_octreenca.datasets.phantoms import make_phantoms
from nnunet_octreenca.export.html import page_text
from nnunet_octreenca.integration.zoo import zoo_model

MODEL = "vessels"
PAGE = "live/model.html"


def volume() -> bytes:
    """A made volume that the model of phantoms has not seen, a NIfTI file."""
    with tempfile.TemporaryDirectory() as folder:
        make_phantoms(Path(folder), training=1, test=1, seed=1)
        (scan,) = (Path(folder) / "imagesTs").iterdir()
        return scan.read_bytes()


EXAMPLES = {"phantoms": ("made.nii.gz", volume), "vessels": ("made.png", fundus)}


def on_files(files: Files, config: Any, **context: Any) -> Files:
    """mkdocs' hook: add what `nnunet_octreenca export` writes."""
    name, make = EXAMPLES[MODEL]
    with tempfile.TemporaryDirectory() as folder:
        example = Path(folder) / name
        example.write_bytes(make())
        task = zoo_model(MODEL).task
        text = page_text(load_model(f"zoo:{MODEL}"), task[0].upper() + task[1:], example)
    files.append(File.generated(config, PAGE, content=text))
    return files
