"""What a training reads of a slide is what the slide is predicted from."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_slides import halved, picture, write_pyramid

from nnunet_octreenca.images.open_image import open_image
from nnunet_octreenca.images.pyramid import SlideRegions

RGB = picture(97, 141)
ALPHA = np.random.default_rng(1).integers(0, 256, (97, 141, 1), np.uint8)
RGBA = np.concatenate([RGB, ALPHA], -1)


def tiff(path, image=RGB, **options):
    write_pyramid(path, [image, halved(image)], **options)


def png(path, image, mode=None):
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(path)


def palette_with_transparency(path):
    Image.fromarray(RGB).convert("P").save(path, transparency=bytes(range(256)))


FILES = {
    "plain.tif": tiff,
    "deflated.tif": lambda path: tiff(path, compression="zlib", predictor=True),
    "jpeg.tif": lambda path: tiff(path, compression="jpeg"),
    "planes.tif": lambda path: tiff(path, planarconfig="separate"),
    "strips.tif": lambda path: tifffile.imwrite(path, RGB, rowsperstrip=16, photometric="rgb"),
    "big endian.tif": lambda path: tifffile.imwrite(path, RGB, byteorder=">", photometric="rgb"),
    "alpha.tif": lambda path: tiff(path, RGBA, extrasamples=["unassalpha"]),
    "multiplied.tif": lambda path: tiff(path, RGBA, extrasamples=["assocalpha"]),
    "rgb.png": lambda path: png(path, RGB),
    "alpha.png": lambda path: png(path, RGBA),
    "grey.png": lambda path: png(path, RGB[..., 0]),
    "grey and alpha.png": lambda path: png(path, RGBA, "LA"),
    "palette.png": lambda path: png(path, RGB, "P"),
    "clear palette.png": palette_with_transparency,
    "bits.png": lambda path: png(path, RGB[..., 0], "1"),
    "photo.jpg": lambda path: png(path, RGB),
    "printed.jpg": lambda path: png(path, RGB, "CMYK"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_pixels(tmp_path, name):
    FILES[name](tmp_path / name)
    slide = SlideRegions(tmp_path / name)
    with_model = open_image(tmp_path / name, channels=slide.channels)
    whole = np.moveaxis(with_model.read(0, 97), 0, -1)
    assert whole.shape == (97, 141, 1 if name.startswith(("grey", "bits")) else 3)
    assert np.array_equal(slide.region(0, 0, 0, 97, 141), whole)
    assert np.array_equal(slide.region(0, 20, 35, 60, 100), whole[20:80, 35:135])
    with_model.close()
    slide.close()
