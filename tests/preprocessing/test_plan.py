import pytest
from helpers.stock_case import INTENSITIES, StockCase

from nnunet_octreenca.errors import PlansError
from nnunet_octreenca.preprocessing.plan import PreprocessingPlan


def stock(**changes):
    return StockCase([8, 16, 16], [2.0, 1.0, 1.0], **changes)


def test_plans_are_read():
    preprocessing = stock(
        schemes=["CTNormalization", "ZScoreNormalization"], masked=[False, True], forward=(2, 0, 1)
    ).preprocessing
    assert preprocessing.dimension == 3
    assert preprocessing.transpose_forward == (2, 0, 1)
    assert preprocessing.transpose_backward == (1, 2, 0)
    assert preprocessing.spacing == (2.0, 1.0, 1.0)
    assert preprocessing.context == (8, 16, 16)
    assert preprocessing.use_mask_for_norm == (False, True)
    assert preprocessing.intensities == (INTENSITIES, INTENSITIES)
    assert (preprocessing.data.kernel, preprocessing.probabilities.kernel) == ("cubic", "linear")
    assert (preprocessing.num_classes, preprocessing.regions_class_order) == (3, None)
    assert preprocessing.largest_label == 2


LABELS = [
    ({"background": 0, "one": 1, "two": 2, "ignore": 3}, None),
    ({"background": 0, "one": [1], "two": [2]}, None),
    ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}, [1, 2, 3]),
    ({"background": 0, "empty": [0, 0], "whole": [1, 9], "ignore": 10}, [9]),
]


@pytest.mark.parametrize(("labels", "regions"), LABELS)
def test_the_heads_are_nnunets(labels, regions):
    case = stock(labels=labels, regions=regions)
    manager = case.manager.get_label_manager(case.dataset_json)
    preprocessing = case.preprocessing
    assert preprocessing.num_classes == manager.num_segmentation_heads
    assert (preprocessing.regions_class_order is not None) == manager.has_regions
    if manager.has_regions:
        assert list(preprocessing.regions_class_order) == regions
        assert preprocessing.largest_label == max(regions)


def test_statistics_of_old_plans_are_found():
    case = stock()
    old = {**case.plans}
    old["foreground_intensity_properties_by_modality"] = old.pop(
        "foreground_intensity_properties_per_channel"
    )
    preprocessing = PreprocessingPlan.from_plans(old, case.configuration, case.dataset_json)
    assert preprocessing.intensities == (INTENSITIES,)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("plans", {"label_manager": "Mine"}, "label_manager is 'Mine'"),
        ("plans", {"transpose_forward": None}, "lack 'transpose_forward'"),
        ("configuration", {"patch_size": None}, "lack 'patch_size'"),
        ("configuration", {"preprocessor_name": "Mine"}, "preprocessor_name is 'Mine'"),
        ("configuration", {"previous_stage": "3d_lowres"}, "labels of '3d_lowres' as input"),
        ("configuration", {"normalization_schemes": ["Mine"]}, "normalization 'Mine'"),
        ("configuration", {"resampling_fn_data": "mine"}, "resampling function 'mine'"),
        ("dataset_json", {"labels": None}, "lack 'labels'"),
        ("dataset_json", {"labels": {"background": 0, "a": [1, 2]}}, "lack 'regions_class_order'"),
        (
            "dataset_json",
            {"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [1, 2]},
            r"1 regions, but regions_class_order \[1, 2\] has 2",
        ),
    ],
)
def test_plans_that_cannot_be_followed(part, change, sentence):
    case = stock()
    given = {name: dict(getattr(case, name)) for name in ("plans", "configuration", "dataset_json")}
    for key, value in change.items():
        given[part].pop(key, None)
        given[part] |= {} if value is None else {key: value}
    with pytest.raises(PlansError, match=sentence):
        PreprocessingPlan.from_plans(given["plans"], given["configuration"], given["dataset_json"])
