"""The preprocessing settings of a plans file, as plain values."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.planning.known_names import (
    LABEL_MANAGERS,
    NORMALIZATIONS,
    PREPROCESSORS,
)
from nnunet_octreenca.preprocessing.resample import ResamplingRule

SCHEMES = tuple(sorted(NORMALIZATIONS))


@dataclass(frozen=True)
class PreprocessingPlan:
    """What nnU-Net does to an image before the network and to its logits afterwards.

    Axes are in the order of the plans, that is after `transpose_forward`.

    Attributes:
        dimension: spatial axes of the network, 2 or 3. A 2-D network segments a volume plane by
            plane.
        transpose_forward: the image's axis (z, y, x) that each axis of the plans is.
        transpose_backward: its inverse.
        spacing: mm per axis of the network.
        context: cells per axis of the network, nnU-Net's `patch_size`; a smaller image is
            surrounded by zeros up to it.
        normalization_schemes: nnU-Net's class names, one a channel.
        use_mask_for_norm: whether a channel's mean and deviation are those of the nonzero mask.
        intensities: the data set's foreground statistics, one mapping a channel.
        data: how images are resampled.
        probabilities: how logits are resampled.
        num_classes: the network's logits per cell.
        regions_class_order: the labels that the regions write, in that order; None for plain
            labels.
    """

    dimension: int
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    spacing: tuple[float, ...]
    context: tuple[int, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    intensities: tuple[Mapping[str, float], ...]
    data: ResamplingRule
    probabilities: ResamplingRule
    num_classes: int
    regions_class_order: tuple[int, ...] | None

    @property
    def largest_label(self) -> int:
        """The highest label of a segmentation."""
        return max(self.regions_class_order or (self.num_classes - 1,))

    @classmethod
    def from_plans(
        cls,
        plans: JsonMapping,
        configuration: JsonMapping,
        dataset_json: JsonMapping,
    ) -> "PreprocessingPlan":
        """Read a plans file.

        Args:
            plans: the whole file.
            configuration: one of its configurations, inheritance resolved.
            dataset_json: the data set's description.

        Raises:
            PlansError: a key is missing, or names a normalization, a resampling, a preprocessor
                or labels that are not nnU-Net's own.
        """
        try:
            return cls._from_plans(plans, configuration, dataset_json)
        except KeyError as error:
            raise PlansError(
                f"the plans or the dataset.json lack {error.args[0]!r}; plan the data set again"
            ) from error

    @classmethod
    def _from_plans(
        cls,
        plans: JsonMapping,
        configuration: JsonMapping,
        dataset_json: JsonMapping,
    ) -> "PreprocessingPlan":
        _check_stock("preprocessor_name", configuration, PREPROCESSORS)
        _check_stock("label_manager", plans, LABEL_MANAGERS)
        if configuration.get("previous_stage") is not None:
            raise PlansError(
                f"the configuration needs the labels of {configuration['previous_stage']!r} as "
                "input; predict a cascade with nnUNetv2_predict"
            )
        schemes = tuple(configuration["normalization_schemes"])
        for scheme in schemes:
            if scheme not in SCHEMES:
                raise PlansError(
                    f"the plans' normalization {scheme!r} is not supported; it must be one of "
                    f"{', '.join(SCHEMES)}"
                )
        # Old plans name the statistics by modality.
        old, new = (
            f"foreground_intensity_properties_{by}" for by in ("by_modality", "per_channel")
        )
        statistics = plans[new if new in plans or old not in plans else old]
        num_classes, order = _heads(dataset_json)
        patch = tuple(configuration["patch_size"])
        return cls(
            dimension=len(patch),
            transpose_forward=tuple(plans["transpose_forward"]),
            transpose_backward=tuple(plans["transpose_backward"]),
            spacing=tuple(float(mm) for mm in configuration["spacing"]),
            context=patch,
            normalization_schemes=schemes,
            use_mask_for_norm=tuple(configuration["use_mask_for_norm"]),
            intensities=tuple(statistics.get(str(c), {}) for c in range(len(schemes))),
            data=_rule(configuration, "data"),
            probabilities=_rule(configuration, "probabilities"),
            num_classes=num_classes,
            regions_class_order=order,
        )


def _check_stock(key: str, where: JsonMapping, known: Collection[str]) -> None:
    found = where.get(key)
    if found is not None and found not in known:
        raise PlansError(
            f"the plans' {key} is {found!r}, but only {' or '.join(sorted(known))} can be followed "
            "here; predict with nnUNetv2_predict"
        )


def _rule(configuration: JsonMapping, part: str) -> ResamplingRule:
    key = f"resampling_fn_{part}"
    return ResamplingRule.from_plans(configuration[key], configuration[f"{key}_kwargs"])


def _heads(dataset_json: JsonMapping) -> tuple[int, tuple[int, ...] | None]:
    """The number of logits that nnU-Net gives the network, and the regions' labels."""
    labels = {key: value for key, value in dataset_json["labels"].items() if key != "ignore"}
    lists = {
        key: tuple(value) if isinstance(value, Sequence) else (value,)
        for key, value in labels.items()
    }
    if all(len(value) == 1 for value in lists.values()):
        return len({value[0] for value in lists.values()}), None
    regions = sum(set(value) != {0} for value in lists.values())
    order = tuple(dataset_json["regions_class_order"])
    if len(order) != regions:
        raise PlansError(
            f"dataset.json names {regions} regions, but regions_class_order {list(order)} has "
            f"{len(order)} labels; it must have one a region"
        )
    return regions, order
