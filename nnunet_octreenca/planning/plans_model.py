"""plans.json as a model: what it says, checked before anything is imported or allocated.

nnU-Net imports classes that plans name and allocates what they number. Someone else's model
is first checked against what OctreeNCA knows: names against lists, numbers against limits that no
real plan reaches, and all of them against one another and against dataset.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_octreenca.errors import InputError, PlansError
from nnunet_octreenca.files import JsonMapping
from nnunet_octreenca.planning.configuration import NETWORK_CLASS
from nnunet_octreenca.planning.dataset_description import DatasetDescription, description_faults
from nnunet_octreenca.planning.network_model import Network, read_network
from nnunet_octreenca.planning.plans import octreenca_settings, other_network
from nnunet_octreenca.planning.plans_faults import inherited, plans_faults
from nnunet_octreenca.planning.settings import BLOCK, Settings


@dataclass(frozen=True)
class Configuration:
    """One configuration of the plans, with what it inherits.

    Attributes:
        name: 2d, 3d_fullres, ...
        patch_size: cells of the trained context, per axis of the network.
        spacing: mm per axis of the network.
        normalization_schemes: nnU-Net's class names, one a channel.
        previous_stage: of a cascade, whose labels are further channels; None otherwise.
        network_class: full name.
        network: of OctreeNCA's configurations; None of others'.
        settings: the `octreenca` block; None of others' configurations.
    """

    name: str
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    previous_stage: str | None
    network_class: str
    network: Network | None
    settings: Settings | None

    def input_channels(self, dataset: DatasetDescription) -> int:
        """Channels of the image and, in a cascade, of the previous stage's labels."""
        return len(dataset.channels) + len(dataset.foreground) * (self.previous_stage is not None)


@dataclass(frozen=True)
class Plans:
    """A plans file.

    Attributes:
        dataset_name: Dataset004_Hippocampus.
        plans_name: nnU-Net's identifier of the plans.
        reader: class that reads images.
        configurations: by name.
    """

    dataset_name: str
    plans_name: str
    reader: str
    configurations: Mapping[str, Configuration]


def read_plans(content: JsonMapping) -> Plans:
    """The model of a plans file in which `plans_faults` finds nothing."""
    configurations = content["configurations"]
    return Plans(
        content["dataset_name"],
        content["plans_name"],
        content["image_reader_writer"],
        {name: _configuration(name, inherited(configurations, name)) for name in configurations},
    )


def _configuration(name: str, values: JsonMapping) -> Configuration:
    architecture = values.get("architecture", {})
    class_name = architecture.get("network_class_name", values.get("UNet_class_name"))
    ours = class_name == NETWORK_CLASS
    return Configuration(
        name=name,
        patch_size=tuple(values["patch_size"]),
        spacing=tuple(map(float, values["spacing"])),
        normalization_schemes=tuple(values["normalization_schemes"]),
        previous_stage=values.get("previous_stage"),
        network_class=str(class_name),
        network=read_network(architecture["arch_kwargs"]) if ours else None,
        settings=Settings.from_plans(values.get(BLOCK, {})) if ours else None,
    )


def _require_octreenca(
    plans: JsonMapping, plans_file: Path | str, configuration: str | None
) -> None:
    """Plans of another network get the sentence that says so, whatever else they name."""
    configurations = plans.get("configurations")
    if not isinstance(configurations, Mapping) or configuration is None:
        return
    if configuration not in configurations:
        return
    try:
        values = inherited(configurations, configuration)
    except ValueError:
        return  # reported separately
    if other_network(values) is not None:
        try:
            octreenca_settings(
                values,
                configuration_name=configuration,
                plans_name=str(plans.get("plans_name"))[:80],
            )
        except PlansError as error:
            raise PlansError(f"{plans_file}: {error}") from error


def check_model(
    plans: JsonMapping,
    dataset_json: JsonMapping,
    plans_file: Path | str,
    dataset_file: Path | str,
    *,
    configuration: str | None = None,
    custom_names: bool = False,
) -> None:
    """Refuse plans.json or dataset.json of a model that cannot be followed.

    Args:
        plans, dataset_json: contents of the files.
        plans_file, dataset_file: where they are, for errors.
        configuration: the one that is used; faults of others are left. None checks what concerns
            the file as a whole.
        custom_names: as for `plans_faults`.

    Raises:
        InputError, PlansError: the first fault, of dataset.json or plans.json.
    """
    for fault in description_faults(dataset_json, dataset_file, custom_names=custom_names):
        raise InputError(fault)
    description = DatasetDescription.from_json(dataset_json, dataset_file, custom_names=True)
    _require_octreenca(plans, plans_file, configuration)
    for where, fault in plans_faults(plans, description, custom_names=custom_names):
        if where in ("", configuration):
            raise PlansError(f"{plans_file}: {fault}")
