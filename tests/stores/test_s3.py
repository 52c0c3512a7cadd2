"""Prediction from and to S3: the same labels as on a disk, and little that is fetched."""

import io
import json

import numpy as np
import pytest
import tifffile
from helpers.tiny_slides import picture, write_leica

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.hashes import labels_hash
from nnunet_octreenca.prediction.folder import predict
from nnunet_octreenca.stores import scratch as scratch_module
from nnunet_octreenca.stores.listing import local_case, stored_cases
from nnunet_octreenca.stores.range_file import BLOCK
from nnunet_octreenca.stores.scratch import Scratch

IN, OUT = "s3://bucket/in", "s3://bucket/out"


def run(model, scratch, source=IN, output=OUT, **options):
    return predict(source, output, model, scratch=scratch, **{"mirror": False, **options})


def same(server, local, names):
    for name in names:
        assert server.get(f"out/{name}") == (local / name).read_bytes(), name


def test_a_folder_of_pictures_from_bucket_to_bucket(s3, images, rgb, scratch):
    s3.upload(images.pictures, "in")
    done = run(rgb, scratch)
    assert not done.failed
    assert [case.outputs[0] for case in done.done] == [f"{OUT}/a.png", f"{OUT}/b.png"]
    assert [case.files for case in done.done] == [[f"{IN}/a.png"], [f"{IN}/b.png"]]
    names = ["a.png", "b.png", "overlays/a_overlay.png", "overlays/b_overlay.png"]
    records = [".octreenca/a.json", ".octreenca/b.json"]
    assert s3.keys("out") == sorted(f"out/{name}" for name in names + records)
    same(s3, images.pictures_out, names)
    record = json.loads(s3.get("out/.octreenca/a.json"))
    before = json.loads((images.pictures_out / ".octreenca" / "a.json").read_text())
    assert record["state"] == "finished"
    assert (record["labels"], record["outputs"]) == (before["labels"], before["outputs"])


def test_one_file_to_a_folder_on_the_disk(s3, images, rgb, scratch, tmp_path):
    s3.upload(images.pictures, "in")
    done = run(rgb, scratch, f"{IN}/b.png", tmp_path / "out")
    assert [case.case for case in done.done] == ["b"]
    assert (tmp_path / "out/b.png").read_bytes() == (images.pictures_out / "b.png").read_bytes()


def test_a_slide_is_read_in_ranges(s3, images, rgb, scratch):
    s3.put("in/s.tif", images.slide.read_bytes())
    s3.forget()
    done = run(
        rgb, scratch, mpp=2.0, formats=["ome.tif"], scratch_limit=images.slide.stat().st_size
    )
    assert not done.failed
    level = 192 * 160 * 3
    fetched, size = s3.sent["/bucket/in/s.tif"], images.slide.stat().st_size
    assert level < fetched < 0.15 * size
    labels = tifffile.imread(io.BytesIO(s3.get("out/s.ome.tif")), level=0)
    assert labels_hash(labels) == done.done[0].labels_sha256 == images.slide_labels
    assert not any(case.input_sha256 for case in done.done)


def test_a_slide_larger_than_scratch_may_be(s3, images, rgb, scratch):
    """What was read is fetched again instead of kept, with the same labels."""
    s3.put("in/s.tif", images.slide.read_bytes())
    done = run(rgb, scratch, mpp=2.0, formats=["ome.tif"], scratch_limit=3 * BLOCK)
    assert not done.failed
    labels = tifffile.imread(io.BytesIO(s3.get("out/s.ome.tif")), level=0)
    assert labels_hash(labels) == done.done[0].labels_sha256 == images.slide_labels


def test_openslides_formats_are_fetched_within_the_limit(s3, rgb, scratch, tmp_path):
    """Also where only the directories of a TIFF tell that its tiles are not simply the image."""
    path = tmp_path / "l.tif"
    write_leica(path, picture(128, 128), (50, 70), (224, 256))
    local = predict(path, tmp_path / "out", rgb, mirror=False)
    assert local.done[0].shape == [256, 224]
    s3.put("in/l.tif", path.read_bytes())
    done = run(rgb, scratch)
    assert done.done[0].labels_sha256 == local.done[0].labels_sha256
    with pytest.raises((InputError, OutputError), match="--scratch-limit"):
        run(rgb, scratch, overwrite=True, scratch_limit=path.stat().st_size - 1)


@pytest.mark.slow
def test_cases_in_a_child_process(s3, images, rgb_folder, scratch):
    s3.upload(images.pictures, "in")
    given = ["predict", "-m", str(rgb_folder), "-i", IN, "-o", OUT, "-device", "cpu", "--quiet"]
    assert main([*given, "--disable_tta", "--scratch", str(scratch), "--isolate"]) == 0
    same(s3, images.pictures_out, ["a.png", "b.png"])


def test_a_full_scratch_folder(s3, images, rgb, scratch, monkeypatch):
    s3.upload(images.pictures, "in")
    with pytest.raises(InputError, match=r"s3://bucket/in/a.png must be .* --scratch-limit allows"):
        run(rgb, scratch, f"{IN}/a.png", scratch_limit=1000)
    monkeypatch.setattr(scratch_module, "free_disk", lambda folder: 100)
    with pytest.raises(OutputError, match=r"s3://bucket/in/a.png must be fetched .*--scratch"):
        run(rgb, scratch, f"{IN}/a.png", scratch_limit=1 << 30)
    assert not s3.keys("out")


def test_channels_in_separate_files(s3, scratch, tmp_path):
    for channel in range(2):
        tifffile.imwrite(tmp_path / "c.tif", np.full((20, 30), channel + 1, np.uint8))
        s3.put(f"two/x_000{channel}.tif", (tmp_path / "c.tif").read_bytes())
    place = Scratch(scratch)
    (case,) = stored_cases("s3://bucket/two/x_0000.tif", 2, place)
    assert case.name == "x"
    with local_case(case, place) as (here, _):
        assert [file.name for file in here.files] == ["x_0000.tif", "x_0001.tif"]
    (other,) = stored_cases("s3://bucket/two", 2, place)
    assert other.name == "x"
    place.close()
