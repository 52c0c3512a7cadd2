import logging
import struct

import numpy as np
import pytest
import tifffile
from bands import check_bands
from closed import closed_afterwards

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import stripes, tiff

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (133, 95, 3), np.uint8)
GREY16 = RANDOM.integers(0, 2**16, (71, 83), np.uint16)
STACK = RANDOM.integers(-99, 999, (7, 33, 47), np.int16)


def channels_first(image):
    return np.moveaxis(image, -1, 0)


@pytest.fixture
def open_tiff():
    with closed_afterwards(tiff.open_tiff) as function:
        yield function


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 1},
        {"rowsperstrip": 10, "compression": "deflate"},
        {"rowsperstrip": 133, "compression": "lzw", "predictor": True},
        {"tile": (16, 32)},
        {"tile": (64, 64), "compression": "zstd"},
        {"tile": (32, 16), "compression": "jpeg"},
        {"tile": (256, 256), "compression": "jpeg2000"},
        {"tile": (64, 48), "compression": "deflate", "bigtiff": True},
        {"byteorder": ">", "tile": (64, 64)},
        {"ome": True, "metadata": {"axes": "YXS"}},
    ],
    ids=str,
)
def test_colours_however_they_are_stored(tmp_path, options, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **options)
    source = open_tiff(path)
    check_bands(source, channels_first(tifffile.imread(path)))
    if "jpeg" not in str(options):
        np.testing.assert_array_equal(source.read(0, 133), channels_first(RGB))
    source.close()
    source.close()


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "deflate"}], ids=str)
def test_planes_of_samples(tmp_path, options, open_tiff):
    path = tmp_path / "a.tif"
    planes = channels_first(RGB)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", **options)
    check_bands(open_tiff(path), planes)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "deflate", "predictor": True}], ids=str)
def test_sixteen_bits_of_either_byte_order(tmp_path, byteorder, options, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY16, byteorder=byteorder, **options)
    check_bands(open_tiff(path), GREY16[None])


def test_floats_and_bilevel(tmp_path, open_tiff):
    tifffile.imwrite(tmp_path / "f.tif", GREY16.astype(np.float32), compression="zlib")
    check_bands(open_tiff(tmp_path / "f.tif"), GREY16.astype(np.float32)[None])
    tifffile.imwrite(tmp_path / "b.tif", GREY16 > 9000)
    check_bands(open_tiff(tmp_path / "b.tif"), (GREY16 > 9000).astype(np.uint8)[None])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (16, 16), "compression": "deflate"},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"metadata": None},
    ],
    ids=str,
)
def test_a_stack_of_planes(tmp_path, options, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **options)
    source = open_tiff(path)
    assert source.stripe == 1, "one plane in memory at a time"
    check_bands(source, STACK[None], heights=(1, 3))


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
def test_a_stack_with_channels(tmp_path, axes, open_tiff):
    path = tmp_path / "a.ome.tif"
    image = RANDOM.integers(0, 256, (2, 5, 19, 23), np.uint8)
    stored = image if axes == "CZYX" else image.swapaxes(0, 1)
    tifffile.imwrite(path, stored, metadata={"axes": axes}, tile=(16, 16))
    check_bands(open_tiff(path), image, heights=(1, 2))


def test_pages_that_are_channels(tmp_path, open_tiff):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "CYX"}, compression="deflate", tile=(16, 16))
    check_bands(open_tiff(path), STACK)
    tifffile.imwrite(tmp_path / "b.tif", STACK)  # does not say what its pages are
    assert open_tiff(tmp_path / "b.tif", channels=1).shape == (7, 33, 47)
    check_bands(open_tiff(tmp_path / "b.tif", channels=7), STACK)


def test_channels_in_several_files(tmp_path, open_tiff):
    """OME-TIFF allows it: each file says which planes lie in which."""
    files = [f"{number}.ome.tif" for number in range(2)]
    ids = [f"urn:uuid:0000000{number}-0000-0000-0000-000000000000" for number in range(2)]
    planes = "".join(
        f'<TiffData FirstC="{n}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{files[n]}">{ids[n]}</UUID></TiffData>'
        for n in range(2)
    )
    for number, file in enumerate(files):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{ids[number]}"><Image ID="Image:0"><Pixels ID="Pixels:0" SizeX="83" '
            f'SizeY="71" SizeZ="1" SizeC="2" SizeT="1" Type="uint16" DimensionOrder="XYZCT">'
            f"{planes}</Pixels></Image></OME>"
        )
        image = GREY16 + np.uint16(number)
        options = {"metadata": None, "description": text, "tile": (32, 32)}
        tifffile.imwrite(tmp_path / file, image, compression="deflate", **options)
    check_bands(open_tiff(tmp_path / files[0]), np.stack([GREY16, GREY16 + np.uint16(1)]))
    (tmp_path / files[1]).unlink()
    with pytest.raises(InputError, match=r"0\.ome\.tif"):
        open_tiff(tmp_path / files[0])


def test_more_axes_than_can_be_read(tmp_path, open_tiff):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((2, 3, 16, 16), np.uint8), metadata={"axes": "TZYX"})
    with pytest.raises(InputError, match="has the axes TZYX"):
        open_tiff(path)


def test_transparency_goes_unless_the_model_takes_it(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    rgba = np.dstack([RGB, RANDOM.integers(0, 256, RGB.shape[:2], np.uint8)])
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    share = rgba[..., 3:] / 255.0
    white = np.rint(RGB * share + 255 * (1 - share)).astype(np.uint8)
    for channels in (None, 3):
        check_bands(open_tiff(path, channels=channels), channels_first(white))
    check_bands(open_tiff(path, channels=4), channels_first(rgba))


def test_an_unnamed_fourth_sample_is_a_channel(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    four = np.dstack([RGB, RGB[..., 0]])
    tifffile.imwrite(path, four, photometric="rgb", extrasamples=["unspecified"])
    check_bands(open_tiff(path, channels=4), channels_first(four))
    assert open_tiff(path, channels=3).channels == 4


def test_a_palette_is_colours_where_three_channels_are_wanted(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    colours = RANDOM.integers(0, 2**16, (3, 256), np.uint16)
    tifffile.imwrite(path, RGB[..., 0], photometric="palette", colormap=colours)
    check_bands(open_tiff(path), RGB[None, ..., 0])
    check_bands(open_tiff(path, channels=3), (colours >> 8).astype(np.uint8)[:, RGB[..., 0]])


def test_tiles_that_were_never_written_are_no_data(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    sparse = np.zeros((128, 128), np.uint8)
    sparse[:64, :64] = 7
    tiles = iter([sparse[:64, :64], None, None, None])
    form = {"shape": (128, 128), "dtype": np.uint8, "tile": (64, 64), "compression": "deflate"}
    tifffile.imwrite(path, tiles, **form)
    with tifffile.TiffFile(path) as file:
        assert 0 in file.pages[0].databytecounts
    check_bands(open_tiff(path), sparse[None])


def write_pyramid(path, image, steps=(1, 2, 4), **options):
    with tifffile.TiffWriter(path) as writer:
        for step in steps:
            writer.write(
                image[::step, ::step],
                subfiletype=int(step > 1),
                photometric="rgb",
                tile=(32, 32),
                metadata=None,
                compression="deflate",
                **options,
            )


MICROSCOPE = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}  # 0.25 microns


@pytest.mark.parametrize("steps", [(1, 2, 4), (1, 4, 16), (1, 8)])
def test_the_level_of_a_resolution(tmp_path, steps, open_tiff):
    path = tmp_path / "a.tif"
    image = np.tile(RGB, (2, 2, 1))[:256, :160]
    write_pyramid(path, image, steps, **MICROSCOPE)
    for step in steps:
        source = open_tiff(path, mpp=0.25 * step * 1.04)
        assert source.info.mpp == pytest.approx(0.25 * step)
        assert source.spacing == pytest.approx((0.00025 * step,) * 2)
        assert source.info.base_shape == (256, 160)
        check_bands(source, channels_first(image[::step, ::step]))


def test_a_resolution_between_two_levels_is_averaged_from_the_finer(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    write_pyramid(path, np.tile(RGB, (2, 2, 1))[:256, :160], **MICROSCOPE)
    source = open_tiff(path, mpp=0.75)
    assert source.shape == (85, 53)
    level = tifffile.imread(path, key=1).astype(float)
    # pixel (2, 4) covers 1.5 x 1.5 pixels of the level at (3, 6)
    weights = np.outer([1, 0.5], [1, 0.5]) / 2.25
    mean = np.einsum("ij,ijc->c", weights, level[3:5, 6:8])
    np.testing.assert_allclose(source.read(0, 85)[:, 2, 4], mean, atol=0.51)
    check_bands(source, source.read(0, 85))


def test_resolutions_that_are_not_there(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    write_pyramid(path, RGB[:128, :64], **MICROSCOPE)
    with pytest.raises(InputError, match=r"a\.tif has no level as fine as 0\.1 .* 0\.25, 0\.5, 1$"):
        open_tiff(path, mpp=0.1)
    write_pyramid(path, RGB[:128, :64])
    with pytest.raises(InputError, match=r"a\.tif does not say its resolution"):
        open_tiff(path, mpp=0.25)
    tifffile.imwrite(path, STACK)
    with pytest.raises(InputError, match="stack of planes"):
        open_tiff(path, mpp=0.25)


APERIO = {"metadata": None, "tile": (64, 64)}


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, (1, 1)),  # for a screen
        ({"resolution": (1e5, 5e4), "resolutionunit": "INCH"}, (25.4 / 5e4, 25.4 / 1e5)),
        (
            {"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um"}},
            (0.25e-3, 0.5e-3),
        ),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}}, (25e-5, 5e-4)),
        (
            {
                "ome": True,
                "metadata": {
                    "PhysicalSizeX": 2,
                    "PhysicalSizeXUnit": "mm",
                    "PhysicalSizeY": 300,
                    "PhysicalSizeYUnit": "nm",
                },
            },
            (3e-4, 2),
        ),
        ({"description": "Aperio Image|AppMag = 20|MPP = 0.499", **APERIO}, (499e-6,) * 2),
        ({"description": "Aperio Image|AppMag = 20", **APERIO}, (1, 1)),
    ],
    ids=str,
)
def test_what_files_say_of_their_pixels_size(tmp_path, options, spacing, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB[..., 0], **options)
    source = open_tiff(path)
    assert source.spacing == pytest.approx(spacing)
    assert source.info.mpp == (None if spacing == (1, 1) else pytest.approx(500 * sum(spacing)))


def test_the_spacing_of_stacks(tmp_path, open_tiff):
    path = tmp_path / "case_0000.tif"
    tifffile.imwrite(path, STACK)
    assert open_tiff(path).spacing == (1, 1, 1)
    (tmp_path / "case.json").write_text('{"spacing": [3, 2, 1.5]}')  # as nnU-Net has it
    assert open_tiff(path).spacing == (3, 2, 1.5)
    (tmp_path / "case.json").write_text('{"spacing": [3, 2]}')
    with pytest.raises(InputError, match=r"case\.json should hold the spacing .* not \[3, 2\]"):
        open_tiff(path)
    path = tmp_path / "b.ome.tif"
    sizes = {"PhysicalSizeX": 1, "PhysicalSizeY": 2, "PhysicalSizeZ": 3}
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX", **sizes})
    assert open_tiff(path).spacing == pytest.approx((3e-3, 2e-3, 1e-3))


def test_ascending_bands_read_each_tile_once(tmp_path, monkeypatch, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(16, 16), compression="deflate")
    monkeypatch.setattr(stripes, "KEPT_BYTES", 0)
    read = []
    original = tiff.TiffSource._bytes
    monkeypatch.setattr(
        tiff.TiffSource, "_bytes", lambda *args: read.append(args[2]) or original(*args)
    )
    source = open_tiff(path)
    source.read(20, 30)
    assert len(read) == 8 * 6, "a stripe of 128 rows, no tile below it"
    for first in range(30, 133, 10):
        source.read(first - 5, min(first + 15, 133))
    assert len(read) == len(set(read)) == 9 * 6


def test_memory_is_that_of_the_bands(tmp_path, monkeypatch, open_tiff):
    import tracemalloc

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, shape=(4096, 1024, 3), dtype=np.uint8, photometric="rgb", tile=(64, 64))
    monkeypatch.setattr(stripes, "KEPT_BYTES", 0)
    source = open_tiff(path)
    band = 1024 * 3 * 128
    tracemalloc.start()
    for first in range(0, 4096, 128):
        source.read(first, first + 128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.info.kept_bytes == 2 * band
    assert 2 * band < peak < 6 * band, "of 32 bands in the image"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    "options", [{}, {"tile": (32, 32), "compression": "jpeg"}, {"compression": "deflate"}], ids=str
)
def test_a_truncated_file_is_named_when_it_is_opened(tmp_path, share, options, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"a\.tif .*truncated"):
        open_tiff(path)


def test_a_file_cut_while_it_is_read(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(16, 16))
    source = open_tiff(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"a\.tif is truncated: it ends before byte"):
        source.read(0, 133)
    source.close()


@pytest.mark.parametrize("compression", ["deflate", "zstd", "jpeg", "jpeg2000"])
def test_a_damaged_tile_is_named_and_the_rest_can_be_read(tmp_path, compression, open_tiff):
    path = tmp_path / "a.tif"
    image = np.tile(RGB, (4, 1, 1))[:512]
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 64), compression=compression)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[5], page.databytecounts[5]  # rows 256 to 383
    data = bytearray(path.read_bytes())
    data[offset : offset + count // 2] = bytes(count // 2)
    path.write_bytes(data)
    source = open_tiff(path)
    source.read(0, 256)
    with pytest.raises(InputError, match=r"a\.tif cannot be decoded in rows 256 to 383 .*damaged"):
        source.read(300, 310)
    source.read(384, 512)


def test_a_header_that_promises_too_much(tmp_path, open_tiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB[..., 0], tile=(16, 16), metadata=None)
    data = bytearray(path.read_bytes())
    for tag in (256, 257):  # width and length
        at = data.index(struct.pack("<HHI", tag, 4, 1))
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 100_000)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.tif lists \d+ of 39062500 tiles"):
        open_tiff(path)


def test_what_is_no_tiff(tmp_path, open_tiff):
    with pytest.raises(InputError, match=r"no\.tif does not exist"):
        open_tiff(tmp_path / "no.tif")
    (tmp_path / "a.tif").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    with pytest.raises(InputError, match=r"a\.tif cannot be read as TIFF"):
        open_tiff(tmp_path / "a.tif")


def test_the_real_slide(data_folder, open_tiff):
    path = data_folder("wsi_unlabelled") / "cmu-1-small-region.svs"
    source = open_tiff(path, channels=3)
    assert source.info.mpp == 0.499
    assert source.spacing == pytest.approx((0.000499, 0.000499))
    whole = channels_first(tifffile.imread(path, key=0))
    assert source.shape == whole.shape[1:] == (2967, 2220)
    for first, end in [(0, 500), (480, 1000), (2900, 2967), (1, 2)]:
        np.testing.assert_array_equal(source.read(first, end), whole[:, first:end])
    source.close()
