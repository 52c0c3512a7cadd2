"""The command `compare`: what it writes, and what it refuses before anything is computed."""

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.predicted_folders import make_folders, save

from nnunet_octreenca.cli.main import main
from nnunet_octreenca.comparison.report import FILES
from nnunet_octreenca.files import write_json

NASTY = "<script>alert(1)</script> & $x_1$ \"q\" 'é'"


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with data; exit code and what was printed."""
    make_folders(tmp_path, cases=6, images=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["nnunet_octreenca", "compare", "--truth", "truth"])

    def run(*words, truth="truth", predictions=("A=A", "B=B"), out="report"):
        code = main(["compare", "--truth", truth, "--predictions", *predictions, "-o", out, *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


class Page(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "data", "action")]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_report_of_everything(compare, tmp_path):
    write_json(
        tmp_path / "records.json",
        {"form": 1, "methods": {NASTY: {"parameters": 14080, "training_seconds": 60,
         "curves": [{"x": "s", "y": NASTY, "points": [[0, 0], [1, 1]]}]}}},
    )  # fmt: skip
    code, out, err = compare(
        "--labels", "dataset.json", "--images", "images", "--tolerance", "2", "--title", NASTY,
        "--records", "records.json", predictions=("A=A", f"{NASTY}=B"),
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "report/report.html: open it" in out
    folder = tmp_path / "report"
    assert sorted(f.name for f in folder.iterdir()) == sorted(FILES)
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1  # the page's own
    assert page.texts.count(NASTY) >= 5
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    assert page.tags.count("img") == 3 * 3 * 4  # cases, planes, panels
    assert page.tags.count("svg") == 4 + 4 + 1 + 2  # distributions, differences, ranks, records
    assert "Tolerance: 2 mm" in text
    assert "6 cases" in text
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert content["methods"] == ["A", NASTY]
    assert content["tolerance"] == 2
    assert content["arguments"]["seed"] == 0
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"A", NASTY}
    own = content["cases"][3]["metrics"]["A"]["lesion"]["nsd"]
    (row,) = (r for r in rows if (r["metric"], r["case"], r["method"], r["class"]) == (
        "nsd", "case_3", "A", "lesion"))  # fmt: skip
    assert float(row["value"]) == own
    assert r"\textless{}script\textgreater{}" in (folder / "tables.tex").read_text("utf-8")


def test_the_same_arguments_give_the_same_tables(compare, tmp_path):
    for out in ("one", "two"):
        assert compare("--seed", "3", out=out)[0] == 0
    for name in ("cases.csv", "summary.csv", "differences.csv", "tables.md", "tables.tex"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_groups_are_shown(compare, tmp_path):
    code, out, _ = compare("--group-by", "_[0-9]", "--metrics", "dice", "volume_difference")
    assert code == 0
    assert "6 cases" in out
    for number in range(6):
        for name in ("truth", "A", "B"):
            file = tmp_path / name / f"case_{number}.nii.gz"
            file.rename(file.with_name(f"p{number % 2}_{number}.nii.gz"))
    code, out, _ = compare("--group-by", "^p[0-9]")
    assert code == 0
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "2 groups of 6 cases" in text
    assert "Only 2 groups of cases: with fewer than 6, no signed-rank test" in text
    assert "cannot tell which method is better" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "options", "sentence"),
    [
        ((), {"predictions": ("A",)}, "--predictions A must be NAME=FOLDER"),
        ((), {"predictions": ("A=A", "A=B")}, "--predictions names A twice (A and B)"),
        ((), {"predictions": ("A=none",)}, "the folder none does not exist"),
        ((), {"truth": "none"}, "the folder none does not exist"),
        ((), {"out": "A"}, "A holds label maps; give another folder for the report"),
        ((), {"out": "dataset.json"}, "dataset.json is a file; give a folder"),
        (("--viewer",), {}, "--viewer shows images; give their folder with --images"),
        (("--seed", "-1"), {}, "--seed is -1, but must be 0 or more"),
        (("--metrics", "speed"), {}, "--metrics names 'speed', which is none of dice"),
        (("--tolerance", "-2"), {}, "--tolerance is -2, but must be 0 or more"),
        (("--records", "none.json"), {}, "none.json does not exist"),
        (
            ("--video", "--viewer", "--images", "images"),
            {},
            "--viewer shows volumes and pictures",
        ),
    ],
)
def test_bad_arguments(compare, tmp_path, words, options, sentence):
    code, out, err = compare(*words, **options)
    assert code == 1
    assert err.startswith("ERROR: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert out == ""
    assert not (tmp_path / "report").exists()


def test_another_grid_is_refused_before_anything_is_measured(compare, tmp_path, monkeypatch):
    from nnunet_octreenca.comparison import scores

    monkeypatch.setattr(scores, "measure", None)
    save(np.ones((8, 24, 22), np.uint8), tmp_path / "B" / "case_5.nii.gz", spacing=(1, 1, 1))
    code, _, err = compare()
    assert code == 1
    assert "B for case_5 has spacing (1, 1, 1) and its truth (0.8, 0.8, 2.5)" in err
    assert not (tmp_path / "report").exists()


def test_a_disk_that_fails_leaves_the_old_report(compare, tmp_path, monkeypatch):
    assert compare()[0] == 0
    before = {name: (tmp_path / "report" / name).read_bytes() for name in FILES}
    from pathlib import Path

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    code, _, err = compare("--seed", "5")
    assert code == 1
    assert "the report cannot be written to report" in err
    assert {f.name: f.read_bytes() for f in (tmp_path / "report").iterdir()} == before
