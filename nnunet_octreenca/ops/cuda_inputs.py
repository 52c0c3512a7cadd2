"""What kernels take for granted of tensors, which reach them as bare addresses.

A tensor of another type, shape or device would be read as what it is not: NaN, or memory that is
not its own. So every entrance of the CUDA engine looks first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_octreenca.ops.automaton import Automaton, Part
from nnunet_octreenca.ops.weights import StepWeights

VECTOR_BYTES = 16  # of a load or store of a state's channels


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and at an address that vectors can be loaded from; the tensor itself if it is so.

    A contiguous view may begin anywhere in its storage. A load of 16 bytes from an address that is
    no multiple of 16 is an error that ends every use of the GPU by the process.
    """
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % VECTOR_BYTES else tensor


def check_level(what: str, tensor: Tensor, weights: StepWeights) -> None:
    """Look at a level's state, or its gradient, and its weights.

    Args:
        what: "state" or "gradient".
        tensor: (N, *spatial, C).

    Raises:
        ValueError: they do not fit one another, or are no float32.
    """
    weights.check()
    if tensor.ndim != weights.dimension + 2 or tensor.shape[-1] != weights.channels:
        raise ValueError(
            f"the {what} {tuple(tensor.shape)} must be (N, "
            f"{'y, x' if weights.dimension == 2 else 'z, y, x'}, {weights.channels}) for these "
            f"weights"
        )
    _check_type(f"the {what}", tensor, (torch.float32,), tensor.device)
    weights.check_like(tensor, what)


def check_trajectory(trajectory: Tensor, grad_out: Tensor, channels: int) -> None:
    """Look at what `forward` kept for `backward`.

    Raises:
        ValueError: it is not (steps, N, *spatial, `channels`) float32 on the gradient's device.
    """
    _check_type("the trajectory", trajectory, (torch.float32,), grad_out.device)
    wanted = (*grad_out.shape[:-1], channels)
    if trajectory.ndim != grad_out.ndim + 1 or tuple(trajectory.shape[1:]) != wanted:
        raise ValueError(
            f"the trajectory {tuple(trajectory.shape)} must be (steps, "
            f"{', '.join(map(str, wanted))}), as `forward` kept it"
        )


def check_hand_down(others: Tensor, from_parent: Tensor) -> None:
    """Look at what parents hand down, (N, *spatial, channels), and the map to their children.

    Raises:
        ValueError: they do not fit one another, or are no float32.
    """
    _check_type("what parents hand down", others, (torch.float32,), others.device)
    _check_type("the map", from_parent, (torch.float32,), others.device)
    if from_parent.ndim != 2 or others.shape[-1:] != from_parent.shape[1:]:
        raise ValueError(
            f"the map {tuple(from_parent.shape)} must have a column for each channel of what "
            f"parents hand down, {tuple(others.shape)}"
        )


def check_octree(
    images: Sequence[Tensor],
    automaton: Automaton,
    part: Part,
    state_type: torch.dtype,
    labels: Tensor | None,
    values: Tensor | None,
) -> None:
    """Look at what whole octrees are computed from, and at what they fill.

    Raises:
        ValueError: a tensor of another type, shape or device than is needed.
    """
    finest, device = images[0], images[0].device
    for number, image in enumerate(images, part.finest):
        _check_type(f"the image of level {number}", image, (torch.float32,), device)
        if image.ndim != automaton.dimension + 2 or image.shape[1] != automaton.input_channels:
            raise ValueError(
                f"the image of level {number}, {tuple(image.shape)}, must have "
                f"{automaton.input_channels} channels and {automaton.dimension} spatial axes"
            )
        automaton.weights[number].check()
        automaton.weights[number].check_like(image, f"image of level {number}")
    for number, matrix in enumerate(automaton.from_parent):
        _check_map(matrix, automaton, number, device)
    if part.parent is not None:
        _check_type("the parents' state", part.parent, (state_type,), device)
    shape = (finest.shape[0], *finest.shape[2:])
    if labels is not None:
        _check_type("labels", labels, (torch.uint8, torch.int16), device)
        _check_filled("labels", labels, shape)
    if values is not None:
        classes = automaton.logits + automaton.background
        _check_type("values", values, (torch.float32,), device)
        _check_filled("values", values, (shape[0], classes, *shape[1:]))


def _check_map(
    matrix: Tensor | None, automaton: Automaton, level: int, device: torch.device
) -> None:
    """What a level's children take of their parents fits both levels' channels."""
    own, above = (w.channels - w.input_channels for w in automaton.weights[level : level + 2])
    if matrix is not None:
        _check_type(f"the map to level {level}", matrix, (torch.float32,), device)
    shape = (above, above) if matrix is None else tuple(matrix.shape)
    if shape != (own, above):
        raise ValueError(
            f"the map to level {level} {'is missing' if matrix is None else shape}: the levels' "
            f"channels need ({own}, {above})"
        )


def _check_type(
    what: str, tensor: Tensor, types: Sequence[torch.dtype], device: torch.device
) -> None:
    if tensor.dtype not in types or tensor.device != device:
        raise ValueError(
            f"{what} must be {' or '.join(map(str, types))} on {device}, but it is {tensor.dtype} "
            f"on {tensor.device}"
        )


def _check_filled(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{what} {tuple(tensor.shape)}, strides {tensor.stride()}, must be {shape} and "
            f"contiguous: they are filled where they lie"
        )
