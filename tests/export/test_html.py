"""The exported page as text: modules bundled, arguments checked, names and titles escaped."""

import json
import re

import pytest
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca import __version__, load_model
from nnunet_octreenca.cli.main import main
from nnunet_octreenca.errors import InputError, OutputError, PlansError
from nnunet_octreenca.export.bundle import bundled
from nnunet_octreenca.export.html import page_text, write_html

# What the content security policy does not stop, or what would need it.
REACHING = re.compile(
    r"\b(?:fetch|XMLHttpRequest|WebSocket|RTC\w+|WebTransport|sendBeacon|location|importScripts"
    r"|EventSource|innerHTML|eval)\b|\bopen\(|\bhttps?:"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(model_folder(tmp_path_factory.mktemp("page") / "Dataset9_X" / "model"))


def data_of(text):
    return json.loads(
        re.search(r'<script type="application/json" id="model">(.*?)</script>', text)[1]
    )


def test_modules_are_bundled_once_with_names_of_their_own(tmp_path):
    imports = "import { c } from './c.js';\n"
    (tmp_path / "a.js").write_text(f"import {{ two }} from './b.js';\n{imports}let x = two;\n")
    (tmp_path / "b.js").write_text(f"{imports}let x = c;\nexport const two = 2;\n")
    (tmp_path / "c.js").write_text("export function c() {}\n")
    text = bundled("a", tmp_path)
    assert text.count("const module_") == 3
    assert text.index("module_c =") < text.index("module_b =") < text.index("module_a =")
    assert "return { two };" in text
    (tmp_path / "c.js").write_text("import { two } from './b.js';\n")
    with pytest.raises(ValueError, match="a -> b -> c -> b"):
        bundled("a", tmp_path)
    (tmp_path / "c.js").write_text("export default 3;\n")
    with pytest.raises(ValueError, match="cannot be bundled: 'export default 3;'"):
        bundled("a", tmp_path)


@pytest.mark.parametrize("entry", ["app", "worker"])
def test_scripts_hold_nothing_that_reaches_out(entry):
    text = bundled(entry)
    assert REACHING.findall(text) == []


def test_titles_and_names_are_text(model, tmp_path):
    title = "</title><script>alert(1)</script>"
    text = page_text(model, title)
    assert title not in text
    assert text.count("<script") == 2
    folder = model_folder(tmp_path / "m", labels={"background": 0, "</script><b>": 1})
    text = page_text(load_model(folder))
    assert text.count("</script>") == 2
    assert data_of(text)["model"]["names"][1] == [1, "</script><b>"]
    assert "Dataset9_X: 2d" in page_text(model)


def test_the_page_says_what_it_is(model):
    text = page_text(model, seeds=(5, 6))
    for told in ("Not a medical device", __version__, "fold 0", "seeds 5, 6"):
        assert told in text
    assert len(data_of(text)["model"]["members"]) == 2
    assert page_text(model) == page_text(model)
    assert len(text) < 330_000


def test_what_cannot_be_exported_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="is no image that the page reads"):
        page_text(model, example=tmp_path / "scan.mha")
    with pytest.raises(InputError, match="cannot be read"):
        page_text(model, example=tmp_path / "missing.png")
    with pytest.raises(OutputError, match="cannot be written"):
        write_html(model, tmp_path / "nowhere" / "page.html")
    labels = {"background": 0, "a": [1, 300], "b": [300]}
    folder = model_folder(tmp_path / "many", labels=labels, regions=(1, 300))
    with pytest.raises(PlansError, match="label 300 is above 255"):
        page_text(load_model(folder))


def test_the_command_writes_a_page(model, tmp_path, capsys):
    pytest.importorskip("nnunet_octreenca.cli.export")
    out, example = tmp_path / "model.html", tmp_path / "a.png"
    Image.new("RGB", (40, 30), (9, 99, 200)).save(example)
    words = ["-m", str(model.folder), "-o", str(out), "--title", "A & B", "--seeds", "7", "8"]
    assert main(["export", *words, "--example", str(example)]) == 0
    text = out.read_text(encoding="utf-8")
    assert text == page_text(model, "A & B", example, (7, 8))
    assert f"{out.stat().st_size:,} bytes" in capsys.readouterr().out
    assert main(["export", *words, "--example", str(tmp_path / "none.png")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == text
