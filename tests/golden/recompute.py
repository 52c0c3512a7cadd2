"""Small results of every path through the package, recomputed from nothing.

`python tests/golden/recompute.py` records them in results.npz beside this file;
test_golden.py compares. Inputs come from NumPy's PCG64, weights from `model_folder`, and the
C++ engine runs its plain kernels, which round alike on every x86-64 processor.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "lib"), str(HERE.parents[1] / "benchmarks")]

from helpers.dicom_slices import write_series  # noqa: E402
from helpers.tiny_slides import halved, picture, write_pyramid  # noqa: E402
from untrained_model import model_folder  # noqa: E402

from nnunet_octreenca import OctreeNCA, StepWeights, nca_steps  # noqa: E402
from nnunet_octreenca.cli.main import main  # noqa: E402
from nnunet_octreenca.images.pyramid import SlideRegions  # noqa: E402
from nnunet_octreenca.integration.preprocessor import OctreeNCAPreprocessor  # noqa: E402
from nnunet_octreenca.integration.trainer import OctreeNCATrainer  # noqa: E402

RECORDED = HERE / "results.npz"
ZARR = find_spec("zarr") is not None  # needs Python 3.11; to record, it has to be there
Results = Iterator[tuple[str, np.ndarray]]


def text(content: str) -> np.ndarray:
    """Text as bytes."""
    return np.frombuffer(content.encode(), np.uint8)


def draws(seed: int) -> np.random.Generator:
    """Numbers that depend on the seed alone."""
    return np.random.Generator(np.random.PCG64(seed))


def steps() -> Results:
    """One level's steps, forward and backward, on both engines."""
    cases = [
        ((9, 14), 16, 3, 64),
        ((7, 10), 20, 1, 80),
        ((5, 6, 7), 16, 1, 64),
        ((1, 4, 5), 16, 3, 64),
    ]
    for number, (shape, channels, inputs, hidden) in enumerate(cases):
        rng = draws(number)

        def tensor(*size: int, scale: float = 1.0, rng: np.random.Generator = rng) -> torch.Tensor:
            return torch.from_numpy((rng.random(size, np.float32) - 0.5) * np.float32(scale))

        kernel = (3,) * len(shape)
        given = [
            tensor(2, channels, *shape),
            tensor(channels, *kernel, scale=2 / 3 ** len(shape)),
            tensor(channels, scale=0.4),
            tensor(hidden, 2 * channels, scale=0.5),
            tensor(hidden, scale=0.4),
            tensor(channels - inputs, hidden, scale=0.2),
        ]
        for engine in ("cpu", "torch"):
            os.environ["OCTREENCA_ENGINE"] = engine
            state, *weights = (value.clone().requires_grad_() for value in given)
            last = nca_steps(state, StepWeights(*weights), 6, 0.5, 2**40 + 7, 1)
            last.square().mean().backward()
            name = f"steps {number} {engine}"
            yield f"{name} state", last.detach().numpy()
            for part, value in zip(
                ["state", "perceive", "bias", "first", "bias2", "last"],
                (state, *weights),
                strict=True,
            ):
                yield f"{name} gradient {part}", value.grad.numpy()
    os.environ.pop("OCTREENCA_ENGINE")


def networks() -> Results:
    """Whole octrees: logits and labels."""
    cases = [((37, 29), 3, 4, [[2, 2]] * 2), ((6, 19, 17), 1, 2, [[1, 2, 2], [2, 2, 2]])]
    for number, (shape, inputs, classes, factors) in enumerate(cases):
        rng = draws(100 + number)
        network = OctreeNCA(inputs, classes, dimension=len(shape), factors=factors, steps=[5, 4, 6])
        with torch.no_grad():
            for weight in network.parameters():
                spread = 0.24 if weight.ndim == 2 else 0.1
                weight.copy_(
                    torch.from_numpy(
                        (rng.random(weight.shape, np.float32) - 0.5) * 2 * np.float32(spread)
                    )
                )
        image = torch.from_numpy(rng.random((2, inputs, *shape), np.float32) - 0.5)
        for engine in ("cpu", "torch"):
            os.environ["OCTREENCA_ENGINE"] = engine
            with torch.no_grad():
                yield f"network {number} {engine} logits", network(image, seed=3).numpy()
                yield f"network {number} {engine} labels", network.segment(image, seed=3).numpy()
        os.environ["OCTREENCA_ENGINE"] = "cpu"
        os.environ["OCTREENCA_STATE"] = "float16"
        with torch.no_grad():
            yield f"network {number} float16 labels", network.segment(image, seed=3).numpy()
        os.environ.pop("OCTREENCA_STATE")
        os.environ.pop("OCTREENCA_ENGINE")


def predict(model: Path, source: Path, *flags: object) -> Path:
    """`nnunet_octreenca predict` into a new folder."""
    out = Path(tempfile.mkdtemp(dir=model.parent))
    given = ["predict", "-m", model, "-i", source, "-o", out, "-device", "cpu", "--quiet", *flags]
    if (code := main([str(part) for part in given])) != 0:
        raise RuntimeError(f"predict ended with exit code {code}: {given}")
    return out


def written(folder: Path) -> Results:
    """What lies in an output folder, as content."""
    for path in sorted(folder.iterdir()):
        name = path.name
        if "overlay" in name:
            continue  # drawn with the fonts of the machine
        if name.endswith(".ome.tif"):
            with tifffile.TiffFile(path) as file:
                for number, level in enumerate(file.series[0].levels):
                    yield f"{name} {number}", level.asarray()
                tags = file.pages[0].tags
                if "XResolution" in tags:
                    yield f"{name} resolution", np.array(tags["XResolution"].value)
        elif name.endswith(".ome.zarr"):
            import zarr

            group = zarr.open_group(path, mode="r")
            for key, array in sorted(group.arrays()):
                yield f"{name} {key}", np.asarray(array[:])
            yield f"{name} attributes", text(json.dumps(group.attrs.asdict(), sort_keys=True))
        elif name.endswith(".geojson"):
            content = json.loads(path.read_text())
            for feature in content["features"]:
                feature.pop("id", None)  # new in every file
            yield name, text(json.dumps(content, sort_keys=True))
        elif name.endswith(".json"):
            yield name, text(path.read_text())
        elif name.endswith(".dcm"):
            import pydicom

            segmentation = pydicom.dcmread(path)
            yield name, segmentation.pixel_array
            places = [
                [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]
                for frame in segmentation.PerFrameFunctionalGroupsSequence
                if "PlanePositionSequence" in frame
            ]
            yield f"{name} places", np.array(places)
        elif name.endswith(".png"):
            yield name, np.asarray(Image.open(path))
        elif path.is_dir():
            for frame in sorted(path.glob("*.png")):
                yield f"{name}/{frame.name}", np.asarray(Image.open(frame))
        elif name.endswith((".nii.gz", ".nrrd", ".mha")):
            volume = sitk.ReadImage(str(path))
            yield name, sitk.GetArrayFromImage(volume)
            geometry = [*volume.GetOrigin(), *volume.GetSpacing(), *volume.GetDirection()]
            yield f"{name} geometry", np.array(geometry)


def slides(folder: Path) -> Results:
    """Slides and pictures from file to file, and their windows."""
    model = model_folder(folder / "rgb", folds=("0", "1"))
    pixels = picture(75, 98)
    levels = [pixels, halved(pixels)]
    given = folder / "slides"
    write_pyramid(given / "tiled.tif", levels, mpp=0.5, compression="zlib")
    write_pyramid(given / "jpeg.tif", levels, mpp=0.5, sub_ifds=False, compression="jpeg")
    write_pyramid(given / "strips.tif", [pixels], tile=None, rowsperstrip=7)
    write_pyramid(given / "planes.tif", [pixels], planarconfig="separate")
    alpha = np.concatenate([pixels, pixels[..., :1]], -1)
    Image.fromarray(alpha).save(given / "alpha.png")
    Image.fromarray(pixels).quantize(40).save(given / "palette.png")
    Image.fromarray(pixels).save(given / "rgb.png")
    for path in sorted(given.iterdir()):
        out = predict(model, path, "--disable_tta", "-f", 0, "--band", 16)
        yield from ((f"slides {path.name} {name}", value) for name, value in written(out))
        with torch.no_grad():
            regions = SlideRegions(path)
            last = len(regions.shapes) - 1
            yield f"slides {path.name} region", regions.region(last, 3, 5, 11, 13)
            yield f"slides {path.name} scaled", regions.scaled(4.0, 2, 3, 8, 9)
    formats = ["ome.tif", *(["ome.zarr"] if ZARR else []), "geojson", "dcm", "png"]
    for name, flags in {
        "mpp": ["--mpp", 1.0, "--disable_tta"],
        "half way": ["--mpp", 1.5, "--disable_tta", "-f", 1],
        "averaged": ["--seeds", 1, 2],
    }.items():
        out = predict(model, given / "tiled.tif", "--formats", *formats, *flags)
        yield from ((f"slides {name} {key}", value) for key, value in written(out))
    if ZARR:
        zarr = next(path for path in out.iterdir() if path.name.endswith(".ome.zarr"))
        grey = model_folder(folder / "grey", channels=1)
        out = predict(grey, zarr, "--disable_tta")
        yield from ((f"slides zarr {name}", value) for name, value in written(out))


def frames(folder: Path) -> Results:
    """A folder of frames as one video."""
    model = model_folder(
        folder / "video", patch=(8, 16, 16), ending=".nii.gz", schemes=["RGBTo01Normalization"] * 3
    )
    given = folder / "clip"
    given.mkdir()
    for number in range(9):
        Image.fromarray(picture(20, 26, number)).save(given / f"frame_{number}.png")
    out = predict(model, given, "--disable_tta", "--formats", "frames", "coco.json", "ome.tif")
    yield from ((f"frames {name}", value) for name, value in written(out))


def complete(files: list[Path]) -> None:
    """What a scanner writes and ITK does not, and a segmentation needs."""
    import pydicom

    for file in files:
        slice_ = pydicom.dcmread(file)
        slice_.FrameOfReferenceUID = slice_.StudyInstanceUID + ".9"
        slice_.PatientID, slice_.PatientName = "P1", "Doe^Jane"
        slice_.save_as(file)


def volumes(folder: Path) -> Results:
    """Volumes: cropped, normalized, resampled and brought back, in every format."""
    model = model_folder(
        folder / "volume", patch=(8, 16, 16), channels=1, ending=".nii.gz", spacing=(2, 1, 1)
    )
    given = folder / "volumes"
    given.mkdir()
    voxels = draws(7).integers(-900, 900, (11, 20, 18)).astype(np.int16)
    voxels[:, :2] = 0
    for ending, spacing in ((".nii.gz", (1.0, 1.0, 2.0)), (".nrrd", (0.7, 1.3, 5.0))):
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(spacing)
        image.SetOrigin((3, -4, 5))
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
        sitk.WriteImage(image, str(given / f"volume{ending}"))
        out = predict(
            model, given / f"volume{ending}", "--formats", "nii.gz", "mha", "ome.tif", "dcm"
        )
        yield from ((f"volume {ending} {name}", value) for name, value in written(out))
    complete(write_series(folder / "series", voxels))
    out = predict(model, folder / "series", "--disable_tta", "--formats", "nii.gz", "dcm")
    yield from ((f"series {name}", value) for name, value in written(out))
    two = model_folder(
        folder / "two", patch=(8, 16, 16), channels=2, ending=".nii.gz", spacing=(1, 1, 1),
        schemes=["CTNormalization", "ZScoreNormalization"], transpose=(1, 0, 2),
    )  # fmt: skip
    case = folder / "channels"
    case.mkdir()
    for channel in range(2):
        image = sitk.GetImageFromArray((voxels + 100 * channel).astype(np.float32))
        image.SetSpacing((1.2, 1.0, 3.5))
        sitk.WriteImage(image, str(case / f"case_{channel:04d}.nii.gz"))
    yield from ((f"channels {n}", v) for n, v in written(predict(two, case, "--disable_tta")))
    seg = sitk.GetImageFromArray((voxels > 300).astype(np.uint8) + (voxels > 600))
    seg.CopyInformation(image)
    sitk.WriteImage(seg, str(folder / "seg.nii.gz"))
    yield from preprocessed(two, sorted(case.iterdir()), folder / "seg.nii.gz")


def preprocessed(model: Path, files: list[Path], seg: Path) -> Results:
    """What training reads of a case."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(model / "plans.json"))
    description = json.loads((model / "dataset.json").read_text())
    data, labels, properties = OctreeNCAPreprocessor(verbose=False).run_case(
        [str(path) for path in files], str(seg), plans, plans.get_configuration("3d_fullres"),
        description,
    )  # fmt: skip
    yield "preprocessed data", data
    yield "preprocessed labels", labels
    for label, locations in properties["class_locations"].items():
        yield f"preprocessed locations {label}", np.asarray(locations[:200])


def training(folder: Path) -> Results:
    """Three iterations; the network, its average and the plans."""
    model = model_folder(folder / "train", patch=(8, 12, 10), channels=1, ending=".nii.gz")
    plans = json.loads((model / "plans.json").read_text())
    yield "plans", text(json.dumps(plans, sort_keys=True))
    plans["continue_training"] = False
    description = json.loads((model / "dataset.json").read_text())
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    data = folder / "preprocessed" / plans["dataset_name"]
    (data / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (data / "nnUNetPlans_3d_fullres" / "case_0.b2nd").touch()
    (data / "dataset.json").write_text(json.dumps(description))
    trainer = OctreeNCATrainer(plans, "3d_fullres", 0, description, torch.device("cpu"))
    trainer.initialize()
    rng = draws(11)
    for number in range(3):
        values = rng.random((2, 1, 8, 12, 10), np.float32)
        target = torch.from_numpy(rng.integers(0, 3, (2, 1, 8, 12, 10)).astype(np.int16))
        loss = trainer.train_step(
            {"data": torch.from_numpy(values), "target": target, "keys": ["a", "b"]}
        )["loss"]
        yield f"training loss {number}", np.asarray(loss)
    trainer.save_checkpoint(str(folder / "checkpoint.pth"))
    saved = torch.load(folder / "checkpoint.pth", weights_only=False)
    yield "checkpoint keys", text(json.dumps(sorted(map(str, saved))))
    for name, value in saved["network_weights"].items():
        yield f"training {name}", value.numpy()


def recompute(folder: Path) -> dict[str, np.ndarray]:
    """All results by name; `folder` is filled with what they are computed from."""
    before = dict(os.environ)
    os.environ["OCTREENCA_CPU_KERNELS"] = "plain"
    try:
        torch.manual_seed(0)
        results = dict(steps()) | dict(networks())
        for part in (slides, frames, volumes, training):
            results |= dict(part(folder))
        return results
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        np.savez_compressed(RECORDED, **recompute(Path(temporary)))
    print(f"{RECORDED}: {RECORDED.stat().st_size / 1000:.0f} kB")
