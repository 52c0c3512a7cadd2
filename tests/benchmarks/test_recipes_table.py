"""The table of recipes: differences are of the same seed, to the recipe that is named first."""

import pytest
from recipes import chosen_rows, table


def _row(recipe: str, seed: int, dice: float) -> dict[str, object]:
    return {
        "dataset": "acdc",
        "budget": "3-processor_minutes",
        "recipe": recipe,
        "seed": seed,
        "mean_dice": dice,
        "iterations": 10,
    }


ROWS = [
    _row("paper", 0, 0.9),
    _row("wide", 1, 0.6),
    _row("wide", 0, 0.5),
    _row("default", 0, 0.4),
    _row("default", 1, 0.55),
]


def test_differences_are_paired() -> None:
    """Seed 0 gains 0.1, seed 1 gains 0.05; the order of the file's lines does not matter."""
    lines = table(chosen_rows(ROWS, ["default", "wide"], None)).splitlines()

    assert [line.split(" | ")[2] for line in lines[2:]] == ["default", "wide"]
    assert "+0.0750 (+0.0500 to +0.1000)" in lines[3]


def test_recipe_without_a_run_is_named() -> None:
    """Instead of a table without it."""
    with pytest.raises(ValueError, match="no run of the recipe 'AdamW' is finished"):
        chosen_rows(ROWS, ["default", "AdamW"], None)
    with pytest.raises(ValueError, match="'paper'"):
        chosen_rows(ROWS, ["paper"], ["hippocampus"])
