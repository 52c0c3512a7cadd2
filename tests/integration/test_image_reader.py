"""Natural images: what nnU-Net's reader returns, whatever their size, and headers that lie."""

import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from PIL import Image, ImageOps

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.slide_reader import read_whole
from nnunet_octreenca.integration import image_reader
from nnunet_octreenca.integration.image_reader import (
    OctreeNCANaturalImage2DIO,
    read_natural_images,
)
from nnunet_octreenca.integration.register import CLASS_SHIMS
from nnunet_octreenca.libraries import unlimited_pillow

RANDOM = np.random.default_rng(3)


def picture(*shape, dtype=np.uint8):
    return RANDOM.integers(0, 200, shape).astype(dtype)


def save(path, pixels):
    if isinstance(pixels, str):
        Image.fromarray(picture(19, 23, 3)).quantize(16).save(path)
    elif path.suffix == ".tif":
        photometric = None if pixels.dtype != bool else "minisblack"
        tifffile.imwrite(path, pixels, photometric=photometric)
    else:
        Image.fromarray(pixels).save(path)
    return str(path)


PICTURES = {
    "grey": picture(19, 23),
    "rgb": picture(19, 23, 3),
    "rgba": picture(19, 23, 4),
    "16 bits": picture(19, 23, dtype=np.uint16) * 300,
    "1 bit": picture(19, 23) > 100,
    "palette": "palette",
}


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(e, k) for e in (".png", ".bmp", ".tif") for k in PICTURES if (e, k) != (".bmp", "16 bits")],
)
def test_same_numbers_as_nnunets_reader(tmp_path, ending, kind):
    pixels = PICTURES[kind]
    path = save(tmp_path / f"a{ending}", pixels)
    expected, properties = NaturalImage2DIO().read_images((path,))
    planes, own = read_natural_images((path,))
    np.testing.assert_array_equal(planes, expected)
    assert (planes.dtype, own) == (expected.dtype, properties)
    assert planes.flags.c_contiguous


def test_a_file_for_each_channel(tmp_path):
    paths = [save(tmp_path / f"a_000{n}.png", picture(9, 31)) for n in range(4)]
    expected, _ = NaturalImage2DIO().read_images(paths)
    np.testing.assert_array_equal(read_natural_images(paths)[0], expected)


def test_shapes_that_differ_are_told_in_nnunets_words(tmp_path, capsys):
    paths = [save(tmp_path / f"a_000{n}.png", picture(9, 31 + n)) for n in range(2)]
    with pytest.raises(RuntimeError):
        read_natural_images(paths)
    assert "Not all input images have the same shape" in capsys.readouterr().out


def test_images_that_pillow_refuses(tmp_path, monkeypatch):
    """With a limit of 100 pixels stock refuses 900; ours reads them, and the limit stands again."""
    path = save(tmp_path / "a.png", picture(30, 30, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        NaturalImage2DIO().read_images((path,))
    planes, _ = read_natural_images((path,))
    assert planes.shape == (3, 1, 30, 30)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(KeyError), unlimited_pillow():
        raise KeyError
    assert Image.MAX_IMAGE_PIXELS == 100


def test_header_that_promises_more_than_the_file_holds(tmp_path):
    """100,000 x 100,000 pixels in a file of some kilobytes."""
    path = tmp_path / "a.png"
    save(path, picture(30, 30, 3))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png promises 100000 x 100000 pixels.*cannot hold"):
        read_natural_images((str(path),))


def test_images_larger_than_the_machine(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", picture(30, 30, 3))
    monkeypatch.setattr(image_reader, "physical_memory", lambda: 30 * 30 * 12 - 1)
    with pytest.raises(InputError, match=r"30 x 30 pixels.*this machine"):
        read_natural_images((path,))
    monkeypatch.setattr(image_reader, "physical_memory", lambda: 30 * 30 * 12)
    assert read_natural_images((path,))[0].shape == (3, 1, 30, 30)


@pytest.mark.parametrize("content", [b"", b"not an image at all"])
def test_no_image(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        read_natural_images((str(path),))


def test_truncated_image(tmp_path):
    """Pillow's own error names no file: ours does."""
    path = tmp_path / "a.png"
    save(path, picture(64, 64, 3))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"a\.png cannot be decoded .* truncated"):
        read_natural_images((str(path),))


def test_reader_is_nnunets_but_for_the_limit(tmp_path, monkeypatch):
    image, labels = (
        save(tmp_path / f"{n}.png", picture(30, 20, *s)) for n, s in (("a", (3,)), ("b", ()))
    )
    stock = NaturalImage2DIO()
    expected = stock.read_images((image,)), stock.read_seg(labels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        stock.read_images((image,))
    reader = OctreeNCANaturalImage2DIO()
    for found, wanted in zip(
        (reader.read_images((image,)), reader.read_seg(labels)), expected, strict=True
    ):
        np.testing.assert_array_equal(found[0], wanted[0])
        assert found[1] == wanted[1]
    values = np.unique(expected[1][0]).tolist()
    metrics = compute_metrics(labels, labels, reader, values)["metrics"]
    assert {value: one["Dice"] for value, one in metrics.items()} == dict.fromkeys(values, 1)


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_training_sees_pictures_as_prediction_does(tmp_path, capsys, code, ending):
    """Turned as EXIF's and TIFF's orientation say, masks that say so as well."""
    image_reader.say_once.cache_clear()
    tags = Image.Exif()
    tags[0x0112] = code
    paths, expected = [], []
    for name, pixels in (
        ("a", picture(19, 23, 3)),
        ("b", picture(19, 23, 3)),
        ("m", picture(19, 23)),
    ):
        path = tmp_path / f"{name}{ending}"
        if ending == ".png":
            Image.fromarray(pixels).save(path, exif=tags)
        else:
            more = [(0x0112, "H", 1, code, True)]
            tifffile.imwrite(path, pixels, extratags=more, metadata=None)
        paths.append(str(path))
        shown = Image.fromarray(pixels)
        shown.getexif()[0x0112] = code
        shown = np.asarray(ImageOps.exif_transpose(shown))
        expected.append(np.moveaxis(np.atleast_3d(shown), -1, 0)[:, None])
        predicted = read_whole(path, channels=len(expected[-1]))
        np.testing.assert_array_equal(np.moveaxis(predicted, -1, 0)[:, None], expected[-1])
    planes, _ = read_natural_images(paths[:2])
    np.testing.assert_array_equal(planes, np.concatenate(expected[:2]))
    said = capsys.readouterr().out
    assert said.count("orientation") == (code != 1)
    stock, own = NaturalImage2DIO(), OctreeNCANaturalImage2DIO()
    turned = image_reader.labels_as_shown(stock.read_seg(paths[2])[0], paths[2])
    np.testing.assert_array_equal(turned, expected[2])
    np.testing.assert_array_equal(own.read_seg(paths[2])[0], expected[2])


def test_found_by_name():
    """As nnU-Net looks for readers, in the folder of our shim."""
    folder = str(CLASS_SHIMS)
    name = "OctreeNCANaturalImage2DIO"
    assert recursive_find_python_class(folder, name, None) is OctreeNCANaturalImage2DIO
    assert recursive_find_python_class(folder, "NaturalImage2DIO", None) is None


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_fingerprint_and_preprocessing_read_what_pillow_refuses(tmp_path, new_nnunet, pillow_limit):
    nnunet = new_nnunet(tmp_path / "nnunet")
    folder = nnunet.raw / "Dataset007_Large"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in ("a", "b", "c"):
        save(folder / "imagesTr" / f"{case}_0000.png", picture(60, 50, 3))
        save(folder / "labelsTr" / f"{case}.png", (picture(60, 50) > 100).astype(np.uint8))
    description = {
        "channel_names": dict.fromkeys("012", "rgb_to_0_1"),
        "labels": {"background": 0, "bright": 1},
        "numTraining": 3,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "OctreeNCANaturalImage2DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    prepared = nnunet.preprocessed / folder.name
    nnunet.run(
        "nnUNetv2_plan_and_preprocess",
        *("-d", 7, "-c", "2d", "-np", 1, "-npfp", 1, "--verify_dataset_integrity"),
        environment={**nnunet.environment, **pillow_limit},
    )
    assert len(list((prepared / "nnUNetPlans_2d").glob("*.b2nd"))) == 6
