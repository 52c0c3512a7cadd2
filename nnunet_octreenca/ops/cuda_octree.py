"""Whole octrees on a GPU: every level's input, its steps, and labels or logits of the finest."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from nnunet_octreenca.octree import image_pyramid
from nnunet_octreenca.ops import cuda_device
from nnunet_octreenca.ops.automaton import Automaton, Part
from nnunet_octreenca.ops.cuda_cells import schedule_for
from nnunet_octreenca.ops.cuda_device import LoadedProgram
from nnunet_octreenca.ops.cuda_inputs import aligned, check_hand_down, check_octree
from nnunet_octreenca.ops.cuda_level import LevelLaunches, grid, padded
from nnunet_octreenca.ops.cuda_program import (
    arguments,
    map_program,
    padded_channels,
    single_precision,
)
from nnunet_octreenca.ops.finite import NonFiniteCells
from nnunet_octreenca.ops.fire import FireDraws
from nnunet_octreenca.ops.native import precision


def octree(
    image: Tensor,
    automaton: Automaton,
    seed: int,
    *,
    labels: Tensor | None = None,
    values: Tensor | None = None,
    multiply: str | None = None,
    state: str | None = None,
    non_finite: NonFiniteCells | None = None,
    fused: int | None = None,
) -> None:
    """All levels of a batch of images; writes labels or logits.

    Besides the images of all levels, two states of the finest level are held and nothing else of
    its size: 64 bytes a cell in float16 and 128 in float32 at 16 channels. Levels may differ in
    channels.

    Args:
        image: (N, n_in, *spatial) float32.
        seed: of the fire draws.
        labels: (N, *spatial) uint8 or int16, contiguous, to be filled.
        values: (N, K or K + 1, *spatial) float32, contiguous, to be filled instead.
        multiply, state: as on the CPU ("float32", or "bfloat16" and "float16"; else the environment
            decides). A state in float16 is multiplied in float16 too: the fast mode. Products of
            bfloat16 with states in float32 are not made: float32 is used.
        non_finite: counts the cells that are not finite, on the image's device.
        fused: steps a launch, 1 or 2; the engine's choice if left out.

    Raises:
        ValueError: a precision that there is not, or tensors of other types, shapes or devices.
        CudaError, OutOfMemoryError: the GPU refuses.
    """
    images = image_pyramid(image, automaton.factors)
    part = Part(0, (0,) * len(images))
    run_levels(images, automaton, seed, part, labels, values, multiply, state, fused, non_finite)


def octree_windows(
    images: list[Tensor],
    automaton: Automaton,
    seed: int,
    part: Part,
    *,
    labels: Tensor | None = None,
    state: str | None = None,
    non_finite: NonFiniteCells | None = None,
) -> Tensor | None:
    """Some levels of an octree on windows of one image, from the coarsest of these to the finest.

    Args: as `torch_engine.octree_windows`; `state` as `octree`.

    Returns:
        The finest level's state, (1, *spatial, C filled up to a multiple of 16); None where the
        last step ended in labels.

    Raises: as `octree`.
    """
    return run_levels(images, automaton, seed, part, labels, None, None, state, None, non_finite)


def run_levels(
    pyramid: list[Tensor],
    automaton: Automaton,
    seed: int,
    part: Part,
    labels: Tensor | None,
    values: Tensor | None,
    multiply: str | None,
    state: str | None,
    fused: int | None,
    non_finite: NonFiniteCells | None = None,
) -> Tensor | None:
    """What `octree` and `octree_windows` do; the pyramid is emptied on the way.

    So an image's coarser copies are not held together with the finest level's states.
    """
    _, state_type = precision(multiply, state)
    half = state_type == "float16"
    check_octree(pyramid, automaton, part, torch.float16 if half else torch.float32, labels, values)
    device = cuda_device.device_of(pyramid[0])
    kind = "half" if half else single_precision(device.architecture)
    batch, factors, steps = pyramid[0].shape[0], automaton.factors, automaton.steps
    if pyramid[0].numel() == 0:
        return None
    parent_origin = part.parent_origin
    parent = None if part.parent is None else aligned(part.parent)
    parent_shape: Sequence[int] = () if parent is None else parent.shape[1:-1]
    rest = (0,) * (automaton.dimension - 1)
    current: Tensor | None = None
    with cuda_device.current(pyramid[0]):
        # All are chosen before there is a state: some are timed, with states of their own.
        schedules = [
            schedule_for(device, weights, kind, automaton.fire_rate)
            for weights in automaton.weights
        ]
        while pyramid:
            number, origin = part.finest + len(pyramid) - 1, part.origins[len(pyramid) - 1]
            image = pyramid.pop().contiguous()
            shape = tuple(image.shape[2:])
            if parent is not None and parent_origin * factors[number][0] != origin:
                parent = parent[:, origin // factors[number][0] - parent_origin :]
                parent_shape = parent.shape[1:-1]
            run = LevelLaunches(
                device,
                automaton.weights[number],
                kind,
                False,
                shape=shape,
                batch=batch,
                draws=FireDraws(automaton.fire_rate, seed, number, (origin, *rest) * batch),
                schedule=schedules[number],
            )
            if parent is not None:
                current = None  # once handed down, it is held no longer
                matrix = automaton.from_parent[number]
                if matrix is not None:
                    inputs = automaton.input_channels
                    parent = map_parents(run.loaded, parent, matrix, inputs)
            current = torch.empty(
                (batch, *shape, run.configuration.padded),
                dtype=torch.float16 if half else torch.float32,
                device=image.device,
            )
            _enter(run, image, current, parent, parent_shape, factors, number)
            del image
            parent = None  # its memory is free for the second state
            to_labels = number == 0 and labels is not None and steps[0] > 0
            rows = part.rows(len(pyramid), shape[0])
            counter = 0
            if non_finite is not None and steps[number] > 0:
                counter = non_finite.found.data_ptr() + 8 * number
                non_finite.add(number, 0, batch * (rows[1] - rows[0]) * prod(shape[1:]))
            elif non_finite is not None:
                non_finite.add_state(number, current[:, rows[0] : rows[1]])
            current = _run_steps(
                run,
                current,
                steps[number],
                fused,
                labels if to_labels else None,
                automaton,
                counter,
                rows,
            )
            parent, parent_shape, parent_origin = current, shape, origin
        if labels is not None and steps[0] > 0:
            return None
        assert current is not None
        if labels is not None:
            classes = automaton.logits + automaton.background
            heads = torch.empty((batch, classes, *shape), dtype=torch.float32, device=labels.device)
            _leave(run, current, heads, automaton)
            labels.copy_(heads.argmax(1))
        elif values is not None:
            _leave(run, current, values, automaton)
        return current


def _run_steps(
    run: LevelLaunches,
    current: Tensor,
    steps: int,
    fused: int | None,
    labels: Tensor | None,
    automaton: Automaton,
    counter: int,
    counted: tuple[int, int],
) -> Tensor:
    """All steps of a level between two states; the last one to labels where they are wanted."""
    most = fused or (2 if run.configuration.dimension == 2 and 2 in run.program.forward else 1)
    spare: Tensor | None = None
    done = 0
    while done < steps:
        count = min(most, steps - done)
        last = done + count == steps
        if labels is not None and last:
            run.forward(
                current,
                labels,
                done,
                count,
                label_bytes=labels.element_size(),
                logits=automaton.logits,
                background=automaton.background,
                counter=counter,
                counted=counted,
            )
            return current
        if spare is None:
            spare = torch.empty_like(current)
        run.forward(current, spare, done, count, counter=counter if last else 0, counted=counted)
        current, spare = spare, current
        done += count
    return current


def map_parents(
    loaded: LoadedProgram, parent: Tensor, from_parent: Tensor, inputs: int = 0
) -> Tensor:
    """The parents' channels beside the image as their children have them, on the parents' cells.

    Args:
        loaded: kernels for the children's channels.
        parent: (N, *spatial, C of the parents, padded), contiguous.
        from_parent: `Automaton.from_parent` of this way.
        inputs: n_in.

    Returns:
        (N, *spatial, C of the children, padded); the image's channels mean nothing.
    """
    rows, columns = from_parent.shape
    above, own = parent.shape[-1], padded_channels(inputs + rows)
    weights = from_parent.new_zeros(above, own)  # [parents' channel][children's]
    weights[inputs : inputs + columns, inputs : inputs + rows] = from_parent.detach().t()
    mapped = parent.new_empty((*parent.shape[:-1], own))
    cells = mapped.shape[:-1].numel()
    loaded.launch(
        "map",
        grid(cells * own // 4),
        arguments(
            "MapArguments", cells, above, parent.data_ptr(), weights.data_ptr(), mapped.data_ptr()
        ),
    )
    return mapped


def hand_down(
    others: Tensor, from_parent: Tensor, *, device: cuda_device.Device | None = None
) -> Tensor:
    """What children take of their parents' logits and hidden channels: the bits of `octree`.

    Args:
        others: (N, *spatial, C of the parents - n_in) float32, any strides.
        from_parent: (C of the children - n_in, C of the parents - n_in) float32.
        device: where it runs; the tensor's GPU if left out.

    Returns:
        (N, *spatial, C of the children - n_in).

    Raises:
        ValueError: tensors of other types, shapes or devices than these.
        CudaError, OutOfMemoryError: the GPU refuses.
    """
    check_hand_down(others, from_parent)
    device = device or cuda_device.device_of(others)
    rows = from_parent.shape[0]
    with cuda_device.current(others):
        parent = padded(others.detach(), padded_channels(others.shape[-1]))
        if not parent.numel():
            return others.new_empty((*others.shape[:-1], rows))
        mapped = map_parents(_map_kernel(device, rows), parent, from_parent)
        return mapped[..., :rows].contiguous()


@lru_cache(maxsize=64)
def _map_kernel(device: cuda_device.Device, channels: int) -> LoadedProgram:
    """Kept: a kernel that is unloaded while it runs ends every use of the GPU."""
    return device.load_program(map_program(channels, single_precision(device.architecture)))


def _enter(
    run: LevelLaunches,
    image: Tensor,
    state: Tensor,
    parent: Tensor | None,
    parent_shape: Sequence[int],
    factors: Sequence[Sequence[int]],
    level: int,
) -> None:
    factor = [*(1,) * (3 - len(run.shape)), *(factors[level] if parent is not None else (1, 1, 1))]
    run.loaded.launch(
        "enter",
        grid(run.batch * run.cells),
        arguments(
            "EnterArguments",
            *_three(run.shape),
            *_three(parent_shape if parent is not None else run.shape),
            run.batch,
            *factor[:3],
            0,
            image.data_ptr(),
            0 if parent is None else parent.data_ptr(),
            state.data_ptr(),
        ),
    )


def _leave(run: LevelLaunches, state: Tensor, values: Tensor, automaton: Automaton) -> None:
    run.loaded.launch(
        "leave",
        grid(run.batch * run.cells),
        arguments(
            "LeaveArguments",
            run.cells,
            run.batch,
            state.data_ptr(),
            values.data_ptr(),
            automaton.logits,
            int(automaton.background),
        ),
    )


def _three(shape: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (3 - len(shape)) + tuple(shape)
