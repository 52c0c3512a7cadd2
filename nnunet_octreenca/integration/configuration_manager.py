"""A configuration manager that hands our preprocessor to nnU-Net's worker processes.

nnU-Net asks its configuration manager for the preprocessor, and pickles it to every process that
needs one.
"""

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.integration.preprocessor import OctreeNCAPreprocessor


class OctreeNCAConfigurationManager(ConfigurationManager):
    """nnU-Net's configuration manager with our preprocessor in place of the default."""

    @property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        """Ours instead of nnU-Net's default; any other preprocessor is kept."""
        if self.preprocessor_name in ("DefaultPreprocessor", OctreeNCAPreprocessor.__name__):
            return OctreeNCAPreprocessor  # whether or not it is registered
        return super().preprocessor_class


def require_configuration(manager: PlansManager, configuration: str) -> None:
    """Compare a name with the plans' configurations.

    Raises:
        PlansError: they have none of that name.
    """
    if configuration not in manager.available_configurations:
        raise PlansError(
            f"plans {manager.plans_name!r} have no configuration {configuration!r}; they have "
            f"{', '.join(manager.available_configurations)}"
        )


def use_own_preprocessor(configuration_manager: ConfigurationManager) -> None:
    """Change the class of a stock manager in place; third-party subclasses are left alone."""
    if type(configuration_manager) is ConfigurationManager:
        configuration_manager.__class__ = OctreeNCAConfigurationManager
