"""What one worker fetches of a store: for headers little, and of what cannot be reached nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nnunet_octreenca.cluster import worker_files
from nnunet_octreenca.cluster.scheduling import Entry, Scheduling
from nnunet_octreenca.cluster.worker_files import WorkerFiles
from nnunet_octreenca.errors import InputError, OutputError
from nnunet_octreenca.images.cases import Case
from nnunet_octreenca.images.header import read_header
from nnunet_octreenca.stores.listing import stored_cases
from nnunet_octreenca.stores.scratch import Scratch


@pytest.fixture
def files(s3, tmp_path):
    """`files(limit)` reaches a picture in a store; with its case."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    s3.put("in/a.png", (tmp_path / "a.png").read_bytes())
    (tmp_path / "out").mkdir()
    listing = Scratch(tmp_path / "client")
    (case,) = stored_cases("s3://bucket/in", 3, listing)
    listing.close()
    made = []

    def make(limit=None):
        settings = SimpleNamespace(
            source="s3://bucket/in",
            output=str(tmp_path / "out"),
            samples=(case,),
            scratch=str(tmp_path / "scratch"),
            scratch_limit=limit,
        )
        made.append(WorkerFiles(settings, tmp_path))
        return made[-1], case

    yield make
    for each in made:
        each.close()
    assert not list((tmp_path / "scratch").iterdir())


def test_headers_take_no_more_than_some_bytes(files, monkeypatch):
    reached, case = files()
    with reached.header(case) as here:
        assert read_header(here.files, channels=3).shape == (60, 60)
    monkeypatch.setattr(worker_files, "HEADERS", 1000)
    reached, case = files()
    with (
        pytest.raises(InputError, match=r"s3://bucket/in/a\.png must be fetched whole"),
        reached.header(case) as here,
    ):
        read_header(here.files, channels=3)
    with reached.image(case) as here:
        assert read_header(here.files, channels=3).shape == (60, 60)


def test_headers_and_images_share_the_limit(files):
    reached, case = files(5000)
    for context in (reached.header, reached.image):
        with pytest.raises(InputError, match="--scratch-limit"), context(case) as here:
            read_header(here.files, channels=3)


def test_what_no_worker_could_plan_gets_a_worker_to_itself(files):
    _, case = files()
    schedule = Scheduling(SimpleNamespace(), "run", SimpleNamespace())
    entries = [Entry(case), Entry(Case("b", ()))]
    assert not list(schedule._take_plans([None, None], entries))
    assert [entry.alone for entry in entries] == [True, False]


def test_why_the_next_case_would_fail_too(files, s3):
    reached, case = files()
    assert reached.cut_off(None) == reached.cut_off(ValueError("of the image")) == ""
    s3.fails = lambda method, path: 403
    with pytest.raises(InputError) as raised:
        case.store.info(case.paths[0])
    assert "access to s3://bucket/in/a.png is denied" in reached.cut_off(raised.value)
    s3.fails = lambda method, path: None
    assert reached.cut_off(raised.value) == "", "that was of one moment"


def test_what_was_fetched_stays_while_a_case_needs_it(files, tmp_path):
    reached, _ = files()
    with reached.in_use():
        reached.close()
        assert list((tmp_path / "scratch").iterdir())
    assert not list((tmp_path / "scratch").iterdir())


def test_a_scratch_folder_that_cannot_be_made(s3, files, tmp_path):
    (tmp_path / "scratch").write_text("a file")
    with pytest.raises(OutputError, match="cannot be used as scratch folder"):
        files()
    (tmp_path / "scratch").unlink()
    (tmp_path / "scratch").mkdir()
