"""Microns per pixel as files state them."""

import pytest
import tifffile
from helpers.tiny_slides import picture

from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.images.slides import open_slide

GREY = picture(64, 64)[..., 0]
PLAIN = {"metadata": None, "tile": (64, 64)}
UNKNOWN = (1, 1)  # mm


def ome(**sizes):
    return {"ome": True, "metadata": {f"PhysicalSize{name}": size for name, size in sizes.items()}}


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, UNKNOWN),  # for a screen
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, UNKNOWN),  # for a printer
        ({"resolution": (1e5, 5e4), "resolutionunit": "INCH"}, (25.4 / 5e4, 25.4 / 1e5)),
        ({"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}, (25e-5, 25e-5)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um"}}, (25e-5, 5e-4)),
        (ome(X=0.5, Y=0.25), (25e-5, 5e-4)),
        (ome(X=2, XUnit="mm", Y=300, YUnit="nm"), (3e-4, 2)),
        (ome(X=0.5), UNKNOWN),
        ({"description": "Aperio Image|AppMag = 20|MPP = 0.499", **PLAIN}, (499e-6,) * 2),
        ({"description": "Aperio Image|AppMag = 20", **PLAIN}, UNKNOWN),
    ],
    ids=str,
)
def test_what_files_say_of_their_pixels_size(tmp_path, options, spacing):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, **options)
    source = open_slide(path)
    assert source.spacing == pytest.approx(spacing)
    assert source.info.mpp == (None if spacing == UNKNOWN else pytest.approx(500 * sum(spacing)))
    with SlideRegions(path) as slide:
        assert slide.mpp == source.info.mpp
    source.close()
