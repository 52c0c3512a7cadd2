"""Windows of the levels instead of a whole image: the same logits, and gradients."""

import pytest
import torch

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Crop, image_pyramid, windows
from nnunet_octreenca.ops.native import cpu_module

FACTORS = [(2, 2), (2, 2), (2, 2)]
SHAPE = (75, 102)
CROP = Crop((16, 20), 4)


@pytest.fixture
def network() -> OctreeNCA:
    torch.manual_seed(0)
    network = OctreeNCA(3, 3, dimension=2, factors=FACTORS, steps=[3, 2, 3, 4])
    for level in network.levels:
        torch.nn.init.normal_(level.update.weight, std=0.2)
    return network


def cut(image: torch.Tensor, crop: Crop, origins: list) -> tuple[list, list]:
    boxes = windows(image.shape[2:], FACTORS, crop, origins)
    images = [
        torch.stack(
            [
                level[sample, :, y : y + box.shape[0], x : x + box.shape[1]]
                for sample, (y, x) in enumerate(box.origins)
            ]
        )
        for level, box in zip(image_pyramid(image, FACTORS), boxes, strict=True)
    ]
    return images, [box.origins for box in boxes]


@pytest.mark.parametrize(
    "engine",
    [
        "torch",
        pytest.param(
            "cpu", marks=pytest.mark.skipif(cpu_module() is None, reason="C++ is not built")
        ),
    ],
)
@pytest.mark.parametrize("crop", [CROP, Crop((200, 200), 4), Crop((16, 20), 2)])
def test_windows_of_an_image_give_what_the_image_gives(network, monkeypatch, engine, crop):
    monkeypatch.setenv("OCTREENCA_ENGINE", engine)
    image = torch.rand(3, 3, *SHAPE, generator=torch.Generator().manual_seed(1))
    places = [(0, 0), (59, 82), (31, 7)] if crop.shape == (16, 20) else [(0, 0)] * 3
    images, origins = cut(image, crop, places)
    whole = network(image, seed=5, crop=crop, origins=places)
    assert torch.equal(network.forward_windows(images, origins, seed=5), whole)
    assert not torch.equal(network.forward_windows(images, origins, seed=6), whole)
    # A place of its own draws otherwise.
    moved = [[(y + 8 // 2**level, x) for y, x in firsts] for level, firsts in enumerate(origins)]
    assert not torch.equal(network.forward_windows(images, moved, seed=5), whole)


def test_gradients_are_those_of_the_image(network):
    image = torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(1))
    places = [(3, 80), (40, 11)]
    images, origins = cut(image, CROP, places)

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        network.zero_grad()
        logits.square().sum().backward()
        return [p.grad.clone() for p in network.parameters()]

    ours = gradients(network.forward_windows(images, origins, seed=2))
    whole = gradients(network(image, seed=2, crop=CROP, origins=places))
    assert all(grad.abs().sum() > 0 for grad in ours)
    for one, other in zip(ours, whole, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_wrong_windows(network):
    images, origins = cut(torch.rand(1, 3, *SHAPE), CROP, [(8, 8)])
    with pytest.raises(ValueError, match="3 images and 4 rows of origins were given for 4 levels"):
        network.forward_windows(images[1:], origins)
    with pytest.raises(ValueError, match="have parents"):
        network.forward_windows(images, [*origins[:2], ((30, 40),), origins[3]])
    with pytest.raises(InputError, match="takes 3 channel"):
        network.forward_windows([images[0][:, :1], *images[1:]], origins)
