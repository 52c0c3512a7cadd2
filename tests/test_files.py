import json
import os
import stat
import sys

import pytest

from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.files import atomic_write, load_json, read_json, write_json


def test_the_new_file_appears_when_all_went_well(tmp_path):
    path = tmp_path / "plans.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path, "a rename across file systems is not atomic"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["plans.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are made on POSIX systems")
def test_what_is_no_file_is_not_replaced(tmp_path):
    """As root, a rename would put a file in the place of /dev/null; a pipe stands in for it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match=r"pipe is no file.*another name"):
        write_json(pipe, {})
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_old_file_stays_and_nothing_else_when_writing_failed(tmp_path, error):
    path = tmp_path / "plans.json"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["plans.json"]


def test_a_first_file_that_failed_is_not_there(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "plans.json", {"a": object()})
    assert not list(tmp_path.iterdir())


def test_json_is_written_as_nnunet_writes_it(tmp_path):
    content = {"b": [1, 2], "a": {"ä": None}}
    write_json(str(tmp_path / "plans.json"), content)
    text = (tmp_path / "plans.json").read_text(encoding="utf-8")
    assert text == json.dumps(content, indent=4) + "\n"
    assert list(read_json(tmp_path / "plans.json", "")) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, r"plans\.json does not exist; run it again"),
        (b"{'a': 1}", r"plans\.json cannot be read \(.*line 1 column 2.*\); run it again"),
        (b"", r"plans\.json cannot be read \(.*\); run it again"),
        (b"\xff\xfe\xfa", r"plans\.json cannot be read \(.*utf-16.*\); run it again"),
        (b"[1, 2]", r"plans\.json does not hold a JSON object; run it again"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, named):
    path = tmp_path / "plans.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=named):
        read_json(path, "run it again")


def test_a_folder_in_the_files_place_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path, "run it again")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 600, '["]",' * 600, '[["\\"]]]' + "[" * 600]
)
def test_deep_nesting_is_an_error_whatever_the_limit_of_calls(text, monkeypatch):
    """A library may have raised the limit; Python's parser then overflows the stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(ValueError, match="nested too deeply"):
            load_json(text)
    finally:
        sys.setrecursionlimit(limit)


def test_brackets_in_strings_do_not_count():
    text = '{"a": "' + "[" * 1000 + '", "b": [[1]]}'
    assert load_json(text) == {"a": "[" * 1000, "b": [[1]]}
