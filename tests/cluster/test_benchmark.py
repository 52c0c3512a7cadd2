"""The benchmark measures cases of the time that was asked for."""

import cluster as benchmark
import pytest
from PIL import Image


@pytest.mark.parametrize(("fits", "side"), [(512, 512), (640, 640), (4, 32)])
def test_pictures_take_the_time_that_is_wanted(tmp_path, monkeypatch, fits, side):
    """Also where the first picture, or the second one, already does."""

    def in_one_process(model, source, out):
        (path,) = source.iterdir()
        with Image.open(path) as picture:
            return {"seconds": (picture.width / fits) ** 2}

    monkeypatch.setattr(benchmark, "in_one_process", in_one_process)
    assert benchmark.side_of(None, 1.0, tmp_path) == side
