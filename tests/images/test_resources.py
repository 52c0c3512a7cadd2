from pathlib import Path

import pytest

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import resources


def test_what_does_not_fit_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(resources, "memory_limit", lambda: 2_000_000_000)
    resources.require_memory(Path("a.nii"), 2_000_000_000)
    with pytest.raises(InputError, match=r"a\.nii needs 2,000,000\.0 GB.*machine has 2\.0 GB"):
        resources.require_memory(Path("a.nii"), 2 * 10**15)


def test_this_machine_has_some_memory_and_a_thread():
    assert 2**26 < resources.memory_limit() < 2**63
    assert 1 <= resources.threads() <= 16


def test_no_file_deflates_better_than_zeros_do():
    import zlib

    zeros = len(zlib.compress(bytes(10_000_000), 9))
    resources.require_deflated(Path("a.png"), 10_000_000, zeros)
    with pytest.raises(InputError, match=r"a\.png promises 20,000,000 bytes"):
        resources.require_deflated(Path("a.png"), 20_000_000, zeros)
