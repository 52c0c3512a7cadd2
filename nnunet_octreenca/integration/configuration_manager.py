"""The way into nnU-Net's workers: a configuration manager that names our own parts.

nnU-Net asks its configuration manager for the preprocessor and for the function that resamples a
prediction, and pickles it to every process that needs them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_octreenca.integration.label_prediction import LabelPrediction
from nnunet_octreenca.integration.preprocessor import OctreeNCAPreprocessor


class LeanConfigurationManager(ConfigurationManager):
    """nnU-Net's, with the lean preprocessor for the default one, and label maps let through."""

    @property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        """Ours for nnU-Net's default; any other is left alone."""
        if self.preprocessor_name in ("DefaultPreprocessor", OctreeNCAPreprocessor.__name__):
            return OctreeNCAPreprocessor  # whether or not it is registered
        return super().preprocessor_class

    @property
    def resampling_fn_probabilities(self) -> Callable[..., Any]:
        """nnU-Net's, but for label maps, which have their shape already."""
        return partial(_resampled, super().resampling_fn_probabilities)


def _resampled(stock: Callable[..., Any], prediction: Any, *arguments: Any, **options: Any) -> Any:
    if isinstance(prediction, LabelPrediction):
        return prediction.as_logits()
    return stock(prediction, *arguments, **options)


def make_lean(configuration_manager: ConfigurationManager) -> None:
    """Change the class of nnU-Net's own; a subclass of anybody else's stays what it is."""
    if type(configuration_manager) is ConfigurationManager:
        configuration_manager.__class__ = LeanConfigurationManager
