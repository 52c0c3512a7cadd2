"""How much memory a case takes: the networks, the result, and what says how sure a model is."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from nnunet_octreenca.inference.memory_plan import GIB, Memory, MemoryPlan, plan_memory
from nnunet_octreenca.inference.resilience import resilience_bytes
from nnunet_octreenca.inference.whole_image import mirrorings
from nnunet_octreenca.integration.model import Model
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.planning import Output
from nnunet_octreenca.prediction.options import Options
from nnunet_octreenca.preprocessing.geometry import CaseGeometry
from nnunet_octreenca.resources import resident_memory


def planned(
    layout: CaseGeometry, shape: Sequence[int], model: Model, options: Options, limit: Memory
) -> tuple[MemoryPlan, str]:
    """How much memory a case takes, with what the process holds now.

    Args:
        layout: of the case.
        shape: cells of the image per axis, in its file.
        model: the networks.
        options: how they segment.
        limit: what may be used.

    Returns:
        The plan, and a sentence why resilience cannot be measured with it; empty where it can.

    Raises:
        OutOfMemoryError: the case does not fit even in the smallest bands.
    """
    network = model.networks[0]
    members = options.members_of(model)
    regions = model.preprocessing.regions_class_order is not None
    beside = _beside(shape, model, options)
    plan = plan_memory(
        network,
        layout.padded,
        limit,
        passes=len(members) * len(mirrorings(options.mirror_axes_of(model))),
        output=Output.LOGITS if layout.resamples or regions else Output.LABELS,
        half=options.float16,
        beside=beside,
        beside_row=_beside_row(layout, model, options),
        band_rows=options.band_rows,
    )
    if options.quality is None:
        return plan, ""
    return _with_resilience(plan, network, layout.padded, resident_memory() + beside)


def _beside(shape: Sequence[int], model: Model, options: Options) -> int:
    """Bytes that are held for the result, besides what the networks take."""
    cells = prod(shape)
    # The labels, 1 byte a cell, and what writing a pyramid of them takes.
    held = cells * 4 // 3
    if options.quality is not None:
        held += 4 * cells * (1 + model.networks[0].num_classes * options.probabilities)
    return held


def _beside_row(layout: CaseGeometry, model: Model, options: Options) -> int:
    """Bytes for each row of a band, while seeds are compared."""
    if options.quality is None:
        return 0
    # Logits of all members; of the seeds logits, probabilities, and copies on the way.
    values = 2 * len(options.members_of(model)) + 6 * options.quality
    return 4 * prod(layout.padded[1:]) * model.networks[0].num_classes * values


def _with_resilience(
    plan: MemoryPlan, network: OctreeNCA, shape: tuple[int, ...], held: int
) -> tuple[MemoryPlan, str]:
    """Count the states that are held whole, or say why they cannot be.

    Args:
        plan: without them.
        network: of the passes.
        shape: cells of the image as the network sees it.
        held: bytes of the process then, without them.
    """
    needed, limit = resilience_bytes(network, shape), plan.limit
    if next(network.parameters()).device.type == "cuda":
        more, have = replace(plan, device=max(plan.device, needed)), limit.device
    else:
        needed, have = held + needed, limit.host
        more = replace(plan, host=max(plan.host, needed))
    if needed <= have:
        return more, ""
    return plan, (
        f"resilience is not measured: with the states of {' x '.join(map(str, shape))} cells as a "
        f"whole the peak would be {needed / GIB:.1f} GiB, and {have / GIB:.1f} GiB may be used"
    )
