"""The way into nnU-Net's workers: a configuration manager that names our preprocessor.

nnU-Net asks its configuration manager for the preprocessor, and pickles it to every process that
needs one.
"""

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_octreenca.integration.preprocessor import OctreeNCAPreprocessor


class OctreeNCAConfigurationManager(ConfigurationManager):
    """nnU-Net's, with our preprocessor for the default one."""

    @property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        """Ours for nnU-Net's default; any other is left alone."""
        if self.preprocessor_name in ("DefaultPreprocessor", OctreeNCAPreprocessor.__name__):
            return OctreeNCAPreprocessor  # whether or not it is registered
        return super().preprocessor_class


def use_own_preprocessor(configuration_manager: ConfigurationManager) -> None:
    """Change the class of nnU-Net's own; a subclass of anybody else's stays what it is."""
    if type(configuration_manager) is ConfigurationManager:
        configuration_manager.__class__ = OctreeNCAConfigurationManager
