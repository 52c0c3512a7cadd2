"""Learning-rate schedules."""

_FIRST = 1e-3  # of the rate, in the first iteration of a warm-up: a step of 0 would teach nothing


def learning_rate(
    progress: float,
    *,
    initial_lr: float,
    lr_schedule: str,
    num_epochs: int,
    poly_exponent: float,
    lr_decay: float,
    warm_up: float = 0.0,
) -> float:
    """Learning rate at a given progress of the training.

    Args:
        progress: part of the training that is over, 0 to 1, iterations counted.
        initial_lr: at progress 0.
        lr_schedule: "poly" is initial_lr * (1 - progress) ** poly_exponent, which ends low
            however short the budget; "exponential" is initial_lr * lr_decay ** epoch (paper).
        num_epochs, poly_exponent, lr_decay: see `planning.settings.Settings`.
        warm_up: part of the training in which the rate rises from 0 in proportion; the schedule
            follows it on what is left.

    >>> arguments = dict(initial_lr=1.0, num_epochs=10, poly_exponent=1.0, lr_decay=0.5)
    >>> learning_rate(0.25, lr_schedule="poly", **arguments)
    0.75
    >>> learning_rate(0.29, lr_schedule="exponential", **arguments)
    0.25
    >>> learning_rate(0.05, lr_schedule="poly", warm_up=0.1, **arguments)
    0.5
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warm_up:
        return float(initial_lr * max(progress / warm_up, _FIRST))
    progress = (progress - warm_up) / (1 - warm_up)
    if lr_schedule == "poly":
        return float(initial_lr * (1 - progress) ** poly_exponent)
    # 0.29 * 100 is 28.999999999999996.
    return float(initial_lr * lr_decay ** int(progress * num_epochs + 1e-6))
