"""Folders of frames with masks."""

import json
import sys
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageOps

from nnunet_octreenca.datasets.classes import Classes
from nnunet_octreenca.datasets.frames import FrameLayout, convert_frames, find_frames
from nnunet_octreenca.errors import InputError

VESSEL = Classes({"vessel": (255,)})


def write(source: Path, name: str, number: int, shape=(8, 10), ending=".png") -> tuple:
    generator = np.random.default_rng(number)
    image = generator.integers(0, 256, (*shape, 3)).astype(np.uint8)
    mask = (generator.random(shape) < 0.3).astype(np.uint8) * 255
    for folder, pixels, suffix in (("images", image, ending), ("masks", mask, ".png")):
        path = source / folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return image, mask


def test_pictures(tmp_path):
    """Each is a case; nnU-Net's reader sees what was there."""
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    source, target = tmp_path / "eyes", tmp_path / "Dataset001_Eyes"
    written = {f"eye {n}": write(source, f"eye {n}", n, shape=(8, 9 + n)) for n in range(7)}
    done = convert_frames(source, target, VESSEL, layout=FrameLayout(2), test=0.3)
    assert (done.training, done.test, done.configuration) == (5, 2, "2d")
    assert any("independent" in note for note in done.notes)
    for part in ("Tr", "Ts"):
        for path in (target / f"labels{part}").iterdir():
            image, mask = written[path.stem]
            read, _ = NaturalImage2DIO().read_images(
                [str(target / f"images{part}/{path.stem}_0000.png")]
            )
            assert np.array_equal(read[:, 0], np.moveaxis(image, -1, 0))
            labels, _ = NaturalImage2DIO().read_seg(str(path))
            assert np.array_equal(labels[0, 0], mask == 255)
    splits = json.loads((target / "splits_final.json").read_text())
    assert [len(split["val"]) for split in splits] == [1] * 5


def test_videos_in_folders(tmp_path):
    source = tmp_path / "source"
    frames = {
        (video, n): write(source, f"{video}/t{n}", hash((len(video), n)) % 1000)
        for video in ("a", "bb", "ccc")
        for n in (1, 2, 9, 10, 11)
    }
    done = convert_frames(source, tmp_path / "out", VESSEL, layout=FrameLayout(3, None, 3))
    assert (done.training, done.test) == (6, 0)
    # Sorted by number: t9 before t10; and the second volume begins with the fourth frame.
    volume = sitk.GetArrayFromImage(
        sitk.ReadImage(str(tmp_path / "out/imagesTr/bb_00003_0002.nii.gz"))
    )
    assert np.array_equal(volume, np.stack([frames["bb", n][0][..., 2] for n in (10, 11)]))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/labelsTr/bb_00000.nii.gz")))
    expected = np.stack([frames["bb", n][1] == 255 for n in (1, 2, 9)])
    assert np.array_equal(labels, expected)
    for split in json.loads((tmp_path / "out/splits_final.json").read_text()):
        videos = [{case.split("_")[0] for case in split[part]} for part in ("train", "val")]
        assert videos[0].isdisjoint(videos[1])


def test_grey_and_one_bit_pictures(tmp_path):
    grey = np.arange(80, dtype=np.uint8).reshape(8, 10)
    for n in range(2):
        write(tmp_path, f"p{n}", n)
        Image.fromarray(grey).save(tmp_path / f"images/p{n}.png")
        Image.fromarray(grey > 40).save(tmp_path / f"masks/p{n}.png")
    convert_frames(tmp_path, tmp_path / "out", Classes({"v": (1,)}), layout=FrameLayout(2))
    written = np.asarray(Image.open(tmp_path / "out/imagesTr/p0_0000.png"))
    assert np.array_equal(written, np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/labelsTr/p0.png")), grey > 40)


@pytest.mark.parametrize("code", range(2, 9))
@pytest.mark.parametrize("shape", [(12, 12), (8, 12)])
@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("dimension", [2, 3])
def test_masks_lie_on_the_picture_as_it_is_shown(tmp_path, code, shape, tagged, dimension):
    """Drawn on the shown picture, or stored and tagged as the picture is."""
    source, tags = tmp_path / "source", Image.Exif()
    tags[0x0112] = code
    for n in range(2):
        image, mask = write(source, f"p{n}", n, shape)
        Image.fromarray(image).save(source / f"images/p{n}.png", exif=tags)
        if tagged:
            Image.fromarray(mask).save(source / f"masks/p{n}.png", exif=tags)
        shown = []
        for pixels in (image, mask):
            picture = Image.fromarray(pixels)
            picture.getexif()[0x0112] = code
            shown.append(np.asarray(ImageOps.exif_transpose(picture)))
        if not tagged:
            Image.fromarray(shown[1]).save(source / f"masks/p{n}.png")
    done = convert_frames(source, tmp_path / "out", VESSEL, layout=FrameLayout(dimension))
    if dimension == 2:
        images = np.asarray(Image.open(tmp_path / "out/imagesTr/p1_0000.png"))
        labels = np.asarray(Image.open(tmp_path / "out/labelsTr/p1.png"))
    else:
        (file,) = (tmp_path / "out/labelsTr").iterdir()
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[1]
        files = sorted((tmp_path / "out/imagesTr").iterdir())
        channels = [sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[1] for file in files]
        images = np.stack(channels, -1)
    np.testing.assert_array_equal(images, shown[0])
    np.testing.assert_array_equal(labels, shown[1] == 255)
    told = [note for note in done.notes if "orientation" in note]
    assert [note.partition(":")[0] for note in told] == [
        "2 of 2 pictures",
        *(["2 of 2 masks"] if tagged else []),
    ]


def test_a_mask_of_the_stored_picture_is_told_from_the_shown(tmp_path):
    image, _ = write(tmp_path, "a", 0, (8, 12))
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "images/a.png", exif=tags)
    with pytest.raises(InputError, match=r"12 x 8 .* its image 8 x 12, as viewers show them"):
        convert_frames(tmp_path, tmp_path / "out", VESSEL, layout=FrameLayout(2))


def test_bad_input(tmp_path):
    source, target = tmp_path / "source", tmp_path / "out"
    with pytest.raises(InputError, match="a folder images and a folder masks"):
        find_frames(source)
    write(source, "a", 0)
    write(source, "b", 1)
    (source / "masks/b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png has no mask"):
        convert_frames(source, target, VESSEL)
    write(source, "b", 1, ending=".bmp")
    with pytest.raises(InputError, match="two images with the same name"):
        convert_frames(source, target, VESSEL)
    (source / "images/b.bmp").unlink()
    write(source, "b", 1, shape=(8, 12))
    with pytest.raises(InputError, match=r"b\.png has 12 x 8 pixels, but the first frame"):
        convert_frames(source, target, VESSEL)
    with pytest.raises(InputError, match=r"dimension \(4\)"):
        convert_frames(source, target, VESSEL, layout=FrameLayout(4))
    with pytest.raises(InputError, match=r"a\.png holds the value\(s\) 255"):
        convert_frames(source, tmp_path / "other", Classes({"x": (7,)}))


@pytest.mark.parametrize("name", ["eye [1]", "eye *?", "b\u00e4r 3.1", "мозг {a}", "1\u00b23"])
def test_names_of_pictures_pair_as_they_are(tmp_path, name):
    """A mask saved on macOS has the name in two characters where the image has one."""
    write(tmp_path, name, 0)
    write(tmp_path, "eye 1", 1)
    decomposed = normalize("NFD", name)
    (tmp_path / f"masks/{name}.png").rename(tmp_path / f"masks/{decomposed}.png")
    clips = find_frames(tmp_path, single=True)
    assert {clip.name for clip in clips} == {name, "eye 1"}
    for clip in clips:
        (frame,) = clip.frames
        assert normalize("NFC", frame.mask.stem) == clip.name


def test_names_of_videos_pair_as_they_are(tmp_path):
    for number in range(3):
        write(tmp_path, f"Müller [2]/{number}", number)
    (tmp_path / "masks/Müller [2]").rename(tmp_path / f"masks/{normalize('NFD', 'Müller [2]')}")
    (tmp_path / "images/.thumbnails").mkdir()
    (clip,) = find_frames(tmp_path)
    assert clip.name == "Müller [2]"
    assert [frame.mask.name for frame in clip.frames] == ["0.png", "1.png", "2.png"]


def test_two_masks_of_one_name_are_refused(tmp_path):
    write(tmp_path, "bär", 0)
    for other in (f"{normalize('NFD', 'bär')}.png", "bär.bmp"):
        Image.new("L", (10, 8)).save(tmp_path / "masks" / other)
        with pytest.raises(InputError, match="are masks of the same name; keep one"):
            find_frames(tmp_path)
        (tmp_path / "masks" / other).unlink()
    assert len(find_frames(tmp_path)) == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="no such names there")
def test_a_video_whose_name_ends_itk(tmp_path):
    """ITK would end the process at a name that is not UTF-8."""
    for n in range(3):
        write(tmp_path / "source", f"r\udcff/t{n}", n)
    with pytest.raises(InputError, match="is not a name in UTF-8"):
        convert_frames(
            tmp_path / "source", tmp_path / "out", VESSEL, layout=FrameLayout(3, None, 3)
        )
