"""One configuration of a plans file (2d, 3d_fullres, ...), worked out for OctreeNCA."""

from collections.abc import Sequence
from dataclasses import replace

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject
from nnunet_octreenca.octree import level_shapes
from nnunet_octreenca.planning.context import Context, plan_context
from nnunet_octreenca.planning.input_statistics import InputStatistics
from nnunet_octreenca.planning.level_sizes import LevelSizes, check_room
from nnunet_octreenca.planning.loading import steps_per_context
from nnunet_octreenca.planning.memory import training_bytes
from nnunet_octreenca.planning.recipe import RECIPES, Recipe
from nnunet_octreenca.planning.rules import brief
from nnunet_octreenca.planning.settings import BLOCK, Settings

NETWORK_CLASS = "nnunet_octreenca.network.OctreeNCA"
GIBIBYTE = 1 << 30
# Below so many cases, objects are found where those of training were, not where they are: moved
# contexts gain 9 points on 8 hearts and lose 0.8 on 166 hippocampi (docs/explanation/recipes.md).
FEW_CASES = 20
SHIFT_OF_FEW = 0.2
MOST_OF_AN_IMAGE = 0.9


def octreenca_configuration(
    median_shape: Sequence[float],
    *,
    input_channels: int,
    num_classes: int,
    has_regions: bool,
    gpu_memory_target_in_gb: float,
    batch_size: int | None = None,
    settings: JsonMapping | None = None,
    recipe: Recipe = RECIPES["default"],
    statistics: InputStatistics | None = None,
    sizes: LevelSizes | None = None,
    cases: int | None = None,
) -> JsonObject:
    """The keys of a configuration that OctreeNCA changes (DESIGN section 2).

    Args:
        median_shape: cells per axis after resampling, 2 or 3 axes.
        input_channels: n_in, a previous stage's labels among them.
        num_classes: nnU-Net's segmentation heads, the background among them for plain labels.
        has_regions: region-based labels: every head is a logit.
        gpu_memory_target_in_gb: GiB that one training step may take.
        batch_size: samples per training step; the recipe's if left out.
        settings: keys of the `octreenca` block that differ from the recipe's; a crop of another
            number of axes is left to other configurations.
        recipe: the network's channels, steps and fire rate, and how it is trained.
        statistics: of the image, where the network is to standardize it.
        sizes: channels and hidden units that differ from the recipe's.
        cases: of the data set; where they are few, and contexts are whole images, contexts are
            moved in training. None: not known.

    Returns:
        `batch_size`, `patch_size`, `architecture` and `octreenca`.

    Raises:
        PlansError: nothing fits the memory target, an unknown setting, a crop that lacks its shape
            or its levels, or cells that do not hold image and logits.
    """
    settings = settings or {}
    batch_size = recipe.batch_size if batch_size is None else batch_size
    chosen = Settings.from_plans({**recipe.settings, **settings})
    if (chosen.crop_shape is None) != (chosen.crop_levels == 0):
        raise PlansError(
            f"crop_shape is {chosen.crop_shape} and crop_levels {chosen.crop_levels}: give both "
            f"for a crop, such as crop_shape=[32,64,64] and crop_levels=1, or crop_shape=null "
            f"alone for none"
        )
    crops = recipe.crops
    if "crop_shape" in settings and len(chosen.crop_shape or median_shape) == len(median_shape):
        given = chosen.crop
        crops = lambda context, factors: (given,)  # noqa: E731
    sizes = LevelSizes({}) if sizes is None else sizes
    logits = num_classes - (not has_regions)

    def cells(context: Context) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shapes = level_shapes(context.shape, context.factors)
        planned = recipe.channels(input_channels, logits, shapes, recipe.level_steps(shapes))
        return sizes.of(len(shapes), planned)

    def fits(context: Context) -> bool:
        channels, hidden = cells(context)
        needed = training_bytes(
            context.shape,
            factors=context.factors,
            steps=recipe.level_steps(level_shapes(context.shape, context.factors)),
            channels=channels,
            hidden=hidden,
            input_channels=input_channels,
            num_classes=num_classes,
            batch_size=batch_size,
            crop=context.crop,
            every_level=chosen.loss_on_levels > 0,
            fire_rate=recipe.fire_rate,
            engine="cuda",  # what trains on a GPU, whose memory the target is about
        )
        return needed <= gpu_memory_target_in_gb * GIBIBYTE

    context = plan_context(median_shape, fits, crops)
    crop_shape, crop_levels = context.crop or (None, 0)
    chosen = replace(chosen, crop_shape=crop_shape, crop_levels=crop_levels)
    steps = recipe.level_steps(level_shapes(context.shape, context.factors))
    channels, hidden = cells(context)
    check_room(channels, input_channels, logits)
    if recipe.reuses_contexts and "steps_per_context" not in settings:
        uses = steps_per_context(
            context.shape,
            context.crop,
            factors=context.factors,
            steps=steps,
            channels=channels,
            hidden=hidden,
            input_channels=input_channels,
            fire_rate=recipe.fire_rate,
        )
        chosen = replace(chosen, steps_per_context=uses)
    few = cases is not None and cases < FEW_CASES
    if recipe.shifts and few and _is_whole(context, median_shape) and "shift" not in settings:
        chosen = replace(chosen, shift=SHIFT_OF_FEW)
    return {
        "batch_size": batch_size,
        "patch_size": list(context.shape),
        "architecture": {
            "network_class_name": NETWORK_CLASS,
            "arch_kwargs": {
                "dimension": len(context.shape),
                "channels": brief(channels),
                "hidden": brief(hidden),
                "factors": [list(row) for row in context.factors],
                "steps": steps,
                "fire_rate": recipe.fire_rate,
                "constant_background": not has_regions,
                **({} if statistics is None else _standardizing(statistics)),
            },
            "_kw_requires_import": [],
        },
        BLOCK: chosen.to_plans(),
    }


def _is_whole(context: Context, median_shape: Sequence[float]) -> bool:
    """Whether a context is about an image: smaller ones are drawn at any place of it anyway."""
    axes = zip(context.shape, median_shape, strict=True)
    return all(cells >= MOST_OF_AN_IMAGE * of_image for cells, of_image in axes)


def _standardizing(statistics: InputStatistics) -> JsonObject:
    """OctreeNCA's arguments."""
    return {"input_mean": statistics.mean, "input_std": statistics.std}
