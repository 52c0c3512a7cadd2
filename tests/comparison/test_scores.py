"""Scores of folders, against nnU-Net's own evaluation of them; summaries and tables."""

import csv
import io
import json

import numpy as np
import pytest
from helpers.predicted_folders import make_folders, save

from nnunet_octreenca.comparison.inputs import find_inputs
from nnunet_octreenca.comparison.scores import score
from nnunet_octreenca.comparison.summary import ALL, choose_cases, summarise
from nnunet_octreenca.comparison.table_files import (
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    case_rows,
    summary_csv_rows,
)
from nnunet_octreenca.comparison.tables import pair_table, rank_table, record_table, summary_table
from nnunet_octreenca.errors import InputError


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    truth, methods = make_folders(folder, methods=("A", "B_1"))
    empty = np.zeros((8, 24, 22), np.uint8)
    empty[0, 0, 0] = 1  # no lesion, neither in the truth nor in A
    save(empty, truth / "case_0.nii.gz")
    save(empty, methods["A"] / "case_0.nii.gz")
    inputs = find_inputs(truth, methods, labels=folder / "dataset.json")
    scores = score(inputs, metrics=("dice", "hd95", "nsd", "volume_difference", "cldice"))
    return folder, inputs, scores, summarise(scores, inputs)


def test_dice_is_nnunets_summary(compared):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    _, inputs, scores, summary = compared
    for m, files in enumerate(inputs.predictions.values()):
        stock = [
            compute_metrics(str(t), str(p), SimpleITKIO(), [1, 2])["metrics"]
            for t, p in zip(inputs.truth, files, strict=True)
        ]
        theirs = np.array([[case[label]["Dice"] for case in stock] for label in (1, 2)])
        assert np.array_equal(scores.values["dice"][m], theirs, equal_nan=True)
        means = np.nanmean(theirs, axis=1)
        own = {
            row.class_name: row.interval
            for row in summary.rows
            if row.metric == "dice" and row.method == scores.methods[m]
        }
        assert own["organ"].mean == means[0]
        assert own["lesion"].mean == means[1]
        assert own[ALL].mean == np.mean(means)  # their foreground_mean
    assert np.isnan(scores.values["dice"][0, 1, 0])
    assert not np.isnan(scores.values["dice"][1, 1, 0])


def test_the_summary_counts_says_and_corrects(compared):
    summary = compared[3]
    row = next(r for r in summary.rows if (r.class_name, r.method) == ("lesion", "A"))
    assert (row.metric, row.interval.cases) == ("dice", 6)
    assert any("exists for some methods only" in caveat for caveat in summary.caveats)
    pairs = [pair for pair in summary.pairs if pair.metric == "dice"]
    assert [pair.class_name for pair in pairs] == [ALL, "organ", "lesion"]
    lesion = pairs[2].test
    assert (lesion.wins, lesion.ties, lesion.losses) == (6, 0, 0)
    assert lesion.p == pytest.approx(2 / 2**6)
    assert lesion.holm >= lesion.p
    assert pairs[0].test.p == pytest.approx(2 / 2**7)
    assert pairs[0].test.holm == pytest.approx(3 * 2 / 2**7)
    assert summary.ranks["dice"].ranks == (1, 2)
    assert summary.ranks["hd95"].ranks == (1, 2)


def test_few_cases_cannot_tell(tmp_path):
    inputs = find_inputs(*make_folders(tmp_path, cases=5))
    scores = score(inputs, metrics=("dice",))
    summary = summarise(scores, inputs)
    assert all(pair.test.p is None for pair in summary.pairs)
    assert any(caveat.startswith("Only 5 cases: with fewer than 6") for caveat in summary.caveats)
    assert "cannot tell" in pair_table(summary, inputs).note
    assert {row[5].text for row in pair_table(summary, inputs).rows} == {"–"}


def test_few_cases_of_a_single_method(tmp_path):
    """There is nothing to test, and nothing is said about tests."""
    inputs = find_inputs(*make_folders(tmp_path, cases=3, methods=("A",)))
    summary = summarise(score(inputs, metrics=("dice",)), inputs)
    assert (summary.pairs, summary.ranks) == ((), {})
    assert any(caveat.startswith("Only 3 cases: bootstrap") for caveat in summary.caveats)
    assert not any("test" in caveat for caveat in summary.caveats)


def test_cases_are_chosen_by_the_first_metric(compared):
    _, inputs, _, _ = compared
    scores = score(inputs, metrics=("hd95", "dice", "hd95"))
    assert scores.metrics == ("hd95", "dice")
    assert summarise(scores, inputs).main == "hd95"


def test_chosen_cases(compared):
    _, _, scores, summary = compared
    means = np.nanmean([np.nanmean(v, axis=0) for v in scores.values["dice"]], axis=0)
    order = np.argsort(-means).tolist()
    found = {one.role: one.case for one in summary.chosen}
    assert found == {"best": order[0], "median": order[3], "worst": order[6]}
    by_distance = {one.role: one.case for one in choose_cases(scores, "hd95")}
    far = np.nanmean([np.nanmean(v, axis=0) for v in scores.values["hd95"]], axis=0)
    assert by_distance["worst"] == int(np.argmax(far))


def test_metrics_are_checked(compared):
    _, inputs, _, _ = compared
    with pytest.raises(InputError, match=r"names 'Dice', which is none of dice, nsd"):
        score(inputs, metrics=("Dice",))
    with pytest.raises(InputError, match="frame_dice needs --video"):
        score(inputs, metrics=("frame_dice",))
    with pytest.raises(InputError, match="--metrics names none"):
        score(inputs, metrics=())
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--tolerance is"):
            score(inputs, tolerance=wrong)


def test_csv_holds_every_value(compared):
    _, _inputs, scores, summary = compared
    rows = list(csv.DictReader(io.StringIO(as_csv(case_rows(scores, _inputs)))))
    assert len(rows) == scores.values["dice"].size * len(scores.metrics)
    for row in rows:
        value = scores.values[row["metric"]][
            scores.methods.index(row["method"]),
            scores.classes.index(row["class"]),
            scores.cases.index(row["case"]),
        ]
        assert float(row["value"] or "nan") == pytest.approx(value, abs=0, nan_ok=True)
    means = list(csv.DictReader(io.StringIO(as_csv(summary_csv_rows(summary)))))
    assert [float(row["mean"]) for row in means] == [row.interval.mean for row in summary.rows]


def test_json_is_json_without_nan(compared):
    _, inputs, scores, summary = compared
    text = json.dumps(as_json(scores, inputs, summary, {}, {"command": "x"}), allow_nan=False)
    content = json.loads(text)
    assert content["command"] == "x"
    case = content["cases"][0]["metrics"]
    assert case["A"]["lesion"]["dice"] is None
    assert case["B_1"]["organ"]["dice"] == scores.values["dice"][1, 0, 0]
    assert content["comparisons"][0]["test"]["difference"]["cases"] == 7


NASTY = "<b>&\"'|_$%#{}~^\\ *x* `y` é"


def test_markdown_and_latex_show_names_as_they_are(compared):
    from nnunet_octreenca.comparison.tables import Cell, Table

    _, inputs, scores, summary = compared
    tables = [summary_table(summary, inputs), pair_table(summary, inputs)]
    page = as_markdown([*tables, rank_table(summary, scores)], "A comparison", ("Few cases.",))
    lines = [line for line in page.splitlines() if line.startswith("| mean of classes |")]
    assert [line.split(" | ")[1] for line in lines] == ["A", "B\\_1"]
    assert all(line.count(" | ") == 7 for line in lines)
    assert "- Few cases." in page
    latex = as_latex(tables)
    assert latex.count(r"\begin{tabular}") == 2
    assert r"mean of classes & B\_1 & 7 & 0." in latex
    nasty = Table("t", NASTY, ("a", "b"), ((Cell(NASTY), Cell("1")),), 1)
    row = as_markdown([nasty], "t", ()).splitlines()[-1]
    assert row == r"""| \<b\>\&"'\|\_\$%\#{}\~^\\ \*x\* \`y\` é | 1 |"""
    body = next(line for line in as_latex([nasty]).splitlines() if line.endswith(r"& 1 \\"))
    assert body == (
        r"\textless{}b\textgreater{}\&\textquotedbl{}'\textbar{}\_\$\%\#\{\}\textasciitilde{}"
        r"\textasciicircum{}\textbackslash{} *x* `y` é & 1 \\"
    )


def test_records_are_shown_as_given():
    table = record_table({"A": {"parameters": 14080, "device": "CPU"}, "B": {"seeds": 3}})
    assert table.head == ("Method", "Device", "Parameters", "Trainings (seeds)")
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [["A", "CPU", "14,080", "–"], ["B", "–", "–", "3"]]
