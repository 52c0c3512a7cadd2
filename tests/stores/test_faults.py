"""Stores that are slow, closed, missing or changing: one sentence, and nothing half written."""

import json
import time

import numpy as np
import pytest
from helpers.s3_server import KEYS
from PIL import Image
from s3fs import S3FileSystem

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import (
    EnvironmentMismatchError,
    InputError,
    LockedError,
    OutputError,
)
from nnunet_octreenca.locks import this_process
from nnunet_octreenca.prediction import case as case_module
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.stores.faults import requested
from nnunet_octreenca.stores.store import Store, store_of
from nnunet_octreenca.stores.store_lock import StoreLock

IN, OUT = "s3://bucket/in", "s3://bucket/out"
RECORD = "out/.octreenca/a.json"


@pytest.fixture
def one(s3, images):
    """A bucket with a single picture."""
    s3.put("in/a.png", (images.pictures / "a.png").read_bytes())
    return s3


def run(model, scratch, source=IN, output=OUT, **options):
    return predict(source, output, model, mirror=False, scratch=scratch, **options)


def test_503_now_and_then(one, images, rgb, scratch):
    count = []

    def fails(method, path):
        count.append(path)
        return None if len(count) % 3 else 503

    one.fails = fails
    assert not run(rgb, scratch).failed
    one.fails = lambda method, path: None
    assert one.get("out/a.png") == (images.pictures_out / "a.png").read_bytes()
    assert one.keys("out/.octreenca") == [RECORD]


def test_503_for_ever(one, rgb, scratch, tmp_path):
    one.fails = lambda method, path: 503 if method == "GET" and path.endswith("a.png") else None
    said = r"s3://bucket/in/a\.png did not answer 6 requests .*reduce your request rate.*--continue"
    with pytest.raises(InputError, match=said):
        run(rgb, scratch, output=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("source", "output", "error", "said"),
    [
        ("s3://nowhere/in", OUT, InputError, "s3://nowhere/in does not exist or is empty"),
        (f"{IN}/b.png", OUT, InputError, r"s3://bucket/in/b\.png does not exist or is empty"),
        (IN, "s3://nowhere/out", OutputError, "s3://nowhere/out.* cannot be written.*bucket"),
        (IN, "https://localhost/out", OutputError, "can be read only"),
        (IN, "zip://out::/a.zip", OutputError, "can be read only|does not exist"),
        ("nonsense://a/b", OUT, InputError, "nonsense://a/b cannot be used.*not known"),
        ("file://machine/a", OUT, InputError, "names a machine"),
    ],
)
def test_urls_that_lead_nowhere(one, rgb, scratch, source, output, error, said):
    with pytest.raises(error, match=said):
        run(rgb, scratch, source, output)
    assert not one.keys("out")


def test_no_permission(one, rgb, scratch, tmp_path):
    one.fails = lambda method, path: 403 if method == "GET" and path.endswith("a.png") else None
    with pytest.raises(
        InputError, match=r"access to s3://bucket/in/a\.png is denied .*AWS_PROFILE"
    ):
        run(rgb, scratch, output=tmp_path / "out")
    one.fails = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(OutputError, match=r"access to s3://bucket/out.* is denied"):
        run(rgb, scratch)
    assert not one.keys("out")


def test_no_credentials(one, rgb, scratch, monkeypatch, tmp_path):
    S3FileSystem.clear_instance_cache()
    store_of.cache_clear()
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(EnvironmentMismatchError, match=r"without credentials .*set AWS_PROFILE"):
        run(rgb, scratch, IN, tmp_path / "out")
    S3FileSystem.clear_instance_cache()
    store_of.cache_clear()


class HttpResponseError(Exception):
    """As Azure's library has it."""

    def __init__(self, status_code):
        super().__init__("long")
        self.status_code, self.message = status_code, "It says why.\nRequestId: 1"


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (403, InputError, r"is denied \(HttpResponseError: 403 It says why\.\); set AZURE_STORAGE"),
        (404, FileNotFoundError, "nothing is there"),
        (503, InputError, r"did not answer 6 requests .*503 It says why\."),
        (409, InputError, r"cannot be used \(HttpResponseError: 409 It says why\.\)"),
    ],
)
def test_what_azure_answers(status, kind, sentence):
    def ask():
        raise HttpResponseError(status)

    with pytest.raises(kind, match=sentence):
        requested(ask, "abfs://container/a.tif", InputError)


def test_azure_without_an_account():
    def ask():
        raise ValueError("Must provide either a connection_string or account_name with credentials")

    with pytest.raises(EnvironmentMismatchError, match="set AZURE_STORAGE_CONNECTION_STRING, or"):
        requested(ask, "abfs://container/a.tif", InputError)


def changing(monkeypatch, change):
    """Have something happen when the labels are computed."""
    stock = case_module.labels_hash

    def happens(labels):
        change()
        return stock(labels)

    # The case is looked at again before its labels are counted.
    monkeypatch.setattr(case_module, "labels_hash", happens)
    picture = case_module.WatchedImage.picture

    def pictured(image):
        change()
        return picture(image)

    monkeypatch.setattr(case_module.WatchedImage, "picture", pictured)


def test_a_picture_that_changes_while_it_is_read(one, images, rgb, scratch, monkeypatch):
    other = (images.pictures / "b.png").read_bytes()
    changing(monkeypatch, lambda: one.put("in/a.png", other))
    with pytest.raises(InputError, match=r"s3://bucket/in/a\.png was changed while it was read"):
        run(rgb, scratch)
    assert not one.keys("out")


def test_a_picture_that_vanishes_while_it_is_read(one, rgb, scratch, monkeypatch):
    changing(monkeypatch, lambda: one.client.delete_object(Bucket="bucket", Key="in/a.png"))
    with pytest.raises(InputError, match=r"s3://bucket/in/a\.png vanished while it was read"):
        run(rgb, scratch)
    assert not one.keys("out")


def test_a_slide_that_is_cut_while_it_is_read(s3, images, rgb, scratch):
    data = images.slide.read_bytes()
    s3.put("in/s.tif", data)
    asked = []

    def fails(method, path):
        if method == "GET" and path.endswith("s.tif"):
            asked.append(path)
            if len(asked) == 3:
                s3.put("in/s.tif", data[: len(data) // 8])

    s3.fails = fails
    with pytest.raises(InputError, match=r"s3://bucket/in/s\.tif was changed while it was read"):
        run(rgb, scratch, f"{IN}/s.tif", mpp=0.5)
    assert not s3.keys("out")


def test_an_upload_that_dies_half_way(one, images, rgb, scratch):
    one.fails = lambda method, path: 403 if "overlay.png" in path and method == "PUT" else None
    with pytest.raises(OutputError, match=r"s3://bucket/out/overlays/a_overlay\.png is denied"):
        run(rgb, scratch)
    one.fails = lambda method, path: None
    record = json.loads(one.get(RECORD))
    assert record["state"] == "writing"
    assert one.keys("out") == [RECORD, "out/a.png"]
    assert one.get("out/a.png") == (images.pictures_out / "a.png").read_bytes()
    done = run(rgb, scratch, resume=True)
    assert [case.case for case in done.done] == ["a"]
    assert json.loads(one.get(RECORD))["state"] == "finished"


def test_ctrl_c_leaves_nothing(one, rgb, scratch, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(case_module, "write_overlay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(rgb, scratch)
    assert not one.keys("out")


def test_another_run_is_at_the_case(one, rgb, scratch):
    store = Store(OUT, OutputError)
    held = StoreLock(store, store.below(".octreenca/a.lock"), "case a")
    with held, pytest.raises(LockedError, match="case a of s3://bucket/out is in use by"):
        run(rgb, scratch)
    assert not one.keys("out")
    one.put("out/.octreenca/a.lock", b'{"token": "x", "alive": 1.0}')  # of a run that was killed
    assert not run(rgb, scratch).failed
    assert one.keys("out/.octreenca") == [RECORD]


def test_a_lock_whose_process_has_ended_is_taken_at_once(s3):
    """Of a process of this machine: its number may have passed to another one."""
    store = Store(OUT, OutputError)
    path = store.below("lock")
    here = {**vars(this_process("a prediction", "token")), "alive": time.time()}
    s3.put("out/lock", json.dumps(here).encode())
    with pytest.raises(LockedError), StoreLock(store, path, "it"):
        pass
    s3.put("out/lock", json.dumps({**here, "started": 1.0}).encode())
    with StoreLock(store, path, "it"):
        pass
    assert not s3.keys("out/lock")


def test_a_bad_case_does_not_end_the_others(one, images, rgb_folder, scratch, capsys, tmp_path):
    one.put("in/b.png", (images.pictures / "b.png").read_bytes()[:300])
    given = ["predict", "-m", str(rgb_folder), "-i", IN, "-o", OUT, "-device", "cpu", "--quiet"]
    report = tmp_path / "run.json"
    given += ["--disable_tta", "--scratch", str(scratch), "--report", str(report)]
    assert main(given) == 3
    assert "ERROR: b: s3://bucket/in/b.png" in capsys.readouterr().err
    content = json.loads(report.read_text())
    assert content["failed"][0]["files"] == ["s3://bucket/in/b.png"]
    assert content["cases"][0]["outputs"][0] == "s3://bucket/out/a.png"
    assert list(content["cases"][0]["input_sha256"]) == ["s3://bucket/in/a.png"]
    assert str(scratch) not in json.dumps(content["cases"])


def test_continue_leaves_finished_cases_and_reads_none_of_them(one, images, rgb, scratch):
    run(rgb, scratch)
    one.put("in/b.png", (images.pictures / "b.png").read_bytes())
    one.forget()
    done = run(rgb, scratch, resume=True)
    assert (done.left_out, [case.case for case in done.done]) == (["a"], ["b"])
    assert not one.sent["/bucket/in/a.png"]
    assert not one.sent["/bucket/out/a.png"]
    with pytest.raises(OutputError, match=r"s3://bucket/out/a\.png exists already; --overwrite"):
        run(rgb, scratch, f"{IN}/a.png")
    pixels = np.full((40, 44, 3), 7, np.uint8)
    Image.fromarray(pixels).save(images.folder / "new.png")
    one.put("in/a.png", (images.folder / "new.png").read_bytes())
    done = run(rgb, scratch, resume=True)
    assert ([case.case for case in done.done], done.left_out) == (["a"], ["b"])
    one.put("out/a.png", b"somebody else's")
    one.put("in/a.png", (images.pictures / "a.png").read_bytes())
    with pytest.raises(OutputError, match=r"s3://bucket/out/a\.png was changed since an earlier"):
        run(rgb, scratch, f"{IN}/a.png", resume=True)


def test_quality_of_a_store(one, images, rgb, scratch):
    run(rgb, scratch, quality=4)
    one.put("in/b.png", (images.pictures / "b.png").read_bytes())
    run(rgb, scratch, quality=4, resume=True)
    table = one.get("out/quality.csv").decode().splitlines()
    assert sorted(line.partition(",")[0] for line in table) == ["a", "b", "case"]
    assert "out/quality/a.json" in one.keys("out")
