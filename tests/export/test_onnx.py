"""ONNX files against the networks they were made of, in onnxruntime."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.doc_blocks import ROOT, blocks
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca import ArraySource, Ensemble, __version__, load_model
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.inference.whole_image import predict_logits
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.preprocessing.restore import labels_of_logits

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from nnunet_octreenca.export.onnx import metadata, network_graph, write_onnx  # noqa: E402

FLAT = {"dimension": 2, "factors": [[2, 2]] * 2, "steps": [2, 3, 5]}
ANISOTROPIC = {"dimension": 3, "factors": [[1, 2, 2], [2, 2, 2]], "steps": [2, 2, 3]}
PAGE = ROOT / "docs/how-to/onnx.md"
# Runtimes add up products in other orders.
CLOSE = {"rtol": 0, "atol": 2e-5}


def network(input_channels=1, classes=3, **arguments):
    """An automaton whose logits are of both signs."""
    made = OctreeNCA(input_channels, classes, **{**FLAT, **arguments}).eval().requires_grad_(False)
    for level in made.levels:
        torch.nn.init.normal_(level.update.weight, std=0.12)
    for handed in made.from_parent.values():
        torch.nn.init.normal_(handed.weight, std=0.3)  # no near copy
    return made


def session(graph):
    helper = onnx.helper
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return opened(proto.SerializeToString())


def opened(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(made, image, *seeds):
    labels, logits = made.run(
        None, {"image": np.asarray(image, np.float32), "seeds": np.array(seeds, np.int64)}
    )
    return labels, logits


def operators(graph):
    """Of a graph and its loops' bodies."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def check(networks, graph, shapes, seeds=((0,),)):
    made = session(graph)
    for shape in shapes:
        image = torch.rand(shape) * 2
        for drawn in seeds:
            expected = torch.stack([one.infer(image, s) for one in networks for s in drawn]).mean(0)
            assert expected.std() > 0.01
            labels, logits = run(made, image, *drawn)
            np.testing.assert_allclose(logits, expected, **CLOSE)
            assert labels.dtype == np.uint8
            np.testing.assert_array_equal(labels, logits.argmax(1))
            # A label may differ only where two classes nearly tie; where no cell fired they do.
            top = expected.sort(1, descending=True).values
            lead = (top[:, 0] - top[:, 1]).numpy()
            sure = (lead > 1e-4) | (lead == 0)
            np.testing.assert_array_equal(labels[sure], expected.argmax(1).numpy()[sure])
            assert sure.mean() > 0.98


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ({}, [(1, 1, 13, 22), (2, 1, 1, 9), (1, 1, 5, 1), (1, 1, 1, 1)]),
        ({"fire_rate": 1.0}, [(1, 1, 13, 22)]),
        ({"fire_rate": 0.13}, [(2, 1, 13, 22)]),
        ({"fire_rate": 0.77}, [(2, 1, 13, 22)]),
        ({"steps": [2, 0, 5], "factors": [[1, 2], [2, 1]]}, [(1, 1, 7, 9)]),
        ({"factors": [], "steps": [4]}, [(1, 1, 7, 9)]),
        ({"input_channels": 3, "input_mean": [0.5, 9.0, -4.0], "input_std": [0.2, 3.0, 7.0]},
         [(1, 3, 13, 22), (1, 3, 1, 4)]),
        ({"constant_background": False}, [(1, 1, 13, 22)]),
        (ANISOTROPIC, [(1, 1, 3, 9, 13), (2, 1, 1, 4, 5), (1, 1, 4, 1, 6)]),
        ({"channels": [16, 24, 40], "hidden": 48}, [(1, 1, 13, 22), (2, 1, 1, 9), (1, 1, 1, 1)]),
        ({**ANISOTROPIC, "channels": [12, 12, 9]}, [(1, 1, 3, 9, 13), (2, 1, 1, 4, 5)]),
    ],
)  # fmt: skip
def test_logits_are_the_networks(arguments, shapes):
    made = network(**arguments)
    check([made], network_graph([made]), shapes)


def test_a_cell_that_never_fires_stays():
    made = session(network_graph([network(fire_rate=0.0)]))
    labels, logits = run(made, np.ones((1, 1, 5, 6)), 0)
    assert (logits == 0).all()
    assert (labels == 0).all()


def test_seeds_count_in_64_bits():
    made = network()
    seeds = [(-5,), (2**32 + 7,), (-(2**63),), (0, 1, 7)]
    check([made], network_graph([made]), [(1, 1, 13, 22)], seeds)


def test_networks_and_seeds_are_averaged():
    made = [network(), network()]
    check(made, network_graph(made), [(2, 1, 9, 14)], [(0,), (3, 4)])


def test_padding_is_onnxs_where_no_axis_can_be_single():
    """Gather takes 1.6 times as long; a context of 20 leaves 5 cells on the coarsest level."""
    made = network()
    found = {
        context: list(operators(network_graph([made], context=context)))
        for context in (None, (20, 20), (4, 20))
    }
    reflecting = {context: names.count("Pad") for context, names in found.items()}
    assert reflecting == {None: 0, (20, 20): 1 + 3, (4, 20): 1 + 2}  # one surrounds with zeros
    assert {names.count("Loop") for names in found.values()} == {1 + 3}


@pytest.mark.parametrize("shape", [(1, 9, 30), (1, 20, 4), (1, 31, 33)])
def test_small_images_are_surrounded_as_in_a_prediction(shape):
    made, context = network(), (20, 23)
    image = torch.rand(shape)[None]
    expected = predict_logits(made, image[0][:, None], context=context, seed=3)[:, 0]
    _, logits = run(session(network_graph([made], context=context)), image, 3)
    np.testing.assert_allclose(logits[0], expected, **CLOSE)


def test_regions_write_their_labels_in_order():
    made, order = network(constant_background=False), (300, 2, 7)
    graph = network_graph([made], regions=order, largest_label=300)
    labels, logits = run(session(graph), np.random.rand(1, 1, 13, 22), 0)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels[0], labels_of_logits(logits[0], order, np.dtype("i4")))
    assert len(np.unique(labels)) > 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_instead_of_being_background(value):
    made = session(network_graph([network(fire_rate=0.0)]))
    image = np.ones((1, 1, 9, 8), np.float32)
    image[0, 0, 8, 7] = value
    with pytest.raises(Exception, match="error_image_or_state_is_not_finite"):
        run(made, image, 0)


@pytest.mark.parametrize("level", [0, 2])
def test_a_state_that_overflows_fails(level):
    """Beyond float32 in a hidden channel, that no logit need show."""
    made = network()
    made.levels[level].update.weight.data[-1] = 3e38
    with pytest.raises(Exception, match="error_image_or_state_is_not_finite"):
        run(session(network_graph([made])), np.ones((1, 1, 9, 8)), 0)


def test_no_seeds_fail():
    with pytest.raises(Exception, match="error_seeds_are_empty"):
        run(session(network_graph([network()])), np.ones((1, 1, 9, 8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(
        tmp_path_factory.mktemp("onnx") / "Dataset9_X" / "model", folds=("0", "1", "2"), steps=2
    )


def export(folder, out, *flags):
    return main(["export", "-m", str(folder), "-o", str(out), *map(str, flags)])


def test_the_command_writes_what_predict_computes(folder, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert export(folder, path, "-f", 0, 2, "--seeds", 4, -1, "--title", "Test é") == 0
    assert f"{path.stat().st_size:,} bytes" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load(path), full_check=True)
    made = opened(str(path))
    told = made.get_modelmeta().custom_metadata_map
    image = np.random.rand(3, 40, 37).astype(np.float32)
    labels, logits = run(made, image[None], *json.loads(told["seeds"]))

    model = load_model(folder, folds=["0", "2"])
    members = [(one, seed) for one in model.networks for seed in (4, -1)]
    ensemble = Ensemble(members)
    expected = np.concatenate([part for _, part in ensemble.logits(ArraySource(image))], 1)
    np.testing.assert_allclose(logits[0], expected, **CLOSE)
    np.testing.assert_array_equal(
        labels[0], np.concatenate([part for _, part in ensemble.segment(ArraySource(image))])
    )
    assert (told["title"], told["version"]) == ("Test é", __version__)
    assert made.get_modelmeta().description == "Test é. Not a medical device."
    values = {key: json.loads(told[key]) for key in ("labels", "folds", "spacing", "context")}
    assert values == {
        "labels": {"0": "background", "1": "first", "2": "second"},
        "folds": ["0", "2"],
        "spacing": [1.0, 1.0],
        "context": list(model.preprocessing.context),
    }
    assert json.loads(told["normalization_schemes"]) == ["RGBTo01Normalization"] * 3
    assert json.loads(told["regions_class_order"]) is None
    assert str(tmp_path) not in str(told)
    assert (made.get_inputs()[0].shape, made.get_inputs()[1].type) == (
        ["n", 3, "y", "x"], "tensor(int64)"
    )  # fmt: skip
    assert made.get_outputs()[1].shape == ["n", 3, "y", "x"]


def test_a_trained_model_of_the_package(tmp_path):
    path = tmp_path / "phantoms.onnx"
    assert export("zoo:phantoms", path) == 0
    made, model = opened(str(path)), load_model("zoo:phantoms")
    assert made.get_modelmeta().custom_metadata_map["title"] == "phantoms"
    context = model.preprocessing.context
    image = 0.3 * torch.randn(1, context[0] - 3, context[1] + 5, context[2])
    image[:, 2:-2, 12:30, 10:28] += 2.0  # bright, as an organ
    expected = predict_logits(model.networks[0], image, context=context, seed=7).numpy()
    labels, logits = run(made, image[None], 7)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-5, atol=5e-4)
    assert (labels[0] != labels_of_logits(expected, None, np.dtype("u1"))).mean() < 1e-3
    assert (labels != 0).any()


def test_the_ending_decides(folder, tmp_path):
    path = tmp_path / "model.HTML"
    assert export(folder, path, "-f", 1, "--seeds", 4, "--title", "Eyes") == 0
    page = path.read_text(encoding="utf-8")
    assert "<title>Eyes</title>" in page
    assert "fold 1" in page


def test_the_same_model_gives_the_same_bytes(folder, tmp_path):
    model = load_model(folder, folds=["0"])
    for name in ("a.onnx", "b.onnx"):
        write_onnx(model, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("model.pt", (), r"model\.pt ends in \.pt; give a name that ends in .*\.onnx"),
        ("model", (), r"ends in nothing; give a name"),
        ("model.onnx", ("--example", "a.png"), "--example is for pages"),
        ("nowhere/model.onnx", (), "cannot be written"),
        ("model.onnx", ("-f", "7"), "fold_7.* does not exist"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(folder, tmp_path, capsys, name, flags, sentence):
    assert export(folder, tmp_path / name, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ERROR: ")
    assert re.search(sentence, line)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_says_what_to_install(folder, tmp_path, capsys, monkeypatch):
    for name in ("onnx", "onnx.helper", "onnx.numpy_helper"):
        monkeypatch.setitem(sys.modules, name, None)
    assert export(folder, tmp_path / "model.onnx") == 1
    assert 'pip install "nnunet-octreenca[onnx]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def example(language):
    (block,) = (block for block in blocks(PAGE) if block.language == language)
    return block.text


def test_the_pages_python_example(folder, tmp_path, monkeypatch, capsys):
    assert export(folder, tmp_path / "model.onnx", "--seeds", 3, 1) == 0
    picture = np.random.randint(0, 256, (45, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example("python"), str(PAGE), "exec"), {})
    model = load_model(folder)
    image = ArraySource(np.float32(picture / np.float32(255)).transpose(2, 0, 1))
    members = [(one, seed) for one in model.networks for seed in (3, 1)]
    expected = np.concatenate([labels for _, labels in Ensemble(members).segment(image)])
    np.testing.assert_array_equal(np.asarray(Image.open("labels.png")), expected)
    assert f"second {(expected == 2).sum()} pixels" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_pages_javascript_example(tmp_path):
    """With a runtime that hands back what it is given, for npm's is not there."""
    stub = """
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
const run = async (given) => ({ labels: { data: given } });
export const InferenceSession = { create: async () => ({ run }) };
"""
    (tmp_path / "ort.mjs").write_text(stub)
    script = example("javascript").replace("onnxruntime-web", "./ort.mjs")
    script += """
const pixels = { data: [255, 51, 0, 9, 0, 102, 255, 9], width: 1, height: 2 };
const { image, seeds } = await segment(pixels, [-5n]);
const fifths = [...image.data].map((value) => Math.round(value * 5));
console.log(JSON.stringify([image.type, fifths, image.dims]));
console.log(seeds.type, seeds.dims, seeds.data);
"""
    (tmp_path / "page.mjs").write_text(script)
    printed = subprocess.check_output(["node", tmp_path / "page.mjs"], text=True)
    assert printed == (
        '["float32",[5,0,1,2,0,5],[1,3,2,1]]\nint64 [ 1 ] BigInt64Array(1) [ -5n ]\n'
    )


def test_the_page_names_inputs_outputs_and_metadata(folder):
    graph = network_graph([network()])
    names = [value.name for value in (*graph.input, *graph.output)]
    page = PAGE.read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf"^\| (in|out)put `{name}` \|", page, re.M)
        assert name in example("javascript") or name == "logits"
        assert f'"{name}"' in example("cpp") or name == "logits"
    rows = re.findall(r"^\| (`.*?`) \|", page.split("## Metadata")[1], re.M)
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(metadata(load_model(folder), "title"))
