"""One pass over a whole image, mirrored copies averaged, logits out."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_octreenca.errors import InputError, NotFiniteError, OutOfMemoryError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.ops.finite import LOGITS_NOT_FINITE
from nnunet_octreenca.planning import inference_bytes

LOGIT_BOUND = 4.0
"""Of a mirrored copy's logits, a probability of 0.982, where several copies are averaged.

The coarsest levels may lose a whole object, and with certainty. Unbounded, one copy that has lost
it outvotes all that have not (docs/explanation/recipes.md).
"""

_BAND = 1 << 22  # cells looked at at a time


def mirrorings(axes: Sequence[int] | None) -> list[tuple[int, ...]]:
    """All sets of axes to mirror, the unmirrored image first; nnU-Net's order.

    >>> mirrorings((0, 1))
    [(), (0,), (1,), (0, 1)]
    """
    axes = tuple(axes or ())
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


@torch.inference_mode()
def predict_logits(
    network: OctreeNCA,
    image: Tensor,
    *,
    mirror_axes: Sequence[int] | None = None,
    context: Sequence[int] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Logits of a preprocessed image, each plane or volume in one pass, never in windows.

    Args:
        network: on `device`, in evaluation mode.
        image: (n_in, z, y, x) as nnU-Net hands it over. A 2-D network segments the planes one
            by one, each as if it were alone.
        mirror_axes: spatial axes of the network to mirror (test-time augmentation); the
            logits of all 2^axes passes are averaged, each within `LOGIT_BOUND`. None or empty: a
            single pass, whose logits are as they are.
        context: cells per axis of the network that it was trained with (nnU-Net's patch size). A
            smaller image is surrounded by zeros up to it, as nnU-Net does in training and in its
            own predictor: the network knows the coarsest levels of that size. On the hippocampus
            this is worth 1.2 Dice points (docs/results). None: as it is.
        seed: of the fire draws; same seed, same bits.
        device: where to compute.
        progress: called with the number of passes after each of them.

    Returns:
        (num_classes, z, y, x) float32 on the CPU. In float16, as nnU-Net keeps the sums of its
        windows, the two largest logits of some cells would be equal, and the label that of the
        first: a few cells in 100,000 would differ from `Ensemble`'s.

    Raises:
        InputError: non-finite voxels, or channels that the network was not trained with.
        NotFiniteError: the state or the logits became NaN or infinite.
        OutOfMemoryError: the image does not fit the device's memory.
    """
    if image.ndim != 4:
        raise InputError(f"image {tuple(image.shape)} must be (channels, z, y, x)")
    wrong = _not_finite(image)
    if wrong:
        raise InputError(
            f"the preprocessed image {tuple(image.shape)} has {wrong} voxels that are NaN or "
            f"infinite. Repair the file (e.g. replace them by the background's value) and predict "
            f"it again"
        )
    logits = torch.empty((network.num_classes, *image.shape[1:]), dtype=torch.float32)
    for target, part in _parts(network.dimension, image, logits):
        part, inside = surrounded(part, context)
        total: Tensor | None = None
        passes = mirrorings(mirror_axes)
        for axes in passes:
            flipped = [axis + 2 for axis in axes]
            try:
                given = part[None].to(device)
                # A flip along no axis would be a copy.
                one = network.infer(given.flip(flipped) if axes else given, seed)[0]
                if axes:
                    one = one.flip([axis - 1 for axis in flipped])
                if _not_finite(one):
                    raise NotFiniteError(LOGITS_NOT_FINITE)
                if len(passes) > 1:
                    one = one.clamp_(-LOGIT_BOUND, LOGIT_BOUND)
                total = one if total is None else total.add_(one)
            except (MemoryError, RuntimeError) as error:
                if _is_out_of_memory(error):
                    raise _out_of_memory(network, part.shape[1:], device) from error
                raise
            if progress is not None:
                progress(1)
        assert total is not None
        total /= len(passes)
        if target.numel() == logits.numel() and total.device.type == "cpu":
            # The only part: its logits are not copied, and `logits` never took any memory.
            return total[inside].float().contiguous().view(logits.shape)
        target.copy_(total[inside])
    return logits


def _not_finite(values: Tensor) -> int:
    """How many are NaN or infinite; looked for in bands, for the search takes more than they do."""
    lines = values.flatten(1, -2)  # (channel, line, cells of a line)
    many = max(1, _BAND // max(1, lines.shape[-1]))
    return sum(
        band.numel() - int(torch.isfinite(band).sum())
        for channel in lines
        for band in channel.split(many)
    )


def _parts(dimension: int, image: Tensor, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What is segmented in one pass, and where its logits go."""
    if dimension == 3:
        yield logits, image
        return
    for plane in range(image.shape[1]):
        yield logits[:, plane], image[:, plane]


def surrounded(part: Tensor, context: Sequence[int] | None) -> tuple[Tensor, tuple[slice, ...]]:
    """The image amid zeros where it is smaller than the context, and where it then lies.

    Args:
        part: (channels, *spatial).
        context: cells per axis, as for `predict_logits`.
    """
    shape = part.shape[1:]
    inside, pads = [slice(None)], []
    for cells, wanted in zip(shape, context or shape, strict=True):
        missing = max(wanted - cells, 0)
        inside.append(slice(missing // 2, missing // 2 + cells))
        pads.append((missing // 2, missing - missing // 2))
    if any(after for _, after in pads):
        part = functional.pad(part, [n for pair in reversed(pads) for n in pair])
    return part, tuple(inside)


def _is_out_of_memory(error: Exception) -> bool:
    short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return short or "can't allocate memory" in str(error)


def _out_of_memory(
    network: OctreeNCA, shape: Sequence[int], device: torch.device | str
) -> OutOfMemoryError:
    needed = inference_bytes(
        shape,
        **network.sizes,
        engine=network.engine().name,
    )
    return OutOfMemoryError(
        f"an image of {tuple(shape)} cells needs some {needed / (1 << 30):.1f} GiB on {device}, "
        f"which is not there. Free memory, predict with -device cpu, or plan with a larger spacing"
    )
