"""The picture that people look at first: the image, small, with its classes drawn over it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.arrays import Labels
from nnunet_octreenca.bands import split_range
from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.legend import blend, legend
from nnunet_octreenca.labels.output import atomic_output, class_name
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.result_record import ResultRecord

_NARROWEST = 480  # pixels, so that the legend can be read
_BLOCK = 2**22  # labels counted at a time: 32 MiB of the counter's own


def write_overlay(
    path: Path | str,
    thumbnail: NDArray[np.uint8],
    labels: Labels,
    *,
    names: dict[int, str],
    caption: str = "",
    shares: dict[int, float] | None = None,
    record: ResultRecord | None = None,
) -> None:
    """Write a PNG of the thumbnail with contours and half transparent classes, and a legend.

    Args:
        path: the file, `.png`; its folder is made.
        thumbnail: (y, x, 3) RGB, of `Thumbnail.picture()`.
        labels: (y, x), of `labels_thumbnail`.
        names: label to class name; the legend has those that occur.
        caption: a line above the legend.
        shares: label to its share of the whole area, 0 to 1, as `label_shares` counts it; by
            default counted on the thumbnail.
        record: of the results, kept in a text of the file.

    Raises:
        OutputError: thumbnail and labels differ in size, or the disk is full.
    """
    from PIL import Image

    if thumbnail.shape != (*labels.shape, 3):
        raise OutputError(
            f"{path} cannot be drawn: the thumbnail has shape {thumbnail.shape}, its labels "
            f"{labels.shape}"
        )
    if shares is None:
        shares = label_shares(labels)
    entries = [
        (colour(label), f"{class_name(names, label)} {_percent(share)}")
        for label, share in sorted(shares.items())
        if label > 0 and share > 0
    ]
    picture = blend(thumbnail, labels)
    missing = max(0, _NARROWEST - picture.shape[1])
    sides = ((0, 0), (missing // 2, missing - missing // 2), (0, 0))
    picture = np.pad(picture, sides, constant_values=255)
    if not entries:
        entries = [((255, 255, 255), "background only")]
    strip = legend(entries, picture.shape[1], caption)
    Path(path).parent.mkdir(exist_ok=True)
    with atomic_output(path) as temporary:
        text = None if record is None else record.png_text()
        drawn = Image.fromarray(np.concatenate([picture, strip]))
        drawn.save(temporary, format="PNG", pnginfo=text)


def label_shares(labels: Labels) -> dict[int, float]:
    """The share of the area of each label that occurs, 0 to 1.

    Args:
        labels: of any shape, not negative; counted block by block.

    >>> label_shares(np.array([[0, 2], [2, 2]]))
    {0: 0.25, 2: 0.75}
    """
    flat = labels.reshape(-1)
    counts = np.zeros(int(labels.max()) + 1, np.int64)
    for first, end in split_range(0, flat.size, _BLOCK):
        found = np.bincount(flat[first:end])
        counts[: len(found)] += found
    return {n: int(counts[n]) / flat.size for n in np.flatnonzero(counts).tolist()}


def _percent(share: float) -> str:
    if share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"
