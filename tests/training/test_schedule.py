import pytest

from nnunet_octreenca.training import learning_rate

PAPER = {"initial_lr": 1.6e-3, "num_epochs": 1000, "poly_exponent": 0.9, "lr_decay": 0.9992}


@pytest.mark.parametrize(
    ("progress", "schedule", "expected"),
    [
        (0.0, "poly", 1.6e-3),
        (0.25, "poly", 1.6e-3 * 0.75**0.9),
        (0.999, "poly", 1.6e-3 * 0.001**0.9),
        (1.0, "poly", 0.0),
        (1.5, "poly", 0.0),
        (-0.5, "poly", 1.6e-3),
        (0.0, "exponential", 1.6e-3),
        (0.0009, "exponential", 1.6e-3),
        (0.0011, "exponential", 1.6e-3 * 0.9992),
        (0.5001, "exponential", 1.6e-3 * 0.9992**500),
        (1.0, "exponential", 1.6e-3 * 0.9992**1000),
        (2.0, "exponential", 1.6e-3 * 0.9992**1000),
    ],
)
def test_learning_rate(progress, schedule, expected):
    result = learning_rate(progress, lr_schedule=schedule, **PAPER)
    assert result == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("num_epochs", [1, 7, 50, 100, 1000])
def test_every_epoch_begins_with_its_own_decay(num_epochs):
    """Rounding must not hold an epoch back: 29 / 100 * 100 is below 29."""
    for epoch in range(num_epochs):
        result = learning_rate(
            epoch / num_epochs,
            lr_schedule="exponential",
            **{**PAPER, "num_epochs": num_epochs},
        )
        assert result == pytest.approx(1.6e-3 * 0.9992**epoch, rel=1e-12)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 1e-3), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5**0.9), (1.0, 0.0)],
)
def test_the_schedule_follows_the_warm_up(progress, expected):
    result = learning_rate(
        progress, lr_schedule="poly", warm_up=0.1, **{**PAPER, "initial_lr": 1.0}
    )
    assert result == pytest.approx(expected, abs=1e-12)
