import numpy as np
import pytest
from PIL import Image

from nnunet_octreenca.images.pixels import composite_on_white

RGBA = np.random.default_rng(2).integers(0, 256, (4, 9, 11), np.uint8)


def test_eight_bits_are_laid_over_white_to_the_nearest():
    exact = RGBA[:3] * (RGBA[3] / 255.0) + 255.0 - RGBA[3]
    assert np.abs(composite_on_white(RGBA) - exact).max() <= 0.5 + 1e-9
    picture = Image.fromarray(np.moveaxis(RGBA, 0, -1), "RGBA")
    pillow = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    difference = np.moveaxis(np.asarray(pillow), -1, 0)[:3].astype(int) - composite_on_white(RGBA)
    assert np.abs(difference).max() <= 1


def test_opaque_and_clear():
    image = RGBA.copy()
    image[3] = 255
    np.testing.assert_array_equal(composite_on_white(image), RGBA[:3])
    image[3] = 0
    assert (composite_on_white(image) == 255).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_wider_integers(dtype):
    white = np.iinfo(dtype).max
    image = np.random.default_rng(3).integers(0, white, (2, 5, 7), dtype, endpoint=True)
    exact = image[:1] * (image[1] / white) + (white - image[1].astype(float))
    assert (
        np.abs(composite_on_white(image) - exact).max() <= 0.5 + 1e-6 * (dtype == np.uint32) * white
    )
    assert composite_on_white(image).dtype == dtype


def test_floats():
    image = np.array([[0.2, 0.4], [0.25, 1.0]], np.float32)[:, None]
    np.testing.assert_allclose(composite_on_white(image), [[[0.8, 0.4]]], rtol=1e-6)


def test_premultiplied_colours_are_not_multiplied_again():
    colours = np.array([[10, 100, 255]], np.uint8)
    alpha = np.array([[20, 100, 255]], np.uint8)
    image = np.stack([colours, alpha])
    np.testing.assert_array_equal(
        composite_on_white(image, premultiplied=True), [[[245, 255, 255]]]
    )
