"""A stream on an image in memory."""

import numpy as np

from nnunet_octreenca.bands import Rows, aligned, split_range
from nnunet_octreenca.planning import Output


def segmented(stream, image, band_rows, ranges=None):
    """Labels or logits of an image (n_in, *axes), range by range, in bands of some rows."""
    end = image.shape[1]
    for band in split_range(0, end, aligned(band_rows, stream.factor)):
        stream.pool(image[:, band.first : band.end], band.first)
    stream.prepare()
    axis = 0 if stream.output is Output.LABELS else 1
    parts = {}
    for wanted in ranges or [(0, end)]:
        done = wanted[0]
        for first, values in stream.run(
            Rows(*wanted), lambda a, b: np.ascontiguousarray(image[:, a:b]), band_rows
        ):
            assert first == done
            parts[first] = values
            done += values.shape[axis]
        assert done == wanted[1]
    return np.concatenate([parts[first] for first in sorted(parts)], axis)
