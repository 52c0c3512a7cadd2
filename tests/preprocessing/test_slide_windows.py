"""Windows drawn from slides: the octree's own crops, mirrored places, foreground."""

import numpy as np
import pytest
import torch
from helpers.tiny_slides import halved, picture, write_pyramid

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.pyramid import SlideRegions
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Crop
from nnunet_octreenca.preprocessing.slide_windows import (
    Sample,
    SlideCase,
    WindowBatch,
    change_colours,
    draw_origin,
    mirror,
    read_sample,
)

FACTORS = [(2, 2), (2, 2), (2, 2)]
PATCH = (32, 32)


def make_case(folder, image, labels, levels=1, downsample=1.0, locations=None) -> SlideCase:
    write_pyramid(folder / "slide.tif", [image, *(halved(image, n) for n in range(1, levels))])
    write_pyramid(folder / "labels.tif", [labels])
    return SlideCase(
        "slide",
        folder / "slide.tif",
        folder / "labels.tif",
        downsample,
        labels.shape,
        locations or {},
    )


def read(case: SlideCase, origin: tuple[int, int]) -> Sample:
    with SlideRegions(case.image) as slide, SlideRegions(case.label) as labels:
        return read_sample(case, slide, labels, factors=FACTORS, patch=PATCH, origin=origin)


def labels_of(image: np.ndarray) -> np.ndarray:
    return (image[..., 0] > 150).astype(np.uint8)


@pytest.mark.parametrize("origin", [(0, 0), (61, 40), (105, 168)])
@pytest.mark.parametrize("shape", [(137, 200), (140, 203)])
def test_a_slides_windows_give_what_the_whole_slide_gives(tmp_path, shape, origin):
    """Read from the file and computed, a patch has the logits of `forward` with that crop."""
    image = picture(*shape)
    case = make_case(tmp_path, image, labels_of(image))
    network = OctreeNCA(3, 2, dimension=2, factors=FACTORS, steps=[2, 2, 2, 3])
    for level in network.levels:
        torch.nn.init.normal_(level.update.weight, std=0.1)
    whole = torch.from_numpy(image).movedim(-1, 0)[None] / 255
    expected = network(whole, seed=3, crop=Crop(PATCH, 4), origins=[origin])
    sample = read(case, origin)
    (images, origins), *others = WindowBatch([sample]).parts
    assert others == []
    assert torch.allclose(network.forward_windows(images, origins, seed=3), expected, atol=1e-4)
    y, x = origin
    assert np.array_equal(sample.target, labels_of(image)[y : y + 32, x : x + 32])
    # Level 2 is seen whole one way, as it has fewer cells than a window.
    assert [one.shape[1:] for one in sample.images] == [
        (32, 32),
        (32, 32),
        (32, 32),
        (18, 26 if shape[1] > 200 else 25),
    ]


def test_coarse_windows_come_from_the_slides_pyramid(tmp_path):
    """Worked at level 1: level 0's window is the file's level 1, level 2's the file's level 3."""
    image = picture(512, 640)
    labels = labels_of(halved(image))
    write_pyramid(tmp_path / "slide.tif", [image, halved(image), 255 - halved(image, 3)])
    write_pyramid(tmp_path / "labels.tif", [labels])
    case = SlideCase("s", tmp_path / "slide.tif", tmp_path / "labels.tif", 2.0, labels.shape, {})
    sample = read(case, (100, 101))
    pixels = [halved(image), None, 255 - halved(image, 3)]
    for level in (0, 2):
        y, x = sample.origins[level]
        window = np.moveaxis(pixels[level][y : y + 32, x : x + 32], -1, 0)
        assert np.allclose(sample.images[level], window / np.float32(255))
    y, x = sample.origins[1]
    twice = halved(image)[2 * y :, 2 * x :][:64, :64].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.allclose(sample.images[1], np.moveaxis(twice, -1, 0) / 255, atol=1e-6)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_mirroring_is_that_of_the_slide(tmp_path, axes):
    """A mirrored sample is what is read at the mirrored place of the mirrored slide."""
    image = picture(160, 256)
    case = make_case(tmp_path / "a", image, labels_of(image))
    flipped = np.flip(image, axes).copy()
    other = make_case(tmp_path / "b", flipped, labels_of(flipped))
    origin = (37, 201)
    there = tuple(
        n - 32 - o if axis in axes else o
        for axis, (n, o) in enumerate(zip(case.shape, origin, strict=True))
    )
    ours, expected = mirror(read(case, origin), axes, case.shape, FACTORS), read(other, there)
    assert np.array_equal(ours.target, expected.target)
    assert ours.origins[0] == expected.origins[0] == there
    # Coarser windows are centred up to a cell, which is to the same side before and after: compare
    # what both see.
    for level in range(4):
        mine, theirs = ours.images[level], expected.images[level]
        first = np.maximum(ours.origins[level], expected.origins[level])
        shared = 30
        parts = [
            one[:, dy : dy + shared, dx : dx + shared]
            for one, (dy, dx) in (
                (mine, first - ours.origins[level]),
                (theirs, first - expected.origins[level]),
            )
        ]
        assert np.allclose(parts[0][:, :16, :16], parts[1][:, :16, :16], atol=1e-6)


@pytest.mark.parametrize("shape", [(137, 203), (160, 256), (36, 33)])
def test_mirrored_windows_nest(tmp_path, shape):
    image = picture(*shape)
    case = make_case(tmp_path, image, labels_of(image))
    network = OctreeNCA(3, 2, dimension=2, factors=FACTORS, steps=[1, 1, 1, 1])
    generator = np.random.default_rng(0)
    for axes in ((0,), (1,), (0, 1)):
        for _ in range(5):
            origin = draw_origin(case, PATCH, False, generator)
            (images, origins), *_ = WindowBatch(
                [mirror(read(case, origin), axes, case.shape, FACTORS)]
            ).parts
            network.forward_windows(images, origins, seed=0)  # raises where they do not nest


def test_brightness_is_the_same_on_every_level(tmp_path):
    image = picture(160, 256)
    case = make_case(tmp_path, image, labels_of(image))
    sample = read(case, (50, 60))
    generator = np.random.default_rng(0)
    changed = 0
    for _ in range(40):
        other = change_colours(sample, generator)
        assert other.target is sample.target
        scale = (other.images[0][:, 0, 0] - other.images[0][:, 5, 9]) / (
            sample.images[0][:, 0, 0] - sample.images[0][:, 5, 9]
        )
        shift = other.images[0][:, 0, 0] - scale * sample.images[0][:, 0, 0]
        for mine, theirs in zip(other.images, sample.images, strict=True):
            expected = theirs * scale[:, None, None] + shift[:, None, None]
            assert np.allclose(mine, expected, atol=1e-4)
            assert mine.dtype == np.float32
        changed += not np.array_equal(other.images[0], sample.images[0])
    assert 3 <= changed <= 25  # 28 % on average


def test_foreground_is_in_the_patch_and_labels_are_drawn_alike_often(tmp_path):
    labels = np.zeros((137, 203), np.uint8)
    labels[0, 0], labels[90:130, 20:200] = 2, 1
    places = {1: np.argwhere(labels == 1).tolist()[::50], 2: [[0, 0]]}
    case = make_case(tmp_path, picture(137, 203), labels, locations=places)
    generator = np.random.default_rng(0)
    origins = [draw_origin(case, PATCH, True, generator) for _ in range(200)]
    assert 70 < origins.count((0, 0)) < 130
    for y, x in origins:
        assert 0 <= y <= 105
        assert 0 <= x <= 171
        assert labels[y : y + 32, x : x + 32].any()
    anywhere = {draw_origin(case, PATCH, False, generator) for _ in range(200)}
    assert len(anywhere) > 190


def test_a_batch_is_put_together_in_its_order():
    def sample(size: int, value: float) -> Sample:
        image = np.full((3, 4, 4), value, np.float32)
        coarse = np.full((3, size, 2), value, np.float32)
        return Sample([image, coarse], [(0, 0), (int(value), 0)], np.zeros((4, 4), np.int16))

    batch = WindowBatch([sample(2, 1), sample(2, 2), sample(3, 3), sample(2, 4)])
    assert [[one[0, 0, 0, 0].item(), len(one)] for (one, _), _ in batch.parts] == [
        [1, 2],
        [3, 1],
        [4, 1],
    ]
    assert [origins[1] for _, origins in batch.parts] == [[(1, 0), (2, 0)], [(3, 0)], [(4, 0)]]
    moved = batch.to("cpu")
    assert torch.equal(moved.parts[0][0][1], batch.parts[0][0][1])


def test_a_case_is_what_it_was_saved_as(tmp_path):
    case = SlideCase("a", tmp_path / "a.svs", tmp_path / "a.tif", 2.0, (7, 9), {1: [[3, 4]]})
    case.save(tmp_path / "a.json")
    assert SlideCase.load(tmp_path / "a.json") == case
    (tmp_path / "b.json").write_text('{"name": "b"}')
    with pytest.raises(InputError, match=r"b\.json describes no slide .*convert the slides again"):
        SlideCase.load(tmp_path / "b.json")
