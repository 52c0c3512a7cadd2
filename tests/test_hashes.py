import hashlib
import os
import shutil

import numpy as np
import pytest

from nnunet_octreenca import hashes
from nnunet_octreenca.hashes import content_hash, file_hash, labels_hash, stamp


@pytest.fixture
def folder(tmp_path):
    for name, content in (("b.txt", "b"), ("a/1.txt", "one"), ("a/2.txt", "two")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(content)
    return tmp_path / "in"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_a_file_has_the_hash_that_sha256sum_prints(folder, monkeypatch):
    monkeypatch.setattr(hashes, "_CHUNK", 2)
    assert file_hash(folder / "a/1.txt") == sha(b"one")
    assert content_hash([folder / "a/1.txt"]) == sha(b"one")


def test_a_folder_has_the_hash_of_its_names_and_contents(folder):
    lines = [
        f"{name}\0{sha(content)}\n"
        for name, content in (("a/1.txt", b"one"), ("a/2.txt", b"two"), ("b.txt", b"b"))
    ]
    assert content_hash([folder]) == sha("".join(lines).encode())
    two = "".join(f"{name}\0{sha(text)}\n" for name, text in (("1.txt", b"one"), ("2.txt", b"two")))
    assert content_hash([folder / "a/2.txt", folder / "a/1.txt"]) == sha(two.encode())


@pytest.mark.parametrize("of", [content_hash, stamp])
def test_a_copy_elsewhere_is_the_same_and_a_change_is_not(folder, tmp_path, of):
    before = of([folder])
    shutil.copytree(folder, tmp_path / "copy")
    assert of([tmp_path / "copy"]) == before
    (tmp_path / "copy/b.txt").rename(tmp_path / "copy/c.txt")
    assert of([tmp_path / "copy"]) != before
    (folder / "a/2.txt").write_text("too!")
    assert of([folder]) != before


def test_a_stamp_sees_the_time_and_a_hash_does_not(folder):
    before = stamp([folder]), content_hash([folder])
    os.utime(folder / "b.txt", (1, 1))
    assert stamp([folder]) != before[0]
    assert content_hash([folder]) == before[1]


def test_labels_have_one_hash_however_they_lie_in_memory(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 300, (7, 5, 6), np.int16)
    expected = sha(b"int16 (7, 5, 6)\n" + labels.astype("<i2").tobytes())
    for cells in (1, 60, 1 << 24):
        monkeypatch.setattr(hashes, "_CELLS", cells)
        assert labels_hash(labels) == expected
        assert labels_hash(np.asfortranarray(labels)) == expected
        assert labels_hash(labels.astype(">i2")) == expected
    assert labels_hash(labels.reshape(5, 7, 6)) != expected
    assert labels_hash(labels.astype(np.int32)) != expected
    changed = labels.copy()
    changed[-1, -1, -1] += 1
    assert labels_hash(changed) != expected
