import numpy as np
import pytest
from PIL import Image

from nnunet_octreenca.labels.overlay import write_overlay
from nnunet_octreenca.result_record import (
    ResultRecord,
    is_overlay_folder,
    overlay_path,
    read_record,
    recorded_results,
)

RECORD = ResultRecord("picture", ("bär [1].png", "r\udcff.geojson"))


def test_an_overlay_tells_of_its_results(tmp_path):
    path = overlay_path(tmp_path, "bär [1]")
    thumbnail = np.zeros((4, 5, 3), np.uint8)
    write_overlay(path, thumbnail, thumbnail[..., 0], names={0: "background"}, record=RECORD)
    assert path == tmp_path / "overlays" / "bär [1]_overlay.png"
    assert read_record(path) == RECORD
    assert recorded_results(tmp_path) == set(RECORD.outputs)
    assert is_overlay_folder(tmp_path / "overlays")
    assert not is_overlay_folder(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n", "plain", "other"])
def test_other_pictures_tell_nothing(tmp_path, content):
    path = overlay_path(tmp_path, "a")
    path.parent.mkdir()
    if content == "plain":
        Image.new("L", (4, 4)).save(path)
    elif content == "other":
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_text("nnunet_octreenca", '["no", "record"]')
        Image.new("L", (4, 4)).save(path, pnginfo=text)
    elif content is not None:
        path.write_bytes(content)
    assert read_record(path) is None
    assert recorded_results(tmp_path) == set()


def test_a_folder_of_other_things_is_no_overlay_folder(tmp_path):
    folder = tmp_path / "overlays"
    folder.mkdir()
    (folder / "frame_1.png").touch()
    assert not is_overlay_folder(folder)
