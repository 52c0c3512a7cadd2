"""Mask values to labels."""

import numpy as np
import pytest

from nnunet_octreenca.datasets.classes import Classes, parse_pairs, parse_values
from nnunet_octreenca.errors import InputError


def test_values_become_labels():
    classes = Classes({"a": (7, 300), "b": (2,)}, background=(0, 50), ignore=(255,))
    mask = np.array([[0, 50, 7], [300, 2, 255]], np.uint16)
    assert classes.apply(mask, "x").tolist() == [[0, 0, 1], [1, 2, 3]]
    assert classes.labels == {"background": 0, "a": 1, "b": 2, "ignore": 3}
    grey = np.repeat(mask[..., None], 3, 2)
    assert classes.apply(grey, "x").tolist() == [[0, 0, 1], [1, 2, 3]]
    opaque = np.concatenate([grey, np.full((2, 3, 1), 255, np.uint16)], 2)
    assert classes.apply(opaque, "x").tolist() == [[0, 0, 1], [1, 2, 3]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[0, 9], [5, 9]], np.uint8), r"m\.png holds the value\(s\) 5, 9, which"),
        (np.array([[0, 70000]], np.int32), r"70000"),
        (np.array([[0, -1]], np.int32), r"-1"),
        (np.array([[0.5]], np.float32), "float32 samples"),
        (np.array([[[1, 2, 1]]], np.uint8), r"m\.png is a colour image"),
    ],
)
def test_what_is_no_mask_is_named(mask, message):
    with pytest.raises(InputError, match=message):
        Classes({"a": (1,)}).apply(mask, "m.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"foreground": {}}, "0 classes"),
        ({"foreground": {"a": (1,), "b": (1,)}}, "value 1 is declared twice"),
        ({"foreground": {"a": (0,)}}, "value 0 is declared twice"),
        ({"foreground": {"a": (65536,)}}, "not 65536"),
        ({"foreground": {"ignore": (1,)}}, "--ignore"),
        ({"foreground": {f"c{n}": (n + 1,) for n in range(254)}}, "254 classes"),
    ],
)
def test_classes_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        Classes(**arguments)


def test_the_most_classes_that_fit_a_byte():
    classes = Classes({f"c{n}": (n + 1,) for n in range(253)}, ignore=(1000,))
    mask = np.array([[0, 1, 253, 1000]])
    assert classes.apply(mask, "x").tolist() == [[0, 1, 253, 254]]


def test_pairs():
    assert parse_pairs(["a=1,2", "b b=3"]) == {"a": (1, 2), "b b": (3,)}
    for wrong in ("a", "=1", "a=", "a=x", "a=1,"):
        with pytest.raises(InputError, match="--class"):
            parse_pairs([wrong])
    with pytest.raises(InputError, match="twice"):
        parse_pairs(["a=1", "a=2"])
    with pytest.raises(InputError, match="--background"):
        parse_values("1;2", "--background")
