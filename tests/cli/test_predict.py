"""`nnunet_octreenca predict`, run as main() runs it, on files made here."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio.features
import tifffile
import torch
from helpers.tiny_slides import picture as slide_picture
from helpers.tiny_slides import write_leica
from PIL import Image, ImageOps
from scipy import ndimage
from shapely.affinity import translate
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.inference.ensemble import Ensemble
from nnunet_octreenca.inference.whole_image import LOGIT_BOUND, mirrorings
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.ops.native import cpu_module
from nnunet_octreenca.prediction import case


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that were never trained, made once."""
    base = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        rgb=model_folder(base / "rgb", folds=("0", "1")),
        volume=model_folder(
            base / "volume", patch=(8, 16, 16), channels=1, ending=".nii.gz", spacing=(2, 1, 1)
        ),
        turned=model_folder(
            base / "turned", patch=(16, 8, 16), channels=1, ending=".nii.gz", spacing=(1, 2, 1),
            transpose=(1, 0, 2),
        ),
        planes=model_folder(
            base / "planes", patch=(16, 16), channels=1, ending=".nii.gz", spacing=(1, 1)
        ),
        video=model_folder(
            base / "video", patch=(8, 16, 16), ending=".nii.gz",
            schemes=["RGBTo01Normalization"] * 3,
        ),
        regions=model_folder(
            base / "regions", labels={"background": 0, "whole": [1, 2], "core": [2]},
            regions=(1, 2),
        ),
    )  # fmt: skip


def picture(path, height=61, width=45, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def volume(path, shape=(11, 20, 18), spacing=(1.0, 1.0, 2.0), seed=0):
    import SimpleITK

    voxels = np.random.default_rng(seed).normal(50, 30, shape).astype(np.float32)
    voxels[:, :2] = 0
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin((3, -4, 5))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    SimpleITK.WriteImage(image, str(path))
    return voxels


def predict(model, source, output, *flags, code=0):
    given = ["predict", "-m", str(model), "-i", str(source), "-o", str(output), "-device", "cpu"]
    assert main([*given, *map(str, flags)]) == code
    return output


def labels_of(path):
    return np.asarray(Image.open(path))


def expected_logits(model, pixels, seeds=(0,), axes=(), folds=None):
    """Mean over networks, seeds and mirrored copies of the whole image in memory."""
    image = np.moveaxis(pixels, -1, 0).astype(np.float32) / 255
    total, count = 0, 0
    for network in load_model(model, folds=folds).networks:
        for seed in seeds:
            for chosen in mirrorings(axes):
                flips = [axis + 1 for axis in chosen]
                given = torch.from_numpy(np.flip(image, flips).copy())[None]
                own = np.flip(network(given, seed=seed)[0].numpy(), flips)
                total = total + (np.clip(own, -LOGIT_BOUND, LOGIT_BOUND) if axes else own)
                count += 1
    return total / count


def test_a_picture_one_pass(models, tmp_path):
    pixels = picture(tmp_path / "a.png")
    flags = ("--disable_tta", "-f", "0", "--band", "16", "--report", str(tmp_path / "run.json"))
    out = predict(models.rgb, tmp_path / "a.png", tmp_path / "out", *flags)
    expected = expected_logits(models.rgb, pixels, folds=["0"]).argmax(0)
    assert np.array_equal(labels_of(out / "a.png"), expected)
    assert sorted(path.name for path in out.iterdir()) == [".octreenca", "a.png", "overlays"]
    report = json.loads((tmp_path / "run.json").read_text())
    (case,) = report["cases"]
    assert case["passes"] == 1
    assert case["bands_of"] == 16
    assert case["shape"] == [61, 45]
    assert set(case["seconds"]) == {"open", "survey", "segment", "hash", "write"}
    assert case["shares"]["first"] == pytest.approx((expected == 1).mean())
    assert report["seeds"] == [0]
    assert report["mirror_axes"] == []
    assert report["peak_bytes"] > case["planned_bytes"] * 0.5
    assert report["versions"]["torch"] == torch.__version__


def test_folds_seeds_and_mirrored_copies_are_averaged(models, tmp_path):
    pixels = picture(tmp_path / "a.png")
    out = predict(models.rgb, tmp_path / "a.png", tmp_path / "out", "--seeds", "3", "4")
    expected = expected_logits(models.rgb, pixels, seeds=(3, 4), axes=(0, 1)).argmax(0)
    assert (labels_of(out / "a.png") == expected).mean() > 0.999  # sums in another order


def test_regions_write_their_labels(models, tmp_path):
    pixels = picture(tmp_path / "a.png")
    flags = ("--disable_tta", "--band", "16")
    out = predict(models.regions, tmp_path / "a.png", tmp_path / "out", *flags)
    logits = expected_logits(models.regions, pixels)
    expected = np.zeros(logits.shape[1:], np.uint8)
    for logit, label in zip(logits, (1, 2), strict=True):
        expected[logit > 0] = label
    assert np.array_equal(labels_of(out / "a.png"), expected)
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("kind", ["volume", "planes", "turned"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.0), (1.5, 0.8, 1.5)])
def test_a_volume_as_nnunet_predicts_it(models, tmp_path, kind, spacing):
    """Cropped, normalized, resampled and brought back: nnU-Net's own predictor is the oracle."""
    import SimpleITK
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    model = getattr(models, kind)
    volume(tmp_path / "v_0000.nii.gz", spacing=spacing)
    flags = ("--disable_tta", "--band", "4")
    out = predict(model, tmp_path / "v_0000.nii.gz", tmp_path / "out", *flags)
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"),
        allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(model), ("0",))
    image, properties = SimpleITKIO().read_images([str(tmp_path / "v_0000.nii.gz")])
    expected = predictor.predict_single_npy_array(image, properties, None, None, False)
    written = SimpleITK.ReadImage(str(out / "v.nii.gz"))
    assert (SimpleITK.GetArrayFromImage(written) == expected).mean() > 0.995
    assert len(np.unique(expected)) == 3
    given = SimpleITK.ReadImage(str(tmp_path / "v_0000.nii.gz"))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, what)() == pytest.approx(getattr(given, what)())


def test_a_video_and_its_frames_alike(models, tmp_path):
    """The frames are written without loss, so that the video's labels can be the same."""
    import av

    frames = np.random.default_rng(0).integers(0, 255, (13, 20, 24, 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "clip" / f"frame_{number}.png")
    with av.open(str(tmp_path / "film.avi"), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 24, 20, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    flags = ("--disable_tta", "--formats", "frames", "coco.json", "mp4", "--band", "3")
    one = predict(models.video, tmp_path / "clip", tmp_path / "one", *flags)
    other = predict(models.video, tmp_path / "film.avi", tmp_path / "other", *flags)
    network = load_model(models.video).networks[0]
    image = torch.from_numpy(np.moveaxis(frames, -1, 0).astype(np.float32) / 255)[None]
    expected = network.segment(image)[0].numpy()
    for folder, name in ((one, "clip"), (other, "film")):
        found = sorted((folder / f"{name}_frames").iterdir(), key=lambda p: (len(p.name), p.name))
        assert np.array_equal([labels_of(path) for path in found], expected)
        assert (folder / f"{name}.coco.json").stat().st_size > 100
        assert (folder / f"{name}_overlay.mp4").stat().st_size > 100
    assert [path.name for path in (one / "clip_frames").glob("frame_12*")] == ["frame_12.png"]


def test_a_folder_goes_on_after_a_bad_case(models, tmp_path, capsys):
    images = tmp_path / "in"
    images.mkdir()
    for number, name in enumerate("abc"):
        picture(images / f"{name}.png", seed=number)
    whole = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(whole[: len(whole) // 2])
    report = tmp_path / "run.json"
    flags = ("--disable_tta", "-f", "0", "--report", str(report))
    out = predict(models.rgb, images, tmp_path / "out", *flags, code=3)
    names = {"a.png", "c.png", "overlays", ".octreenca"}
    assert {path.name for path in out.iterdir()} == names
    said = capsys.readouterr().err
    assert "2 done, 1 failed" in said
    (failed,) = json.loads(report.read_text())["failed"]
    assert failed["case"] == "b"
    assert failed["error"] == "InputError"
    assert failed["sentence"] in said
    # Repaired and continued: the finished ones are left as they are.
    (images / "b.png").write_bytes(whole)
    before = (out / "a.png").stat().st_mtime_ns
    predict(models.rgb, images, out, *flags, "--continue")
    assert (out / "overlays" / "b_overlay.png").exists()
    assert (out / "a.png").stat().st_mtime_ns == before
    assert json.loads(report.read_text())["left_out"] == ["a", "c"]


def test_results_are_not_overwritten_unasked(models, tmp_path, capsys):
    picture(tmp_path / "a.png")
    flags = ("--disable_tta", "-f", "0")
    out = predict(models.rgb, tmp_path / "a.png", tmp_path / "out", *flags)
    before = (out / "a.png").stat().st_mtime_ns
    predict(models.rgb, tmp_path / "a.png", out, *flags, code=1)
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "a.png").stat().st_mtime_ns == before
    predict(models.rgb, tmp_path / "a.png", out, *flags, "--overwrite")
    assert (out / "a.png").stat().st_mtime_ns > before
    # The image's own folder is no place for a result of its name.
    predict(models.rgb, tmp_path / "a.png", tmp_path, *flags, "--overwrite", code=1)
    assert "the image itself" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_end_halfway_leaves_nothing(models, tmp_path, monkeypatch, stop):
    picture(tmp_path / "a.png")
    stock = Ensemble.segment

    def ends(self, *args, **kwargs):
        results = stock(self, *args, **kwargs)
        yield next(results)
        raise stop

    monkeypatch.setattr(Ensemble, "segment", ends)
    flags = ("--disable_tta", "-f", "0", "--band", "16")
    code = 130 if stop is KeyboardInterrupt else 1
    out = predict(models.rgb, tmp_path / "a.png", tmp_path / "out", *flags, code=code)
    assert list(out.iterdir()) == []


def test_kill_ends_like_an_interrupt(models, tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    before = signal.getsignal(signal.SIGTERM)
    stock = Ensemble.segment

    def killed(self, *args, **kwargs):
        results = stock(self, *args, **kwargs)
        yield next(results)
        os.kill(os.getpid(), signal.SIGTERM)
        yield from results

    monkeypatch.setattr(Ensemble, "segment", killed)
    report = tmp_path / "run.json"
    with pytest.raises(SystemExit) as end:
        predict(
            models.rgb, tmp_path / "a.png", tmp_path / "out", "--band", "16", "--report", report
        )
    assert end.value.code == 143
    assert list((tmp_path / "out").iterdir()) == []
    assert json.loads(report.read_text())["cases"] == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["write_overlay", "label_shares"])
def test_an_end_while_writing_leaves_whole_files_only(models, tmp_path, monkeypatch, name):
    picture(tmp_path / "a.png")

    def ends(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(case, name, ends)
    flags = ("--disable_tta", "-f", "0")
    out = predict(models.rgb, tmp_path / "a.png", tmp_path / "out", *flags, code=130)
    assert sorted(path.name for path in out.iterdir()) == [".octreenca", "a.png"]
    assert labels_of(out / "a.png").shape == (61, 45)
    # It does not count as finished.
    monkeypatch.undo()
    predict(models.rgb, tmp_path / "a.png", out, *flags, "--overwrite")
    assert (out / "overlays" / "a_overlay.png").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--memory", "1M"], "may be used (--memory)"),
        (["--memory", "lots"], "write 4G"),
        (["--formats", "mp4"], "mp4 is not a format for a picture"),
        (["--formats", "png", "plain.png"], "same file name"),
        (["--mpp", "0.5"], "microns"),
        (["-f", "7"], "fold_7"),
        (["--band", "0"], "--band 0"),
        (["-device", "nonsense"], "-device nonsense"),
        pytest.param(
            ["-device", "cuda"],
            "-device cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["-d", "5"], "-m"),
        (["--threads", "1000000"], "1000000 threads cannot be used: this machine has"),
        (["--threads", "0"], "0 threads cannot be used"),
        (["--threads", "-1"], "-1 threads cannot be used"),
        (["-chk", "other.pth"], "other.pth"),
    ],
)
def test_bad_flags_are_named(models, tmp_path, capsys, flags, sentence):
    picture(tmp_path / "a.png")
    predict(models.rgb, tmp_path / "a.png", tmp_path / "out", *flags, code=1)
    assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_a_full_disk_is_said_before_anything_is_computed(models, tmp_path, capsys, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setattr(case, "free_disk", lambda folder: 1_000_000)
    predict(models.rgb, tmp_path / "a.png", tmp_path / "out", "--disable_tta", code=1)
    assert "1 MB left" in capsys.readouterr().err


def test_other_models_are_named(models, tmp_path, capsys):
    picture(tmp_path / "a.png")
    volume(tmp_path / "v.nii.gz")
    cases = [
        (models.video, tmp_path / "a.png", "2-D"),
        (models.rgb, tmp_path / "v.nii.gz", "1 channel"),
        (tmp_path, tmp_path / "a.png", "dataset.json"),
    ]
    for model, source, sentence in cases:
        predict(model, source, tmp_path / "out", code=1)
        assert sentence in capsys.readouterr().err
    stock = tmp_path / "stock"
    model_folder(stock)
    plans = json.loads((stock / "plans.json").read_text())
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "a.PlainConvUNet"
    (stock / "plans.json").write_text(json.dumps(plans))
    predict(stock, tmp_path / "a.png", tmp_path / "out", code=1)
    assert "describes PlainConvUNet, not OctreeNCA" in capsys.readouterr().err
    checkpoint = stock / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    predict(stock, tmp_path / "a.png", tmp_path / "out", code=1)
    assert "damaged" in capsys.readouterr().err


def test_damaged_weights_are_named(tmp_path, capsys):
    picture(tmp_path / "a.png")
    model = model_folder(tmp_path / "m")
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    next(iter(checkpoint["network_weights"].values())).fill_(float("nan"))
    torch.save(checkpoint, path)
    predict(model, tmp_path / "a.png", tmp_path / "out", code=1)
    assert "not finite" in capsys.readouterr().err


def test_tissue_leaves_glass_out(models, tmp_path):
    pixels = np.full((200, 40, 3), 230, np.uint8)
    pixels[100:120, 5:30] = (180, 60, 150)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    flags = ("--disable_tta", "-f", "0", "--band", "16")
    whole = labels_of(predict(models.rgb, tmp_path / "a.png", tmp_path / "o1", *flags) / "a.png")
    flags = (*flags, "--tissue")
    some = labels_of(predict(models.rgb, tmp_path / "a.png", tmp_path / "o2", *flags) / "a.png")
    assert np.array_equal(some[96:128], whole[96:128])
    assert not some[:96].any()
    assert whole[:96].any()


@pytest.mark.skipif(cpu_module() is None, reason="the C++ engine is not built")
def test_float16_states(models, tmp_path):
    pixels = picture(tmp_path / "a.png", 300, 200)
    flags = ("--disable_tta", "-f", "0", "--precision", "float16")
    out = predict(models.rgb, tmp_path / "a.png", tmp_path / "out", *flags)
    network = load_model(models.rgb, folds=["0"]).networks[0]
    image = torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32) / 255)[None]
    half, single = (network.segment(image, state=s)[0].numpy() for s in ("float16", "float32"))
    assert np.array_equal(labels_of(out / "a.png"), half)
    assert 0.97 < (half == single).mean() < 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from the kernel")
def test_the_planned_memory_is_what_is_used(tmp_path):
    """The whole command, within 15 %, on an image whose bands weigh more than the imports vary."""
    import tifffile

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (600, 16_000, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), photometric="rgb")
    model = model_folder(tmp_path / "m", patch=(320, 320))
    report = tmp_path / "run.json"
    code = "import sys; from nnunet_octreenca.cli.main import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "run.py").write_text(code)
    subprocess.run(
        [sys.executable, tmp_path / "run.py", "predict", "-m", model, "-i", tmp_path / "a.tif",
         "-o", tmp_path / "out", "-device", "cpu", "--disable_tta", "--report", report],
        check=True,
    )  # fmt: skip
    said = json.loads(report.read_text())
    assert 0.85 < said["cases"][0]["planned_bytes"] / said["peak_bytes"] < 1.15


@pytest.mark.parametrize("code", range(2, 9))
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_picture_is_seen_as_viewers_show_it(models, tmp_path, capsys, code, ending):
    """All formats lie on the turned picture; what is done is printed once."""
    pixels = picture(tmp_path / "plain.png")
    (tmp_path / "plain.png").unlink()
    tags = Image.Exif()
    tags[0x0112] = code
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", exif=tags)
    shown = Image.fromarray(pixels)
    shown.getexif()[0x0112] = code
    ImageOps.exif_transpose(shown).save(tmp_path / "shown.png")
    flags = ("--disable_tta", "--formats", "png", "ome.tif")
    predict(models.rgb, tmp_path / "shown.png", tmp_path / "out", *flags)
    assert "orientation" not in capsys.readouterr().out
    predict(models.rgb, tmp_path / f"a.{ending}", tmp_path / "out", *flags)
    assert capsys.readouterr().out.count(f"orientation {code} says") == 1
    expected = labels_of(tmp_path / "out" / "shown.png")
    assert np.array_equal(labels_of(tmp_path / "out" / "a.png"), expected)
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "a.ome.tif"), expected)


@pytest.mark.parametrize("place", [(64, 96), (0, 40)])
def test_polygons_of_a_slide_with_bounds_begin_there(models, tmp_path, capsys, place):
    """QuPath shows a slide from the corner of its bounds."""
    pytest.importorskip("openslide")
    from shapely.geometry import shape

    write_leica(tmp_path / "a.scn", slide_picture(128, 128), place, (224, 256))
    out = predict(
        models.rgb, tmp_path / "a.scn", tmp_path / "out", "--disable_tta", "--formats", "geojson",
        "png", "ome.tif",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert said.count(f"pixels from x {place[0]}, y {place[1]} were scanned") == 1
    labels = labels_of(out / "a.png")
    assert labels.shape == (256, 224)
    features = json.loads((out / "a.geojson").read_text())["features"]
    placed = [translate(shape(feature["geometry"]), *place) for feature in features]
    covered = rasterio.features.rasterize(placed, labels.shape, dtype=np.uint8)
    deep = ndimage.binary_erosion(labels > 0, iterations=2)
    assert deep.sum() > 100
    assert covered[deep].mean() > 0.99
    assert abs(int(covered.sum()) - int((labels > 0).sum())) < 0.2 * (labels > 0).sum()
    with tifffile.TiffFile(out / "a.ome.tif") as file:
        assert f'<M K="openslide.bounds-x">{place[0]}</M>' in file.ome_metadata
