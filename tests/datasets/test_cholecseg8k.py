"""CholecSeg8k: clips as volumes or frames, classes, splits by video."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_octreenca.datasets.cholecseg8k import (
    ALL_CLASSES,
    cholec_classes,
    convert_cholecseg8k,
    find_clips,
    parse_split,
)
from nnunet_octreenca.datasets.frames import FrameLayout
from nnunet_octreenca.errors import InputError

SHAPE = (24, 42)
VALUES = np.array([50, 11, 21, 13, 12, 31, 23, 24, 25, 32, 22, 33, 5, 255], np.uint8)
ORIGINAL = FrameLayout(3, None, 80)


def frame(video: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng([video, number])
    return (
        generator.integers(0, 256, (*SHAPE, 3)).astype(np.uint8),
        VALUES[generator.integers(0, len(VALUES), SHAPE)],
    )


def write(folder: Path, video: int, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image, mask = frame(video, number)
        stem = folder / f"frame_{number}_endo"
        Image.fromarray(image).save(f"{stem}.png")
        Image.fromarray(np.repeat(mask[..., None], 3, 2)).save(f"{stem}_watershed_mask.png")
        # Also published, and not wanted.
        Image.fromarray(image).save(f"{stem}_color_mask.png")
        Image.fromarray(mask).save(f"{stem}_mask.png")


@pytest.fixture
def cholec(tmp_path) -> Path:
    """Four videos, one of them with two clips; names in the published layout."""
    folder = tmp_path / "CholecSeg8k"
    for video, first in ((1, 80), (1, 160), (12, 0), (9, 95), (20, 7)):
        write(
            folder / f"video{video:02d}/video{video:02d}_{first:05d}",
            video,
            range(first, first + 6),
        )
    return folder


def volume(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_clips_are_volumes_of_their_frames(cholec, tmp_path):
    target = tmp_path / "out"
    done = convert_cholecseg8k(cholec, target, layout=ORIGINAL, test=0.25, seed=1)
    assert (done.training + done.test, done.configuration) == (5, "3d_fullres")
    seen = 0
    for part in ("Tr", "Ts"):
        for path in (target / f"labels{part}").iterdir():
            name = path.name.removesuffix(".nii.gz")
            video, first = int(name[5:7]), int(name.split("_")[2])
            pairs = [frame(video, number) for number in range(first, first + 6)]
            images = np.stack([image for image, _ in pairs])
            masks = np.stack([mask for _, mask in pairs])
            for channel in range(3):
                written = volume(target / f"images{part}/{name}_{channel:04d}.nii.gz")
                assert np.array_equal(written, images[..., channel])
            expected = np.zeros_like(masks)
            for label, value in enumerate((11, 21, 13, 12, 22, 255), 1):
                expected[masks == value] = label
            assert np.array_equal(volume(path), expected)
            seen += 1
    assert seen == 5
    content = json.loads((target / "dataset.json").read_text())
    assert content["labels"]["ignore"] == 6
    assert content["channel_names"] == dict.fromkeys("012", "rgb_to_0_1")


def test_no_video_is_in_two_parts(cholec, tmp_path):
    target = tmp_path / "out"
    convert_cholecseg8k(cholec, target, layout=ORIGINAL, test=0.25, seed=1)
    videos = {
        part: {path.name[:7] for path in (target / f"labels{part}").iterdir()}
        for part in ("Tr", "Ts")
    }
    assert len(videos["Ts"]) == 1
    assert videos["Tr"].isdisjoint(videos["Ts"])
    splits = json.loads((target / "splits_final.json").read_text())
    assert len(splits) == 3
    cases = {path.name.removesuffix(".nii.gz") for path in (target / "labelsTr").iterdir()}
    for split in splits:
        assert set(split["train"]) | set(split["val"]) == cases
        assert {c[:7] for c in split["train"]}.isdisjoint(c[:7] for c in split["val"])


def test_all_classes_and_own(cholec, tmp_path):
    everything = cholec_classes("all")
    assert list(everything.labels) == ["background", *ALL_CLASSES, "ignore"]
    assert everything.apply(VALUES[None], "x").tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    ]
    own = cholec_classes("paper", {"tool": (31, 32), "liver": (21,)})
    assert own.labels == {"background": 0, "tool": 1, "liver": 2, "ignore": 3}
    expected = [{31: 1, 32: 1, 21: 2, 255: 3}.get(int(value), 0) for value in VALUES]
    assert own.apply(VALUES[None], "x").tolist() == [expected]
    with pytest.raises(InputError, match="has the value 99"):
        cholec_classes("paper", {"x": (99,)})
    with pytest.raises(InputError, match="'paper' or 'all'"):
        cholec_classes("some")


def test_frames_are_made_smaller_by_area_and_nearest(cholec, tmp_path):
    layout = FrameLayout(2, (21, 12))
    convert_cholecseg8k(cholec, tmp_path / "out", layout=layout, classes=cholec_classes("all"))
    paths = sorted((tmp_path / "out/labelsTr").iterdir())
    assert len(paths) == 6 * 4 or len(paths) == 6 * 3
    path = paths[0]
    name = path.stem
    image, mask = frame(int(name[5:7]), int(name.split("_")[2]))
    written = np.asarray(Image.open(tmp_path / f"out/imagesTr/{name}_0000.png")).astype(float)
    blocks = image.reshape(12, 2, 21, 2, 3).mean((1, 3))
    assert np.abs(written - blocks).max() <= 1  # rounded after rows and after columns
    labels = np.asarray(Image.open(path))
    four = np.stack([mask[dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)])
    expected = cholec_classes("all").apply(four.reshape(48, 21), "x").reshape(4, 12, 21)
    assert any(np.array_equal(labels, one) for one in expected)


def test_long_clips_and_gaps_are_cut(tmp_path):
    folder = tmp_path / "clip"
    write(folder, 3, range(5))
    write(folder, 3, range(9, 12))
    done = convert_cholecseg8k(folder, tmp_path / "out", layout=FrameLayout(3, None, 3))
    assert (done.training, done.test) == (3, 0)
    names = sorted(path.name for path in (tmp_path / "out/labelsTr").iterdir())
    assert names == ["clip_00000.nii.gz", "clip_00003.nii.gz", "clip_00009.nii.gz"]
    written = volume(tmp_path / "out/imagesTr/clip_00003_0001.nii.gz")
    assert np.array_equal(written, np.stack([frame(3, n)[0][..., 1] for n in (3, 4)]))
    assert any("optimistic" in note for note in done.notes)
    splits = json.loads((tmp_path / "out/splits_final.json").read_text())
    assert sorted(case for split in splits for case in split["val"]) == [n[:10] for n in names]


def test_frames_of_one_video_are_validated_in_stretches(tmp_path):
    write(tmp_path / "clip", 3, range(20))
    convert_cholecseg8k(tmp_path / "clip", tmp_path / "out", layout=FrameLayout(2, None))
    splits = json.loads((tmp_path / "out/splits_final.json").read_text())
    for split in splits:
        numbers = sorted(int(case.split("_")[1]) for case in split["val"])
        assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_temporal_split_of_one_clip(tmp_path):
    write(tmp_path / "clip", 3, range(561, 575))
    done = convert_cholecseg8k(
        tmp_path / "clip",
        tmp_path / "out",
        layout=ORIGINAL,
        temporal_split="561-568/571-574",
    )
    assert (done.training, done.test) == (1, 1)
    assert len(volume(tmp_path / "out/labelsTr/clip_00561.nii.gz")) == 8
    last = volume(tmp_path / "out/imagesTs/clip_00571_0002.nii.gz")
    assert np.array_equal(last[3], frame(3, 574)[0][..., 2])
    assert not (tmp_path / "out/splits_final.json").exists()
    assert any("`all`" in note for note in done.notes)
    assert any("optimistic" in note for note in done.notes)


def test_bad_input(cholec, tmp_path):
    mask = cholec / "video09/video09_00095/frame_97_endo_watershed_mask.png"
    good = mask.read_bytes()
    mask.unlink()
    with pytest.raises(InputError, match=r"frame_97_endo_watershed_mask\.png is missing"):
        convert_cholecseg8k(cholec, tmp_path / "out")
    Image.fromarray(np.full((24, 40), 50, np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"frame_97.* has 40 x 24 pixels, but its image 42 x 24"):
        convert_cholecseg8k(cholec, tmp_path / "out", test=0)
    Image.fromarray(np.full((24, 42), 99, np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"frame_97.* holds the value\(s\) 99"):
        convert_cholecseg8k(cholec, tmp_path / "out", test=0)
    mask.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=r"frame_97.* cannot be decoded"):
        convert_cholecseg8k(cholec, tmp_path / "out", test=0)
    mask.write_bytes(good)
    with pytest.raises(InputError, match="5 clips; a temporal split is for one"):
        convert_cholecseg8k(cholec, tmp_path / "other", temporal_split="1-2/3-4")
    for wrong in ("1-2", "5-2/6-7", "1-5/5-9", "a-b/c-d"):
        with pytest.raises(InputError, match="temporal split"):
            parse_split(wrong)
    with pytest.raises(InputError, match="no frame from 900 to 901"):
        convert_cholecseg8k(
            cholec / "video09/video09_00095", tmp_path / "other", temporal_split="95-96/900-901"
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds neither"):
        find_clips(tmp_path / "empty")


def test_the_real_clip(data_folder, tmp_path):
    source = data_folder("cholecseg8k_clip")
    clip = find_clips(source)
    assert [len(one.frames) for one in clip] == [73]  # the last without a mask
    done = convert_cholecseg8k(
        source,
        tmp_path / "out",
        layout=FrameLayout(3, (54, 30), 4),
        temporal_split="561-564/629-632",
    )
    assert (done.training, done.test) == (1, 1)
    labels = volume(tmp_path / f"out/labelsTr/{clip[0].name}_00561.nii.gz")
    assert labels.shape == (4, 30, 54)
    mask = np.asarray(Image.open(source / "frame_562_endo_watershed_mask.png"))[..., 0]
    rows = ((np.arange(30) + 0.5) * 480 / 30).astype(int)
    columns = ((np.arange(54) + 0.5) * 854 / 54).astype(int)
    nearest = cholec_classes().apply(mask[rows][:, columns], "x")
    assert (nearest == labels[1]).mean() > 0.98
