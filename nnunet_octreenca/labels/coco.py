"""Label maps of frames as COCO annotations with run-length encoded masks."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.output import (
    atomic_output,
    check_axes,
    class_name,
    greatest_label,
    in_order,
)
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.libraries import import_optional


def write_coco_rle(
    labels: Labels,
    path: Path | str,
    *,
    names: dict[int, str],
    file_names: Sequence[str] | None = None,
) -> None:
    """Write COCO JSON: images, categories, and one annotation per frame and class in it.

    A `segmentation` is COCO's compressed run-length code as pycocotools decodes it, `bbox` is
    (x, y, width, height) in pixels. The background is no category. The file grows frame by
    frame.

    Args:
        labels: (frame, y, x), or (y, x) for one picture.
        path: the file, `.json`.
        names: label to class name; the category ids are the labels.
        file_names: of the pictures; "000000.png", "000001.png", ... if left out, as the frames
            of a video are written.

    Raises:
        OutputError: the labels or the file names do not fit, or the disk is full.
        EnvironmentMismatchError: pycocotools is not installed.
    """
    check_axes(labels, path, (2, 3))
    frames = labels.reshape(1, *labels.shape) if labels.ndim == 2 else labels
    if file_names is None:
        file_names = [f"{number:06d}.png" for number in range(len(frames))]
    if len(file_names) != len(frames):
        raise OutputError(f"{path} needs {len(frames)} file names of frames; got {len(file_names)}")
    greatest = greatest_label(labels, path)
    categories = sorted({n for n in names if n > 0} | set(range(1, greatest + 1)))
    import_optional("pycocotools.mask", "video")
    images = [
        {
            "id": number,
            "file_name": name,
            "height": frames.shape[1],
            "width": frames.shape[2],
        }
        for number, name in enumerate(file_names, 1)
    ]
    with atomic_output(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "written by nnunet_octreenca"},\n"categories": ')
        json.dump([_category(label, names) for label in categories], file)
        file.write(',\n"images": [\n' + ",\n".join(map(json.dumps, images)))
        file.write('],\n"annotations": [')
        written = 0
        for number, found in enumerate(in_order(_encoded, frames), 1):
            for annotation in found:
                file.write(",\n" if written else "\n")
                written += 1
                json.dump({"id": written, "image_id": number, **annotation}, file)
        file.write("\n]}\n")


def _category(label: int, names: dict[int, str]) -> dict[str, object]:
    name = class_name(names, label)
    return {"id": label, "name": name, "supercategory": "class", "color": list(colour(label))}


def _encoded(frame: Labels) -> list[dict[str, object]]:
    return list(_annotations(frame))


def _annotations(frame: Labels) -> Iterator[dict[str, object]]:
    mask = import_optional("pycocotools.mask", "video")
    for label in np.flatnonzero(np.bincount(frame.ravel())).tolist():
        if label > 0:
            code = mask.encode(np.asfortranarray(frame == label, dtype=np.uint8))
            yield {
                "category_id": label,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                "area": int(mask.area(code)),
                "bbox": mask.toBbox(code).tolist(),
                "iscrowd": 0,
            }
