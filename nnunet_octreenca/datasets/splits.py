"""Folds and test sets that keep together what belongs together (a patient, a slide, a video)."""

from collections.abc import Iterable, Mapping

import numpy as np

from nnunet_octreenca.errors import InputError

FOLDS = 5  # nnU-Net's


def held_out(groups: Iterable[str], fraction: float, seed: int = 0) -> set[str]:
    """Groups to test with; the same from the same seed.

    Args:
        groups: names; repetitions do not count.
        fraction: of them, 0 to below 1; above 0 at least one is taken and one is left.

    Raises:
        InputError: a fraction outside [0, 1), or too few groups.
    """
    names = sorted(set(groups))
    if not 0 <= fraction < 1:
        raise InputError(f"the part held out for testing ({fraction}) must be 0 to below 1")
    if fraction == 0:
        return set()
    if len(names) < 2:
        raise InputError(
            f"nothing can be held out for testing from {len(names)} ({', '.join(names)}); "
            f"give --test 0"
        )
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return {names[n] for n in chosen}


def group_folds(
    groups: Mapping[str, str], *, folds: int = FOLDS, seed: int = 0
) -> list[dict[str, list[str]]] | None:
    """nnU-Net's `splits_final.json`: no group is trained and validated with in one fold.

    Args:
        groups: the group of every case.
        folds: at most; fewer where there are fewer groups.

    Returns:
        A list of {"train": cases, "val": cases}; None where all cases are of one group.
    """
    names = sorted(set(groups.values()))
    if len(names) < 2:
        return None
    order = [names[n] for n in np.random.default_rng(seed).permutation(len(names))]
    splits = []
    for fold in range(min(folds, len(names))):
        validated = set(order[fold::folds])
        splits.append(
            {
                "train": sorted(case for case, group in groups.items() if group not in validated),
                "val": sorted(case for case, group in groups.items() if group in validated),
            }
        )
    return splits
