"""Google's and Azure's stores, as their emulators play them: the files that a disk gets.

They run where `pip install gcsfs gcp-storage-emulator` and `pip install adlfs`, `npm install
azurite` have brought them; azurite-blob must be on the PATH.
"""

import base64
import os
import shutil
import subprocess
import time
from contextlib import suppress
from http import HTTPStatus
from importlib.util import find_spec

import fsspec
import pytest
from helpers.clusters import free_port, listens

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import InputError, LockedError, OutputError
from nnunet_octreenca.stores.store import Store, store_of
from nnunet_octreenca.stores.store_lock import StoreLock

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.slow,
    # Both libraries leave connections open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEY = base64.b64encode(b"of nothing but this test").decode()


@pytest.fixture(scope="module")
def google():
    """The emulator, with a bucket; its own ignores that an object is to be made once."""
    for module in ("gcsfs", "gcp_storage_emulator"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    stock = objects._multipart_upload

    def once(request, response, storage):
        name = request.data["meta"].get("name")
        if request.query.get("ifGenerationMatch") == ["0"]:
            with suppress(Exception):  # which says that there is none
                storage.get_file_obj(request.params["bucket_name"], name)
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        stock(request, response, storage)

    patch = pytest.MonkeyPatch()
    patch.setattr(objects, "_multipart_upload", once)
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    port = free_port()
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    server = create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield "gs://bucket"
    server.stop()
    patch.undo()


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    """The emulator, with a container."""
    program = shutil.which("azurite-blob")
    if find_spec("adlfs") is None or program is None:
        pytest.skip("adlfs or azurite-blob is not installed")
    from azure.storage.blob import BlobServiceClient

    port, folder = free_port(), tmp_path_factory.mktemp("azurite")
    flags = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(folder)]
    accounts = {**os.environ, "AZURITE_ACCOUNTS": f"tester:{KEY}"}
    server = subprocess.Popen([program, "--blobPort", str(port), *flags], env=accounts)
    endpoint = f"http://127.0.0.1:{port}/tester"
    account = f"AccountName=tester;AccountKey={KEY}"
    connection = f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={endpoint};"
    patch = pytest.MonkeyPatch()
    patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    end = time.monotonic() + 60
    while not listens("127.0.0.1", port):
        assert time.monotonic() < end
        time.sleep(0.2)
    with BlobServiceClient.from_connection_string(connection) as service:
        service.create_container("bucket")
    yield "abfs://bucket"
    server.kill()
    server.wait()
    patch.undo()


@pytest.fixture(params=["google", "azure"])
def cloud(request):
    """The URL of a bucket."""
    return request.getfixturevalue(request.param)


@pytest.mark.filterwarnings("ignore:Port 8787 is already in use")
@pytest.mark.parametrize("dask", [(), ("--dask", "local:2")], ids=["one process", "two workers"])
def test_a_folder_of_pictures_from_bucket_to_bucket(
    cloud, dask, images, rgb_folder, scratch, capsys
):
    store = fsspec.filesystem(cloud.partition(":")[0])
    base = f"{cloud.partition('://')[2]}/{len(dask)}"
    for path in images.pictures.iterdir():
        store.pipe_file(f"{base}/in/{path.name}", path.read_bytes())
    url = f"{cloud}/{len(dask)}"
    given = ["predict", "-m", str(rgb_folder), "-i", f"{url}/in", "-o", f"{url}/out", "--quiet"]
    given += ["-device", "cpu", "--disable_tta", "--scratch", str(scratch)]
    assert main([*given, *dask]) == 0
    assert "2 done" in capsys.readouterr().out
    store.invalidate_cache()
    names = ["a.png", "b.png", "overlays/a_overlay.png", "overlays/b_overlay.png"]
    records = [".octreenca/a.json", ".octreenca/b.json"]
    found = [name.removeprefix(f"{base}/out/") for name in store.find(f"{base}/out")]
    assert sorted(found) == sorted(names + records)
    for name in names:
        made = store.cat_file(f"{base}/out/{name}")
        assert made == (images.pictures_out / name).read_bytes()
    assert main([*given, "--continue"]) == 0
    assert "2 finished before" in capsys.readouterr().out
    assert main(given) == 1
    assert f"{url}/out/a.png exists already" in capsys.readouterr().err


def test_an_object_is_made_once(cloud):
    store = Store(f"{cloud}/locks", OutputError)
    path = store.below("lock")
    assert store.create(path, b"one")
    assert not store.create(path, b"two")
    assert store.read_small(path) == b"one"
    store.remove(path)
    with (
        StoreLock(store, path, "case a"),
        pytest.raises(LockedError),
        StoreLock(store, path, "case a"),
    ):
        pass
    assert store.info(path) is None


def test_a_bucket_that_is_not_there(cloud):
    url = cloud.replace("bucket", "nowhere")
    with pytest.raises(OutputError, match="there is no such bucket or folder; create it"):
        Store(f"{url}/out", OutputError).require_writable()


def test_keys_that_azure_does_not_know(azure, monkeypatch):
    found = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    other = found.replace(KEY, base64.b64encode(b"of another test, which is it").decode())
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", other)
    type(fsspec.filesystem("abfs")).clear_instance_cache()
    with pytest.raises(InputError, match=r"is denied .*AZURE_STORAGE_CONNECTION_STRING") as raised:
        Store(f"{azure}/in").inside("bucket/in")
    assert KEY not in str(raised.value)
    type(fsspec.filesystem("abfs")).clear_instance_cache()
    store_of.cache_clear()
