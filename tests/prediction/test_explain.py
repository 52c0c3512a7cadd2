"""The automaton watched on a case: what is drawn is what the network computes."""

import numpy as np
import pytest
import torch
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import InputError, OutOfMemoryError, OutputError
from nnunet_octreenca.files import read_json, write_json
from nnunet_octreenca.integration.model import load_model
from nnunet_octreenca.labels.palette import colour
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.prediction.explain import explain
from nnunet_octreenca.prediction.octree_figure import level_texts, write_octree_figure
from nnunet_octreenca.prediction.watch import LONGEST, moments, watch, watch_image
from nnunet_octreenca.prediction.watch_frames import Frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models that were never trained, a picture, a volume."""
    import SimpleITK

    base = tmp_path_factory.mktemp("explain")
    model_folder(base / "rgb", folds=("0", "1"), steps=2)
    model_folder(
        base / "volume", patch=(8, 16, 16), channels=1, ending=".nii.gz", spacing=(2, 1, 1), steps=2
    )
    model_folder(
        base / "planes", patch=(16, 16), channels=1, ending=".nii.gz", spacing=(1, 1), steps=2
    )
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(1, 255, (48, 40, 3), np.uint8)).save(base / "a.png")
    image = SimpleITK.GetImageFromArray(generator.normal(50, 9, (9, 20, 18)).astype(np.float32))
    image.SetSpacing((1, 1, 2))
    SimpleITK.WriteImage(image, str(base / "v.nii.gz"))
    return base


def test_the_last_view_is_the_networks_result(folder):
    model = load_model(folder / "rgb", folds=["1"])
    watched = watch(folder / "a.png", model)
    pixels = np.asarray(Image.open(folder / "a.png")).astype(np.float32) / 255
    logits = model.networks[0](torch.from_numpy(pixels).movedim(-1, 0)[None], seed=model.seed)
    assert np.array_equal(watched.views[-1].probabilities[0], logits.softmax(1)[0].numpy())
    assert np.allclose(watched.views[-1].image[0], np.moveaxis(pixels, -1, 0))
    assert len(watched.views) == moments(model.networks[0], 1)
    network = model.networks[0]
    assert len(watched.views[0].hidden) == network.level_channels[0] - 3 - network.logits


def test_logits_are_shown_where_they_were_trained(folder, tmp_path):
    """With a loss on every level, the classes of all levels; they are each level's own logits."""
    model_folder(tmp_path / "model", steps=2)
    path = tmp_path / "model" / "plans.json"
    plans = read_json(path, "")
    (configuration,) = plans["configurations"].values()
    for weight in (0.0, 0.5):
        configuration["octreenca"]["loss_on_levels"] = weight
        write_json(path, plans)
        model = load_model(tmp_path / "model")
        assert model.taught_levels == bool(weight)
        watched = watch(folder / "a.png", model, every=None)
        shown = {view.level for view in watched.views if view.probabilities is not None}
        assert shown == (set(range(len(watched.steps))) if weight else {0})
    coarsest = watched.views[1]
    assert (coarsest.level, coarsest.step) == (len(watched.steps) - 1, 2)
    assert coarsest.probabilities[0].shape[1:] == coarsest.image[0].shape[1:]
    assert np.allclose(coarsest.probabilities[0].sum(0), 1)
    assert np.abs(coarsest.probabilities[0] - 1 / 3).max() > 0.01


def test_of_a_volume_the_middle_planes(folder):
    model = load_model(folder / "volume")
    watched = watch(folder / "v.nii.gz", model, every=None)
    depth, height, width = watched.shapes[0]
    assert [plane.shape[1:] for plane in watched.views[-1].image] == [
        (height, width), (depth, width), (depth, height)
    ]  # fmt: skip
    assert watched.spacing == (2, 1, 1)
    flat = watch(folder / "v.nii.gz", load_model(folder / "planes"), every=None)
    assert flat.title == "v, plane 4"
    assert len(flat.views[-1].image) == 1


def test_large_planes_are_kept_small(folder, tmp_path):
    Image.fromarray(np.full((40, 2 * LONGEST + 1, 3), 9, np.uint8)).save(tmp_path / "wide.png")
    watched = watch(tmp_path / "wide.png", load_model(folder / "rgb"), every=None)
    assert watched.views[-1].image[0].shape == (3, 14, 171)


def test_frames_show_classes_as_they_are_probable(folder):
    watched = watch(folder / "a.png", load_model(folder / "rgb"), every=None)
    view = watched.views[-1]
    sure = np.zeros_like(view.probabilities[0])
    sure[2] = 1
    certain = view.__class__(view.level, view.step, view.image, view.hidden, (sure,))
    frames = Frames(watched.__class__(**{**vars(watched), "views": (*watched.views, certain)}), 640)
    drawn = frames.draw(len(watched.views))
    assert drawn.shape == (*frames.shape, 3)
    panel = drawn[frames.shape[0] // 2, -100]
    assert tuple(panel.tolist()) == colour(2)
    assert frames.holds[-1] > frames.holds[0] > 1


@pytest.mark.parametrize(("every", "name"), [(1, "a.gif"), (2, "a.mp4")])
def test_an_animation_from_the_command(folder, tmp_path, every, name):
    target = tmp_path / name
    flags = ["-f", "1", "--every", str(every), "--width", "321", "-device", "cpu"]
    command = ["explain", "-m", str(folder / "rgb"), "-i", str(folder / "a.png"), "-o", str(target)]
    assert main([*command, *flags]) == 0
    model = load_model(folder / "rgb", folds=["1"])
    frames = Frames(watch(folder / "a.png", model, every=every), 321)
    if name.endswith("gif"):
        with Image.open(target) as gif:
            assert gif.size == frames.shape[::-1] == (322, frames.shape[0])
            shown = []
            for number in range(gif.n_frames):
                gif.seek(number)
                shown.append(gif.info["duration"])
            last = np.asarray(gif.convert("RGB")).astype(int)
        assert sum(shown) == sum(round(100 * hold / 8) * 10 for hold in frames.holds)
        assert last[0, 0].tolist() == [255, 255, 255]
        assert np.abs(last - frames.draw(len(frames.holds) - 1)).mean() < 5
    else:
        av = pytest.importorskip("av")
        with av.open(str(target)) as container:
            assert sum(1 for _ in container.decode(video=0)) == sum(frames.holds)
    assert main([*command, *flags]) == 1  # it exists


@pytest.mark.parametrize("name", ["octree.svg", "octree.png"])
def test_a_figure_of_the_octree(folder, tmp_path, name):
    explain(folder / "v.nii.gz", load_model(folder / "volume"), tmp_path / name)
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
    else:
        assert "<svg" in (tmp_path / name).read_text()


def test_levels_that_differ_in_channels(tmp_path):
    """Every level shows the hidden channels that it has."""
    torch.manual_seed(0)
    network = OctreeNCA(
        1, 3, dimension=2, factors=[(2, 2)] * 2, steps=[2, 1, 3], channels=[4, 9, 16]
    ).eval()
    image = torch.randn(1, 1, 24, 20)
    watched = watch_image(
        network, image, title="", names={1: "a", 2: "b"}, spacing=(1.0, 1.0), unit="pixels"
    )
    shown = {view.level: len(view.hidden) for view in watched.views}
    assert shown == {0: 1, 1: 6, 2: 13}
    frames = Frames(watched, 320)
    assert all(frames.draw(n).shape == (*frames.shape, 3) for n in range(len(watched.views)))
    write_octree_figure(watched, tmp_path / "octree.png")
    with Image.open(tmp_path / "octree.png") as picture:
        assert picture.format == "PNG"


def test_what_the_figure_says(folder):
    watched = watch(folder / "v.nii.gz", load_model(folder / "volume"), every=None)
    assert level_texts(watched, 0) == [
        " x ".join(map(str, watched.shapes[0])) + " cells",
        "cell 2 x 1 x 1 mm",
        "2 steps",
        "see ±4 x 2 x 2 mm",
    ]


def test_refused(folder, tmp_path):
    model = load_model(folder / "rgb")
    image = folder / "a.png"
    for target, sentence in (
        ("a.jpg", "must end in .gif"),
        ("no/a.gif", "is no folder"),
        ("there.gif", "already exists"),
    ):
        (tmp_path / "there.gif").write_bytes(b"mine")
        with pytest.raises(OutputError, match=sentence):
            explain(image, model, tmp_path / target)
    assert (tmp_path / "there.gif").read_bytes() == b"mine"
    with pytest.raises(InputError, match="--every 0"):
        explain(image, model, tmp_path / "a.gif", every=0)
    with pytest.raises(OutOfMemoryError, match="explain holds them whole"):
        explain(image, model, tmp_path / "a.gif", memory=1 << 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.gif"]
