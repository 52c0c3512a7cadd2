"""Flags of predict that do not go together are refused before a model is looked for."""

import pytest

from nnunet_octreenca.cli.main import main

URL = "s3://me:hidden@bucket/in"


@pytest.mark.parametrize(
    ("flags", "places", "sentence"),
    [
        (["--dask", "tcp://here:8786"], (URL, "out"), "holds a user, a password or a signature"),
        (["--dask", "tcp://here:8786"], ("in", URL), "credentials in its own environment"),
        (["--watch"], (URL, "out"), "--watch looks at folders"),
        (["--watch"], ("in", URL), "with --continue every now and then"),
        (["--watch", "--dask", "tcp://here:8786"], ("in", "out"), "give it without --dask"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, places, sentence, capsys):
    source, out = places
    assert main(["predict", "-m", "nowhere", "-i", source, "-o", out, *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "hidden" not in said
