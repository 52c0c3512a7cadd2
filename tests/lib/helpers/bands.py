"""Whether an image source gives the same bands as the whole image of an independent reader."""

import numpy as np


def check_bands(source, whole, heights=(11, 40)):
    """Ascending bands of several heights, the whole at once, and bands in no order at all.

    Args:
        source: an `ImageSource`.
        whole: what it should hold, (channels, *spatial).
    """
    assert source.shape == whole.shape[1:]
    assert source.channels == whole.shape[0]
    assert source.dtype == whole.dtype
    assert len(source.spacing) == len(source.shape)
    rows = source.shape[0]
    bands = [(first, min(first + n, rows)) for n in heights for first in range(0, rows, n)]
    # with an overlap, as the rows around a band need it
    bands += [(max(0, first - 5), min(first + 12, rows)) for first in range(0, rows, 13)]
    order = np.random.default_rng(0).permutation(rows)[:6]
    bands += [(int(first), min(int(first) + 11, rows)) for first in order]
    for first, end in [(0, rows), *bands, (rows - 1, rows), (0, 1), (3, 3)]:
        band = source.read(first, end)
        assert band.dtype == whole.dtype
        np.testing.assert_array_equal(band, whole[:, first:end], f"rows {first} to {end - 1}")
