"""Damaged files: how they are damaged, by whom they are read, and what is said."""

import logging
import struct
from functools import partial

import numpy as np
import pytest
import tifffile
from helpers.tiny_slides import picture
from PIL import Image

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.open_image import open_image
from nnunet_octreenca.images.pyramid import SlideRegions

IMAGE = picture(512, 95)
TILES = {"photometric": "rgb", "metadata": None, "tile": (128, 64)}


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")


class Bands:
    """As a prediction reads."""

    def __init__(self, path):
        self.source = open_image(path)

    def rows(self, first, end):
        return np.moveaxis(self.source.read(first, end), 0, -1)

    def close(self):
        self.source.close()


class Windows:
    """As a training and `convert` read."""

    def __init__(self, path):
        self.slide = SlideRegions(path)

    def rows(self, first, end):
        return self.slide.region(0, first, 0, end - first, self.slide.shapes[0][1])

    def close(self):
        self.slide.close()


def first_row(reader, path):
    opened = reader(path)
    try:
        opened.rows(0, 1)
    finally:
        opened.close()


READERS = pytest.mark.parametrize("reader", [Bands, Windows])


def truncated(share, **options):
    def write(path):
        tifffile.imwrite(path, IMAGE, **{"photometric": "rgb", "metadata": None, **options})
        cut(path, share)

    return write


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def promising(path):
    """A header of 100,000 x 100,000 pixels."""
    tifffile.imwrite(path, IMAGE[..., 0], tile=(16, 16), metadata=None)
    data = bytearray(path.read_bytes())
    for tag in (256, 257):  # width and length
        at = data.index(struct.pack("<HHI", tag, 4, 1))
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 100_000)
    path.write_bytes(data)


def with_tag(path, tag, number, **options):
    """A number of the first page's directory changed, as a flipped bit would."""
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, **options)
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[tag].valueoffset
    data = bytearray(path.read_bytes())
    data[at : at + 2] = struct.pack("<H", number)
    path.write_bytes(data)


def cut_png(path):
    Image.fromarray(IMAGE).save(path)
    cut(path, 0.5)


# (file, how it is made, what is said)
DAMAGES = [
    *(
        (f"{name} cut to {share}.tif", truncated(share, **options), r"cut to .*\.tif .*truncated")
        for share in (0.0, 0.001, 0.5, 0.9, 0.999)
        for name, options in (
            ("plain", {}),
            ("jpeg", {"tile": (32, 32), "compression": "jpeg"}),
            ("deflate", {"compression": "deflate"}),
        )
    ),
    ("missing.tif", lambda path: None, r"missing\.tif does not exist"),
    ("text.svs", lambda path: path.write_text("this is no slide"), r"text\.svs .* TIFF: .*'this'"),
    ("png.tif", lambda path: Image.fromarray(IMAGE).save(path, "png"), r"png\.tif .* TIFF: .*PNG"),
    ("junk.tif", lambda path: path.write_bytes(b"II*\0" + bytes(99)), r"junk\.tif .*no image"),
    ("vendor.mrxs", lambda path: path.write_bytes(b"\xff\xd8" + bytes(99)), "read as a slide"),
    ("huge.tif", promising, r"huge\.tif lists \d+ offsets .* the 39062500 tiles"),
    *(
        (f"{name} {tag} {number}.tif", partial(with_tag, tag=tag, number=number, **options), said)
        for name, options, lists in (
            ("one strip", {"rowsperstrip": 512}, "holds .* bytes where"),
            ("strips", {"rowsperstrip": 16}, "lists 32 offsets .* the 16 tiles or strips"),
            ("tiles", {"tile": (32, 32)}, "lists 48 offsets .* the (24|32) tiles"),
            ("deflated", {"tile": (32, 32), "compression": "deflate"}, "lists 48 offsets"),
        )
        for tag, number, said in (
            ("ImageWidth", 48, "holds .* bytes where" if name == "strips" else lists),
            ("ImageLength", 256, lists),
            ("ImageWidth", 0, "0 x 512 pixels|no image"),
        )
    ),
    ("cut.png", cut_png, r"cut\.png cannot be decoded .* truncated"),
    ("text.png", lambda path: path.write_text("no picture"), r"text\.png cannot be read as a pic"),
]


@READERS
@pytest.mark.parametrize(("name", "damage", "said"), DAMAGES, ids=[one[0] for one in DAMAGES])
def test_it_is_said_what_is_wrong(tmp_path, reader, name, damage, said):
    if name.endswith(".mrxs"):
        pytest.importorskip("openslide")
    damage(tmp_path / name)
    with pytest.raises(InputError, match=said):
        first_row(reader, tmp_path / name)


@READERS
def test_a_file_cut_while_it_is_read(tmp_path, reader):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, **TILES)
    opened = reader(path)
    opened.rows(0, 10)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"a\.tif is truncated: it ends before byte"):
        opened.rows(0, 512)
    opened.close()


@READERS
@pytest.mark.parametrize("compression", ["deflate", "zstd", "jpeg", "jpeg2000"])
def test_a_damaged_tile_is_named_and_the_rest_can_be_read(tmp_path, compression, reader):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, compression=compression, **TILES)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[5], page.databytecounts[5]  # rows 256 to 383
    expected = tifffile.imread(path)
    data = bytearray(path.read_bytes())
    data[offset : offset + count // 2] = bytes(count // 2)
    path.write_bytes(data)
    opened = reader(path)
    assert np.array_equal(opened.rows(0, 256), expected[:256])
    rows = "256 to 383" if reader is Bands else "300 to 309"
    with pytest.raises(InputError, match=rf"a\.tif cannot be decoded in rows {rows} .*damaged"):
        opened.rows(300, 310)
    assert np.array_equal(opened.rows(384, 512), expected[384:])
    opened.close()
