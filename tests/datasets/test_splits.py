"""What is held out, and folds that keep groups together."""

import pytest

from nnunet_octreenca.datasets.splits import group_folds, held_out
from nnunet_octreenca.errors import InputError

VIDEOS = [f"video{n:02d}" for n in range(17)]


def test_held_out():
    out = held_out(VIDEOS * 2, 0.2, seed=1)
    assert len(out) == 3
    assert out == held_out(reversed(VIDEOS), 0.2, seed=1)
    assert any(out != held_out(VIDEOS, 0.2, seed=seed) for seed in range(2, 5))
    assert held_out(VIDEOS, 0.0) == set()
    assert len(held_out(["a", "b"], 0.01)) == 1
    assert len(held_out(["a", "b"], 0.99)) == 1
    with pytest.raises(InputError, match="nothing can be held out"):
        held_out(["a"], 0.2)
    with pytest.raises(InputError, match=r"1\.0"):
        held_out(VIDEOS, 1.0)


@pytest.mark.parametrize(("videos", "folds"), [(17, 5), (5, 5), (3, 3), (2, 2)])
def test_no_video_is_trained_and_validated_with(videos, folds):
    groups = {f"{v}_{n}": v for v in VIDEOS[:videos] for n in range(4)}
    splits = group_folds(groups, seed=3)
    assert len(splits) == folds
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(groups)
        assert {groups[c] for c in split["train"]}.isdisjoint(groups[c] for c in split["val"])
        assert split["train"]
    validated = [case for split in splits for case in split["val"]]
    assert sorted(validated) == sorted(groups)  # each case once
    assert splits == group_folds(dict(reversed(groups.items())), seed=3)


def test_one_group_makes_no_folds():
    assert group_folds({"a": "v", "b": "v"}) is None
