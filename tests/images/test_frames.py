import numpy as np
import pytest
import tifffile
from helpers.bands import check_bands
from helpers.closed import closed_afterwards
from PIL import Image

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import frames, stripes
from nnunet_octreenca.images.frames import frame_files

VIDEO = np.random.default_rng(0).integers(0, 256, (12, 21, 33, 3), np.uint8)


@pytest.fixture
def FrameSource():
    with closed_afterwards(frames.FrameSource) as function:
        yield function


def write(folder, ending="png", video=VIDEO):
    for number, frame in enumerate(video):
        if ending == "tif":
            tifffile.imwrite(folder / f"frame_{number}.tif", frame, photometric="rgb")
        else:
            Image.fromarray(frame).save(folder / f"frame_{number}.{ending}")
    return [folder / f"frame_{number}.{ending}" for number in range(len(video))]


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "jpg"])
def test_frames_in_their_natural_order(tmp_path, ending, FrameSource):
    files = write(tmp_path, ending)
    (tmp_path / ".frame_3.png").write_bytes(b"hidden")
    (tmp_path / "notes.txt").write_text("no frame")
    assert frame_files(tmp_path) == files, "frame_10 after frame_9"
    whole = VIDEO
    if ending == "jpg":
        whole = np.stack([np.asarray(Image.open(file)) for file in files])
    source = FrameSource(frame_files(tmp_path), channels=3)
    assert source.spacing == (1.0, 1.0, 1.0)
    check_bands(source, np.moveaxis(whole, -1, 0), heights=(1, 5))


def test_grey_frames(tmp_path, FrameSource):
    files = write(tmp_path, video=VIDEO[..., 0])
    check_bands(FrameSource(files), VIDEO[None, ..., 0])


def test_ascending_bands_open_each_file_once(tmp_path, monkeypatch, FrameSource):
    source = FrameSource(write(tmp_path))
    monkeypatch.setattr(stripes, "KEPT_BYTES", 0)
    opened = []
    original = frames.open_reader
    monkeypatch.setattr(
        frames,
        "open_reader",
        lambda file, **options: opened.append(file) or original(file, **options),
    )
    for first in range(0, 12, 4):
        source.read(max(0, first - 2), min(12, first + 4))
    assert opened == source.files


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (VIDEO[0, :20], r"frame_7\.png is 20 x 33 with 3 channels .* others are 21 x 33"),
        (VIDEO[0, ..., 0], r"frame_7\.png is 21 x 33 with 1 channels"),
    ],
)
def test_the_odd_one_is_named(tmp_path, other, said, FrameSource):
    files = write(tmp_path)
    Image.fromarray(other).save(files[7])
    with pytest.raises(InputError, match=said):
        FrameSource(files)


def test_the_first_may_be_the_odd_one(tmp_path, FrameSource):
    files = write(tmp_path)
    Image.fromarray(VIDEO[0, :9]).save(files[0])
    with pytest.raises(InputError, match=r"frame_0\.png is 9 x 33"):
        FrameSource(files)


def test_a_truncated_frame_is_named_when_it_is_read(tmp_path, FrameSource):
    files = write(tmp_path)
    files[5].write_bytes(files[5].read_bytes()[:900])
    source = FrameSource(files)
    np.testing.assert_array_equal(source.read(0, 5), np.moveaxis(VIDEO[:5], -1, 0))
    with pytest.raises(InputError, match=r"frame 5: .*frame_5\.png cannot be decoded"):
        source.read(4, 7)
    np.testing.assert_array_equal(source.read(6, 12), np.moveaxis(VIDEO[6:], -1, 0))


def test_what_is_no_video(tmp_path, FrameSource):
    with pytest.raises(InputError, match="no frames"):
        FrameSource([])
    tifffile.imwrite(tmp_path / "a.tif", VIDEO[..., 0])
    with pytest.raises(InputError, match=r"a\.tif is a stack of 12 planes"):
        FrameSource([tmp_path / "a.tif"])


def test_real_frames(data_folder, FrameSource):
    folder = data_folder("cholecseg8k_clip")
    files = sorted(folder.rglob("*endo.png"))[:5]
    source = FrameSource(files, channels=3)
    assert source.shape == (5, 480, 854)
    whole = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    np.testing.assert_array_equal(source.read(1, 4), np.moveaxis(whole[1:4], -1, 0))
