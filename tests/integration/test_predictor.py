"""nnU-Net's predictor in one process: our networks in one pass, all others as ever."""

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_octreenca.errors import EnvironmentMismatchError, InputError
from nnunet_octreenca.inference import predict_logits
from nnunet_octreenca.inference.whole_image import LOGIT_BOUND
from nnunet_octreenca.integration import predictor as module


@pytest.fixture
def predictor_of(make_trainer):
    """A predictor with an untrained (but not silent) network."""

    def make(use_mirroring: bool = False, **options):
        trainer = make_trainer(**options)
        trainer.initialize()
        generator = torch.Generator().manual_seed(5)
        for level in trainer.network.levels:
            level.update.weight.data.normal_(0, 0.03, generator=generator)
        predictor = nnUNetPredictor(
            use_mirroring=use_mirroring, device=torch.device("cpu"), allow_tqdm=False
        )
        axes = tuple(range(trainer.network.dimension))
        predictor.manual_initialization(
            trainer.network,
            trainer.plans_manager,
            trainer.configuration_manager,
            [{k: v.clone() for k, v in trainer.network.state_dict().items()}],
            trainer.dataset_json,
            "OctreeNCATrainer",
            axes,
        )
        return predictor

    return make


@pytest.fixture(autouse=True)
def no_sliding_window(monkeypatch):
    def windows(*arguments, **options):
        raise AssertionError("a sliding window was used")

    monkeypatch.setattr(nnUNetPredictor, "_internal_predict_sliding_window_return_logits", windows)


PATCH = (8, 12, 10)


def surrounded(image, patch=PATCH):
    """The image amid zeros as nnU-Net pads it, and where it lies."""
    padded, box = pad_nd_image(image, patch, return_slicer=True)
    return padded, (slice(None), *box[1:])


@pytest.mark.parametrize("shape", [(8, 12, 10), (31, 5, 40), (1, 1, 1), (64, 3, 90), (7, 9, 10)])
def test_one_pass_whatever_the_size(predictor_of, shape):
    """The logits are the network's own, in float32; what is smaller than the patch is padded."""
    predictor = predictor_of()
    image = torch.randn(1, *shape)
    logits = predictor.predict_logits_from_preprocessed_data(image)
    padded, box = surrounded(image)
    with torch.no_grad():
        expected = predictor.network(padded[None], seed=0)[0][box]
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


def test_planes_of_a_2d_configuration(predictor_of):
    predictor = predictor_of(shape=(12, 10))
    image = torch.randn(1, 3, 25, 17)
    logits = predictor.predict_sliding_window_return_logits(image)
    with torch.no_grad():
        for plane in range(3):
            expected = predictor.network(image[None, :, plane], seed=0)[0]
            assert torch.equal(logits[:, plane], expected)


def test_mirroring_as_nnunet_asks(predictor_of):
    predictor = predictor_of(use_mirroring=True)
    image = torch.randn(1, 9, 12, 7)
    logits = predictor.predict_sliding_window_return_logits(image)
    image, box = surrounded(image)
    with torch.no_grad():
        total = 0
        for axes in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4]):
            one = predictor.network(image[None].flip(axes), seed=0).flip(axes)[0]
            total = total + one.clamp(-LOGIT_BOUND, LOGIT_BOUND)
    torch.testing.assert_close(logits.float(), (total / 8)[box], rtol=2e-3, atol=1e-4)
    single = predictor_of().predict_sliding_window_return_logits(image)[box]
    assert not torch.equal(logits, single)


def test_folds_are_averaged(predictor_of):
    predictor = predictor_of()
    first = predictor.list_of_parameters[0]
    second = {key: value * 0.5 for key, value in first.items()}
    image = torch.randn(1, 9, 12, 7)
    one = predictor.predict_logits_from_preprocessed_data(image).float()
    predictor.list_of_parameters = [second]
    other = predictor.predict_logits_from_preprocessed_data(image).float()
    predictor.list_of_parameters = [first, second]
    both = predictor.predict_logits_from_preprocessed_data(image).float()
    torch.testing.assert_close(both, (one + other) / 2, rtol=2e-3, atol=1e-3)


def test_seed_repeats_and_changes(predictor_of, monkeypatch):
    """The plans' seed, overruled by the environment variable; the same bits twice."""
    image = torch.randn(1, 9, 12, 7)

    def halved():
        predictor = predictor_of()
        predictor.network.fire_rate = 0.5
        return predictor

    plain = halved().predict_sliding_window_return_logits(image)
    assert torch.equal(plain, halved().predict_sliding_window_return_logits(image))
    monkeypatch.setenv(module.SEED_VARIABLE, "7")
    predictor = halved()
    seven = predictor.predict_sliding_window_return_logits(image)
    assert not torch.equal(plain, seven)
    assert torch.equal(seven, predict_logits(predictor.network, image, seed=7, context=PATCH))
    monkeypatch.setenv(module.SEED_VARIABLE, "seven")
    with pytest.raises(EnvironmentMismatchError, match="'seven'"):
        predictor.predict_sliding_window_return_logits(image)


def test_plans_seed(predictor_of):
    image = torch.randn(1, 9, 12, 7)
    predictor = predictor_of(seed=11)
    predictor.network.fire_rate = 0.5
    logits = predictor.predict_sliding_window_return_logits(image)
    assert torch.equal(logits, predict_logits(predictor.network, image, seed=11, context=PATCH))


def test_compiled_and_distributed_wrappers_are_seen_through(predictor_of):
    predictor = predictor_of()
    network = predictor.network
    assert module.unwrapped(torch.compile(network, backend="eager")) is network


def test_voxels_that_are_no_numbers(predictor_of):
    image = torch.randn(1, 9, 12, 7)
    image[0, 2, 3, 4] = float("nan")
    image[0, 2, 3, 5] = float("inf")
    with pytest.raises(InputError, match="2 voxels that are NaN or infinite"):
        predictor_of().predict_sliding_window_return_logits(image)


def test_channels_the_network_does_not_know(predictor_of):
    with pytest.raises(InputError, match=r"takes 1 channel.*\(1, 2, 9, 12, 10\)"):
        predictor_of().predict_sliding_window_return_logits(torch.randn(2, 9, 12, 10))


def test_install_twice_wraps_once():
    before = nnUNetPredictor.predict_sliding_window_return_logits
    module.install()
    assert nnUNetPredictor.predict_sliding_window_return_logits is before


def test_other_networks_go_nnunets_way(predictor_of, monkeypatch):
    """A U-Net's prediction reaches stock code, unchanged."""
    predictor = predictor_of()
    predictor.network = nn.Conv3d(1, 3, 1)
    reached = []

    def stock(self, data, slicers, do_on_device=True):
        reached.append(tuple(data.shape))
        return torch.zeros((3, *data.shape[1:]))

    monkeypatch.setattr(nnUNetPredictor, "_internal_predict_sliding_window_return_logits", stock)
    logits = predictor.predict_sliding_window_return_logits(torch.randn(1, 4, 12, 20))
    assert reached == [(1, 8, 12, 20)]  # padded to the patch, as stock does
    assert tuple(logits.shape) == (3, 4, 12, 20)


def test_empty_folder_and_missing_channel_are_named(predictor_of, tmp_path):
    predictor = predictor_of(channels=2)
    folder = tmp_path / "in"
    with pytest.raises(InputError, match="does not exist"):
        predictor._manage_input_and_output_lists(str(folder), str(tmp_path))
    folder.mkdir()
    with pytest.raises(InputError, match=r"no image named \*_0000\.nii\.gz"):
        predictor._manage_input_and_output_lists(str(folder), str(tmp_path))
    (folder / "a_0000.nii.gz").touch()
    with pytest.raises(InputError, match=r"2 channel\(s\) \(channel 0, channel 1\).*1 file"):
        predictor._manage_input_and_output_lists(str(folder), str(tmp_path))
    (folder / "a_0001.nii.gz").touch()
    lists = predictor._manage_input_and_output_lists(str(folder), str(tmp_path))
    assert [len(files) for files in lists[0]] == [2]


def test_numpy_way_of_the_python_predictor(predictor_of):
    """`predict_single_npy_array`: labels are the largest logit above 0, else background."""
    predictor = predictor_of()
    image = np.random.default_rng(0).normal(size=(1, 9, 12, 7)).astype(np.float32)
    labels = predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]})
    normalized = torch.from_numpy((image - image.mean()) / max(image.std(), 1e-8))
    logits = predict_logits(predictor.network, normalized, seed=0, context=PATCH)
    foreground = logits[1:].float()
    expected = torch.where(foreground.max(0).values > 0, foreground.argmax(0) + 1, 0)
    assert (torch.from_numpy(labels.astype(np.int64)) == expected).float().mean() > 0.999
    assert len(np.unique(labels)) == 3


def test_logits_beyond_float16_stay_as_they_are(predictor_of):
    """A logit of 10^6 is handed on, not as infinity."""
    predictor = predictor_of()
    for level in predictor.network.levels:  # every step adds 64 * 10^4 to every channel
        level.hidden.weight.data.zero_()
        level.hidden.bias.data.fill_(1e4)
        level.update.weight.data.fill_(1.0)
    image = torch.full((1, 1, 1, 1), 3.0)
    padded, box = surrounded(image)
    expected = predictor.network(padded[None], seed=0)[0][box]
    assert expected.abs().max() > 65504
    assert torch.equal(predictor.predict_sliding_window_return_logits(image), expected)
