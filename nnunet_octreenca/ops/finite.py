"""Cells whose state is NaN or infinite after a level's steps: their labels would mean nothing.

A label is the largest of some numbers, and NaN is never the largest: a state that is lost would
come out as background. So every engine counts such cells at the end of every level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_octreenca.errors import NotFiniteError

LOGITS_NOT_FINITE = (
    "the network's logits are not finite, although its state is: no segmentation was written. Its "
    "weights may be damaged; predict with another checkpoint or fold"
)


class NonFiniteCells:
    """The number of such cells on every level, which an engine adds to.

    Args:
        levels: L.
        device: where the engine computes; what it counts there is fetched by `check`.

    Attributes:
        found: (L,) int64 on the device, finest level first: cells that are not finite.
        checked: cells that were looked at.

    >>> cells = NonFiniteCells(2)
    >>> cells.add_state(1, torch.full((1, 4, 5, 16), float("nan")))
    >>> cells.found.tolist(), cells.checked
    ([0, 20], [0, 20])
    """

    def __init__(self, levels: int, device: torch.device | str = "cpu") -> None:
        self.found = torch.zeros(levels, dtype=torch.int64, device=device)
        self.checked = [0] * levels

    def add(self, level: int, found: int, checked: int) -> None:
        """Add numbers of cells of a level."""
        if found:
            self.found[level] += found
        self.checked[level] += checked

    def add_state(self, level: int, state: Tensor) -> None:
        """Look at a state (N, *spatial, C) of a level.

        Its sum is finite unless something is wrong, or the numbers are so large that they overflow;
        only then every cell is looked at.
        """
        if state.numel() == 0:
            return
        found = 0
        if not bool(torch.isfinite(state.detach().sum())):
            found = int((~torch.isfinite(state)).any(-1).sum())
        self.add(level, found, state[..., 0].numel())

    def check(self, steps: Sequence[int], *, half: bool, found: Tensor | None = None) -> None:
        """Refuse a result that not all cells are finite for.

        Args:
            steps: of all levels, for the sentence.
            half: states were in float16.
            found: what `found` was when the result was computed, on the host; `found` itself if
                left out.

        Raises:
            NotFiniteError: the sentence names the first level that went wrong.
        """
        counts = (self.found if found is None else found).tolist()
        for level in reversed(range(len(counts))):
            if counts[level]:
                raise NotFiniteError(
                    sentence(level, counts[level], self.checked[level], steps, half=half)
                )


def sentence(level: int, found: int, checked: int, steps: Sequence[int], *, half: bool) -> str:
    """What is said of a level whose state is not finite.

    >>> print(sentence(2, 25, 200, [10, 10, 20], half=True))
    12.5 % of the cells on level 2 (0 is the full resolution, 2 the coarsest) are NaN or infinite \
after 20 steps: no segmentation was written. Use float32 instead of float16, which ends at 65,504; \
if that does not help, look for extreme values in the image, or predict with another checkpoint or \
fold
    """
    advice = (
        "Look for extreme values in the image, or predict with another checkpoint or fold: its "
        "weights may be too large"
    )
    if half:
        advice = (
            "Use float32 instead of float16, which ends at 65,504; if that does not help, look for "
            "extreme values in the image, or predict with another checkpoint or fold"
        )
    where = f"level {level}"
    if len(steps) > 1:
        where += f" (0 is the full resolution, {len(steps) - 1} the coarsest)"
    return (
        f"{_share(found, checked)} of the cells on {where} are NaN or infinite after "
        f"{steps[level]} steps: no segmentation was written. {advice}"
    )


def _share(found: int, checked: int) -> str:
    percent = 100 * found / max(checked, found)
    return f"{percent:.3g} %" if percent >= 1e-3 else "less than 0.001 %"
