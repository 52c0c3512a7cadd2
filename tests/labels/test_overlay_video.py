import struct
from fractions import Fraction

import numpy as np
import pytest
from helpers.label_maps import blobs

from nnunet_octreenca.errors import OutputError
from nnunet_octreenca.labels.legend import blend, legend
from nnunet_octreenca.labels.overlay_video import write_overlay_mp4
from nnunet_octreenca.labels.palette import colour

av = pytest.importorskip("av")

NAMES = {0: "background", 1: "liver", 2: "grasper"}


def smooth_frames(count, height, width):
    y, x = np.mgrid[:height, :width]
    for number in range(count):
        yield np.stack([y + number, 128 + 0 * y, 255 - x], axis=-1).astype(np.uint8)


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return frames, stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
@pytest.mark.parametrize("fps", [25, 29.97, Fraction(30000, 1001)])
def test_frames_show_the_classes(tmp_path, monkeypatch, codec, fps):
    if codec == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    elif "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no libx264")
    labels = np.repeat(np.repeat(blobs(5, 13, 21), 7, axis=1), 7, axis=2)
    labels[:, 0] = 0
    given = list(smooth_frames(5, *labels.shape[1:]))
    write_overlay_mp4(iter(given), labels, tmp_path / "a.mp4", fps=fps, names=NAMES)
    frames, name, pixels, rate = decoded(tmp_path / "a.mp4")
    assert (name, pixels, len(frames)) == (codec, "yuv420p", 5)
    assert float(rate) == pytest.approx(float(fps), rel=1e-4)
    strip = legend([(colour(n), NAMES[n]) for n in (1, 2)], labels.shape[2])
    for frame, image, frame_labels in zip(frames, given, labels, strict=True):
        assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
        expected = np.concatenate([blend(image, frame_labels), strip])
        height, width = expected.shape[:2]
        assert frame.shape[0] - height in (0, 1)
        assert frame.shape[1] - width == 1
        # Lossy, and colour at half the resolution: close on the whole, not pixel by pixel.
        error = np.abs(frame[:height, :width].astype(int) - expected)
        plain = np.abs(frame[: len(image), :width].astype(int) - image)
        assert error.mean() < 8
        assert plain.mean() > 2 * error.mean()


def test_frames_may_come_from_a_function(tmp_path):
    labels = blobs(3, 40, 50)
    write_overlay_mp4(
        lambda: smooth_frames(3, 40, 50), labels, tmp_path / "a.mp4", fps=10, names=NAMES
    )
    assert len(decoded(tmp_path / "a.mp4")[0]) == 3


def test_players_may_begin_before_the_end(tmp_path):
    write_overlay_mp4(
        smooth_frames(3, 40, 50), blobs(3, 40, 50), tmp_path / "a.mp4", fps=10, names=NAMES
    )
    content = (tmp_path / "a.mp4").read_bytes()
    boxes, place = [], 0
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        boxes.append(kind)
        place += size
    assert boxes.index(b"moov") < boxes.index(b"mdat")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (lambda: smooth_frames(2, 40, 50), "ends after 2 frames, there are labels for 3"),
        (lambda: smooth_frames(4, 40, 50), "more frames than the 3 with labels"),
        (lambda: smooth_frames(3, 40, 52), r"a frame has shape \(40, 52, 3\), its labels"),
    ],
)
def test_frames_that_do_not_fit(tmp_path, frames, message):
    with pytest.raises(OutputError, match=message):
        write_overlay_mp4(frames, blobs(3, 40, 50), tmp_path / "a.mp4", fps=10, names=NAMES)
    assert not list(tmp_path.iterdir())


def test_colours_and_pixels_are_marked(tmp_path):
    labels = blobs(3, 40, 50)
    frames = smooth_frames(3, *labels.shape[1:])
    path = tmp_path / "a.mp4"
    write_overlay_mp4(frames, labels, path, fps=25, names=NAMES, pixel_aspect=Fraction(16, 11))
    with av.open(str(path)) as file:
        coding = file.streams.video[0].codec_context
        assert coding.sample_aspect_ratio == Fraction(16, 11)
        assert (coding.colorspace, coding.color_range) == (1, 1)
