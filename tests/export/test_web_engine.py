"""The engine for web pages in node: the same bits as the native kernels it is compiled from."""

import json
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import build_web
import numpy as np
import pytest
import torch
import web_engine
from helpers.oracle import native_kernels
from torch import nn

from nnunet_octreenca.export.packing import packed_network, packed_seed
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.inference.ensemble import Ensemble
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops.native import KERNELS_VARIABLE
from nnunet_octreenca.preprocessing.restore import labels_of_logits

NODE = shutil.which("node")
SEED = -(2**40) - 5
REGIONS = [3, 1, 2]
RELAXED = "--experimental-wasm-relaxed-simd"
CHECK = Path(__file__).with_name("engine_check.mjs")
# name: axes, classes, channels (of each level), fire rate, background, where ranges of slices end
CASES = {
    "paper": ((37, 50), 3, 16, 0.5, True, [37]),
    "ranges": ((61, 23), 2, 16, 0.5, True, [7, 8, 40, 61]),
    "one-row": ((1, 19), 2, 16, 0.5, True, [1]),
    "one-column": ((21, 1), 2, 16, 0.5, True, [21]),
    "odd-channels": ((18, 27), 4, 21, 0.3, True, [18]),
    "every-cell-fires": ((16, 33), 2, 16, 1.0, True, [16]),
    "no-cell-fires": ((9, 9), 2, 16, 0.0, True, [9]),
    "regions": ((24, 24), 3, 16, 0.5, False, [24]),
    "volume": ((7, 12, 9), 3, 16, 0.5, True, [2, 7]),
    "plane": ((1, 12, 10), 2, 20, 0.5, True, [1]),
    "wider-coarse-levels": ((61, 23), 3, [16, 24, 40], 0.5, True, [7, 40, 61]),
    "narrower-coarse-levels": ((18, 27), 2, [21, 9, 9], 0.5, True, [18]),
    "wider-in-a-volume": ((7, 12, 9), 3, [16, 16, 24], 0.5, True, [2, 7]),
}

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed (Debian: nodejs)")


def network_of(axes, classes, channels, rate, background, fold):
    torch.manual_seed(fold)
    factors = [[1 if cells < 8 else 2 for cells in axes], [2] * len(axes)]
    network = OctreeNCA(
        2, classes, dimension=len(axes), factors=factors, steps=[4, 5, 6],
        channels=channels, fire_rate=rate, constant_background=background,
    )  # fmt: skip
    for level in network.levels:
        nn.init.normal_(level.update.weight, std=0.15)
    for handed in network.from_parent.values():
        nn.init.normal_(handed.weight, std=0.3)  # no near copy
    return network.eval()


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Networks and images in a folder, as the script reads them."""
    folder = tmp_path_factory.mktemp("web")
    made, told = {}, []
    for name, (axes, *sizes, ends) in CASES.items():
        networks = [network_of(axes, *sizes, fold) for fold in (0, 1)]
        for fold, network in enumerate(networks):
            (folder / f"{name}.{fold}").write_bytes(packed_network(network))
        image = np.random.default_rng(3).normal(size=(2, *axes)).astype(np.float32)
        (folder / f"{name}.image").write_bytes(image.tobytes())
        made[name] = networks, image
        told.append(
            {
                "name": name,
                "models": [f"{name}.0", f"{name}.1"],
                "image": f"{name}.image",
                "shape": [*(1,) * (3 - len(axes)), *axes],
                "seed": packed_seed(SEED),
                "regions": None if networks[0].constant_background else REGIONS,
                "ranges": list(zip([0, *ends], ends, strict=False)),
            }
        )
    return folder, made, told


def in_node(cases, module, *flags):
    folder, _, told = cases
    done = subprocess.run(
        [NODE, *flags, str(CHECK), str(folder), str(build_web.FOLDER / f"{module}.wasm")],
        input=json.dumps(told), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("module", "kernels", "flags"), [("simd128", "plain", ()), ("relaxed", "avx2", (RELAXED,))]
)
def test_the_bits_of_native_kernels(cases, module, kernels, flags, monkeypatch):
    """Logits, labels, means of folds and mirrored copies, and the walk's last state."""
    if kernels not in native_kernels():
        pytest.skip(f"this machine has no {kernels} kernels")
    known = subprocess.run([NODE, *flags, "-e", "0"], capture_output=True).returncode == 0
    if not known:
        pytest.skip(f"this node has no {' '.join(flags)}")
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    found = in_node(cases, module, *flags)
    folder, made, _ = cases
    for name, (networks, image) in made.items():
        first = networks[0]
        axes = image.shape[1:]
        with torch.inference_mode():
            logits = first(torch.from_numpy(image)[None], SEED)[0].numpy()
        own = np.frombuffer((folder / f"{name}.logits").read_bytes(), np.float32)
        assert own.tobytes() == logits.tobytes(), name

        members = [(network, SEED) for network in networks]
        source = ArraySource(image)
        for ending, ensemble in (
            ("labels", Ensemble(members[:1])),
            ("mean", Ensemble(members, mirror_axes=range(len(axes)))),
        ):
            mean = np.concatenate([values for _, values in ensemble.logits(source)], 1)
            regions = None if first.constant_background else REGIONS
            wanted = labels_of_logits(mean, regions, np.dtype(np.uint8))
            labels = np.frombuffer((folder / f"{name}.{ending}").read_bytes(), np.uint8)
            assert (labels == wanted.ravel()).all(), (name, ending)

        last = np.frombuffer((folder / f"{name}.walk").read_bytes(), np.float32)
        assert last.tobytes() == logits[int(first.constant_background)].tobytes(), name
        steps = sum(first.steps) if first.fire_rate else 0
        assert found[name]["frames"] == steps + len(first.steps)
    assert len(np.unique(np.frombuffer((folder / "paper.labels").read_bytes(), np.uint8))) == 3


def test_memory_of_a_picture(tmp_path):
    """Six levels: the image is held in float32 as far as coarse levels lag, the rest is small."""
    web_engine.write_case(tmp_path, 1024)
    node = web_engine.Node("simd128", tmp_path)
    found = node.run()
    node.close()
    assert found["megabytes"] < 32


def test_committed_modules_are_built_from_these_sources():
    kept = json.loads(build_web.BUILT_FROM.read_text())
    assert kept == build_web.sources(), "run tools/build_web.py"


@pytest.mark.nightly
@pytest.mark.slow
def test_committed_modules_are_what_the_sources_give(tmp_path):
    try:
        found = version("ziglang")
    except PackageNotFoundError:
        found = None
    if found != build_web.COMPILER:
        pytest.skip(f"ziglang {build_web.COMPILER} is not installed")
    for name, built in build_web.build(tmp_path).items():
        committed = build_web.FOLDER / f"{name}.wasm"
        assert committed.read_bytes() == built.read_bytes(), "run tools/build_web.py"
