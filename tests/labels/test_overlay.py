import numpy as np
import pytest
from helpers.label_maps import blobs, noise
from PIL import Image

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels import overlay as module
from nnunet_octreenca.labels.legend import blend, contours, legend
from nnunet_octreenca.labels.overlay import label_shares, write_overlay
from nnunet_octreenca.labels.palette import PALETTE, colour
from nnunet_octreenca.labels.thumbnail import Thumbnail, ThumbnailGrid, labels_thumbnail

NAMES = {0: "background", 1: "epithelium", 2: "stroma", 3: "unseen"}


def rgb(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def has_colour(picture, wanted):
    return (picture == np.array(wanted)).all(-1).any()


def test_contours_are_the_classes_outermost_pixels():
    labels = np.zeros((7, 8), np.uint8)
    labels[1:6, 1:4] = 1
    labels[1:6, 4:7] = 2
    expected = np.zeros_like(labels, bool)
    expected[1:6, 1:7] = True
    expected[2:5, 2] = expected[2:5, 5] = False
    np.testing.assert_array_equal(contours(labels), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_blending(dtype):
    image, labels = rgb(30, 40), blobs(30, 40, classes=4, dtype=dtype)
    result = blend(image, labels, opacity=0.25)
    edge = contours(labels)
    inside = (labels > 0) & ~edge
    np.testing.assert_array_equal(result[labels == 0], image[labels == 0])
    np.testing.assert_array_equal(result[edge], PALETTE[labels[edge]])
    assert inside.any()
    expected = 0.75 * image[inside] + 0.25 * PALETTE[labels[inside]]
    np.testing.assert_allclose(result[inside], expected, atol=1)


def test_labels_above_the_palette_have_their_colour():
    labels = np.full((3, 3), 258, np.int16)
    np.testing.assert_array_equal(
        blend(np.zeros((3, 3, 3), np.uint8), labels, opacity=1), np.full((3, 3, 3), colour(258))
    )


@pytest.mark.parametrize("width", [120, 700])
def test_the_legend_shows_every_class_and_grows_downwards(width):
    entries = [(colour(n), f"class {n} µ") for n in range(1, 30)]
    strip = legend(entries, width, caption="a caption that is far too long for this" * 9)
    assert strip.shape[1:] == (width, 3)
    assert all(has_colour(strip, wanted) for wanted, _ in entries)
    assert len(strip) > len(legend(entries[:1], width))
    np.testing.assert_array_equal(strip[:, -5:], 255)
    assert legend([], width).shape == (0, width, 3)


def test_the_overlay_is_the_blended_thumbnail_above_a_legend(tmp_path):
    image, labels = rgb(300, 600), blobs(300, 600)
    write_overlay(tmp_path / "a.png", image, labels, names=NAMES, caption="case 7")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[:300], blend(image, labels))
    strip = pixels[300:]
    assert has_colour(strip, colour(1))
    assert has_colour(strip, colour(2))
    assert not has_colour(strip, colour(3))


def test_narrow_pictures_have_room_for_the_legend(tmp_path):
    image, labels = rgb(90, 30), np.zeros((90, 30), np.uint8)
    write_overlay(tmp_path / "a.png", image, labels, names=NAMES)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] == 480
    np.testing.assert_array_equal(pixels[:90, 225:255], image)
    np.testing.assert_array_equal(pixels[:90, :225], 255)


def test_the_legend_tells_each_class_and_its_share(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        module,
        "legend",
        lambda entries, width, caption: told.append((entries, caption)) or legend(entries, width),
    )
    labels = np.array([[0, 1], [1, 7]], np.uint8)
    write_overlay(tmp_path / "a.png", rgb(2, 2), labels, names=NAMES, caption="x")
    shares = {0: 0.9, 2: 0.0996, 3: 0.0004, 5: 0.0}
    write_overlay(tmp_path / "a.png", rgb(2, 2), labels, names=NAMES, shares=shares)
    write_overlay(tmp_path / "a.png", rgb(2, 2), 0 * labels, names=NAMES)
    assert told == [
        ([(colour(1), "epithelium 50.0 %"), (colour(7), "label 7 25.0 %")], "x"),
        ([(colour(2), "stroma 10.0 %"), (colour(3), "unseen < 0.1 %")], ""),
        ([((255, 255, 255), "background only")], ""),
    ]


def test_shares_are_exact_whatever_the_blocks(monkeypatch):
    labels = noise(31, 57, classes=300, dtype=np.int16)
    values, counts = np.unique(labels, return_counts=True)
    expected = dict(zip(values.tolist(), (counts / labels.size).tolist(), strict=True))
    for block in (7, 1000, 2**22):
        monkeypatch.setattr(module, "_BLOCK", block)
        assert label_shares(labels) == expected


def test_sizes_that_differ_are_named(tmp_path):
    with pytest.raises(OutputError, match=r"shape \(20, 30, 3\), its labels \(20, 31\)"):
        write_overlay(tmp_path / "a.png", rgb(20, 30), blobs(20, 31), names=NAMES)


def block_means(image, step):
    rows = [
        [image[y : y + step, x : x + step].mean((0, 1)) for x in range(0, image.shape[1], step)]
        for y in range(0, image.shape[0], step)
    ]
    return np.array(rows)


def fed(image, cuts, longest):
    """A thumbnail of (y, x, channels) rows between the cuts, in mixed order."""
    thumbnail = Thumbnail(image.shape[:2], longest)
    bands = list(zip([0, *cuts], [*cuts, len(image)], strict=True))
    for first, end in bands[1::2] + bands[::2]:
        thumbnail.add(first, np.moveaxis(image[first:end], -1, 0))
    return thumbnail.picture()


@pytest.mark.parametrize("channels", [3, 4])
def test_a_thumbnail_averages_what_a_pixel_stands_for(channels):
    image = np.random.default_rng(0).integers(0, 256, (100, 151, channels)).astype(np.uint8)
    picture = fed(image, [10, 31, 32], longest=80)
    assert picture.shape == (50, 76, 3)
    np.testing.assert_array_equal(picture, np.rint(block_means(image, 2))[..., :3])


@pytest.mark.parametrize("step", [2, 5, 7, 13])
def test_the_bands_make_no_difference(step):
    image = np.random.default_rng(0).integers(0, 256, (173, 211, 3)).astype(np.uint8)
    whole = fed(image, [], longest=-(-211 // step))
    for cuts in ([1, 2, 3, 100], list(range(1, 173)), [12, 13, 14, 172]):
        np.testing.assert_array_equal(fed(image, cuts, longest=-(-211 // step)), whole)


def test_large_steps_take_nine_samples_a_pixel():
    image = np.random.default_rng(0).integers(0, 256, (120, 180, 3)).astype(np.uint8)
    picture = Thumbnail(image.shape[:2], longest=15)
    picture.add(0, np.moveaxis(image, -1, 0))
    np.testing.assert_array_equal(picture.picture(), np.rint(block_means(image[::4, ::4], 3)))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_grey_is_shown_between_percentiles(dtype):
    values = np.random.default_rng(0).normal(100, 20, (450, 430)).astype(dtype)
    values[0, 0] = 250
    thumbnail = Thumbnail(values.shape, longest=450)
    thumbnail.add(0, np.stack([values, 0 * values]))  # a second channel is not shown
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    picture = thumbnail.picture()
    np.testing.assert_allclose(picture, np.repeat(expected[..., None], 3, -1), atol=0.51)


def test_what_nobody_saw_is_white_and_constants_are_no_error():
    thumbnail = Thumbnail((900, 800))
    np.testing.assert_array_equal(thumbnail.picture(), np.full((900, 800, 3), 255))
    thumbnail.add(0, np.full((1, 450, 800), 7.0))
    thumbnail.add(450, np.full((1, 100, 800), np.nan))
    picture = thumbnail.picture()
    np.testing.assert_array_equal(picture[:450], 0)
    np.testing.assert_array_equal(picture[550:], 255)


@pytest.mark.parametrize(
    ("shape", "planes", "columns"),
    [
        ((72, 480, 854), [3, 9, 15, 21, 27, 33, 39, 45, 51, 57, 63, 69], 3),
        ((5, 100, 90), [0, 1, 2, 3, 4], 3),
        ((800, 512, 512), [100 * n // 3 + 33 for n in range(0, 24, 2)], 3),
        ((1, 50, 50), [0], 1),
    ],
)
def test_planes_are_evenly_spaced_in_a_montage(shape, planes, columns):
    layout = ThumbnailGrid.of(shape)
    np.testing.assert_allclose(layout.planes, planes, atol=1)
    assert layout.columns == columns


def test_a_volume_is_a_montage_of_planes():
    volume = np.random.default_rng(0).integers(0, 256, (3, 3, 300, 400)).astype(np.uint8)
    labels = blobs(3, 300, 400)
    thumbnail = Thumbnail(labels.shape)
    thumbnail.add(2, volume[:, 2:])
    thumbnail.add(0, volume[:, :2])
    picture, small = thumbnail.picture(), labels_thumbnail(labels)
    assert picture.shape == (*small.shape, 3) == (604, 804, 3)
    for number, (y, x) in enumerate([(0, 0), (0, 404), (304, 0)]):
        here = np.s_[y : y + 300, x : x + 400]
        np.testing.assert_array_equal(picture[here], np.moveaxis(volume[:, number], 0, -1))
        np.testing.assert_array_equal(small[here], labels[number])
    np.testing.assert_array_equal(picture[300:304], 255)
    assert not small[304:, 404:].any()


def test_small_images_are_enlarged():
    image, labels = rgb(30, 50), blobs(30, 50)
    thumbnail = Thumbnail((30, 50))
    thumbnail.add(0, np.moveaxis(image, -1, 0))
    for found, source in ((thumbnail.picture(), image), (labels_thumbnail(labels), labels)):
        np.testing.assert_array_equal(found, source.repeat(16, axis=0).repeat(16, axis=1))


@pytest.mark.parametrize(("step", "apart"), [(3, 1), (9, 3), (1, 1)])
def test_small_labels_are_the_most_frequent_ones(step, apart):
    labels = noise(36, 360, classes=4)
    small = labels_thumbnail(labels, longest=360 // step)
    assert small.shape == (36 // step, 360 // step)
    for y, x in np.ndindex(small.shape):
        box = labels[y * step : (y + 1) * step, x * step : (x + 1) * step]
        counts = np.bincount(box[apart // 2 :: apart, apart // 2 :: apart].ravel())
        assert counts[small[y, x]] == counts.max()
