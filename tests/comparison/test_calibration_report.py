"""The page of a calibration: what it says, and that a browser shows it."""

import numpy as np
import pytest
from helpers.browser import CHROMIUM, Browser

from nnunet_octreenca.comparison.calibration import Voxels, fit_temperatures, rank_scores
from nnunet_octreenca.comparison.calibration_report import (
    MeasuredCase,
    sentences_of,
    warnings_of,
    write_calibration_report,
)

NASTY = "<script>alert(1)</script> & 'é'"


def made(limit=0.7, noise=0.02):
    """Twelve cases whose nqm tells the Dice but for noise."""
    generator = np.random.default_rng(0)
    dice = np.linspace(0.4, 0.95, 12)
    nqm = 1 - dice + generator.normal(0, noise, 12)
    cases = [
        MeasuredCase(NASTY if n == 0 else f"case_{n}", "0", float(d), float(q), None)
        for n, (d, q) in enumerate(zip(dice, nqm, strict=True))
    ]
    scores = {"nqm": [case.nqm for case in cases], "resilience": [None] * 12}
    return cases, rank_scores(scores, dice.tolist(), limit)


def write(folder):
    cases, ranking = made()
    generator = np.random.default_rng(1)
    logits = np.zeros((500, 2), np.float32)
    logits[:, 1] = generator.normal(0, 3, 500)
    voxels = Voxels(logits, (generator.random(500) < 1 / (1 + np.exp(-logits[:, 1]))).astype(int))
    return write_calibration_report(
        folder, cases, ranking, voxels, fit_temperatures(voxels), ["background", NASTY],
        title=f"Calibration of {NASTY}", command="nnunet_octreenca calibrate -m x",
    )  # fmt: skip


def test_the_page_and_the_table(tmp_path):
    page, table = write(tmp_path / "new")
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("<svg") == 3
    rows = table.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 13
    assert rows[2].startswith("case_1,0,0.45,")


def test_what_is_said():
    _, ranking = made()
    best = ranking.scores[0]
    assert warnings_of(ranking) == []
    said = sentences_of(ranking)
    assert f"AURC {best.aurc:.4f}" in said[0]
    assert f"{best.named} cases named" in said[1]
    assert "No case has a Dice below 0.1" in warnings_of(made(limit=0.1)[1])[0]
    dice = [0.9, 0.8, 0.7, 0.6, 0.5]
    worst = rank_scores({"nqm": dice}, dice, 0.65)  # the surest are the worst
    assert warnings_of(worst)[-1] == "No score orders the cases better than chance."


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)")
def test_in_a_browser(tmp_path):
    page, _ = write(tmp_path / "report")
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(page)
        column = "[...document.querySelectorAll('#case-table tbody tr')].map(r => r.cells[3])"
        browser.run("document.querySelectorAll('#case-table th button')[3].click()")
        values = [float(v) for v in browser.run(f"{column}.map(c => c.dataset.value)")]
        assert values == sorted(values)
        assert len(values) == 12
        assert browser.errors == []
        assert all(asked.startswith("file:") for asked in browser.requests)
    finally:
        browser.close()
