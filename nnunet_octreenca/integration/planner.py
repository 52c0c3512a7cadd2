"""OctreeNCAPlanner (`nnUNetv2_plan_experiment -pl OctreeNCAPlanner`) and `extend_plans`."""

from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError, PlansError
from nnunet_octreenca.files import JsonMapping, JsonObject, read_json, write_json
from nnunet_octreenca.integration.nnunet_version import nnunet_version
from nnunet_octreenca.planning import PLANS_NAME, extend_plans

nnunet_version()

STOCK_PLANS_NAME = "nnUNetPlans"


class OctreeNCAPlanner(ExperimentPlanner):
    """nnU-Net's planner, whose plans are extended for OctreeNCA before they are saved.

    Spacing, normalization and resampling are nnU-Net's own, and so is the name of the
    preprocessed data as long as nothing is asked for that would change it: data preprocessed
    for the stock plans is used again.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = PLANS_NAME,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        # The U-Net's memory target stays nnU-Net's: it decides only whether there is a
        # 3d_lowres configuration, which must not depend on ours.
        super().__init__(
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
        )
        self.gpu_memory_target_in_gb = gpu_memory_target_in_gb
        self._stock_data = (
            preprocessor_name in ("DefaultPreprocessor", "OctreeNCAPreprocessor")
            and overwrite_target_spacing is None
            and not suppress_transpose
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Use the stock plans' identifier where the preprocessed data are the same."""
        name = STOCK_PLANS_NAME if self._stock_data else self.plans_identifier
        return f"{name}_{configuration_name}"

    def save_plans(self, plans: JsonObject) -> None:
        """Extend the plans that nnU-Net computed, then save them as it does."""
        recursive_fix_for_json_export(plans)
        plans.update(
            _extended(
                plans,
                self.dataset_json,
                plans_name=self.plans_identifier,
                gpu_memory_target_in_gb=self.gpu_memory_target_in_gb,
            )
        )
        super().save_plans(plans)


def _extended(plans: JsonObject, dataset_json: JsonMapping, **options: Any) -> JsonObject:
    labels = PlansManager(plans).get_label_manager(dataset_json)
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    cases = dataset_json.get("numTraining")
    return extend_plans(
        plans,
        input_channels=len(channels),
        num_classes=labels.num_segmentation_heads,
        foreground_labels=len(labels.foreground_labels),
        has_regions=labels.has_regions,
        cases=cases if isinstance(cases, int) else None,
        **options,
    )


def dataset_name(dataset: str) -> str:
    """Resolve a data set's number or name to its folder name (Dataset004_Hippocampus).

    Raises:
        EnvironmentMismatchError: nnU-Net's folders are not set.
        InputError: no such data set, or several.
    """
    for path in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
        if not path.is_set():
            raise EnvironmentMismatchError(
                f"the environment variable {path.env_var_name} is not set. nnU-Net keeps its data "
                f"in three folders: set nnUNet_raw, nnUNet_preprocessed and nnUNet_results"
            )
    if dataset.isdigit():
        found = [str(name) for name in find_candidate_datasets(int(dataset))]
    else:
        folders = (Path(nnUNet_raw) / dataset, Path(nnUNet_preprocessed) / dataset)
        found = [dataset] if any(folder.is_dir() for folder in folders) else []
    if not found:
        raise InputError(
            f"there is no data set with the name or number {dataset!r} in {nnUNet_raw} or "
            f"{nnUNet_preprocessed}; check -d, and the variables nnUNet_raw and nnUNet_preprocessed"
        )
    if len(found) > 1:
        raise InputError(
            f"several data sets have the number {dataset!r}: {', '.join(found)}; give one's name"
        )
    return found[0]


def nnunet_folders() -> tuple[Path, Path, Path]:
    """nnU-Net's folders: raw, preprocessed, results; `dataset_name` checks that they are set."""
    return Path(nnUNet_raw), Path(nnUNet_preprocessed), Path(nnUNet_results)


def extend_plans_file(
    dataset: str,
    *,
    base_plans: str = STOCK_PLANS_NAME,
    plans_name: str = PLANS_NAME,
    **options: Any,
) -> Path:
    """Write OctreeNCA's plans next to a data set's existing ones.

    Args:
        dataset: number or name.
        base_plans: name of the existing plans.
        plans_name: name of the new ones.
        options: what `planning.extend_plans` takes besides the data set's facts.

    Returns:
        The file written.

    Raises:
        InputError, PlansError: data set or plans are missing or cannot be used.
    """
    name = dataset_name(dataset)
    folder = Path(nnUNet_preprocessed) / name
    if base_plans == plans_name:
        raise PlansError(
            f"the new plans would replace the plans {base_plans!r} that they are made from; give "
            f"them another name"
        )
    missing = f"run `nnUNetv2_plan_and_preprocess -d {dataset}` first"
    plans = read_json(folder / f"{base_plans}.json", missing)
    dataset_json = read_json(folder / "dataset.json", missing)
    target = folder / f"{plans_name}.json"
    extended = _extended(plans, dataset_json, plans_name=plans_name, **options)
    extended["configurations"] = {
        **_own_configurations(target, extended["configurations"]),
        **extended["configurations"],
    }
    recursive_fix_for_json_export(extended)
    write_json(target, extended)
    return target


def _own_configurations(target: Path, new: JsonMapping) -> JsonObject:
    """Configurations that users added to our plans; nnU-Net's planner keeps them too."""
    if not target.is_file():
        return {}
    old: JsonObject = read_json(target, "remove it").get("configurations", {})
    return {name: value for name, value in old.items() if name not in new}
