"""URLs without their secrets, for people and for those who look at the list of processes."""

import subprocess
import sys

import pytest

from nnunet_octreenca.stores.urls import absolute, has_secrets, keep_secret, redact, shown

SIGNED = "https://h/a.tif?X-Amz-Credential=AKIAX&X-Amz-Signature=0f0f0f"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/folder/a.svs", "s3://bucket/folder/a.svs"),
        ("https://me:word@host:8/a.svs", "https://***@host:8/a.svs"),
        ("https://me:w%40rd@host/a", "https://***@host/a"),
        (SIGNED, "https://h/a.tif?***"),
        ("zip://x.tif::https://me:word@host/a.zip?k=v", "zip://x.tif::https://***@host/a.zip?***"),
        ("sftp://me@host/a", "sftp://***@host/a"),
    ],
)
def test_shown(url, expected):
    assert shown(url) == expected
    assert redact(f"cannot read '{url}' (404)") == f"cannot read '{expected}' (404)"


def test_secrets_are_hidden_wherever_they_stand():
    assert keep_secret("https://doctor:pass%20phrase@host/a?sig=longsignature%3D")
    assert not keep_secret("s3://bucket/a")
    text = redact("pass phrase, pass%20phrase, longsignature=, longsignature%3D")
    assert text == "***, ***, ***, ***"


def test_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert redact("the key wJalrXUtnFEMI") == "the key ***"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /proc")
def test_the_list_of_processes():
    program = (
        "import sys\n"
        "from nnunet_octreenca.stores.process_list import hide_secrets\n"
        "hide_secrets(sys.argv)\n"
        "print(open('/proc/self/cmdline').read())\n"
    )
    given = [sys.executable, "-c", program, "predict", f"-i{SIGNED}&more=x", "-o", "out"]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, check=True)
    said = done.stdout
    if "0f0f0f" in said:
        pytest.skip("the system does not say where the command line lies")
    assert "https://h/a.tif?***" in said
    assert "AKIAX" not in said
    assert said.split("\0")[-3:-1] == ["-o", "out"]


def test_azures_container_is_no_user():
    url = "abfs://slides@account.dfs.core.windows.net/in"
    assert not keep_secret(url)
    assert not has_secrets(url)
    assert shown(url) == url
    assert shown("sftp://me@host/in") == "sftp://***@host/in"
    assert has_secrets("sftp://me@host/in")


def test_places_that_mean_the_same_in_another_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute("zip://a.tif::b.zip") == f"zip://a.tif::{tmp_path}/b.zip"
    assert absolute("zip://a.tif::s3://bucket/b.zip") == "zip://a.tif::s3://bucket/b.zip"
    assert absolute("in") == absolute(f"file://{tmp_path}/in") == f"{tmp_path}/in"
