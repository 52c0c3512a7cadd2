"""The commands of README, tutorial and how-to guides, run in the order of the pages.

Each page has a folder of its own and shares nnU-Net's folders with the tutorial, which comes
first. What the tests change, and nothing else:

- trainings are cut to a few iterations in their plans;
- nnU-Net's commands get `-device cpu`;
- a command that differs from one that was run only in its folders is not run again;
- our own commands run in this process, to save seconds of imports.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.doc_blocks import README_COMMANDS, ROOT, Block, blocks, commands
from helpers.tiny_slides import halved, picture, write_pyramid
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.datasets.phantoms import make_phantoms
from nnunet_octreenca.files import read_json, write_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the pages are written for a POSIX shell"),
]

SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1}
FOLDER_FLAGS = {"-i", "-o", "-djfile", "-pfile"}


class Shell:
    """Runs the pages' blocks; folder and variables live on from block to block."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ran: set[tuple[str, ...]] = set()
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
        }

    def run(self, block: Block, folder: Path) -> None:
        """Run a block in a folder."""
        for words in commands(block.text):
            words = self.as_run(words)
            key = without_folders(words)
            program = words[0]
            heavy = program.startswith(("nnUNetv2_", "nnunet_octreenca"))
            if heavy and key in self.ran:
                continue
            self.ran.add(key)
            if program == "nnUNetv2_train":
                self.shorten()
            if program == "nnunet_octreenca":
                self.run_ours(words, folder)
            else:
                self.run_shell(shlex.join(words) if heavy else unquoted(words), folder)

    def as_run(self, words: list[str]) -> list[str]:
        """The command on a machine without a GPU."""
        takes_device = words[0] in ("nnUNetv2_train", "nnUNetv2_predict")
        return [*words, "-device", "cpu"] if takes_device and "-device" not in words else words

    def shorten(self) -> None:
        """Cut the trainings of all plans there are."""
        for path in self.home.glob("nnUNet_preprocessed/*/nnUNetOctreeNCAPlans.json"):
            plans = read_json(path, "")
            for configuration in plans["configurations"].values():
                configuration.get("octreenca", {}).update(SHORT)
            write_json(path, plans)

    def run_ours(self, words: list[str], folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            assert main(words[1:]) == 0, shlex.join(words)

    def run_shell(self, line: str, folder: Path) -> None:
        script = f"set -e\n{line}\nenv -0 > {shlex.quote(str(self.home / 'environment'))}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=self.environment, capture_output=True,
            encoding="utf-8", errors="replace", timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{(done.stdout + done.stderr)[-3000:]}"
        variables = (self.home / "environment").read_text().split("\0")
        self.environment = dict(v.split("=", 1) for v in variables if "=" in v)


def unquoted(words: list[str]) -> str:
    """A line whose variables the shell is to replace."""
    return " ".join(w if re.search(r"\$\w", w) and " " not in w else shlex.quote(w) for w in words)


def without_folders(words: list[str]) -> tuple[str, ...]:
    """A command without the folders it reads and writes."""
    kept = [w for before, w in zip(["", *words], words, strict=False) if before not in FOLDER_FLAGS]
    return tuple(kept[:1] if words[0] == "nnUNetv2_evaluate_folder" else kept)


def runnable(page: str) -> list[Block]:
    return [
        block
        for block in blocks(ROOT / page)
        if block.language == "bash" and block.title is None and block.text.strip() not in
        README_COMMANDS
    ]  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    from nnunet_octreenca.integration import register

    before = [shim for shim in register.shims() if shim.state != "missing"]
    shell = Shell(tmp_path_factory.mktemp("pages"))
    for block in runnable("docs/tutorial/first-model.md"):
        shell.run(block, shell.home)
    yield shell
    if not before:
        register.unregister()


def test_the_tutorial(shell):
    data = shell.home / "nnUNet_raw/Dataset004_Phantoms"
    model = "OctreeNCATrainer__nnUNetOctreeNCAPlans__3d_fullres"
    cases = {path.name for path in (data / "labelsTs").iterdir()}
    assert len(cases) == 6
    assert (shell.home / f"nnUNet_results/Dataset004_Phantoms/{model}/fold_0/validation").is_dir()
    assert {path.name for path in (shell.home / "predicted").glob("*.nii.gz")} == cases
    summary = read_json(shell.home / "predicted/summary.json", "")
    assert set(summary["mean"]) == {"1", "2"}
    for name in cases:  # both ways of predicting give the same labels
        one, other = (labels_of(shell.home / way / name) for way in ("predicted", "streamed"))
        assert np.array_equal(one, other)
    assert (shell.home / "streamed/overlays/phantom_020_overlay.png").is_file()
    assert not read_json(shell.home / "streamed/report.json", "")["failed"]


def labels_of(path: Path) -> np.ndarray:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def slide(path: Path, seed: int = 0) -> None:
    """A slide of 0.25 micrometres a pixel with two levels."""
    image = picture(960, 800, seed=seed)
    write_pyramid(path, [image, halved(image)], mpp=0.25)


def slide_folder(folder: Path, mask: Callable[[Path], None]) -> None:
    for number in range(4):
        slide(folder / f"images/case_{number}.svs", number)
        (folder / "masks").mkdir(exist_ok=True)
        mask(folder / f"masks/case_{number}")


def tiff_mask(stem: Path) -> None:
    labels = np.zeros((960, 800), np.uint8)
    labels[200:700, 150:650] = 1
    write_pyramid(stem.with_suffix(".tif"), [labels])


def geojson_mask(stem: Path) -> None:
    ring = [[150, 200], [650, 200], [650, 700], [150, 700], [150, 200]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "tumour"}},
    }
    write_json(stem.with_suffix(".geojson"), {"type": "FeatureCollection", "features": [feature]})


def phantoms(folder: Path, shell: Shell) -> None:
    data = shell.home / "nnUNet_raw/Dataset004_Phantoms"
    (folder / "images").symlink_to(data / "imagesTs")
    (folder / "truth").symlink_to(data / "labelsTs")


def for_readme(folder: Path, shell: Shell) -> None:
    phantoms(folder, shell)
    model_folder(folder / "model")
    slide(folder / "slide.svs")


def for_slides(folder: Path, shell: Shell) -> None:
    slide_folder(folder / "slides", tiff_mask)
    slide(folder / "slide.svs")


def for_qupath(folder: Path, shell: Shell) -> None:
    slide_folder(folder / "annotated", geojson_mask)
    model_folder(folder / "model")
    slide(folder / "slide.svs")


def for_video(folder: Path, shell: Shell) -> None:
    import av

    schemes = ["RGBTo01Normalization"] * 3
    model_folder(folder / "model", patch=(8, 16, 16), ending=".nii.gz", schemes=schemes)
    for video in "abc":
        for number in range(4):
            for part in ("images", "masks"):
                path = folder / f"clips/{part}/{video}/{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = picture(24, 32)
                pixels = image if part == "images" else image[..., 0] // 128 * 255
                Image.fromarray(pixels).save(path)
    with av.open(str(folder / "operation.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(picture(32, 48, seed=number), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def for_raspberry_pi(folder: Path, shell: Shell) -> None:
    model_folder(folder / "model")
    Image.fromarray(picture(40, 50)).save(folder / "picture.png")


def for_zoo(folder: Path, shell: Shell) -> None:
    make_phantoms(folder / "made", training=1, test=2, seed=1)  # as the page does in Python


def nothing(folder: Path, shell: Shell) -> None:
    pass


# What a page's commands find, and what they leave.
PAGES: dict[str, tuple[Callable[[Path, Shell], None], set[str]]] = {
    "README.md": (for_readme, {"labels/slide.geojson", "labels/slide.ome.tif"}),
    "docs/how-to/zoo.md": (
        for_zoo,
        {"labels/phantom_002.nii.gz", "labels/overlays", "report/report.html"},
    ),
    "docs/how-to/mri.md": (phantoms, {"streamed/phantom_021.nii.gz", "streamed/run.json"}),
    "docs/how-to/slides.md": (
        for_slides,
        {"labels/slide.geojson", "labels/case_3.ome.tif", "labels/overlays", "run.json"},
    ),
    "docs/how-to/qupath.md": (for_qupath, {"labels/slide.geojson", "labels/slide.ome.tif"}),
    "docs/how-to/video.md": (
        for_video,
        {"labels/operation_frames", "labels/operation_overlay.mp4", "coco/operation.coco.json"},
    ),
    "docs/how-to/raspberry-pi.md": (for_raspberry_pi, {"labels/picture.png"}),
    "docs/how-to/troubleshooting.md": (nothing, set()),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page(page, shell, tmp_path):
    prepare, results = PAGES[page]
    prepare(tmp_path, shell)
    for block in runnable(page):
        shell.run(block, tmp_path)
    missing = {name for name in results if not (tmp_path / name).exists()}
    assert missing == set()


def test_every_page_with_commands_is_run():
    pages = {block.page for block in blocks() if block.language == "bash" and not block.title}
    assert pages == {*PAGES, "docs/tutorial/first-model.md"}
