"""--continue: what is finished, what is done again, what is refused; and several runs at once."""

import json
import os
import shutil
import threading
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.errors import LockedError, OutputError
from nnunet_octreenca.hashes import file_hash, labels_hash
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.locks import FolderLock
from nnunet_octreenca.prediction import case as case_module
from nnunet_octreenca.prediction.earlier import Destination
from nnunet_octreenca.prediction.folder import Run, predict
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.result_record import (
    RECORDS,
    read_case_record,
    record_path,
    recorded_results,
)

PLAIN = Options(mirror=False)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "rgb", folds=("0", "1"))


@pytest.fixture(scope="module")
def rgb(model_path):
    return load_model(model_path, folds=["0"])


@pytest.fixture
def images(tmp_path):
    for seed, name in enumerate("ab"):
        picture(tmp_path / "in" / f"{name}.png", seed)
    return tmp_path / "in"


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 44, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def went_on(source, out, model, *formats, **options):
    """Names of the cases that `resume` segments."""
    options = {"mirror": False, **options}
    run = predict(source, out, model, formats=formats or None, resume=True, **options)
    assert not run.failed
    return [case.case for case in run.done]


def labels_of(path):
    return np.asarray(Image.open(path))


def mode_of(path):
    with Image.open(path) as image:
        return image.mode


def files_of(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def interrupt(monkeypatch, where, number=1):
    """Ctrl-C at the n-th call of something in `prediction.case`."""
    stock, calls = getattr(case_module, where), []

    def ends(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return stock(*args, **kwargs)

    monkeypatch.setattr(case_module, where, ends)


def test_the_record_says_what_made_the_result(rgb, images, tmp_path):
    out = tmp_path / "out"
    run = predict(images, out, rgb, mirror=False)
    record = read_case_record(record_path(out, "a"))
    labels = labels_of(out / "a.png")
    assert record.state == "finished"
    assert (record.kind, record.formats, record.shape) == ("picture", ["png"], [40, 44])
    assert record.labels == labels_hash(labels) == run.done[0].labels_sha256
    overlay = "overlays/a_overlay.png"
    assert record.outputs == {name: file_hash(out / name) for name in ("a.png", overlay)}
    assert record.outputs == run.done[0].outputs_sha256
    assert record.settings["seeds"] == [0]
    assert record.versions["engine"] == rgb.networks[0].engine().name
    assert recorded_results(out) == {"a.png", "b.png"}
    assert files_of(out / RECORDS) == {"a.json", "b.json"}


@pytest.mark.parametrize(
    ("where", "number", "outputs"),
    [
        ("write", 1, []),
        ("write", 2, ["a.png"]),
        ("write_overlay", 1, ["a.png", "a.ome.tif"]),
    ],
)
def test_a_half_finished_case_is_done_again(
    rgb, images, tmp_path, monkeypatch, where, number, outputs
):
    out, formats = tmp_path / "out", ("png", "ome.tif")
    with monkeypatch.context() as patch:
        interrupt(patch, where, number)
        with pytest.raises(KeyboardInterrupt):
            predict(images, out, rgb, formats=formats, mirror=False)
    there = set(outputs)
    assert files_of(out) == there | {".octreenca/a.json"}
    assert recorded_results(out) == {"a.png", "a.ome.tif"}, "no images, though half finished"
    if there:
        with pytest.raises(OutputError, match="exists already; --overwrite"):
            predict(images / "a.png", out, rgb, formats=formats, mirror=False)
    assert went_on(images, out, rgb, *formats) == ["a", "b"]
    whole = predict(images, tmp_path / "undisturbed", rgb, formats=formats, mirror=False)
    for done in whole.done:
        assert read_case_record(record_path(out, done.case)).labels == done.labels_sha256
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_a_record_of_other_form_counts_for_nothing(rgb, images, tmp_path):
    out = tmp_path / "out"
    went_on(images, out, rgb)
    record = record_path(out, "a")
    record.write_text(json.dumps({**json.loads(record.read_text()), "form": 99}))
    with pytest.raises(OutputError, match=r"a\.png exists already, and no record says"):
        predict(images / "a.png", out, rgb, mirror=False, resume=True)
    run = predict(images / "a.png", out, rgb, mirror=False, overwrite=True)
    assert [case.case for case in run.done] == ["a"]


def test_a_changed_image_is_segmented_again_in_all_formats(rgb, images, tmp_path):
    out = tmp_path / "out"
    assert went_on(images, out, rgb, "png", "coco.json") == ["a", "b"]
    picture(images / "a.png", 7)
    assert went_on(images, out, rgb, "png") == ["a"]
    expected = predict(images, tmp_path / "new", rgb, formats=["png", "coco.json"], mirror=False)
    assert np.array_equal(labels_of(out / "a.png"), labels_of(expected.done[0].outputs[0]))
    coco = "a.coco.json"
    assert (out / coco).read_bytes() == (tmp_path / "new" / coco).read_bytes()
    assert went_on(images, out, rgb, "png", "coco.json") == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seeds": [3]}, r"seeds was \[0\] and is \[3\]"),
        ({"mirror": True}, r"mirror_axes was \[\] and is \[0, 1\]"),
        ({"float16": True}, "state was float32 and is float16"),
        ({"tissue": True}, "tissue was False and is True"),
        ("model", r"folds was \['0'\] and is \['1'\]; the model was [0-9a-f]{12} and is"),
    ],
)
def test_other_options_and_models_are_refused(rgb, model_path, images, tmp_path, changed, sentence):
    out, model = tmp_path / "out", rgb
    went_on(images, out, rgb)
    before = (out / "a.png").read_bytes()
    if changed == "model":
        model, changed = load_model(model_path, folds=["1"]), {}
    run = predict(images, out, model, resume=True, **{"mirror": False, **changed})
    assert [failure.case for failure in run.failed] == ["a", "b"]
    with pytest.raises(OutputError, match=sentence):
        predict(images / "a.png", out, model, resume=True, **{"mirror": False, **changed})
    assert (out / "a.png").read_bytes() == before
    again = predict(images, out, model, overwrite=True, **{"mirror": False, **changed})
    assert len(again.done) == 2
    assert went_on(images, out, model, **changed) == []


def test_the_same_model_elsewhere_is_the_same(rgb, model_path, images, tmp_path):
    out = tmp_path / "out"
    went_on(images, out, rgb)
    shutil.copytree(model_path, tmp_path / "copy")
    assert went_on(images, out, load_model(tmp_path / "copy", folds=["0"])) == []
    images.rename(tmp_path / "moved")
    assert went_on(tmp_path / "moved", out, rgb) == []


def test_a_corrected_mask_is_kept(rgb, images, tmp_path):
    out = tmp_path / "out"
    went_on(images, out, rgb)
    (out / "a.png").write_bytes(b"by hand")
    assert went_on(images, out, rgb) == []
    picture(images / "a.png", 7)
    with pytest.raises(OutputError, match=r"a\.png was changed since an earlier run wrote it"):
        predict(images / "a.png", out, rgb, resume=True, mirror=False)
    assert (out / "a.png").read_bytes() == b"by hand"


def test_labels_of_another_version_are_not_mixed(rgb, images, tmp_path):
    """A format more, by a program whose labels differ: no two formats disagree."""
    out = tmp_path / "out"
    went_on(images / "a.png", out, rgb)
    path = record_path(out, "a")
    content = json.loads(path.read_text())
    content["labels"], content["versions"]["torch"] = "0" * 64, "1.0"
    path.write_text(json.dumps(content))
    before, told = (out / "a.png").stat().st_mtime_ns, []
    predict(
        images / "a.png", out, rgb, formats=["geojson"], resume=True, mirror=False, tell=told.append
    )
    (line,) = [line for line in told if "written again" in line]
    assert "torch was 1.0 and is" in line
    assert (out / "a.png").stat().st_mtime_ns > before
    record = read_case_record(path)
    assert set(record.formats) == {"png", "geojson"}
    assert record.labels == labels_hash(labels_of(out / "a.png"))


def test_one_file_in_two_formats(rgb, images, tmp_path):
    out = tmp_path / "out"
    went_on(images / "a.png", out, rgb, "png")
    assert went_on(images / "a.png", out, rgb, "plain.png") == ["a"]
    assert mode_of(out / "a.png") == "L"
    assert went_on(images / "a.png", out, rgb, "plain.png") == []
    assert went_on(images / "a.png", out, rgb, "png") == ["a"]
    assert mode_of(out / "a.png") == "P"


def test_an_image_that_changes_meanwhile_gives_no_result(rgb, images, tmp_path, monkeypatch):
    stock = case_module.Segmentation.run

    def run(self, progress=None):
        labels = stock(self, progress)
        picture(images / "a.png", 9)
        return labels

    monkeypatch.setattr(case_module.Segmentation, "run", run)
    run = predict(images, tmp_path / "out", rgb, mirror=False)
    assert [failure.case for failure in run.failed] == ["a"]
    assert "was changed while it was read" in run.failed[0].sentence
    assert not (tmp_path / "out" / "a.png").exists()


def test_another_run_takes_other_cases(rgb, images, tmp_path):
    """Two runs with --continue share a folder; what the other holds is tried again at the end."""
    out, told = tmp_path / "out", []
    lock = FolderLock(out / RECORDS, "a prediction", name="a.lock").acquire()

    def tell(line):
        told.append(line)
        if line.startswith("b: 40"):  # meanwhile the other run ends
            lock.release()

    run = predict(images, out, rgb, resume=True, mirror=False, tell=tell)
    assert "a: another run is at it; tried again at the end" in told
    assert [case.case for case in run.done] == ["b", "a"]
    assert files_of(out / RECORDS) == {"a.json", "b.json"}


@pytest.mark.parametrize("resume", [True, False])
def test_a_case_of_another_run_is_refused(rgb, images, tmp_path, resume):
    out = tmp_path / "out"
    with FolderLock(out / RECORDS, "a prediction", name="a.lock"):
        run = predict(images, out, rgb, resume=resume, mirror=False)
        assert [case.case for case in run.done] == ["b"]
        ((failed,), sentence) = run.failed, run.failed[0].sentence
        assert (failed.case, failed.error) == ("a", "LockedError")
        assert sentence.startswith(f"case a of {out} is in use by a prediction (process ")
        with pytest.raises(LockedError):
            predict(images / "a.png", out, rgb, resume=resume, mirror=False)
    assert not (out / "a.png").exists()
    assert went_on(images, out, rgb) == ["a"]


def test_many_runs_at_once_give_every_case_once(rgb, tmp_path):
    for seed in range(6):
        picture(tmp_path / "in" / f"p{seed}.png", seed)
    out, runs = tmp_path / "out", []
    start = threading.Barrier(3)

    def go():
        run = Run(rgb, Destination(out, resume=True), PLAIN)
        cases = run.cases(tmp_path / "in")
        start.wait()
        for case in run.rounds(cases):
            with suppress(LockedError):
                run.segment(case, tell=lambda line: None)
        runs.append(run)

    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = sorted(case.case for run in runs for case in run.done)
    assert done == [f"p{seed}" for seed in range(6)]
    assert {failure.error for run in runs for failure in run.failed} <= {"LockedError"}
    assert not [name for name in files_of(out) if name.endswith((".lock", ".tmp"))]


def test_what_a_killed_run_was_writing_is_removed(rgb, images, tmp_path):
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    (out / RECORDS).mkdir()
    (out / ".a.png.7.tmp").write_bytes(b"half")
    (out / ".a.nrrd.7.tmp.nrrd").write_bytes(b"half")
    (out / ".a.ome.zarr.7.tmp").mkdir()
    (out / ".a.ome.zarr.7.tmp" / "0").touch()
    (out / ".a.ome.zarr.7.old").mkdir()  # was moved aside, and its replacement never came
    (out / ".a.ome.zarr.7.old" / "zarr.json").write_text("{}")
    (out / "overlays" / ".b_overlay.png.7.tmp").touch()
    (out / RECORDS / ".a.json.7.tmp").touch()
    (out / RECORDS / ".a.lock.7140.tmp").touch()
    (out / ".notes.txt.7.tmp").touch()  # of no case
    (out / ".a.png.tmp").touch()  # not ours
    assert went_on(images, out, rgb) == ["a", "b"]
    assert {name for name in files_of(out) if "tmp" in name} == {".notes.txt.7.tmp", ".a.png.tmp"}
    assert (out / "a.ome.zarr" / "zarr.json").exists()


def test_what_another_run_is_writing_stays(rgb, images, tmp_path):
    out = tmp_path / "out"
    with FolderLock(out / RECORDS, "a prediction", name="a.lock"):
        (out / ".a.png.7.tmp").write_bytes(b"half")
        predict(images, out, rgb, mirror=False)
        assert (out / ".a.png.7.tmp").exists()


def test_a_failed_run_leaves_no_hidden_folder(rgb, images, tmp_path):
    (images / "a.png").write_bytes(b"\x89PNG")
    run = predict(images, tmp_path / "out", rgb, mirror=False, formats=["mp4"])
    assert len(run.failed) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_companions_count_as_the_image(tmp_path):
    import SimpleITK

    model = load_model(
        model_folder(tmp_path / "model", patch=(8, 16, 16), channels=1, ending=".nii.gz")
    )
    voxels = np.random.default_rng(0).normal(50, 30, (8, 16, 16)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(tmp_path / "a.mhd"))
    (data,) = tmp_path.glob("a*raw")
    out = tmp_path / "out"
    assert went_on(tmp_path / "a.mhd", out, model) == ["a"]
    assert went_on(tmp_path / "a.mhd", out, model) == []
    os.utime(data, (1, 1))
    assert went_on(tmp_path / "a.mhd", out, model) == ["a"]


def test_a_case_that_another_run_took_meanwhile_is_not_written(rgb, images, tmp_path, monkeypatch):
    """A process that slept for longer than the limit finds its lock taken."""
    out, stock = tmp_path / "out", case_module.Segmentation.run

    def run(self, progress=None):
        (out / RECORDS / "a.lock").write_text("{}")
        return stock(self, progress)

    monkeypatch.setattr(case_module.Segmentation, "run", run)
    with pytest.raises(LockedError, match="no longer locked by this process"):
        predict(images / "a.png", out, rgb, mirror=False)
    assert files_of(out) == {".octreenca/a.lock"}
