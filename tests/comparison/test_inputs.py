"""What is compared is found, read as other programs write it, and refused where it is doubtful."""

import numpy as np
import pytest
from helpers.predicted_folders import DATASET, make_folders, save
from PIL import Image

from nnunet_octreenca.comparison.inputs import find_inputs
from nnunet_octreenca.comparison.label_maps import read_label_map
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import write_json


@pytest.fixture
def folders(tmp_path):
    return make_folders(tmp_path, cases=2)


def one(folders):
    return next(iter(folders[1].values())) / "case_1.nii.gz"


def test_cases_in_natural_order_with_classes_of_the_truth(tmp_path):
    truth, methods = make_folders(tmp_path, cases=11)
    (truth / "notes.txt").write_text("no label map")
    (methods["A"] / "plans.json").write_text("{}")
    found = find_inputs(truth, methods)
    assert found.cases[1:3] == ("case_1", "case_2")
    assert found.cases[-1] == "case_10"
    assert found.classes == {"1": (1,), "2": (2,)}
    assert found.kind == "3-D volume"
    assert found.units == {"length": "mm", "volume": "ml"}
    assert found.predictions["B"][10] == methods["B"] / "case_10.nii.gz"


def test_names_regions_and_ignored_pixels_of_dataset_json(tmp_path, folders):
    write_json(
        tmp_path / "d.json",
        {**DATASET, "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
         "regions_class_order": [1, 2]},
    )  # fmt: skip
    labels = np.zeros((8, 24, 22), np.uint8)
    labels[2], labels[3], labels[4] = 1, 2, 3
    save(labels, folders[0] / "case_0.nii.gz")
    found = find_inputs(*folders, labels=tmp_path / "d.json")
    assert found.classes == {"whole": (1, 2), "core": (2,)}
    assert found.ignored == 3
    assert found.mask(labels, "whole", labels).any((1, 2)).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    full = np.full_like(labels, 2)
    assert found.mask(full, "core", labels).all((1, 2)).tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    # A prediction has nothing to ignore.
    save(labels, one(folders))
    with pytest.raises(InputError, match=r"the prediction of A for case_1 holds label 3, which"):
        find_inputs(*folders, labels=tmp_path / "d.json")


def test_groups(folders):
    assert find_inputs(*folders).groups == ("case_0", "case_1")
    assert find_inputs(*folders, group_by="^[a-z]+").groups == ("case", "case")
    assert find_inputs(*folders, group_by="_([0-9])").groups == ("0", "1")
    with pytest.raises(InputError, match=r"--group-by '_\(0\)' finds no patient .* case_1"):
        find_inputs(*folders, group_by="_(0)")
    with pytest.raises(InputError, match=r"'\(' is no regular expression: missing \)"):
        find_inputs(*folders, group_by="(")


def test_images(tmp_path):
    truth, methods = make_folders(tmp_path, cases=2, images=True)
    found = find_inputs(truth, methods, images=tmp_path / "images")
    assert [image.name for image in found.images] == ["case_0_0000.nii.gz", "case_1_0000.nii.gz"]
    image = tmp_path / "images" / "case_1_0000.nii.gz"
    save(np.zeros((8, 24, 9), np.int16), image)
    with pytest.raises(InputError, match=r"of case_1 has 8 x 24 x 9 pixels and its truth 8 x 24 x"):
        find_inputs(truth, methods, images=tmp_path / "images")
    image.unlink()
    with pytest.raises(InputError, match="holds no image of case case_1"):
        find_inputs(truth, methods, images=tmp_path / "images")


def test_other_lists_of_cases(folders):
    truth, methods = folders
    spare = methods["A"] / "case_2.nii.gz"
    one(folders).rename(spare)
    with pytest.raises(InputError, match=r"A lacks 1 of the truth's 2 cases in .*: case_1; "):
        find_inputs(truth, methods)
    one(folders).write_bytes(spare.read_bytes())
    with pytest.raises(InputError, match=r"A has 1 cases in .* lacks: case_2; "):
        find_inputs(truth, methods)


def test_missing_and_empty_folders(tmp_path, folders):
    truth, methods = folders
    for wrong in ({"A": tmp_path / "none"}, {**methods, "C": tmp_path / "none"}):
        with pytest.raises(InputError, match=r"the folder .*none does not exist"):
            find_inputs(truth, wrong)
    with pytest.raises(InputError, match=r"the folder .*none does not exist"):
        find_inputs(tmp_path / "none", methods)
    with pytest.raises(InputError, match=r"the folder .*none does not exist"):
        find_inputs(truth, methods, images=tmp_path / "none")
    with pytest.raises(InputError, match=r"none.json does not exist"):
        find_inputs(truth, methods, labels=tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no label maps; they end in \.nii\.gz"):
        find_inputs(truth, {"A": tmp_path / "empty"})


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x07"])
def test_names_that_cannot_be_shown(folders, name):
    with pytest.raises(InputError, match="cannot be shown"):
        find_inputs(folders[0], {name: folders[1]["A"]})


def test_labels_of_no_class(folders):
    labels = np.full((8, 24, 22), 255, np.uint8)
    save(labels, one(folders))
    with pytest.raises(InputError, match=r"A for case_1 holds label 255, .*labels are 0, 1, 2"):
        find_inputs(*folders)
    for file in folders[0].iterdir():
        save(labels * 0, file)
    save(labels * 0, one(folders))
    with pytest.raises(InputError, match="holds label 1, which the truth has nowhere"):
        find_inputs(*folders)


def test_truth_without_foreground(folders):
    for folder in (folders[0], *folders[1].values()):
        for file in folder.iterdir():
            save(np.zeros((8, 24, 22), np.uint8), file)
    with pytest.raises(InputError, match="background only"):
        find_inputs(*folders)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"spacing": (0.8, 0.8, 3)}, r"spacing \(0.8, 0.8, 3\) and its truth \(0.8, 0.8, 2.5\)"),
        ({"origin": (0, 5, 0)}, r"origin \(0, 5, 0\) and its truth \(0, 0, 0\)"),
        ({"direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}, r"direction \(-1, 0, 0, .*truth \(1, 0"),
    ],
)
def test_another_geometry(folders, change, sentence):
    save(np.ones((8, 24, 22), np.uint8), one(folders), **change)
    with pytest.raises(InputError, match=f"the prediction of A for case_1 has {sentence}"):
        find_inputs(*folders)


def test_another_spacing_across_a_single_plane(tmp_path):
    for name, spacing in (("t", 2.5), ("p", 3.0)):
        (tmp_path / name).mkdir()
        plane = np.ones((1, 4, 4), np.uint8)
        save(plane, tmp_path / name / "a.nii.gz", spacing=(1, 1, spacing))
    with pytest.raises(InputError, match="spacing"):
        find_inputs(tmp_path / "t", {"P": tmp_path / "p"})


def test_geometry_but_for_rounding_and_another_format(folders):
    labels = read_label_map(one(folders)).labels
    one(folders).unlink()
    save(labels, one(folders).with_name("case_1.nrrd"), spacing=(0.80001, 0.8, 2.5))
    assert find_inputs(*folders).predictions["A"][1].name == "case_1.nrrd"


def test_another_shape(folders):
    save(np.ones((8, 24, 21), np.uint8), one(folders))
    with pytest.raises(InputError, match=r"A for case_1 has 8 x 24 x 21 .* truth 8 x 24 x 22"):
        find_inputs(*folders)


def test_two_files_of_one_case(folders):
    save(np.ones((8, 24, 22), np.uint8), one(folders).with_name("case_1.nrrd"))
    assert find_inputs(*folders).predictions["A"][1].name == "case_1.nii.gz"
    one(folders).unlink()
    save(np.ones((8, 24, 22), np.uint8), one(folders).with_name("case_1.mha"))
    with pytest.raises(InputError, match=r"A has case_1\.mha and case_1\.nrrd in .* for one case"):
        find_inputs(*folders)
    save(np.ones((8, 24, 22), np.uint8), folders[0] / "case_0.nrrd")
    with pytest.raises(InputError, match="two truths of one case"):
        find_inputs(*folders)


def picture(path, pixels, **options):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_pictures_and_what_is_none(tmp_path):
    labels = np.zeros((9, 7), np.uint8)
    labels[2:5] = 3
    picture(tmp_path / "t" / "a.png", labels)
    coloured = Image.fromarray(labels)
    coloured.putpalette([n for label in range(256) for n in (label, 255 - label, 7)])
    (tmp_path / "p").mkdir()
    coloured.save(tmp_path / "p" / "a.png")  # numbers of a palette are labels
    picture(tmp_path / "q" / "a.tif", labels)
    methods = {"palette": tmp_path / "p", "TIFF": tmp_path / "q"}
    found = find_inputs(tmp_path / "t", methods)
    assert found.kind == "2-D picture"
    assert found.units == {"length": "px", "volume": "px"}
    for (file,) in found.predictions.values():
        assert np.array_equal(read_label_map(file).labels, labels)
    picture(tmp_path / "p" / "a.png", np.zeros((9, 7, 3), np.uint8))
    with pytest.raises(InputError, match=r"a.png has 3 channels and is no label map"):
        find_inputs(tmp_path / "t", methods)


def test_what_predict_writes(tmp_path):
    """Pyramids, palettes and frames as our own writers make them."""
    from nnunet_octreenca.labels.png import write_frame_pngs, write_label_picture
    from nnunet_octreenca.labels.tiff import write_label_tiff

    labels = np.random.default_rng(0).integers(0, 4, (700, 600)).astype(np.uint8)
    names = {1: "a", 2: "b", 3: "c"}
    write_label_tiff(labels, tmp_path / "a.ome.tif", names=names, mpp=0.5)
    write_label_picture(labels, tmp_path / "a.png")
    for name in ("a.ome.tif", "a.png"):
        found = read_label_map(tmp_path / name)
        assert np.array_equal(found.labels, labels)
        assert found.kind == "2-D picture"
    clip = labels[:600].reshape(3, 200, 600)
    write_frame_pngs(clip, tmp_path / "clip_frames", names=names)
    write_label_tiff(clip, tmp_path / "clip.ome.tif", names=names, axes="TYX")
    for name in ("clip_frames", "clip.ome.tif"):
        assert np.array_equal(read_label_map(tmp_path / name, video=True).labels, clip)


def test_kinds_are_not_mixed(folders):
    for folder in (folders[0], *folders[1].values()):
        picture(folder / "x.png", np.ones((4, 4), np.uint8))
    with pytest.raises(InputError, match="mixes kinds: case_0 is a 3-D volume and x a 2-D picture"):
        find_inputs(*folders)


def test_values_that_are_no_labels(tmp_path):
    path = tmp_path / "a.nrrd"
    import SimpleITK as sitk

    def write(values):
        sitk.WriteImage(sitk.GetImageFromArray(np.asarray(values)), path)

    write(np.array([[[0.0, 2.0]]], np.float32))
    assert read_label_map(path).labels.tolist() == [[[0, 2]]]
    write(np.array([[[0.0, 0.5]]], np.float32))
    with pytest.raises(InputError, match=r"holds 0.5 and is no label map"):
        read_label_map(path)
    write(np.array([[[0, -1]]], np.int16))
    with pytest.raises(InputError, match=r"holds -1; labels are whole"):
        read_label_map(path)
    write(np.array([[[0, 40000]]], np.uint16))
    with pytest.raises(InputError, match=r"holds 40000; labels"):
        read_label_map(path)


def test_videos_are_folders_of_frames_or_volumes(tmp_path):
    clip = np.zeros((3, 6, 5), np.uint8)
    clip[1, 2:4] = 1
    for number, frame in enumerate(clip):
        picture_folder = tmp_path / "t" / "clip"
        picture_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(picture_folder / f"{number}.png")
    (tmp_path / "p").mkdir()
    save(clip, tmp_path / "p" / "clip.nii.gz")
    found = find_inputs(tmp_path / "t", {"P": tmp_path / "p"}, video=True)
    assert (found.kind, found.units["length"]) == ("video", "px")
    both = [read_label_map(p, video=True) for p in (found.truth[0], found.predictions["P"][0])]
    assert np.array_equal(both[0].labels, both[1].labels)
    assert both[0].spacing == both[1].spacing == (1.0, 1.0)
    with pytest.raises(InputError, match="holds no label maps"):
        find_inputs(tmp_path / "t", {"P": tmp_path / "p"})


def test_pictures_of_predict_are_no_frames(tmp_path):
    """An output folder of `predict` has overlays beside the frames."""
    from nnunet_octreenca.labels.overlay import write_overlay
    from nnunet_octreenca.result_record import FOLDER, ResultRecord

    clip = np.ones((2, 20, 30), np.uint8)
    for name in ("t/clip", "p/clip_frames"):
        (tmp_path / name).mkdir(parents=True)
        for number, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / name / f"{number}.png")
    write_overlay(
        tmp_path / "p" / FOLDER / "clip_overlay.png",
        np.zeros((20, 30, 3), np.uint8),
        clip[0],
        names={1: "a"},
        record=ResultRecord("video", ("clip_frames",)),
    )
    found = find_inputs(tmp_path / "t", {"P": tmp_path / "p"}, video=True)
    assert found.predictions["P"] == (tmp_path / "p" / "clip_frames",)
