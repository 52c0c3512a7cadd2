"""The page's own readers and its preprocessing, in node, against the package's."""

import gzip
import json
import shutil
import struct
import subprocess
import zlib
from contextlib import closing
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.export.html import described_model
from nnunet_octreenca.images.open_image import open_image
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.preprocessing.case import PreprocessedCase

NODE = shutil.which("node")
CHECK = Path(__file__).with_name("read_check.mjs")
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2)]  # fmt: skip
GREY = ("grey", "bilevel", "big-endian")

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed (Debian: nodejs)")


def in_node(folder, cases):
    done = subprocess.run(
        [NODE, str(CHECK), str(folder)], input=json.dumps(cases), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}


def random(shape, dtype=np.uint8, seed=0, low=0):
    return np.random.default_rng(seed).integers(low, np.iinfo(dtype).max, shape, dtype, True)


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, depth, colour, rows, *, interlace=0, before=()):
    """A PNG of filtered rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    parts = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def interlaced(pixels):
    rows = b""
    for x, y, dx, dy in PASSES:
        part = pixels[y::dy, x::dx]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    height, width = pixels.shape[:2]
    return png(width, height, 8, 2, rows, interlace=1)


def every_filter(pixels):
    """One filter type a row, in turn."""
    rows, height, width = b"", *pixels.shape[:2]
    flat = pixels.reshape(height, -1).astype(int)
    for y in range(height):
        left, up, corner = np.zeros((3, flat.shape[1]), int)
        left[3:] = flat[y, :-3]
        if y:
            up, corner[3:] = flat[y - 1], flat[y - 1, :-3]
        guess = left + up - corner
        paeth = np.where(
            (abs(guess - left) <= abs(guess - up)) & (abs(guess - left) <= abs(guess - corner)),
            left, np.where(abs(guess - up) <= abs(guess - corner), up, corner),
        )  # fmt: skip
        add = [0, left, up, (left + up) // 2, paeth][y % 5]
        rows += bytes([y % 5]) + ((flat[y] - add) % 256).astype(np.uint8).tobytes()
    return png(width, height, 8, 2, rows)


def pictures(folder):
    """Name to file of pictures in every form."""
    rgb, grey = random((41, 37, 3)), random((23, 19))
    alpha = random((21, 33, 4))
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=50)
    made = {
        "rgb.png": Image.fromarray(rgb),
        "rgba.png": Image.fromarray(alpha),
        "grey.png": Image.fromarray(grey),
        "grey-alpha.png": Image.fromarray(alpha[..., :2]),
        "bilevel.png": Image.fromarray(grey > 99),
        "palette.png": palette,
        "grey16.png": Image.fromarray(random((17, 13), np.uint16)),
    }
    files = {}
    for name, picture in made.items():
        picture.save(folder / name)
    palette.save(folder / "clear.png", transparency=bytes(random(50)))
    palette.quantize(13).save(folder / "palette4.png", bits=4)
    (folder / "interlaced.png").write_bytes(interlaced(rgb))
    (folder / "tiny-interlaced.png").write_bytes(interlaced(rgb[:1, :3]))
    (folder / "filters.png").write_bytes(every_filter(rgb))
    wide = random((9, 7, 3), np.uint16)
    (folder / "rgb16.png").write_bytes(
        png(7, 9, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide))
    )
    (folder / "grey2.png").write_bytes(
        png(7, 9, 2, 0, b"".join(b"\0" + row.tobytes() for row in random((9, 2))))
    )
    smooth = np.add.outer(np.arange(70), np.arange(90)).astype(np.uint8)
    colours = np.stack([smooth, smooth // 2, 255 - smooth], -1)
    for name, pixels, options in (
        ("plain", rgb, {}),
        ("lzw", colours, {"compression": "lzw"}),
        ("lzw-noise", random((200, 150, 3)), {"compression": "lzw"}),
        ("deflate", colours, {"compression": "deflate", "predictor": True}),
        ("packbits", colours // 16, {"compression": "packbits"}),
        ("tiled", colours, {"tile": (32, 48), "compression": "lzw", "predictor": True}),
        ("planes", np.moveaxis(rgb, -1, 0), {"planarconfig": "separate", "rowsperstrip": 7}),
        ("big-endian", random((17, 13), np.uint16), {"byteorder": ">", "photometric": "minisblack",
                                                     "compression": "lzw", "predictor": True}),
        ("alpha", alpha, {"extrasamples": ["unassalpha"]}),
    ):  # fmt: skip
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        tifffile.imwrite(folder / f"{name}.tif", pixels, **{"photometric": photometric, **options})
    for path in sorted(folder.glob("*.*")):
        files[path.name] = path
    return files


def test_pictures_hold_what_the_package_reads(tmp_path):
    files = pictures(tmp_path)
    channels = {name: 1 if name.startswith(GREY) else 3 for name in files}
    cases = [
        {"name": name, "file": str(path), "channels": channels[name], "model": None}
        for name, path in files.items()
    ]
    found = in_node(tmp_path, cases)
    assert len(files) > 20
    for name, path in files.items():
        one = found[name]
        with closing(open_image(path, channels=channels[name])) as source:
            wanted = source.read(0, source.shape[0])
        assert "error" not in one, (name, one)
        assert [one["channels"], *one["shape"]] == [wanted.shape[0], 1, *wanted.shape[1:]], name
        own = np.frombuffer((tmp_path / f"{name}.data").read_bytes(), wanted.dtype)
        assert (own == wanted.ravel()).all(), name
        labels = np.asarray(Image.open(tmp_path / f"{name}.labels"))
        assert (labels.ravel() == np.arange(labels.size) % 7).all(), name
        assert labels.shape == wanted.shape[1:]
    assert (found["canvas"]["honest"], found["canvas"]["lying"]) == (True, False)


def volume(path, voxels, affine=None, **fields):
    """A NIfTI file of voxels (x, y, z)."""
    if affine is None:
        affine = np.array([[-0.0, 0, 2, 5], [0, -1.5, 0, 7], [3, 0, 0, -9], [0, 0, 0, 1.0]])
    picture = nibabel.Nifti1Image(voxels, affine)
    for name, value in fields.items():
        if name in ("slope", "inter"):
            continue
        picture.header[name] = value
    if "slope" in fields:
        picture.header.set_slope_inter(fields["slope"], fields["inter"])
    nibabel.save(picture, path)


def volumes(folder):
    draws = np.random.default_rng(1)
    for dtype in ("u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4"):
        low, high = (0, 90) if dtype[0] == "u" else (-90, 90)
        voxels = draws.uniform(low, high, (7, 9, 5)).astype(dtype)
        volume(folder / f"{dtype}.nii.gz", voxels)
    volume(folder / "scaled.nii", draws.normal(size=(4, 5, 6)).astype("f4"))
    stored = nibabel.Nifti1Image(draws.integers(-900, 900, (4, 5, 6)).astype("i2"), np.eye(4))
    stored.header.set_slope_inter(0.37, -11.5)
    nibabel.save(stored, folder / "slope.nii")
    big = nibabel.Nifti1Header(endianness=">")
    big.set_data_dtype(">i2")
    picture = nibabel.Nifti1Image(
        draws.integers(-900, 900, (4, 5, 6)).astype(">i2"), np.eye(4), big
    )
    nibabel.save(picture, folder / "big-endian.nii.gz")
    volume(folder / "channels.nii.gz", draws.normal(size=(4, 5, 6, 2)).astype("f4"))
    return {path.name: path for path in sorted(folder.glob("*.nii*"))}


def test_volumes_hold_what_the_package_reads(tmp_path):
    files = volumes(tmp_path)
    cases = [
        {"name": name, "file": str(path), "channels": 1, "model": None}
        for name, path in files.items()
    ]
    found = in_node(tmp_path, cases)
    for name, path in files.items():
        one = found[name]
        assert "error" not in one, (name, one)
        with closing(open_image(path)) as source:
            wanted = source.read(0, source.shape[0])
        assert one["spacing"] == pytest.approx(source.spacing)
        assert [one["channels"], *one["shape"]] == list(wanted.shape)
        dtype = one["type"].removesuffix("Array").lower()
        own = np.frombuffer((tmp_path / f"{name}.data").read_bytes(), dtype)
        assert (own.astype("f4") == wanted.ravel().astype("f4")).all(), name
        written = tmp_path / f"labels-{name.split('.')[0]}.nii.gz"
        written.write_bytes((tmp_path / f"{name}.labels").read_bytes())
        labels, image = nibabel.load(written), nibabel.load(path)
        assert (labels.affine == image.affine).all()
        assert labels.get_data_dtype() == np.uint8
        assert labels.shape == image.shape[:3]
        values = np.asarray(labels.dataobj).ravel(order="F")
        assert (values == np.arange(values.size) % 7).all()
        for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "qoffset_x", "xyzt_units"):
            assert (labels.header[field] == image.header[field]).all()[()], field


SCHEMES = {
    "zscore": ("ZScoreNormalization", False), "masked": ("ZScoreNormalization", True),
    "ct": ("CTNormalization", False), "rescale": ("RescaleTo01Normalization", False),
    "none": ("NoNormalization", False),
}  # fmt: skip


@pytest.mark.parametrize("patch", [(8, 16, 16), (16, 16)], ids=["3d", "2d"])
def test_the_network_sees_what_the_package_prepares(patch, tmp_path):
    """Crop, hole-filled mask, every normalisation, axes of the plans, zeros around: every bit."""
    draws = np.random.default_rng(2)
    voxels = draws.normal(20, 30, (19, 11, 6)).astype("f4")
    z, y, x = np.ogrid[-2.5:3.5, -5:6, -9:10]
    inside = ((z / 3) ** 2 + (y / 5) ** 2 + (x / 8) ** 2 < 1).transpose()
    voxels[~inside] = 0
    voxels[8:11, 4:7, 2:4] = 0  # a hole
    volume(tmp_path / "case.nii.gz", voxels, np.diag([1.0, 1, 1, 1]))
    cases, models = [], {}
    for name, (scheme, masked) in SCHEMES.items():
        folder = model_folder(
            tmp_path / name, patch=patch, channels=1, ending=".nii.gz", schemes=[scheme],
            transpose=(0, 2, 1) if name == "ct" else (0, 1, 2),
        )  # fmt: skip
        plans = json.loads((folder / "plans.json").read_text())
        for configuration in plans["configurations"].values():
            configuration["use_mask_for_norm"] = [masked]
        (folder / "plans.json").write_text(json.dumps(plans))
        models[name] = load_model(folder)
        cases.append(
            {
                "name": name,
                "file": str(tmp_path / "case.nii.gz"),
                "channels": 1,
                "model": described_model(models[name], (0,)),
            }
        )
    found = in_node(tmp_path, cases)
    for name, model in models.items():
        assert "error" not in found[name], found[name]
        with closing(open_image(tmp_path / "case.nii.gz")) as source:
            case = PreprocessedCase(source, model.preprocessing, band=3)
            wanted = np.stack([image.read(0, image.shape[0]) for image in case.images()])
        own = np.frombuffer((tmp_path / f"{name}.network").read_bytes(), np.float32)
        assert found[name]["parts"] == case.parts
        assert own.tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize(
    ("patch", "spacing", "target"),
    [
        ((8, 16, 16), (0.7, 1.2, 1.0), (1.0, 1.0, 1.0)),
        ((8, 16, 16), (5.0, 0.8, 0.9), (2.5, 1.0, 1.0)),  # planes first, then z
        ((8, 16, 16), (1.0, 1.0, 4.0), (1.5, 1.0, 1.0)),  # x apart
        ((16, 16), (5.0, 0.8, 1.3), (1.0, 1.0)),
        ((16, 16), (1.0, 0.8, 1.3), (1.0, 1.0)),
    ],
    ids=["volume", "z-apart", "x-apart", "planes-apart", "planes"],
)
def test_resampling_is_the_packages_up_to_float32(patch, spacing, target, tmp_path):
    """Splines of order 3 clipped to the range, order 0 where an axis is apart."""
    voxels = np.random.default_rng(4).normal(20, 30, (23, 17, 9)).astype("f4")
    voxels[:2] = voxels[:, 15:] = 0
    file = tmp_path / "case.nii.gz"
    volume(file, voxels, np.diag([*spacing[::-1], 1.0]))
    model = load_model(
        model_folder(tmp_path / "model", patch=patch, channels=1, ending=".nii.gz", spacing=target)
    )
    told = {"name": "case", "file": str(file), "channels": 1, "model": described_model(model, (0,))}
    found = in_node(tmp_path, [told])["case"]
    assert "error" not in found, found
    with closing(open_image(file)) as source:
        case = PreprocessedCase(source, model.preprocessing, band=3)
        assert case.layout.resamples
        wanted = np.stack([image.read(0, image.shape[0]) for image in case.images()])
    own = np.frombuffer((tmp_path / "case.network").read_bytes(), np.float32)
    assert found["parts"] == case.parts
    assert np.abs(own - wanted.ravel()).max() < 2e-6
    assert wanted.std() > 0.5


def damaged(folder):
    """Files that no page can segment, and a word of the sentence."""
    rgb = random((20, 30, 3))
    Image.fromarray(rgb).save(folder / "good.png")
    good = (folder / "good.png").read_bytes()
    tifffile.imwrite(folder / "good.tif", rgb, photometric="rgb")
    tiff = (folder / "good.tif").read_bytes()
    volume(folder / "good.nii", random((7, 9, 5)))
    nifti = (folder / "good.nii").read_bytes()
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)

    def header(at, form, *values):
        data = bytearray(nifti)
        struct.pack_into(form, data, at, *values)
        return bytes(data)

    float_volume = nibabel.Nifti1Image(np.full((3, 3, 3), np.nan, "f4"), np.eye(4)).to_bytes()
    tifffile.imwrite(folder / "pages.tif", random((2, 20, 30)), photometric="minisblack")
    tifffile.imwrite(folder / "floats.tif", rgb[..., 0] / 255.0, photometric="minisblack")
    return {
        "cut.png": (good[: len(good) // 2], "truncated"),
        "flipped.png": (good[:60] + bytes([good[60] ^ 1]) + good[61:], "checksum"),
        "no-rows.png": (png(30, 20, 8, 2, rows[:500]), "truncated"),
        "too-many.png": (png(30, 10, 8, 2, rows), "more than"),
        "no-deflate.png": (
            good[:8] + chunk(b"IHDR", good[16:29]) + chunk(b"IDAT", b"xyz") + chunk(b"IEND", b""),
            "compressed data",
        ),
        "filter.png": (png(30, 20, 8, 2, b"\x09" + rows[1:]), "filter 9"),
        "no-colour.png": (png(30, 20, 8, 5, rows), "colour type 5"),
        "huge.png": (png(70000, 70000, 8, 2, rows), "more than a web page"),
        "no-size.png": (png(0, 20, 8, 2, rows), "0 x 20"),
        "no-palette.png": (png(30, 20, 8, 3, b"\0" * 31 * 20), "palette"),
        "animated.png": (png(30, 20, 8, 2, rows, before=[(b"acTL", bytes(8))]), "animated"),
        "cut.tif": (tiff[:300], "truncated"),
        "pages.tif": ((folder / "pages.tif").read_bytes(), "several pages"),
        "floats.tif": ((folder / "floats.tif").read_bytes(), "bits a sample"),
        "cut.nii": (nifti[:400], "truncated"),
        "cut.nii.gz": (gzip.compress(nifti)[:-30], "compressed data"),
        "text.nii.gz": (gzip.compress(b"no volume" * 50), "NIfTI"),
        "axes.nii": (header(40, "<h", 9), "dim[0]"),
        "negative.nii": (header(42, "<h", -4), "dim[1]"),
        "type.nii": (header(70, "<h", 32), "datatype 32"),
        "bits.nii": (header(72, "<h", 16), "bitpix"),
        "spacing.nii": (header(80, "<f", float("nan")), "pixdim[1]"),
        "slope.nii": (header(112, "<f", float("inf")), "scl_slope"),
        "offset.nii": (header(108, "<f", 17.0), "vox_offset"),
        "nan.nii": (float_volume, "27 of its voxels"),
    }


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    files = damaged(tmp_path)
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    cases = [
        {"name": name, "file": str(tmp_path / name), "channels": 3, "model": None} for name in files
    ]
    found = in_node(tmp_path, cases)
    for name, (_, word) in files.items():
        assert word in (found[name].get("refused") or ""), (name, found[name])
