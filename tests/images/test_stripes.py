from weakref import ref

import numpy as np
import pytest
from helpers.bands import check_bands

from nnunet_octreenca.images import stripes
from nnunet_octreenca.images.stripes import StripedSource

WHOLE = np.random.default_rng(1).integers(0, 255, (3, 101, 17), np.uint8)


class Counted(StripedSource):
    def __init__(self, stripe):
        super().__init__(WHOLE.shape[1:], 3, np.uint8, (1, 1), stripe)
        self.decoded = []
        self.stripes = []

    def _read_stripe(self, first, end):
        self.decoded.append((first, end))
        stripe = WHOLE[:, first:end].copy()
        self.stripes.append(ref(stripe))
        return stripe

    def bytes_held(self):
        """Of the stripes that somebody still refers to."""
        return sum(stripe().nbytes for stripe in self.stripes if stripe() is not None)


@pytest.mark.parametrize("stripe", [1, 16, 50, 101, 1000])
@pytest.mark.parametrize("kept", [0, stripes.KEPT_BYTES])
def test_bands_are_those_of_the_whole(monkeypatch, stripe, kept):
    monkeypatch.setattr(stripes, "KEPT_BYTES", kept)
    check_bands(Counted(stripe), WHOLE)


@pytest.mark.parametrize(("height", "halo"), [(1, 0), (16, 3), (23, 7), (40, 7)])
def test_ascending_bands_decode_each_stripe_once_also_with_a_halo(monkeypatch, height, halo):
    monkeypatch.setattr(stripes, "KEPT_BYTES", 0)
    source = Counted(16)
    for first in range(0, 101, height):
        source.read(max(0, first - halo), min(101, first + height + halo))
    assert source.decoded == [(first, min(first + 16, 101)) for first in range(0, 101, 16)]


def test_no_more_stripes_stay_than_announced(monkeypatch):
    stripe = 3 * 16 * 17
    monkeypatch.setattr(stripes, "KEPT_BYTES", 3 * stripe + 1)
    source = Counted(16)
    assert source.info.kept_bytes == 3 * stripe
    source.read(0, 101)
    assert 0 < source.bytes_held() <= source.info.kept_bytes
    source.close()
    source.close()
    assert source.bytes_held() == 0


def test_a_band_may_be_changed():
    source = Counted(16)
    source.read(0, 20)[:] = 0
    np.testing.assert_array_equal(source.read(0, 20), WHOLE[:, :20])
