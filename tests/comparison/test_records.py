"""Method records: what is accepted is what their schema accepts."""

import json
from pathlib import Path

import pytest

from nnunet_octreenca.comparison import records
from nnunet_octreenca.comparison.records import QUANTITIES, read_records
from nnunet_octreenca.errors import InputError
from nnunet_octreenca.files import write_json

SCHEMA = json.loads(
    (Path(records.__file__).parent / "method_records.schema.json").read_text(encoding="utf-8")
)
GOOD = {
    "parameters": 14080,
    "training_seconds": 120.5,
    "device": "2 cores",
    "curves": [{"x": "seconds", "y": "Dice", "points": [[0, 0.1], [60, 0.8]]}],
}


def test_the_schema_names_what_is_read():
    known = SCHEMA["$defs"]["record"]["properties"]
    assert set(known) == {*QUANTITIES, "device", "notes", "curves"}
    assert SCHEMA["properties"]["form"]["const"] == records.FORM
    assert {key for key, rule in known.items() if rule["type"] == "number"} == set(QUANTITIES)


def test_a_good_file(tmp_path):
    write_json(tmp_path / "r.json", {"form": 1, "methods": {"A": GOOD}})
    assert read_records(tmp_path / "r.json", ["A", "B"]) == {"A": GOOD}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"form": 2, "methods": {}}, "form is 2, but must be 1"),
        ({"form": 1}, "methods must be an object"),
        ({"form": 1, "methods": {"C": {}}}, "'C', which is not compared; the methods are A, B"),
        ({"form": 1, "methods": {"A": []}}, "the record of 'A' must be an object"),
        ({"form": 1, "methods": {"A": {"seeds": -1}}}, "seeds -1, which must be a number of 0"),
        ({"form": 1, "methods": {"A": {"seeds": True}}}, "seeds True"),
        ({"form": 1, "methods": {"A": {"speed": 1}}}, "the key 'speed', which is none of"),
        ({"form": 1, "methods": {"A": {"device": 3}}}, "device that is no text"),
        ({"form": 1, "methods": {"A": {"curves": [{"x": "s", "y": "D"}]}}}, "has curves that"),
        ({"form": 1, "methods": {"A": {"curves": [{"x": "s", "y": "D", "points": [[1]]}]}}},
         "has curves that"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, content, sentence):
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"r\.json") as caught:
        read_records(tmp_path / "r.json", ["A", "B"])
    assert sentence in str(caught.value)
