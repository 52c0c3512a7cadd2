import json
import shutil

import numpy as np
import pytest
from helpers.bands import check_bands
from helpers.closed import closed_afterwards

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import omezarr, stripes

zarr = pytest.importorskip("zarr")
IMAGE = np.random.default_rng(0).integers(0, 2**16, (3, 67, 90), np.uint16)
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


@pytest.fixture
def open_omezarr():
    with closed_afterwards(omezarr.open_omezarr) as function:
        yield function


@pytest.fixture(params=["0.4", "0.5"])
def version(request):
    return request.param


def write(path, arrays, axes, version, *, scale=None, chunks=32, units=UNITS, whole=None, **form):
    """An OME-Zarr image by the specification's words, not by the library that reads it."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level, array in enumerate(arrays):
        name = f"level{level}"
        group.create_array(
            name, data=array, chunks=tuple(min(chunks, n) for n in array.shape), **form
        )
        sizes = [
            a / b * s
            for a, b, s in zip(arrays[0].shape, array.shape, scale or [1] * len(axes), strict=True)
        ]
        datasets.append(
            {"path": name, "coordinateTransformations": [{"type": "scale", "scale": sizes}]}
        )
    described = [
        {"name": name, **({"unit": units[name]} if units and name in units else {})}
        for name in axes
    ]
    multiscales = [{"axes": described, "datasets": datasets, "version": version}]
    if whole:
        multiscales[0]["coordinateTransformations"] = [{"type": "scale", "scale": whole}]
    if version == "0.4":
        group.attrs["multiscales"] = multiscales
    else:
        group.attrs["ome"] = {"version": version, "multiscales": multiscales}


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("cyx", (3, 67, 90)),
        ("yx", (67, 90)),
        ("tczyx", (1, 3, 1, 67, 90)),
        ("czyx", (3, 1, 67, 90)),
        ("zyx", (1, 67, 90)),
    ],
)
def test_planes(tmp_path, version, axes, shape, open_omezarr):
    path = tmp_path / "a.zarr"
    array = IMAGE[: shape[axes.find("c")] if "c" in axes else 1].reshape(shape)
    write(path, [array], axes, version)
    source = open_omezarr(path)
    assert source.stripe == 32
    check_bands(source, array.reshape(-1, 67, 90))


@pytest.mark.parametrize(("axes", "shape"), [("zyx", (1, 15, 20, 21)), ("tczyx", (2, 15, 20, 21))])
def test_stacks(tmp_path, version, axes, shape, open_omezarr):
    path = tmp_path / "a.zarr"
    whole = np.random.default_rng(1).random(shape, np.float32)
    scale = [1.0] * (len(axes) - 3) + [5.0, 0.5, 0.25]
    write(path, [whole[None] if "t" in axes else whole[0]], axes, version, scale=scale, chunks=8)
    source = open_omezarr(path)
    assert source.spacing == pytest.approx((0.005, 0.0005, 0.00025))
    check_bands(source, whole, heights=(4,))
    with pytest.raises(InputError, match="stack of planes"):
        open_omezarr(path, mpp=0.5)


def test_levels_and_resolutions(tmp_path, version, open_omezarr):
    path = tmp_path / "a.ome.zarr"
    levels = [IMAGE, IMAGE[:, ::2, ::2], IMAGE[:, ::4, ::4]]
    write(path, levels, "cyx", version, scale=[1, 0.25, 0.25])
    assert open_omezarr(path).info.mpp == 0.25
    source = open_omezarr(path, mpp=0.51)
    assert source.info.mpp == pytest.approx(0.5, rel=0.02)
    assert source.info.base_shape == (67, 90)
    check_bands(source, levels[1])
    averaged = open_omezarr(path, mpp=0.75)
    check_bands(averaged, averaged.read(0, averaged.shape[0]))
    assert averaged.info.mpp == 0.75
    with pytest.raises(InputError, match=r"a\.ome\.zarr has no level as fine as 0\.1"):
        open_omezarr(path, mpp=0.1)


def test_a_scale_for_all_levels_and_other_units(tmp_path, version, open_omezarr):
    path = tmp_path / "a.zarr"
    units = {"y": "nanometer", "x": "millimeter"}
    write(path, [IMAGE], "cyx", version, scale=[1, 2, 3], units=units, whole=[1, 10, 0.1])
    assert open_omezarr(path).spacing == pytest.approx((20e-6, 0.3))


def test_no_unit_is_no_resolution(tmp_path, version, open_omezarr):
    path = tmp_path / "a.zarr"
    write(path, [IMAGE], "cyx", version, scale=[1, 2, 3], units=None)
    source = open_omezarr(path)
    assert source.spacing == (1.0, 1.0)
    assert source.info.mpp is None
    with pytest.raises(InputError, match=r"a\.zarr does not say its resolution"):
        open_omezarr(path, mpp=0.5)


def test_what_ome_zarr_itself_writes(tmp_path, version, open_omezarr):
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_image

    path = tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    form = FormatV04() if version == "0.4" else FormatV05()
    write_image(IMAGE, group, axes="cyx", fmt=form, storage_options={"chunks": (1, 32, 32)})
    check_bands(open_omezarr(path), IMAGE)


def test_a_folder_of_bio_formats(tmp_path, open_omezarr):
    path = tmp_path / "a.zarr"
    write(path / "0", [IMAGE], "cyx", "0.4")
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    check_bands(open_omezarr(path), IMAGE)


def test_ascending_bands_read_each_chunk_row_once(tmp_path, monkeypatch, open_omezarr):
    path = tmp_path / "a.zarr"
    write(path, [IMAGE], "cyx", "0.5", chunks=16)
    monkeypatch.setattr(stripes, "KEPT_BYTES", 0)
    read = []
    original = omezarr.OmeZarrSource._read_stripe
    monkeypatch.setattr(
        omezarr.OmeZarrSource,
        "_read_stripe",
        lambda self, *rows: read.append(rows) or original(self, *rows),
    )
    source = open_omezarr(path)
    for first in range(0, 67, 10):
        source.read(max(0, first - 4), min(67, first + 14))
    assert read == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 67)]


@pytest.mark.parametrize("compressor", ["blosc", "zstd", None])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_a_truncated_chunk_is_named(tmp_path, version, compressor, share, open_omezarr):
    import numcodecs
    from zarr.codecs import BloscCodec, ZstdCodec

    path = tmp_path / "a.zarr"
    codecs = {
        "0.4": {"blosc": numcodecs.Blosc(), "zstd": numcodecs.Zstd()},
        "0.5": {"blosc": BloscCodec(), "zstd": ZstdCodec()},
    }
    write(path, [IMAGE], "cyx", version, chunks=32, compressors=codecs[version].get(compressor))
    chunk = path / "level0" / ("0.1.1" if version == "0.4" else "c/0/1/1")
    chunk.write_bytes(chunk.read_bytes()[: int(share * chunk.stat().st_size)])
    source = open_omezarr(path)
    np.testing.assert_array_equal(source.read(0, 32), IMAGE[:, :32])
    with pytest.raises(InputError, match=r"a\.zarr.*(decoded in y 32 to 63|is truncated: it has)"):
        source.read(40, 41)


def test_a_chunk_that_was_never_written_is_the_fill_value(tmp_path, version, open_omezarr):
    path = tmp_path / "a.zarr"
    write(path, [IMAGE], "cyx", version, chunks=32)
    (path / "level0" / ("0.1.1" if version == "0.4" else "c/0/1/1")).unlink()
    whole = IMAGE.copy()
    whole[:, 32:64, 32:64] = 0
    check_bands(open_omezarr(path), whole)


def test_what_is_no_image(tmp_path, open_omezarr):
    with pytest.raises(InputError, match=r"no\.zarr cannot be read as OME-Zarr"):
        open_omezarr(tmp_path / "no.zarr")
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(InputError, match=r"a\.zarr cannot be read as OME-Zarr"):
        open_omezarr(tmp_path / "a.zarr")
    zarr.open_group(tmp_path / "b.zarr", mode="w")
    with pytest.raises(InputError, match=r"b\.zarr .* should hold the multiscales"):
        open_omezarr(tmp_path / "b.zarr")


def test_a_level_that_is_named_and_missing(tmp_path, version, open_omezarr):
    path = tmp_path / "a.zarr"
    write(path, [IMAGE, IMAGE[:, ::2, ::2]], "cyx", version)
    shutil.rmtree(path / "level1")
    with pytest.raises(InputError, match=r"a\.zarr cannot be read as OME-Zarr .*level1"):
        open_omezarr(path)


@pytest.mark.parametrize(
    ("axes", "shape", "said"),
    [
        ("tyx", (2, 16, 16), "has 2 time points"),
        ("xyc", (16, 16, 3), "axes 'xyc'"),
        ("cy", (3, 16), "axes 'cy'"),
    ],
)
def test_axes_that_cannot_be_read(tmp_path, axes, shape, said, open_omezarr):
    write(tmp_path / "a.zarr", [np.zeros(shape, np.uint8)], axes, "0.4")
    with pytest.raises(InputError, match=said):
        open_omezarr(tmp_path / "a.zarr")


def test_a_header_that_promises_too_much(tmp_path, open_omezarr):
    path = tmp_path / "a.zarr"
    write(path, [IMAGE], "cyx", "0.4")
    header = json.loads((path / "level0" / ".zarray").read_text())
    header["shape"], header["chunks"] = [3, 10**8, 10**8], [3, 10**8, 10**8]
    (path / "level0" / ".zarray").write_text(json.dumps(header))
    with pytest.raises(InputError, match=r"a\.zarr needs 60,000,000\.0 GB"):
        open_omezarr(path)


@pytest.mark.parametrize("lost", [0, 2])
def test_chunks_that_are_not_there_are_counted(tmp_path, version, lost, open_omezarr):
    """Zarr leaves out chunks of the fill value: a lost file looks the same."""
    path = tmp_path / "a.zarr"
    write(path, [IMAGE + 1], "cyx", version)
    chunks = sorted(
        file
        for file in (path / "level0").rglob("*")
        if file.is_file() and not file.name.startswith(".z") and file.name != "zarr.json"
    )
    assert len(chunks) == 9
    for chunk in chunks[:lost]:
        chunk.unlink()
    source = open_omezarr(path)
    said = "a.zarr: 2 of 9 chunks are not there and are read as the fill value, 0; copy the folder"
    assert [note[: len(said)] for note in source.info.notes] == [said] * bool(lost)
    assert bool((source.read(0, 67) == 0).any()) == bool(lost)
