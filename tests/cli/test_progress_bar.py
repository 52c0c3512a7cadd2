import io
import sys

import pytest

from nnunet_octreenca.cli.progress_bar import progress_bar


@pytest.mark.parametrize("name", ["scan [1]", "a [red]", "b [", "[bold] c [/bold]", "脳"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_shown_as_they_are(monkeypatch, name, encoding):
    """Brackets are no markup, and a terminal that lacks a character shows another."""
    buffer = io.BytesIO()
    terminal = io.TextIOWrapper(buffer, encoding, errors="replace")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(name, quiet=False) as (tell, progress):
        assert progress is not None
        progress("total", 4)
        progress("segment", 2)
        tell(f"{name}: 4 rows")
    terminal.flush()
    shown = buffer.getvalue().decode(encoding)
    assert f"{name.encode(encoding, 'replace').decode(encoding)}: 4 rows" in shown
