"""Damaged files among sound ones, of every format that is read (benchmarks/damaged_inputs.py)."""

import logging
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import SimpleITK as sitk
from damaged_files import DAMAGES, FORMATS, Format, edited, flipped, noise
from damaged_inputs import FAULT, REFUSED, examine, models, table

from nnunet_octreenca import segment_file
from nnunet_octreenca.errors import InputError, OutOfMemoryError
from nnunet_octreenca.images import header_checks, pictures
from nnunet_octreenca.images.open_image import open_image

FEW = ("cut at 50% of the data", "data's last 64 bytes zero", "y times 0.5 in the header")
NAMES = [form.name for form in FORMATS]


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")
    caplog.set_level(logging.CRITICAL, "pydicom")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return models(tmp_path_factory.mktemp("models"))


def faults(outcomes):
    return [one for one in outcomes if one.outcome == FAULT]


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_a_few_damages(form: Format, networks, tmp_path):
    few = [damage for damage in DAMAGES if damage.name in FEW]
    outcomes = examine(replace(form, more=()), tmp_path, networks[form.model], few)
    assert not faults(outcomes)
    assert len(outcomes) == len(FEW)
    assert outcomes[0].outcome == REFUSED


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_every_damage(form: Format, networks, tmp_path):
    outcomes = examine(form, tmp_path, networks[form.model])
    assert not faults(outcomes)
    assert len(outcomes) == len(DAMAGES) + len(form.more) >= 40


def test_a_reader_that_compares_no_checksum_is_a_fault(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "require_whole_png", lambda path: None)
    few = [damage for damage in DAMAGES if damage.name in FEW]
    outcomes = examine(FORMATS[0], tmp_path, networks["flat"], few)
    (fault,) = faults(outcomes)
    assert (fault.damage, fault.said[:12]) == (FEW[1], "other labels")
    assert "| PNG | 3 | 2 | 0 | 0 | 1 |" in table(outcomes)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("the file is damaged"), "does not name the file"),
        (InputError("case00.png\nis damaged"), "this is no sentence"),
        (KeyError("size"), "KeyError: 'size'"),
    ],
)
def test_errors_that_are_no_sentences_are_faults(networks, tmp_path, monkeypatch, error, said):
    sound = pictures.require_deflated

    def require(path, promised, stored):
        if path.name == "case00.png":
            raise error
        sound(path, promised, stored)

    monkeypatch.setattr(pictures, "require_deflated", require)
    (damage,) = [damage for damage in DAMAGES if damage.name == "1 byte appended"]
    (outcome,) = examine(FORMATS[0], tmp_path, networks["flat"], [damage])
    assert outcome.outcome == FAULT
    assert said in outcome.said


@pytest.mark.parametrize("size", [1e-12, 1e9, 1e17])
@pytest.mark.parametrize("ending", [".nii", ".mha"])
def test_voxels_of_no_such_size(networks, tmp_path, size, ending):
    path = tmp_path / f"a{ending}"
    image = sitk.GetImageFromArray(np.ones((6, 7, 8), np.int16))
    image.SetSpacing((1, size, 1))
    sitk.WriteImage(image, str(path))
    with pytest.raises((InputError, OutOfMemoryError), match=r"check|free memory") as raised:
        segment_file(path, networks["deep"], mirror=False)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "seed", "edit"),
    [
        ("TIFF, strips", "20 flip", flipped),
        ("TIFF, pyramid of deflated tiles", "22 noise1", noise(1)),
        ("SVS, JPEG tiles", "15 noise2", noise(2)),
        ("DICOM series", "51 noise1", noise(1)),
        ("MP4, H.264", "10 noise1", noise(1)),
        ("Matroska, FFV1", "39 noise1", noise(1)),
    ],
)
def test_headers_that_made_libraries_raise_something(networks, tmp_path, name, seed, edit):
    (form,) = [form for form in FORMATS if form.name == name]
    path = tmp_path / f"a{form.ending}"
    form.write(path, 0)
    edited(0, edit)(form, path, Random(seed))
    with pytest.raises(InputError, match=path.name):
        segment_file(path, networks[form.model], mirror=False)


@pytest.mark.parametrize(
    "form",
    [form for form in FORMATS if form.ending not in (".mp4", ".mkv")],
    ids=lambda form: form.name,
)
def test_memory_is_asked_for_before_it_is_taken(form: Format, tmp_path, monkeypatch):
    """Videos are decoded to disk, whose room is asked for (tests/images/test_video.py)."""
    path = tmp_path / f"a{form.ending}"
    form.write(path, 0)
    monkeypatch.setattr(header_checks, "total_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"GB in memory and this machine has"):
        open_image(path)
