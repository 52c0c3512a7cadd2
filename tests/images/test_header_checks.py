from pathlib import Path

import pytest

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images import header_checks


def test_what_does_not_fit_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(header_checks, "total_memory", lambda: 2_000_000_000)
    header_checks.require_memory(Path("a.nii"), 2_000_000_000)
    with pytest.raises(InputError, match=r"a\.nii needs 2,000,000\.0 GB.*machine has 2\.0 GB"):
        header_checks.require_memory(Path("a.nii"), 2 * 10**15)


def test_no_file_deflates_better_than_zeros_do():
    import zlib

    zeros = len(zlib.compress(bytes(10_000_000), 9))
    header_checks.require_deflated(Path("a.png"), 10_000_000, zeros)
    with pytest.raises(InputError, match=r"a\.png promises 20,000,000 bytes"):
        header_checks.require_deflated(Path("a.png"), 20_000_000, zeros)


def test_what_does_not_fit_beside_what_is_held_is_refused(monkeypatch, tmp_path):
    """Decoding it would end the process, and no sentence would say why."""
    monkeypatch.setattr(header_checks, "allocatable_memory", lambda: (1000, "free memory"))
    header_checks.require_memory(tmp_path / "a.png", 1000)
    with pytest.raises(InputError, match=r"a\.png needs .* are left \(free memory\); close other"):
        header_checks.require_memory(tmp_path / "a.png", 1001)
