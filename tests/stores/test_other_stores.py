"""HTTPS, archives, memory and other kinds of images: as from a disk."""

import http.server
import io
import ssl
import threading
import zipfile
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import aiohttp.connector
import fsspec
import numpy as np
import pytest
import SimpleITK
import tifffile
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nnunet_octreenca.deferred_files import fetch
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.open_image import open_image
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.stores.listing import local_case, stored_cases
from nnunet_octreenca.stores.scratch import Scratch


@pytest.fixture
def memory():
    """fsspec's store in memory, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def put(store, folder: Path, name: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe(f"/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def run(model, scratch, source, output, **options):
    return predict(source, output, model, mirror=False, scratch=scratch, **options)


def test_memory(images, rgb, scratch, memory):
    put(memory, images.pictures, "in")
    assert not run(rgb, scratch, "memory://in", "memory://out").failed
    for name in ("a.png", "overlays/b_overlay.png"):
        assert memory.cat(f"/out/{name}") == (images.pictures_out / name).read_bytes()


def test_results_that_are_folders(images, rgb, scratch, memory, tmp_path):
    """An OME-Zarr is replaced as a whole: old chunks go, and the root's metadata comes last."""
    put(memory, images.pictures, "in")
    options = {"formats": ["ome.zarr"], "overwrite": True}
    run(rgb, scratch, "memory://in/a.png", "memory://out", **options)
    memory.pipe("/out/a.ome.zarr/labels/0/old", b"of an earlier run")
    run(rgb, scratch, "memory://in/a.png", "memory://out", **options)
    local = run(rgb, scratch, images.pictures / "a.png", tmp_path / "out", **options)
    made = tmp_path / "out" / "a.ome.zarr"
    expected = {path.relative_to(made).as_posix(): path for path in made.rglob("*")}
    expected = {name: path.read_bytes() for name, path in expected.items() if path.is_file()}
    base = "/out/a.ome.zarr/"
    assert {
        name.removeprefix(base): memory.cat(name) for name in memory.find("/out/a.ome.zarr")
    } == expected
    order = sorted(memory.find("/out/a.ome.zarr"), key=lambda name: memory.store[name].created)
    assert order[-1].removeprefix(base) in ("zarr.json", ".zattrs", ".zgroup")
    assert local.done[0].outputs_sha256["a.ome.zarr"]


def test_results_in_the_folder_of_the_images(images, rgb, scratch, memory):
    put(memory, images.pictures, "in")
    run(rgb, scratch, "memory://in", "memory://in/labels")
    again = run(rgb, scratch, "memory://in", "memory://in/labels", resume=True)
    assert again.left_out == ["a", "b"]


def test_file_urls_are_paths(images, rgb, tmp_path):
    source = f"file://{images.pictures}/a.png"
    done = run(rgb, tmp_path / "unused", source, f"file://{tmp_path}/out")
    assert done.done[0].outputs[0] == str(tmp_path / "out/a.png")
    assert not (tmp_path / "unused").exists()


def test_zip(s3, images, rgb, scratch, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(images.slide, "deep/s.tif")
        file.write(images.pictures / "a.png", "deep/er/a.png")
    done = run(rgb, scratch, f"zip://deep/er::{archive}", tmp_path / "out")
    assert done.done[0].files == [f"zip://deep/er/a.png::{archive}"]
    assert (tmp_path / "out/a.png").read_bytes() == (images.pictures_out / "a.png").read_bytes()
    s3.put("a.zip", archive.read_bytes())
    url = "zip://deep/s.tif::s3://bucket/a.zip"
    done = run(rgb, scratch, url, tmp_path / "out", mpp=2.0)
    assert done.done[0].files == [url]
    assert done.done[0].labels_sha256 == images.slide_labels


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of localhost, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


class Plain(http.server.SimpleHTTPRequestHandler):
    """The standard library's: whole files, whatever range is asked for."""

    sent = 0
    status: int | None = None

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.status is not None:
            self.send_error(self.status)
            return
        super().do_GET()

    def do_HEAD(self):
        if self.status is not None:
            self.send_error(self.status)
            return
        super().do_HEAD()


class Ranged(Plain):
    """With ranges."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        data = path.read_bytes()
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)
        type(self).sent += len(part)


@contextmanager
def https(folder, certificate, handler, monkeypatch):
    server = http.server.ThreadingHTTPServer(
        ("localhost", 0), partial(handler, directory=str(folder))
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    trusted = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusted)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        fsspec.get_filesystem_class("https").clear_instance_cache()


@pytest.mark.parametrize("handler", [Plain, Ranged])
def test_https(images, rgb, scratch, certificate, handler, monkeypatch, tmp_path):
    with https(images.folder, certificate, handler, monkeypatch) as url:
        Ranged.sent = 0
        done = run(rgb, scratch, f"{url}/slides/s.tif", tmp_path / "out", mpp=2.0)
        assert done.done[0].labels_sha256 == images.slide_labels
        if handler is Ranged:
            assert 0 < Ranged.sent < 0.15 * images.slide.stat().st_size
        done = run(rgb, scratch, f"{url}/pictures/", tmp_path / "out")
        assert [case.case for case in done.done] == ["a", "b"]


def test_what_a_url_keeps_secret(
    images, rgb_folder, scratch, certificate, monkeypatch, tmp_path, capsys
):
    """Neither in reports, records and results, nor on the terminal, also where it fails."""
    from nnunet_octreenca.cli.main import main

    secrets = ("hidden-word", "c2lnbmVk", "somebody")
    report = tmp_path / "run.json"

    def predicted(url, *flags):
        given = ["predict", "-m", str(rgb_folder), "-i", url, "-o", str(tmp_path / "out")]
        given += ["-device", "cpu", "--disable_tta", "--quiet", "--scratch", str(scratch)]
        return main([*given, "--report", str(report), *flags])

    def require_none():
        said = capsys.readouterr()
        texts = [said.out, said.err]
        texts += [
            path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()
        ]
        found = [text for text in texts if any(secret in text for secret in secrets)]
        assert not found
        return said.out + said.err

    with https(images.folder, certificate, Ranged, monkeypatch) as url:
        url = url.replace("https://", "https://somebody:hidden-word@")
        query = "?X-Amz-Signature=c2lnbmVk&X-Amz-Expires=60"
        assert predicted(f"{url}/pictures/a.png{query}") == 0
        assert "***@localhost" in report.read_text()
        require_none()
        assert predicted(f"{url}/pictures/missing.png{query}") == 1
        assert "does not exist" in require_none()
        assert predicted(f"{url}/pictures/a.png{query}", "--debug") == 1
        assert "exists already" in require_none()
        for status, said in ((503, "did not answer"), (403, "is denied")):
            monkeypatch.setattr(Plain, "status", status)
            assert predicted(f"{url}/pictures/a.png{query}", "--overwrite") == 1
            assert said in require_none()


def opened(url, channels, scratch, **options):
    """All pixels of a URL's only case, and how many bytes were fetched for it."""
    place = Scratch(scratch)
    (case,) = stored_cases(url, channels, place, frames=True)
    with local_case(case, place) as (here, files):
        source = open_image(here.files[0], channels=channels, **options)
        pixels = np.array(source.read(0, source.shape[0]))
        source.close()
        fetched = sum(files.fetched().values())
    place.close()
    return pixels, fetched


def test_volumes_with_their_voxels_beside(memory, scratch, tmp_path):
    voxels = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    for name in ("v.nii.gz", "w.mhd", "x.nhdr"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(folder / name))
        put(memory, folder, folder.name)
        for url in (f"memory://{folder.name}/{name}", f"memory://{folder.name}"):
            assert np.array_equal(opened(url, 1, scratch)[0][0], voxels)


def test_a_stack_with_its_spacing_beside(memory, scratch, tmp_path):
    (tmp_path / "s").mkdir()
    planes = np.zeros((4, 8, 9), np.uint8)
    tifffile.imwrite(tmp_path / "s/a_0000.tif", planes, photometric="minisblack")
    (tmp_path / "s/a.json").write_text('{"spacing": [5, 2, 3]}')
    put(memory, tmp_path / "s", "s")
    place = Scratch(scratch)
    (case,) = stored_cases("memory://s/a_0000.tif", 1, place)
    with local_case(case, place) as (here, _):
        source = open_image(here.files[0], channels=1)
        assert source.spacing == (5, 2, 3)
        source.close()
    place.close()


def test_one_level_of_ome_zarr(memory, scratch, tmp_path):
    zarr = pytest.importorskip("zarr")
    fine = np.random.default_rng(0).integers(0, 255, (3, 256, 256), np.uint8)
    group = zarr.open_group(tmp_path / "z/a.ome.zarr", mode="w")
    datasets = []
    for level, array in enumerate((fine, fine[:, ::2, ::2], fine[:, ::4, ::4])):
        group.create_array(f"{level}", data=array, chunks=(1, 64, 64))
        scale = [1.0, 0.5 * 2**level, 0.5 * 2**level]
        transformations = [{"type": "scale", "scale": scale}]
        datasets.append({"path": f"{level}", "coordinateTransformations": transformations})
    axes = [{"name": "c"}, *({"name": n, "unit": "micrometer"} for n in "yx")]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets, "version": "0.5"}],
    }
    put(memory, tmp_path / "z", "z")
    for url in ("memory://z", "memory://z/a.ome.zarr"):
        pixels, fetched = opened(url, 3, scratch, mpp=2.0)
        assert np.array_equal(pixels, fine[:, ::4, ::4])
        assert fetched < 2 * pixels.size


def test_a_place_that_nobody_fetched_is_no_image(memory, scratch, images):
    """A reader that does not ask gets an error, not zeros."""
    put(memory, images.pictures, "in")
    place = Scratch(scratch)
    case, _ = stored_cases("memory://in", 3, place)
    with local_case(case, place) as (here, files):
        assert here.files[0].read_bytes() == b""
        assert not files.is_whole(here.files[0])
        fetch(here.files[0])
        assert here.files[0].read_bytes() == (images.pictures / "a.png").read_bytes()
    assert not here.files[0].exists()
    place.close()


def test_names_that_lead_elsewhere_are_refused(memory, scratch):
    memory.store["/in/../../evil.png"] = io.BytesIO(b"")
    place = Scratch(scratch)
    with pytest.raises(InputError):
        stored_cases("memory://in", 3, place)
    place.close()
