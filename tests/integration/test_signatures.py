"""Releases of nnU-Net that changed what we wrap are refused."""

import pytest
from nnunetv2.inference import data_iterators
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.integration import predictor
from nnunet_octreenca.integration.signatures import require_known_signatures


def test_the_installed_release_is_known():
    require_known_signatures()


def renamed(self, image):
    """Its parameter was input_image."""


def longer(self, input_image, tiles=3):
    """A new option that our wrapper would swallow."""


def exports(self, data_iterator, save_probabilities=False, processes=3, more=4):
    """What follows is passed on."""


@pytest.mark.parametrize(
    ("owner", "name", "other", "words"),
    [
        (nnUNetPredictor, "predict_sliding_window_return_logits", renamed, "takes .self, image."),
        (nnUNetPredictor, "predict_sliding_window_return_logits", longer, "input_image, tiles"),
        (nnUNetPredictor, "predict_logits_from_preprocessed_data", None, "is gone"),
        (stock.nnUNetTrainer, "train_step", lambda self, batch, number: None, "batch, number"),
        (stock.nnUNetTrainer, "get_dataloaders", lambda self, workers=1: None, "self, workers"),
        (DefaultPreprocessor, "run_case", lambda self, files: None, "self, files"),
        (stock, "save_json", lambda obj, file: None, "obj, file"),
        (stock, "multiprocessing", None, "is gone"),
        (data_iterators, "sleep", None, "is gone"),
    ],
)
def test_a_changed_function_is_refused(monkeypatch, owner, name, other, words):
    if other is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, other)
    called = rf"{owner.__name__.rpartition('.')[2]}\.{name} .*{words}"
    with pytest.raises(
        EnvironmentMismatchError, match=rf"differs from 2\.8.*{called}.*pip install"
    ):
        predictor.install()


def test_what_is_passed_on_may_grow(monkeypatch):
    monkeypatch.setattr(nnUNetPredictor, "predict_from_data_iterator", exports)
    require_known_signatures()


def test_nothing_is_wrapped_in_a_release_that_is_not_known(monkeypatch):
    wrapped = []
    monkeypatch.setattr(predictor, "wrap_method", lambda name, make: wrapped.append(name))
    monkeypatch.delattr(DefaultPreprocessor, "run_case")
    with pytest.raises(EnvironmentMismatchError):
        predictor.install()
    assert wrapped == []
