import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from helpers.dicom_slices import write_series
from PIL import Image

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import open_image as module
from nnunet_octreenca.images.channels import ChannelStack
from nnunet_octreenca.images.frames import FrameSource
from nnunet_octreenca.images.omezarr import OmeZarrSource
from nnunet_octreenca.images.open_image import ENDINGS, kind_of
from nnunet_octreenca.images.pictures import PictureSource
from nnunet_octreenca.images.slides import SlideSource
from nnunet_octreenca.images.video import VideoSource
from nnunet_octreenca.images.volumes import VolumeSource

RGB = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
VOXELS = np.random.default_rng(1).integers(-99, 99, (5, 6, 7), np.int16)


@pytest.fixture
def open_image():
    with closed_afterwards(module.open_image) as function:
        yield function


@pytest.fixture
def open_channels():
    with closed_afterwards(module.open_channels) as function:
        yield function


def channels_first(image):
    return np.moveaxis(image, -1, 0)


def write_volume(path, voxels=VOXELS, origin=(0, 0, 0)):
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def test_every_kind_by_its_name(tmp_path, open_image):
    import av
    import zarr

    Image.fromarray(RGB).save(tmp_path / "a.PNG")
    tifffile.imwrite(tmp_path / "a.ome.tif", RGB, photometric="rgb")
    write_volume(tmp_path / "a.nii.gz")
    write_series(tmp_path / "ct", VOXELS)
    (slice_file, *_) = write_series(tmp_path / "slice", VOXELS[:1])
    slice_file.rename(tmp_path / "IM0001")
    with av.open(str(tmp_path / "a.avi"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 40, 48, "bgr0"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(RGB, format="rgb24")))
        file.mux(stream.encode())
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.fromarray(RGB).save(tmp_path / "frames" / f"{number}.png")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=channels_first(RGB), chunks=(3, 16, 16))
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1] * 3}]}]
    group.attrs["multiscales"] = [
        {"axes": [{"name": name} for name in "cyx"], "datasets": datasets, "version": "0.4"}
    ]
    (tmp_path / "a.zarr").rename(tmp_path / "folder")  # known by what it holds
    (tmp_path / "b.zarr").symlink_to(tmp_path / "folder")

    picture, video = channels_first(RGB), channels_first(RGB)[:, None]
    for name, kind, whole in [
        ("a.PNG", PictureSource, picture),
        ("a.ome.tif", SlideSource, picture),
        ("a.nii.gz", VolumeSource, VOXELS[None]),
        ("ct", VolumeSource, VOXELS[None].astype(np.int32)),
        ("IM0001", VolumeSource, VOXELS[None, :1].astype(np.int32)),
        ("a.avi", VideoSource, video),
        ("frames", FrameSource, video.repeat(3, 1)),
        ("folder", OmeZarrSource, picture),
        ("b.zarr", OmeZarrSource, picture),
    ]:
        source = open_image(tmp_path / name, channels=whole.shape[0])
        assert type(source) is kind, name
        check_bands(source, whole)
        info = source.info
        assert info.kept_bytes >= 0
        assert info.is_video == (kind in (VideoSource, FrameSource)), name
        assert (info.fps is not None) == (kind is VideoSource), name
        assert (info.files is not None) == (kind is FrameSource), name
        assert (info.geometry is not None) == (kind is VolumeSource), name
        if len(source.shape) == 2 and kind is not VolumeSource:
            assert info.base_shape == source.shape, name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.nii.gz", "volume"),
        ("a.b.svs", "slide"),
        ("A.TIF", "TIFF"),
        ("a.ome.tif", "TIFF"),
        ("a.jpeg", "picture"),
        ("a.mkv", "video"),
        ("a.ome.zarr", "OME-Zarr folder"),
        ("a.gz", None),
        ("a", None),
    ],
)
def test_kinds(tmp_path, name, kind):
    assert kind_of(tmp_path / name) == kind


def test_the_models_channels_are_held_against_the_images(tmp_path, open_image):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png has 1 channel and the model takes 3"):
        open_image(tmp_path / "a.png", channels=3)
    write_volume(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii has 1 channel and the model takes 2"):
        open_image(tmp_path / "a.nii", channels=2)
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    with pytest.raises(InputError, match=r"a\.tif has 3 channels and the model takes 1"):
        open_image(tmp_path / "a.tif", channels=1)


def test_a_resolution_of_what_has_none(tmp_path, open_image):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    write_volume(tmp_path / "a.nii")
    for name in ("a.png", "a.nii"):
        with pytest.raises(InputError, match=rf"{name} does not say its microns per pixel.*0\.5"):
            open_image(tmp_path / name, mpp=0.5)


@pytest.mark.parametrize("name", ["a.docx", "no_ending", "a.json"])
def test_an_unknown_ending_lists_what_is_readable(tmp_path, name, open_image):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(InputError) as raised:
        open_image(tmp_path / name)
    assert f"{name} is not of a kind that can be read" in str(raised.value)
    for endings in ENDINGS.values():
        assert " ".join(endings) in str(raised.value)


def test_what_is_not_there(tmp_path, open_image):
    with pytest.raises(InputError, match=r"no\.png does not exist"):
        open_image(tmp_path / "no.png")
    with pytest.raises(InputError, match="holds no frames"):
        open_image(tmp_path)


def test_a_case_of_several_files(tmp_path, open_channels):
    files = [tmp_path / f"a_{channel:04d}.nii.gz" for channel in range(3)]
    for number, file in enumerate(files):
        write_volume(file, VOXELS + number)
    source = open_channels(files, channels=3)
    assert isinstance(source, ChannelStack)
    check_bands(source, np.stack([VOXELS, VOXELS + 1, VOXELS + 2]))
    assert source.info.geometry.path == files[0]
    with pytest.raises(InputError, match=r"have 2 channels in all and the model takes 3"):
        open_channels(files[:2], channels=3)
    write_volume(files[1], origin=(5, 0, 0))
    with pytest.raises(InputError, match=r"a_0001\.nii\.gz has the origin \(5, 0, 0\)"):
        open_channels(files, channels=3)
    assert isinstance(open_channels(files[:1], channels=1), VolumeSource)


def test_pictures_as_channels_give_what_nnunet_reads(tmp_path, open_channels):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    files = [tmp_path / "a_0000.png", tmp_path / "a_0001.png"]
    Image.fromarray(RGB).save(files[0])
    Image.fromarray(RGB[..., ::-1]).save(files[1])
    stock, _ = NaturalImage2DIO().read_images([str(file) for file in files])
    source = open_channels(files, channels=6)
    np.testing.assert_array_equal(source.read(0, 40), stock[:, 0])


def test_a_slide_in_dicom_is_not_taken_for_a_volume(tmp_path, monkeypatch, open_image):
    write_series(tmp_path / "slide", VOXELS[:1])
    (file,) = (tmp_path / "slide").iterdir()
    opened = []
    monkeypatch.setattr(module, "_is_dicom_slide", lambda path: path == file)
    monkeypatch.setattr(
        module, "open_slide", lambda path, **options: opened.append(path) or VolumeSource(file)
    )
    open_image(file)
    open_image(tmp_path / "slide")
    assert opened == [file, file]


def test_the_former_path_still_imports():
    from nnunet_octreenca.images import open_image as present
    from nnunet_octreenca.io import open_image as former

    assert former.open_image is present.open_image
