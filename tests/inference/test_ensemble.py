"""Passes added up in bands against the same passes over the whole image."""

import numpy as np
import pytest
import torch
from helpers.oracle import make_network

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.source import ArraySource
from nnunet_octreenca.inference.ensemble import Ensemble, Member
from nnunet_octreenca.inference.whole_image import LOGIT_BOUND, mirrorings, predict_logits


def networks(shape, count, **options):
    made = []
    for number in range(count):
        network, image = make_network(shape, **options)
        for parameter in network.parameters():
            parameter.data *= 1 + 0.2 * number
        made.append(network.requires_grad_(False).eval())
    return made, image[0].numpy()


def joined(results, axis):
    done, parts = 0, []
    for first, values in results:
        assert first == done
        done += values.shape[axis]
        parts.append(values)
    return np.concatenate(parts, axis)


@pytest.mark.parametrize(
    ("shape", "axes"), [((61, 20), ()), ((61, 20), (1,)), ((61, 20), (0, 1)), ((33, 6, 5), (0, 2))]
)
@pytest.mark.parametrize("band_rows", [8, 24, 1000])
def test_mean_over_networks_seeds_and_mirrored_copies(shape, axes, band_rows):
    made, image = networks(shape, 2)
    members = [Member(made[0], 0), Member(made[1], 0), Member(made[0], 7)]
    expected = np.zeros((3, *shape), np.float32)
    for chosen in mirrorings(axes):
        flips = [axis + 1 for axis in chosen]
        for network, seed in members:
            given = torch.from_numpy(np.flip(image, flips).copy())[None]
            own = np.flip(network(given, seed=seed)[0].numpy(), flips)
            expected += np.clip(own, -LOGIT_BOUND, LOGIT_BOUND) if axes else own
    expected /= len(members) * 2 ** len(axes)
    ensemble = Ensemble(members, mirror_axes=axes, band_rows=band_rows)
    assert ensemble.passes == len(members) * 2 ** len(axes)
    logits = joined(ensemble.logits(ArraySource(image)), 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    labels = joined(ensemble.segment(ArraySource(image)), 0)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, logits.argmax(0))


def test_a_mirrored_band_of_one_row_in_pytorch(monkeypatch):
    monkeypatch.setenv("OCTREENCA_ENGINE", "torch")
    (network,), image = networks((61, 20), 1)
    whole = predict_logits(network, torch.from_numpy(image)[:, None], mirror_axes=(0, 1))[:, 0]
    ensemble = Ensemble([Member(network, 0)], mirror_axes=(0, 1), band_rows=60)
    logits = joined(ensemble.logits(ArraySource(image)), 1)
    np.testing.assert_allclose(logits, whole.numpy(), rtol=2e-3, atol=2e-3)


def test_one_network_mirrored_gives_the_predictor_s_bits():
    """The order of the sum is that of `predict_logits`, so its bits are the same."""
    (network,), image = networks((61, 20), 1)
    whole = predict_logits(network, torch.from_numpy(image)[:, None], mirror_axes=(0, 1))[:, 0]
    ensemble = Ensemble([Member(network, 0)], mirror_axes=(0, 1), band_rows=8)
    logits = joined(ensemble.logits(ArraySource(image)), 1)
    assert np.array_equal(logits, whole.numpy())


@pytest.mark.parametrize("axes", [(), (0, 1)])
def test_members_added_up_are_the_bits_of_the_mean(axes):
    made, image = networks((61, 20), 2)
    members = [Member(network, seed) for network in made for seed in (0, 1, 5)]
    ensemble = Ensemble(members, mirror_axes=axes, band_rows=8)
    rows = []
    each = joined(
        ensemble.logits_of_members(ArraySource(image), progress=lambda *about: rows.append(about)),
        2,
    )
    total = each[0].copy()
    for one in each[1:]:
        total += one
    mean = joined(ensemble.logits(ArraySource(image)), 1)
    assert np.array_equal(total / np.float32(ensemble.passes), mean)
    alone = Ensemble([members[2]], mirror_axes=axes, band_rows=8)
    assert np.array_equal(
        each[2] / np.float32(alone.passes), joined(alone.logits(ArraySource(image)), 1)
    )
    assert sum(count for stage, count in rows if stage == "segment") == 61


def test_members_on_glass_are_sure_of_the_background():
    (network,), _ = networks((64, 20), 1)
    image = np.full((3, 64, 20), 0.9, np.float32)
    ensemble = Ensemble([(network, 0), (network, 1)], mirror_axes=(1,))
    values = joined(ensemble.logits_of_members(ArraySource(image), tissue=True), 2)
    assert values.shape == (2, 3, 64, 20)
    assert (values[:, 0] == 0).all()
    assert (values[:, 1:] == -2).all()  # -1 in each of two mirrored copies


def test_a_single_pass_gives_labels_and_progress():
    (network,), image = networks((61, 20), 1)
    seen = {"read": 0, "segment": 0}

    def progress(stage, rows):
        seen[stage] += rows

    ensemble = Ensemble([Member(network, 3)], band_rows=8)
    labels = joined(ensemble.segment(ArraySource(image), progress=progress), 0)
    whole = network.segment(torch.from_numpy(image)[None], seed=3)[0].numpy()
    assert np.array_equal(labels, whole)
    assert seen == {"read": 61, "segment": 61}


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_bands_without_tissue_are_left_out(seeds):
    """Glass is grey; the bands that are computed have the labels of the whole."""
    (network,), _ = networks((128, 20), 1)
    rng = np.random.default_rng(0)
    image = np.full((3, 128, 20), 0.9, np.float32)
    image += rng.normal(0, 0.005, image.shape[1:]).astype(np.float32)
    image[0, 40:50, 3:14] -= 0.5
    members = [Member(network, seed) for seed in seeds]
    ensemble = Ensemble(members, band_rows=16)
    whole = joined(ensemble.segment(ArraySource(image)), 0)
    reads = []

    class Counted(ArraySource):
        def read(self, first, end):
            reads.append((first, end))
            return super().read(first, end)

    some = joined(ensemble.segment(Counted(image), tissue=True), 0)
    assert np.array_equal(some[32:64], whole[32:64])
    assert whole[:32].any()
    assert not some[:32].any()
    assert not some[64:].any()
    assert max(end for _, end in reads[8:]) < 128


def test_a_slide_of_glass_has_no_tissue():
    (network,), _ = networks((64, 20), 1)
    image = np.full((3, 64, 20), 0.9, np.float32)
    image[1] += np.random.default_rng(0).normal(0, 0.001, image.shape[1:]).astype(np.float32)
    labels = joined(Ensemble([Member(network, 0)]).segment(ArraySource(image), tissue=True), 0)
    assert labels.shape == (64, 20)
    assert not labels.any()


@pytest.mark.parametrize(("axes", "times"), [((), 1), ((1,), 1), ((0, 1), 2)])
def test_the_first_reading_is_done_once_in_each_direction(axes, times):
    (network,), image = networks((61, 20), 1)
    seen = []

    class Counted(ArraySource):
        def read(self, begin, end):
            seen.append(end - begin)
            return super().read(begin, end)

    ensemble = Ensemble([Member(network, 0), Member(network, 1)], mirror_axes=axes, band_rows=8)
    first_reading = []

    def progress(stage, rows):
        if stage == "read":
            first_reading.append(sum(seen))

    list(ensemble.segment(Counted(image), progress=progress))
    assert first_reading[-1] == 61 * times


def test_damaged_weights_are_named():
    (network,), image = networks((61, 20), 1)
    network.levels[0].update.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"97.5 % of the cells on level 0 .* another checkpoint"):
        joined(Ensemble([Member(network, 0)]).logits(ArraySource(image)), 1)


def test_networks_alone_draw_with_their_own_seed():
    (network,), image = networks((61, 20), 1)
    network.seed = 5
    alone, pair = Ensemble([network]), Ensemble([(network, 5)])
    labels = joined(alone.segment(ArraySource(image)), 0)
    assert np.array_equal(labels, joined(pair.segment(ArraySource(image)), 0))
    other = joined(Ensemble([(network, 6)]).segment(ArraySource(image)), 0)
    assert not np.array_equal(labels, other)


@pytest.mark.parametrize(("members", "rows"), [(0, 8), (1, 0)])
def test_nothing_to_run_is_refused(members, rows):
    made, _ = networks((61, 20), 1)
    with pytest.raises(ValueError, match="give 1 or more"):
        Ensemble(made[:members], band_rows=rows)
