"""nnU-Net's resampling of whole images, in blocks independent of the bands requested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.preprocessing.axis_matrix import TILE, AxisMatrix, Kernel

_SPLINES: dict[int, Kernel] = {0: "nearest", 1: "linear", 3: "cubic"}
_TORCH: dict[str, Kernel] = {
    "linear": "torch_linear",
    "nearest": "torch_nearest",
    "nearest-exact": "torch_nearest_exact",
}
_SEPARATE = {"force_separate_z", "separate_z_anisotropy_threshold"}
_ARGUMENTS = {
    "resample_data_or_seg_to_shape": {"order", "order_z", *_SEPARATE},
    # The last three change neither images nor logits.
    "resample_torch_fornnunet": {"mode", "aniso_axis_mode", *_SEPARATE}
    | {"num_threads", "device", "memefficient_seg_resampling"},
    "no_resampling_hack": set(),
}
# Rows (2-D) or planes (3-D) that are taken in, and that are made, at a time. The products have
# the same shapes however the image is read, which is what keeps the results equal bit for bit.
_CHUNKS = {2: 64, 3: 4}
_BLOCKS = {2: 64, 3: 8}
_CLIP = -1


@dataclass(frozen=True)
class ResamplingRule:
    """A resampling function of nnU-Net's with its arguments.

    Attributes:
        function: nnU-Net's name.
        kernel: along the axes of the volume or, where one axis is resampled separately, its planes.
        kernel_in_plane: along the planes' axes where one axis is resampled separately.
        kernel_apart: along that axis.
        force_separate_z: True, False, or None to decide by the spacings.
        threshold: of the largest to the smallest spacing, above which an axis is taken separately.
    """

    function: str
    kernel: Kernel
    kernel_in_plane: Kernel
    kernel_apart: Kernel
    force_separate_z: bool | None
    threshold: float

    @classmethod
    def from_plans(cls, function: str, arguments: JsonMapping) -> "ResamplingRule":
        """Read a function's name and arguments.

        Raises:
            PlansError: not one of nnU-Net's, or with an argument that is not supported.

        >>> ResamplingRule.from_plans("resample_data_or_seg_to_shape", {"order": 1}).kernel
        'linear'
        """
        if function not in _ARGUMENTS:
            raise PlansError(
                f"the plans' resampling function {function!r} is not supported; it must be one of "
                f"{', '.join(_ARGUMENTS)}"
            )
        unknown = sorted(set(arguments) - _ARGUMENTS[function] - {"is_seg"})
        if unknown:
            raise PlansError(
                f"the plans give {function} the argument {unknown[0]!r}, which is not known here; "
                f"known are {', '.join(sorted(_ARGUMENTS[function]))}"
            )
        if arguments.get("is_seg"):
            raise PlansError(
                f"the plans have {function} resample images or logits as if they were labels; set "
                "is_seg to false"
            )
        force = arguments.get("force_separate_z", False)
        threshold = float(arguments.get("separate_z_anisotropy_threshold", 3))
        if function == "resample_data_or_seg_to_shape":
            order, order_z = arguments.get("order", 3), arguments.get("order_z", 0)
            kernel = _known(_SPLINES, "order", order, function)
            return cls(
                function,
                kernel,
                kernel,
                _known(_SPLINES, "order_z", order_z, function),
                force,
                threshold,
            )
        if function == "resample_torch_fornnunet":
            return cls(
                function,
                "torch_linear",  # nnU-Net heeds `mode` only where an axis is treated separately
                _known(_TORCH, "mode", arguments.get("mode", "linear"), function),
                _known(
                    _TORCH,
                    "aniso_axis_mode",
                    arguments.get("aniso_axis_mode", "nearest-exact"),
                    function,
                ),
                arguments.get("force_separate_z"),
                threshold,
            )
        return cls(function, "nearest", "nearest", "nearest", False, threshold)

    @property
    def resamples(self) -> bool:
        """Whether the function resamples at all."""
        return self.function != "no_resampling_hack"

    @property
    def overshoots(self) -> bool:
        """Whether the result can exceed the image's range, which skimage clips."""
        return "cubic" in (self.kernel, self.kernel_in_plane)

    def separate_axis(self, spacing: Sequence[float], target: Sequence[float]) -> int | None:
        """The axis resampled separately from its planes, if any.

        Args:
            spacing: mm per axis of the image.
            target: mm per axis wanted.

        >>> rule = ResamplingRule.from_plans(
        ...     "resample_data_or_seg_to_shape", {"force_separate_z": None}
        ... )
        >>> rule.separate_axis((5, 1, 1), (1, 1, 1)), rule.separate_axis((2, 1, 1), (1, 1, 1))
        (0, None)
        """
        if self.force_separate_z is not None:
            deciding = spacing if self.force_separate_z else None
        else:
            deciding = next(
                (mm for mm in (spacing, target) if max(mm) / min(mm) > self.threshold), None
            )
        if deciding is None:
            return None
        coarsest = [axis for axis, mm in enumerate(deciding) if max(deciding) / mm == 1]
        return coarsest[0] if len(coarsest) == 1 else None

    def kernels(self, separate: int | None) -> tuple[Kernel, Kernel, Kernel]:
        """The kernel of each axis (z, y, x)."""
        if separate is None:
            return (self.kernel,) * 3
        apart, plane = self.kernel_apart, self.kernel_in_plane
        z, y, x = (apart if axis == separate else plane for axis in range(3))
        return z, y, x


def _known(kernels: Mapping[Any, Kernel], name: str, value: object, function: str) -> Kernel:
    if value not in kernels:
        raise PlansError(
            f"the plans' {function} has {name} {value!r}; here it must be one of {list(kernels)}"
        )
    return kernels[value]


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Cells per axis at the target spacing, rounded as in nnU-Net.

    Raises:
        InputError: an axis would have no cells.

    >>> resampled_shape((10, 512, 512), (5.0, 0.5, 0.5), (5.0, 0.8, 0.8))
    (10, 320, 320)
    """
    cells = tuple(round(i / j * k) for i, j, k in zip(spacing, target, shape, strict=True))
    if min(cells) < 1:
        raise InputError(
            f"an image of {tuple(shape)} cells of {tuple(spacing)} mm has no cells left at the "
            f"model's {tuple(target)} mm; check the file's spacing"
        )
    return cells


class Resampler:
    """Resamples (channels, *shape) chunk by chunk of the source to block by block of the target.

    Chunk k holds the source's rows or planes from `k * chunk_rows` on, block k the target's from
    `k * block_rows` on; the last ones may be shorter.

    Args:
        shape: cells per axis of the source, 2 or 3 axes.
        target: of the target.
        kernels: one an axis.
        separate: the axis that is resampled after the planes across it, if any.
        bounds: (2, channels, 1), or (2, channels, shape[separate]) for the planes across
            `separate`: smallest and largest value, to which the result is clipped before that
            axis is resampled. None where no kernel overshoots.
    """

    def __init__(
        self,
        shape: Sequence[int],
        target: Sequence[int],
        kernels: Sequence[Kernel],
        separate: int | None = None,
        bounds: NDArray[np.float32] | None = None,
    ) -> None:
        self.shape, self.target = tuple(shape), tuple(target)
        self.chunk_rows, self.block_rows = _CHUNKS[len(shape)], _BLOCKS[len(shape)]
        self.chunks = -(-shape[0] // self.chunk_rows)
        self.blocks = -(-target[0] // self.block_rows)
        self._bounds, self._separate = bounds, separate
        tiles = (min(TILE, self.block_rows), *(TILE for _ in shape[1:]))
        self._matrices = [
            AxisMatrix(*axis) for axis in zip(shape, target, kernels, tiles, strict=True)
        ]
        # Where the first axis grows, the planes are resampled while they are few.
        grows = target[0] >= shape[0]
        axes = [axis for axis in range(len(shape)) if axis != separate]
        axes.sort(key=lambda axis: (axis == 0) == grows)
        order = [*axes, _CLIP, *([] if separate is None else [separate])]
        at = order.index(0)
        self._before, self._after = order[:at], order[at + 1 :]

    def rows(self, block: int) -> tuple[int, int]:
        """The target rows or planes of a block."""
        first = block * self.block_rows
        return first, min(first + self.block_rows, self.target[0])

    def needs(self, block: int) -> tuple[int, int]:
        """The range of chunks that a block requires."""
        first, end = self._matrices[0].window(*self.rows(block))
        return first // self.chunk_rows, -(-end // self.chunk_rows)

    def chunk(self, index: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocess a chunk (channels, rows, ...) once, before blocks are computed from it."""
        return self._apply(self._before, np.ascontiguousarray(values), index * self.chunk_rows)

    def block(self, index: int, chunks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """A block (channels, rows, ...) of the target from the chunks that it needs."""
        rows = self.rows(index)
        first, end = self._matrices[0].window(*rows)
        start = self.needs(index)[0] * self.chunk_rows
        pieces, at = [], start
        for chunk in chunks:
            pieces.append(chunk[:, max(first - at, 0) : end - at])
            at += chunk.shape[1]
        values = np.concatenate(pieces, axis=1)
        return self._apply(self._after, self._matrices[0](values, 1, *rows, offset=first), 0)

    def _apply(
        self, steps: Sequence[int], values: NDArray[np.float32], first: int
    ) -> NDArray[np.float32]:
        for step in steps:
            if step != _CLIP:
                values = self._matrices[step](values, step + 1)
            elif self._bounds is not None:
                bounds = self._bounds
                shape = [1] * values.ndim
                shape[0] = values.shape[0]
                if self._separate is not None:
                    if self._separate == 0:
                        bounds = bounds[:, :, first : first + values.shape[1]]
                    shape[self._separate + 1] = bounds.shape[2]
                low, high = (bound.reshape(shape) for bound in bounds)
                # Out of place: the steps before may have returned the caller's chunk itself.
                values = np.clip(values, low, high)
        return values
