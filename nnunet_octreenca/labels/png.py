"""Label maps as PNGs: one picture, or a folder with one for each frame."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.output import (
    atomic_folder,
    atomic_output,
    check_axes,
    greatest_label,
    in_order,
)
from nnunet_octreenca.labels.palette import PALETTE


def write_label_picture(
    labels: Labels,
    path: Path | str,
    *,
    names: dict[int, str] | None = None,
    plain: bool = False,
) -> None:
    """Write a label map as a PNG whose pixel values are the labels.

    Args:
        labels: (y, x), integers from 0 to 255, plain ones to 65535.
        path: the file, `.png`.
        names: label to class name, put into the PNG's text "classes", one a line.
        plain: grey, as nnU-Net writes and reads it; else with the colours of `palette.PALETTE`
            and label 0 transparent, which some readers expand to RGB.

    Raises:
        OutputError: the labels do not fit, or the disk is full.
    """
    check_axes(labels, path, (2,))
    with atomic_output(path) as temporary:
        _write_png(labels, temporary, Path(path), names or {}, plain)


def write_frame_pngs(
    labels: Labels,
    folder: Path | str,
    *,
    names: dict[int, str],
    stems: Sequence[str] | None = None,
) -> None:
    """Write one PNG with palette for each frame, as `write_label_picture` does.

    Args:
        labels: (frame, y, x), integers from 0 to 255.
        folder: made here; a reader never meets it with some frames missing.
        names: label to class name.
        stems: file names without ending, one a frame; "000000", "000001", ... if left out.

    Raises:
        OutputError: the labels or the stems do not fit, or the disk is full.
    """
    check_axes(labels, folder, (3,))
    if stems is None:
        stems = [f"{number:06d}" for number in range(len(labels))]
    if len(stems) != len(labels) or len(set(stems)) != len(stems):
        raise OutputError(
            f"{folder} needs {len(labels)} different file names for as many frames; got "
            f"{len(set(stems))} different ones of {len(stems)}"
        )
    with atomic_folder(folder) as temporary:

        def write(number: int) -> None:
            path = temporary / f"{stems[number]}.png"
            _write_png(labels[number], path, Path(folder) / path.name, names, plain=False)

        for _ in in_order(write, range(len(labels))):
            pass


def _write_png(
    labels: Labels, temporary: Path, path: Path, names: dict[int, str], plain: bool
) -> None:
    from PIL import Image, PngImagePlugin

    limit = 65535 if plain else 255
    greatest = greatest_label(labels, path)
    if greatest > limit:
        raise OutputError(
            f"{path} cannot hold label {greatest}: a PNG of this kind ends at {limit}; choose "
            f"another output format"
        )
    # Pillow only looks at the array, so that uint8 labels are not copied.
    pixels = np.ascontiguousarray(labels.astype(np.uint8 if greatest < 256 else "<u2", copy=False))
    mode = "P" if not plain else "L" if greatest < 256 else "I;16"
    picture = Image.frombuffer(mode, pixels.shape[::-1], pixels, "raw", mode, 0, 1)
    text = PngImagePlugin.PngInfo()
    if names:
        text.add_itxt("classes", "\n".join(f"{label}: {names[label]}" for label in sorted(names)))
    if plain:
        picture.save(temporary, format="PNG", pnginfo=text)
    else:
        picture.putpalette(PALETTE.tobytes())
        picture.save(temporary, format="PNG", pnginfo=text, transparency=0, bits=8)
