"""The exported page in a real browser: files chosen, labels saved, nothing sent."""

import csv
import socket

import nibabel
import numpy as np
import pytest
import tifffile
from helpers.browser import CHROMIUM
from helpers.web_page import STATUS, Page, picture
from PIL import Image
from untrained_model import model_folder

from nnunet_octreenca import load_model, segment_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("same_rounding"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)"),
]
SEEDS = (3, 2**40 + 1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    model = model_folder(folder / "Dataset903_Hand" / "model", folds=("0", "1"))
    example = folder / "example.png"
    picture((70, 90)).save(example)
    page = Page(folder, model, title="Hands & <feet>", example=example, seeds=SEEDS)
    yield page
    page.browser.close()


@pytest.fixture(autouse=True)
def _no_error_and_no_request(pictures):
    yield
    pictures.assert_quiet()


def saved_pictures(folder):
    """One picture in every format, one of them larger than a band and smaller than the context."""
    whole = picture((203, 151))
    whole.save(folder / "a.png")
    whole.save(folder / "a.jpg", quality=92)
    whole.save(folder / "turned.jpg", exif=exif_of(6))
    tifffile.imwrite(folder / "a.tif", np.asarray(whole), photometric="rgb", compression="lzw")
    picture((20, 31), 1).save(folder / "small.png")
    dark = np.asarray(picture((90, 80), 2)).copy()
    dark[:11] = dark[:, 60:] = 0
    Image.fromarray(dark).save(folder / "cropped.png")
    picture((700, 900), 3).save(folder / "large.png")
    return sorted(folder.glob("*.*"))


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_labels_of_pictures_are_those_of_predict(pictures, tmp_path):
    """Folds, seeds and mirrored copies averaged; every format; labels to the last pixel."""
    for path in saved_pictures(tmp_path):
        said = pictures.segment(path)
        assert said.startswith(f"{path.name}: "), said
        file = pictures.download("save-labels", f"{path.stem}_labels.png")
        labels = np.asarray(Image.open(file))
        wanted = segment_file(path, pictures.model, seeds=SEEDS)
        assert len(np.unique(wanted)) > 1
        assert labels.shape == wanted.shape
        assert (labels != wanted).sum() == 0, path.name


def test_a_single_pass_of_one_fold(pictures, tmp_path):
    picture((150, 133), 5).save(tmp_path / "one.png")
    pictures.check("folds", False)
    pictures.check("mirror", False)
    pictures.segment(tmp_path / "one.png")
    labels = np.asarray(Image.open(pictures.download("save-labels", "one_labels.png")))
    first = load_model(pictures.model.folder, folds=("0",))
    wanted = segment_file(tmp_path / "one.png", first, seeds=SEEDS, mirror=False)
    assert (labels != wanted).sum() == 0
    counts = pictures.browser.run(
        "[...document.querySelectorAll('#legend tbody tr')].map(r => r.cells[2].textContent)"
    )
    assert counts == [f"{(wanted == label).sum():,}" for label in (1, 2)]

    opacity = "document.getElementById('opacity').value = 0.25"
    pictures.browser.run(opacity)
    overlay = Image.open(pictures.download("save-overlay", "one_overlay.png"))
    given = np.asarray(Image.open(tmp_path / "one.png")).astype(float)
    colour = np.array([(0, 0, 0), (86, 180, 233), (230, 159, 0)])[wanted]
    blended = np.where(wanted[..., None] > 0, given + 0.25 * (colour - given), given)
    assert np.abs(np.asarray(overlay) - blended).max() <= 1
    pictures.check("folds", True)
    pictures.check("mirror", True)


def test_several_files_and_their_table(pictures, tmp_path):
    picture((40, 50)).save(tmp_path / "b.png")
    (tmp_path / "=broken.png").write_bytes((tmp_path / "b.png").read_bytes()[:200])
    picture((64, 48), 4).save(tmp_path / "c.png")
    names = ["b.png", "=broken.png", "c.png"]
    said = pictures.segment(*(tmp_path / name for name in names))
    assert said.startswith("2 of 3 images segmented")
    table = pictures.download("save-table", "segmentations.csv")
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    assert [row[0] for row in rows] == ["image", "b.png", "'=broken.png", "c.png"]
    assert "truncated" in rows[2][3]
    for row in (rows[1], rows[3]):
        wanted = segment_file(tmp_path / row[0], pictures.model, seeds=SEEDS)
        assert [row[5], row[7]] == [str((wanted == label).sum()) for label in (1, 2)]
    pictures.browser.run(
        "document.body.dataset.state = 'asked'; document.querySelector('#table button').click()"
    )
    assert pictures.settled().startswith("b.png: 50 x 40")


def test_files_that_are_dropped(pictures, tmp_path):
    picture((52, 61), 7).save(tmp_path / "dropped.png")
    pictures.browser.run("document.body.dataset.state = 'asked'; scrollTo(0, 0)")
    data = {"items": [], "files": [str(tmp_path / "dropped.png")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        pictures.browser.call("Input.dispatchDragEvent", type=kind, x=300, y=200, data=data)
    assert pictures.settled().startswith("dropped.png: 61 x 52")
    labels = np.asarray(Image.open(pictures.download("save-labels", "dropped_labels.png")))
    wanted = segment_file(tmp_path / "dropped.png", pictures.model, seeds=SEEDS)
    assert (labels != wanted).sum() == 0


def test_the_example_and_the_title(pictures):
    pictures.browser.run("document.body.dataset.state = 'asked'")
    pictures.click("example")
    assert pictures.settled().startswith("example.png: 90 x 70")
    assert pictures.browser.run("document.title") == "Hands & <feet>"
    text = pictures.browser.run("document.body.innerText")
    for told in ("Not a medical device", "nnunet_octreenca ", "seeds 3, 1099511627777"):
        assert told in text


def test_cancelling_ends_the_work_and_not_the_page(pictures, tmp_path):
    picture((2500, 2500)).save(tmp_path / "large.png")
    pictures.browser.run("document.body.dataset.state = 'asked'")
    pictures.browser.choose("#files", tmp_path / "large.png")
    pictures.browser.wait("document.getElementById('progress').value > 0")
    pictures.click("cancel")
    assert pictures.settled() == "Cancelled."
    picture((40, 50)).save(tmp_path / "b.png")
    assert pictures.segment(tmp_path / "b.png").startswith("b.png: 50 x 40")


def test_watching_shows_every_step(pictures, tmp_path):
    picture((80, 96)).save(tmp_path / "watched.png")
    pictures.segment(tmp_path / "watched.png")
    pictures.browser.run(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('status')"
        ".textContent)).observe(document.getElementById('status'), {childList: true});"
        "document.body.dataset.state = 'asked'"
    )
    pictures.click("watch")
    assert pictures.settled().startswith("watched.png: 96 x 80")
    seen = pictures.browser.run("seen")
    steps = pictures.model.networks[0].steps
    levels = [text for text in seen if text.startswith("Level ")]
    assert len(levels) == sum(steps) + len(steps)
    assert levels[0].startswith(f"Level {len(steps) - 1} ")
    assert levels[-1].startswith(f"Level 0 (96 x 80 cells), step {steps[0]} of {steps[0]}")


def test_damaged_files_get_a_sentence_and_the_page_lives_on(pictures, tmp_path):
    good = tmp_path / "good.png"
    picture((40, 50)).save(good)
    picture((40, 50)).save(tmp_path / "good.jpg")
    data, photo = good.read_bytes(), (tmp_path / "good.jpg").read_bytes()
    tifffile.imwrite(tmp_path / "t.tif", np.asarray(picture((40, 50))), photometric="rgb")
    tiff = (tmp_path / "t.tif").read_bytes()
    contents = {
        "empty.png": b"", "text.png": b"no picture", "cut.png": data[:300],
        "flipped.png": data[:99] + bytes([data[99] ^ 4]) + data[100:],
        "head.png": data[:20], "signature.png": data[:8], "cut.jpg": photo[:-200],
        "head.jpg": photo[:3] + b"\xff" * 30 + photo[-2:], "no-frame.jpg": photo[:20] + photo[-2:],
        "zeros.jpg": photo[:700] + bytes(len(photo) - 702) + photo[-2:],
        "cut.tif": tiff[:200], "big.tif": b"II\x2b\0" + tiff[4:], "head.tif": tiff[:7],
        "volume.png": nibabel.Nifti1Image(np.zeros((3, 3, 3), "u1"), np.eye(4)).to_bytes(),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "grey.png")
    for name in [*contents, "grey.png"]:
        said = pictures.segment(tmp_path / name)
        if name == "zeros.jpg" and said.startswith(name + ": "):
            continue  # decoders may make grey of what is not there, and Pillow does
        assert said.startswith(f"{name} cannot be segmented: "), (name, said)
        assert said.endswith("."), said
        assert "undefined" not in said
        problem = "document.getElementById('status').classList.contains('problem')"
        assert pictures.browser.run(problem)
    assert pictures.segment(good).startswith("good.png: 50 x 40")


def test_what_failed_leaves_nothing_to_save(pictures, tmp_path):
    """The image before is gone from the screen, and its labels cannot pass for the new one's."""
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    picture((40, 50)).save(good)
    bad.write_bytes(good.read_bytes()[:200])
    buttons = ("save-labels", "save-overlay", "watch")
    assert pictures.segment(good).startswith("good.png: ")
    assert pictures.browser.run("document.getElementById('shown').innerText") == "good.png"
    assert all(map(pictures.offers, buttons))
    assert pictures.segment(bad).startswith("bad.png cannot be segmented: ")
    assert not any(map(pictures.offers, buttons))
    for button in buttons:
        pictures.click(button)
    assert pictures.browser.run(STATUS).startswith("bad.png cannot be segmented: ")


def heard(server) -> bytes | None:
    """What somebody who connected said; None if nobody did."""
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return None
    with connection:
        connection.settimeout(0.5)
        try:
            return connection.recv(1000)
        except TimeoutError:
            return b""


TRIES = {
    "fetch": "fetch('http://ADDRESS/').then(() => 'sent', () => 'refused')",
    "image": "new Promise(done => { const i = new Image(); i.onload = () => done('sent');"
    "i.onerror = () => done('refused'); i.src = 'http://ADDRESS/x.png'; })",
    "beacon": "(navigator.sendBeacon('http://ADDRESS/', 'x'), 'refused')",
    "socket": "new Promise(done => { try { const s = new WebSocket('ws://ADDRESS');"
    "s.onopen = () => done('sent'); s.onerror = () => done('refused');"
    "} catch { done('refused'); } })",
    "worker": "new Promise(done => { const code = \"fetch('http://ADDRESS/')"
    ".then(() => postMessage('sent'), () => postMessage('refused'))\";"
    "const w = new Worker(URL.createObjectURL(new Blob([code])));"
    "w.onmessage = ({data}) => done(data); })",
    "form": "(() => { const f = document.createElement('form'); f.method = 'post';"
    "f.action = 'http://ADDRESS/'; document.body.append(f); f.submit(); f.remove();"
    "return 'refused'; })()",
}


@pytest.mark.parametrize("name", TRIES)
def test_the_policy_refuses_every_request(pictures, name):
    """Not a byte arrives where a script of the page tries to send one."""
    browser, before = pictures.browser, list(pictures.browser.requests)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert browser.run(TRIES[name].replace("ADDRESS", address)) == "refused"
        # Chromium connects before it looks at a form's policy, and then says nothing.
        assert heard(server) == (b"" if name == "form" else None)
    browser.run(STATUS)  # takes the events
    assert any("Content Security Policy" in error for error in browser.errors)
    browser.errors.clear()
    browser.requests[:] = before


def test_no_other_script_runs(pictures):
    browser = pictures.browser
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.head.append(s); })()"
    )
    assert browser.run("window.ran") is None
    browser.run(STATUS)
    browser.errors.clear()


def test_running_out_of_memory_ends_in_a_sentence(pictures, tmp_path):
    """Blocks above 100 kB are not there: tried once more on one worker, then the page lives on."""
    fault = ("octreenca_allocate(bytes)", "octreenca_allocate(bytes > 1e5 ? 2 ** 32 - 1 : bytes)")
    page = Page(tmp_path, pictures.model.folder, fault)
    try:
        picture((400, 500)).save(tmp_path / "large.png")
        picture((40, 50)).save(tmp_path / "small.png")
        said = page.segment(tmp_path / "large.png")
        assert said.startswith("The browser has no more memory: the image is too large")
        for _ in range(2):
            assert page.segment(tmp_path / "small.png").startswith("small.png: 50 x 40")
        assert page.browser.errors == []
    finally:
        page.browser.close()


def test_canvases_that_lie_cost_jpeg_only(pictures, tmp_path):
    """As with privacy.resistFingerprinting: JPEG is refused, PNG is as it should be."""
    fault = ("context.getImageData(", "((...a) => ({ data: noisy(context.getImageData(...a)) }))(")
    page = Page(tmp_path, pictures.model.folder, fault)
    text = page.file.read_text(encoding="utf-8")
    noisy = "const noisy = (p) => p.data.map((v, i) => v ^ (i % 5 === 0));\\n"
    start = text.index("'use strict';\\n")
    page.file.write_text(text[:start] + noisy + text[start:], encoding="utf-8")
    try:
        page.browser.open(page.file)
        page.settled()
        picture((60, 70)).save(tmp_path / "a.jpg")
        picture((60, 70)).save(tmp_path / "a.png")
        assert "alters pixels that a page reads" in page.segment(tmp_path / "a.jpg")
        page.segment(tmp_path / "a.png")
        labels = np.asarray(Image.open(page.download("save-labels", "a_labels.png")))
        assert (labels != segment_file(tmp_path / "a.png", page.model)).sum() == 0
    finally:
        page.browser.close()


def test_keyboard_and_names(pictures, tmp_path):
    picture((40, 50)).save(tmp_path / "b.png")
    pictures.segment(tmp_path / "b.png")
    browser = pictures.browser
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "checkbox", "slider", "textbox", "image", "progressbar"}
    found = [n for n in nodes if n.get("role", {}).get("value") in wanted and not n["ignored"]]
    assert len(found) > 8
    for node in found:
        assert node["name"]["value"].strip(), node
    canvas = "document.querySelector('#views canvas')"
    picture_of = f"{canvas}.toDataURL()"
    whole = browser.run(f"{canvas}.focus(), {picture_of}")
    browser.run(
        f"{canvas}.dispatchEvent(new KeyboardEvent('keydown', {{key: '+', bubbles: true}}))"
    )
    assert browser.run(picture_of) != whole
    browser.run(
        f"{canvas}.dispatchEvent(new KeyboardEvent('keydown', {{key: '0', bubbles: true}}))"
    )
    assert browser.run(picture_of) == whole


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(pictures, width, tmp_path):
    picture((40, 50)).save(tmp_path / "b.png")
    pictures.segment(tmp_path / "b.png")
    pictures.browser.resize(width, 800)
    for media in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": media}]
        pictures.browser.call("Emulation.setEmulatedMedia", features=features)
        wide = pictures.browser.run("document.documentElement.scrollWidth")
        assert wide <= width
        paper = pictures.browser.run("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(22, 25, 29)") == (media == "dark")


def test_fingers_on_a_telephone(pictures, tmp_path):
    """One scrolls the page past a whole image, two zoom, one then moves it; nothing is too wide."""
    picture((90, 60)).save(tmp_path / "b.png")
    pictures.segment(tmp_path / "b.png")
    browser = pictures.browser
    browser.resize(390, 700, sharp=3)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)
    canvas = "document.querySelector('#views canvas')"
    state = f"[{canvas}.toDataURL(), scrollY]"
    try:
        x, y = browser.run(
            f"(() => {{ {canvas}.scrollIntoView({{block: 'center'}});"
            f"const r = {canvas}.getBoundingClientRect();"
            "return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        whole, place = browser.run(state)
        browser.touch(((x, y), (x, y + 90)))
        browser.wait(f"scrollY < {place}")
        browser.run(f"scrollTo(0, {place})")
        browser.touch(((x - 20, y), (x - 100, y)), ((x + 20, y), (x + 100, y)))
        zoomed, here = browser.run(state)
        assert (zoomed != whole, here) == (True, place)
        browser.touch(((x, y), (x + 60, y + 40)))
        moved, here = browser.run(state)
        assert (moved != zoomed, here) == (True, place)
        assert browser.run("visualViewport.scale") == 1
        assert browser.run("document.documentElement.scrollWidth") == 390
        small = browser.run(
            "[...document.querySelectorAll('button, input')].filter(e => e.offsetParent &&"
            "e.id !== 'files' && e.getBoundingClientRect().height < 24).map(e => e.id)"
        )
        assert small == []
    finally:
        browser.call("Emulation.setTouchEmulationEnabled", enabled=False)
        browser.call("Emulation.clearDeviceMetricsOverride")
