import errno
import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.bands import check_bands
from helpers.closed import closed_afterwards

from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.images import open_image, video

av = pytest.importorskip("av")
FRAMES, ROWS, COLUMNS = 24, 48, 64


@pytest.fixture
def VideoSource():
    with closed_afterwards(video.VideoSource) as function:
        yield function


@cache
def moving(frames=FRAMES):
    """(frame, y, x, 3): squares that move, with noise."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 255, (ROWS // 8, COLUMNS // 8, 3)).repeat(8, 0).repeat(8, 1)
    noise = generator.integers(-10, 10, (frames, ROWS, COLUMNS, 3))
    shifted = np.stack([np.roll(picture, 2 * frame, 1) for frame in range(frames)])
    return np.clip(shifted + noise, 0, 255).astype(np.uint8)


def write(path, codec, pixels="yuv420p", container=None, **options):
    """Encode once for all tests that want the same."""
    extra = tuple(sorted((container or {}).items()))
    path.write_bytes(encoded(path.suffix, codec, pixels, extra, tuple(sorted(options.items()))))


@cache
def encoded(ending, codec, pixels, container, options):
    options = dict(options)
    rate = Fraction(options.pop("rate", 25))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        with av.open(str(path), "w", options=dict(container)) as file:
            stream = file.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width, stream.pix_fmt = ROWS, COLUMNS, pixels
            for frame in moving():
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
        return path.read_bytes()


def packets(path):
    """Position and size in the file of every packet, and the frame that it holds."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return {
            round((packet.pts - stream.start_time) * packet.time_base * stream.average_rate): (
                packet.pos,
                packet.size,
            )
            for packet in file.demux(stream)
            if packet.size
        }


def frames_first(band):
    return np.moveaxis(band, 0, -1)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
    ],
)
def test_every_frame_as_ffmpeg_decodes_it(tmp_path, name, codec, VideoSource):
    path = tmp_path / name
    write(path, codec)
    with av.open(str(path)) as file:
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    source = VideoSource(path)
    assert source.shape == (FRAMES, ROWS, COLUMNS)
    assert source.fps == 25
    assert source.spacing == (1.0, 1.0, 1.0)
    check_bands(source, np.moveaxis(np.stack(decoded), -1, 0))
    difference = frames_first(source.read(0, FRAMES)).astype(int) - moving()
    assert np.abs(difference).mean() < 20, "lossy, but of the frames that were written"


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_a_lossless_video_is_what_was_written(tmp_path, name, VideoSource):
    path = tmp_path / name
    write(path, "ffv1", "bgr0", rate=Fraction(30000, 1001))
    source = VideoSource(path)
    assert float(source.fps) == pytest.approx(29.97, abs=0.01)
    check_bands(source, np.moveaxis(moving(), -1, 0))


def test_the_scratch_file_has_no_name_and_bands_outlive_it(tmp_path, VideoSource):
    write(tmp_path / "a.avi", "ffv1", "bgr0")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = VideoSource(tmp_path / "a.avi", scratch=scratch)
    assert not list(scratch.iterdir()), "what has no name cannot be left behind by a kill"
    band = source.read(3, 5)
    source.close()
    source.close()
    np.testing.assert_array_equal(frames_first(band), moving()[3:5])


def test_nothing_is_left_when_python_ends_without_closing(tmp_path):
    write(tmp_path / "a.avi", "ffv1", "bgr0")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = (
        "import sys\n"
        "from nnunet_octreenca.images.video import VideoSource\n"
        "print(VideoSource(sys.argv[1], scratch=sys.argv[2]).shape)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.avi"), str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str((FRAMES, ROWS, COLUMNS))
    assert not list(scratch.iterdir())


def test_room_is_asked_for_before(tmp_path, monkeypatch, VideoSource):
    write(tmp_path / "a.mp4", "libx264")
    wanted = FRAMES * ROWS * COLUMNS * 3
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=wanted))
    assert VideoSource(tmp_path / "a.mp4", scratch=tmp_path).shape[0] == FRAMES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=wanted - 1))
    opened = []
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: opened.append(options))
    with pytest.raises(OutputError, match="has too little room for the decoded video"):
        VideoSource(tmp_path / "a.mp4", scratch=tmp_path)
    assert not opened


def test_a_scratch_folder_that_is_not_there(tmp_path, VideoSource):
    write(tmp_path / "a.mp4", "libx264")
    with pytest.raises(OutputError, match=r"scratch is not a folder to decode a video in"):
        VideoSource(tmp_path / "a.mp4", scratch=tmp_path / "scratch")


def test_a_disk_that_fills_meanwhile(tmp_path, monkeypatch, VideoSource):
    class Full:
        closed = False

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.closed = True

    write(tmp_path / "a.mp4", "libx264")
    file = Full()
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: file)
    with pytest.raises(OutputError, match=r"No space left on device.*another disk"):
        VideoSource(tmp_path / "a.mp4")
    assert file.closed


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("b.avi", "ffv1", "bgr0"),
    ],
)
@pytest.mark.parametrize("number", [0, 13, 17])
def test_a_damaged_frame_is_named_by_its_number(tmp_path, name, codec, pixels, number, VideoSource):
    path = tmp_path / name
    write(path, codec, pixels, **({"g": "10", "bf": "2"} if codec == "libx264" else {}))
    position, size = packets(path)[number]
    data = bytearray(path.read_bytes())
    middle = position + size // 3
    data[middle : position + size] = bytes(255 - b for b in data[middle : position + size])
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} .*frame {number}\b"):
        VideoSource(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 0.9])
@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.mp4", "libx264", {}),
        ("b.mp4", "libx264", {"movflags": "faststart"}),
        ("a.avi", "mpeg4", {}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.mov", "mpeg4", {}),
    ],
)
def test_a_truncated_file_is_named(tmp_path, name, codec, container, share, VideoSource):
    path = tmp_path / name
    write(path, codec, container=container)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=rf"{name} .*(truncated|no frame|damaged)"):
        VideoSource(path)


def test_a_lost_middle_of_a_matroska_file(tmp_path, VideoSource):
    """FFmpeg takes the rest of the file for its end, without an error."""
    path = tmp_path / "a.mkv"
    write(path, "libx264", g="5")
    position, _ = packets(path)[15]
    data = bytearray(path.read_bytes())
    data[position - 40 : position + 40] = bytes(80)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.mkv .*(frame \d+)"):
        VideoSource(path)


def test_a_codec_that_nobody_knows(tmp_path, VideoSource):
    write(tmp_path / "a.mp4", "libx264")
    data = (tmp_path / "a.mp4").read_bytes()
    at = data.index(b"avc1", data.index(b"stsd"))
    (tmp_path / "a.mp4").write_bytes(data[:at] + b"zzzz" + data[at + 4 :])
    with pytest.raises(InputError, match=r"a\.mp4 holds a video in a codec that FFmpeg does not"):
        VideoSource(tmp_path / "a.mp4")


@pytest.mark.parametrize("place", ["tracks", "frames"])
def test_a_checksum_of_matroska_that_differs(tmp_path, place, VideoSource):
    """FFmpeg reads on; the frames of this codec have no checksums of their own."""
    path = tmp_path / "a.mkv"
    write(path, "ffv1", "yuv444p", level="1")
    VideoSource(path)
    data = bytearray(path.read_bytes())
    if place == "tracks":
        at = data.index(b"\xb0\x81") + 2  # PixelWidth in one byte
        data[at] -= 2
    else:
        position, size = packets(path)[3]
        data[position + size - 9] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.mkv .* checksum of its {place} differs"):
        VideoSource(path)


def test_a_change_of_size_is_named(tmp_path, VideoSource):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream = None
        for number, shape in enumerate([(48, 64), (48, 64), (32, 64)]):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width = shape
            encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
            if stream is None:
                stream = file.add_stream("mjpeg", rate=25)
                stream.height, stream.width, stream.pix_fmt = *shape, "yuvj420p"
            frame = av.VideoFrame.from_ndarray(np.zeros((*shape, 3), np.uint8), format="rgb24")
            frame.pts = number
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = number
                file.mux(packet)
    with pytest.raises(InputError, match=r"a\.mkv changes its size at frame 2, .*\(32, 64\)"):
        VideoSource(path)


def test_what_is_no_video(tmp_path, VideoSource):
    with pytest.raises(InputError, match=r"no\.mp4 does not exist"):
        VideoSource(tmp_path / "no.mp4")
    (tmp_path / "a.mp4").write_bytes(b"\x89PNG" + bytes(999))
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read as a video"):
        VideoSource(tmp_path / "a.mp4")


def test_sound_only(tmp_path, VideoSource):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
    with pytest.raises(InputError, match=r"a\.mkv holds no video stream"):
        VideoSource(path)


def test_a_video_of_no_frames(tmp_path, VideoSource):
    path = tmp_path / "a.avi"
    write(path, "ffv1", "bgr0")
    # its container without its packets
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        target.add_stream_from_template(source.streams.video[0])
        target.start_encoding()
    with pytest.raises(InputError, match=r"b\.mkv (holds no frame|cannot be read)"):
        VideoSource(tmp_path / "b.mkv")


# ------------------------------------------------------------------ files of cameras and browsers


def timed(path, times, lasting, codec="mjpeg", pixels="yuvj420p", **options):
    """Frames shown at `times` (ms), the last one for `lasting` ms."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, pixels
    encoder.time_base = Fraction(1, 1000)
    if codec == "mjpeg":
        encoder.color_range = 2
    packets = []
    for number, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(moving()[number], format="rgb24")
        frame = frame.reformat(format=pixels)
        frame.pts, frame.time_base = time, encoder.time_base
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_mux_stream(codec, width=64, height=48)
        stream.time_base = encoder.time_base
        for packet, until in zip(packets, [*times[1:], times[-1] + lasting], strict=True):
            packet.stream, packet.time_base = stream, encoder.time_base
            packet.duration = until - packet.pts
            file.mux(packet)


@pytest.mark.parametrize("name", ["a.mkv", "b.mp4", "c.mov"])
@pytest.mark.parametrize(
    ("times", "lasting"),
    [
        ([0, 40, 80, 120, 160, 200], 40),
        ([0, 40, 80, 120, 160, 200], 3000),
        ([0, 40, 80, 1080, 2080, 3080], 1000),
        ([0, 1000, 1040, 1080, 1120, 1160], 40),
        ([500, 540, 580, 620, 660, 700], 40),
    ],
)
def test_every_frame_however_long_it_lasts(tmp_path, name, times, lasting, VideoSource):
    timed(tmp_path / name, times, lasting)
    source = VideoSource(tmp_path / name)
    assert source.shape == (6, 48, 64)
    lasts = (times[-1] - times[0] + lasting) / 1000
    assert 6 / float(source.info.fps) == pytest.approx(lasts, rel=0.35)
    uneven = len(set(np.diff([*times, times[-1] + lasting]))) > 1
    assert any("variable frame rate" in note for note in source.info.notes) == uneven


def test_a_recording_without_a_duration(tmp_path, VideoSource):
    """As browsers write it: no duration, no cues, clusters of unknown size."""
    path = tmp_path / "a.webm"
    timed(path, [0, 40, 80, 1080, 2080], 1000, "libvpx", "yuv420p", live="1")
    with av.open(str(path)) as file:
        assert not file.duration
        assert not file.streams.video[0].duration
    assert VideoSource(path).shape[0] == 5
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a\.webm is truncated or damaged after \d+ frames"):
        VideoSource(path)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_frames_are_turned_as_players_turn_them(tmp_path, turn, VideoSource):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264rgb", rate=5, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        stream.set_display_rotation(turn)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(moving()[number], format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with av.open(str(path)) as file:
        told = next(file.decode(video=0)).rotation
    source = VideoSource(path)
    shown = np.stack([np.rot90(frame, told // 90 % 4) for frame in moving()[:3]])
    assert source.shape == shown.shape[:3]
    np.testing.assert_array_equal(source.read(0, 3), np.moveaxis(shown, -1, 0))
    assert any("as players show it" in note for note in source.info.notes)


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.mpg", "mpeg", "mpeg2video"),
        ("a.MPEG", "mpeg", "mpeg1video"),
        ("a.ts", "mpegts", "libx264"),
        ("a.MTS", "mpegts", "mpeg2video"),
        ("a.wmv", "asf", "wmv2"),
        ("a.m4v", "mp4", "libx264"),
        ("a.3gp", "3gp", "mpeg4"),
        ("a.flv", "flv", "flv1"),
    ],
)
def test_endings_of_cameras(tmp_path, name, container, codec):
    path = tmp_path / name
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in moving():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    source = open_image.open_image(path)
    assert source.shape == (FRAMES, 48, 64)
    assert source.info.is_video
    source.close()


def test_a_truncated_asf_file(tmp_path, VideoSource):
    path = tmp_path / "a.wmv"
    with av.open(str(path), "w", format="asf") as file:
        stream = file.add_stream("wmv2", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in moving():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"a\.wmv is truncated: it has \d+ of \d+ bytes"):
        VideoSource(path)


def test_a_cover_picture_alone_is_no_video(tmp_path, VideoSource):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("pcm_s16le", rate=8000)
        sound.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
    with pytest.raises(InputError, match="holds no video stream"):
        VideoSource(path)


@pytest.mark.parametrize("second", [1, 2])
def test_a_cut_within_an_open_group_shows_what_ffmpeg_shows(tmp_path, second, VideoSource):
    """Frames that lead a key frame refer to ones that the cut has removed."""
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    options = {"x264-params": "open-gop=1:keyint=6:min-keyint=6:bframes=3:scenecut=0"}
    write(whole, "libx264", **options)
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        keys = 0
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            keys += packet.is_keyframe
            if keys > second:
                packet.stream = copy
                target.mux(packet)
    with av.open(str(cut)) as file:
        decoded = [f for f in file.decode(video=0) if not f.is_corrupt]
    assert VideoSource(cut).shape[0] == len(decoded) > 3


def test_pixels_that_are_not_square(tmp_path, VideoSource):
    for turn, wanted in ((0, Fraction(4, 3)), (90, Fraction(3, 4))):
        path = tmp_path / f"{turn}.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=5)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
            if turn:
                stream.set_display_rotation(turn)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(moving()[0], format="rgb24")))
            file.mux(stream.encode(None))
        assert VideoSource(path).info.pixel_aspect == wanted


@pytest.mark.parametrize("space", [1, 5])
@pytest.mark.parametrize("reach", [1, 2])
def test_colours_are_read_as_the_file_marks_them(tmp_path, space, reach, VideoSource):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24], picture[:, :8] = 255, (200, 30, 60)
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("libx264", rate=5, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.color_range, stream.codec_context.colorspace = reach, space
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv444p", dst_color_range=reach, dst_colorspace=space
        )
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    found = np.moveaxis(VideoSource(tmp_path / "a.mkv").read(0, 1)[:, 0], 0, -1)
    assert np.abs(found.astype(int) - picture).max() <= 2
