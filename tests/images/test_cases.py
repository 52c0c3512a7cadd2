import numpy as np
import pytest
import tifffile
from helpers.dicom_slices import write_series
from PIL import Image

from nnunet_octreenca.errors import InputError
from nnunet_octreenca.images.cases import Case, list_cases
from nnunet_octreenca.images.frames import frame_files
from nnunet_octreenca.result_record import ResultRecord, overlay_path

PIXELS = np.zeros((4, 5, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """`folder("a.png", ...)` makes these files, without anything in them, and their folder."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def found(path, channels=1, **options):
    """{name: names of its files}, in order."""
    cases = list_cases(path, channels, **options)
    return {case.name: [file.name for file in case.files] for case in cases}


def test_a_file(folder):
    path = folder("a.ome.tif", "b.nii.gz", "c.tar.svs", "a.png")
    assert list_cases(path / "a.ome.tif", 3) == [Case("a", (path / "a.ome.tif",))]
    assert found(path / "b.nii.gz") == {"b": ["b.nii.gz"]}
    assert found(path / "c.tar.svs", 3) == {"c.tar": ["c.tar.svs"]}


def test_a_file_of_a_case_finds_the_others(folder):
    path = folder("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "c_0001.nii.gz")
    assert found(path / "a_0000.nii.gz", 2) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    assert found(path / "a_0000.nii.gz", 1) == {"a": ["a_0000.nii.gz"]}
    assert found(path / "b_0000.nii.gz", 2) == {"b": ["b_0000.nii.gz"]}
    assert found(path / "c_0001.nii.gz", 2) == {"c_0001": ["c_0001.nii.gz"]}


def test_a_folder_of_volumes_in_nnunets_naming(folder):
    names = [f"{case}_{channel:04d}.nii.gz" for case in ("x_10", "x_9") for channel in range(2)]
    path = folder(*names, "dataset.json", ".hidden.nii.gz")
    assert found(path, 2) == {"x_9": names[2:], "x_10": names[:2]}


def test_a_missing_channel_is_named(folder):
    path = folder("x_0000.nrrd", "x_0001.nrrd", "y_0001.nrrd", "z_0000.nrrd", "z_0001.nrrd")
    with pytest.raises(InputError, match=r"y_0000 is missing in .* takes 2 channels"):
        list_cases(path, 2)
    path = folder("y_0000.nrrd")
    (path / "z_0001.nrrd").unlink()
    with pytest.raises(InputError, match="z_0001 is missing"):
        list_cases(path, 2)


def test_volumes_in_names_of_their_own(folder):
    path = folder("scan_2019.mha", "scan_2020.mha")
    assert found(path) == {"scan_2019": ["scan_2019.mha"], "scan_2020": ["scan_2020.mha"]}
    path = folder("other.mha")
    assert list(found(path)) == ["other", "scan_2019", "scan_2020"]


def test_pictures_are_cases_in_natural_order(folder):
    path = folder("p10.png", "p9.png", "p1.jpg", "dataset.json", "Thumbs.db")
    assert found(path, 3) == {"p1": ["p1.jpg"], "p9": ["p9.png"], "p10": ["p10.png"]}


def test_pictures_of_all_channels_in_nnunets_naming(folder):
    path = folder("a_0000.png", "b_0000.png")
    assert found(path, 3) == {"a": ["a_0000.png"], "b": ["b_0000.png"]}
    path = folder("a_0001.png", "b_0001.png")
    assert found(path, 4)["a"] == ["a_0000.png", "a_0001.png"]


def test_numbered_pictures_are_no_channels(folder):
    path = folder(*(f"frame_{number:04d}.png" for number in range(12)))
    assert len(found(path, 3)) == 12


@pytest.mark.parametrize("names", [("a.svs", "b.ndpi", "c.tif"), ("a.mp4", "b.avi")])
def test_folders_of_slides_and_of_videos(folder, names):
    assert list(found(folder(*names), 3).values()) == [[name] for name in names]


def test_the_data_of_a_mirax_slide_are_no_case(folder):
    path = folder("a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "b.mrxs", "b/Index.dat")
    assert found(path, 3) == {"a": ["a.mrxs"], "b": ["b.mrxs"]}
    write_series(path / "a", np.zeros((2, 4, 5)))
    assert list(found(path, 3)) == ["a", "b"]


def test_a_folder_of_frames_is_a_video_or_many_pictures(folder):
    path = folder("frame_1.png", "frame_2.png")
    assert found(path, 3, frames=True) == {path.name: [path.name]}
    assert found(path, 3) == {"frame_1": ["frame_1.png"], "frame_2": ["frame_2.png"]}


def test_a_folder_of_folders_of_frames(folder):
    path = folder("video_1/1.png", "video_1/2.png", "video_2/1.jpg", "notes/a.txt")
    assert found(path, 3, frames=True) == {"video_1": ["video_1"], "video_2": ["video_2"]}
    with pytest.raises(InputError, match="holds no image but 3 folders"):
        list_cases(path, 3)


def test_stacks_in_tiff_are_volumes_also_where_frames_are_wanted(tmp_path):
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((5, 16, 16), np.uint8))
    assert found(tmp_path, frames=True) == {"a": ["a.tif"], "b": ["b.tif"]}
    flat = tmp_path / "flat"
    flat.mkdir()
    tifffile.imwrite(flat / "a.tif", PIXELS, photometric="rgb")
    assert found(flat, 3, frames=True) == {"flat": ["flat"]}


def test_dicom_series_and_folders_of_them(tmp_path):
    for name in ("ct_a", "ct.2"):
        write_series(tmp_path / name, np.zeros((3, 4, 5)))
    assert found(tmp_path / "ct.2") == {"ct.2": ["ct.2"]}
    assert found(tmp_path) == {"ct.2": ["ct.2"], "ct_a": ["ct_a"]}


def test_zarr_folders(folder):
    path = folder("a.zarr/.zattrs", "b.ome.zarr/zarr.json")
    assert found(path / "a.zarr", 3) == {"a": ["a.zarr"]}
    assert found(path, 3) == {"a": ["a.zarr"], "b": ["b.ome.zarr"]}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "holds no image but is empty"),
        (("a.txt", "b.txt", "c.csv"), r"holds no image but 2 \.txt, 1 \.csv; readable are: slide"),
        (("a.png", "b.nii.gz"), r"different kinds of images \(1 picture, 1 volume\)"),
        (("a.png", "b.svs"), "different kinds"),
        (("a.tif", "b.nrrd"), "different kinds"),
        (("a.png", "a.jpg"), r"a\.(png|jpg) and a\.(png|jpg) .* both be the case 'a'"),
        (("a_0000.nii", "a_0000.nii.gz"), "same channel of the same case"),
        (("a.png", "b.zarr/.zattrs"), r"holds images \(a\.png\) and folders of images \(b\.zarr"),
    ],
)
def test_what_is_no_folder_of_cases(folder, names, said):
    with pytest.raises(InputError, match=said):
        list_cases(folder(*names), 3)


def test_what_is_not_there_or_unknown(folder):
    path = folder("a.docx")
    with pytest.raises(InputError, match="nowhere does not exist"):
        list_cases(path / "nowhere", 3)
    with pytest.raises(InputError, match=r"a\.docx is not of a kind .* readable are: slide \.svs"):
        list_cases(path / "a.docx", 3)


def test_every_case_of_a_folder_can_be_opened(tmp_path):
    from nnunet_octreenca.images.open_image import open_channels

    for name in ("a_0000.png", "b_0000.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    for case in list_cases(tmp_path, 3):
        source = open_channels(case.files, channels=3)
        assert source.shape == (4, 5)
        source.close()


def save(path, channels=3, seed=0):
    """A picture of noise; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (4, 5, channels) if channels > 1 else (4, 5)
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    Image.fromarray(pixels).save(path)


def record(folder, case, *outputs, kind="volume"):
    """What a run leaves in its output folder."""
    (folder / "overlays").mkdir(exist_ok=True)
    text = ResultRecord(kind, outputs).png_text()
    Image.new("RGB", (4, 4)).save(overlay_path(folder, case), pnginfo=text)
    for name in outputs:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["IMG_0001.JPG"], ["IMG_0001"]),
        (["IMG_0001.JPG", "IMG_0002.JPG"], ["IMG_0001", "IMG_0002"]),
        (["a_0000.png", "a_0001.png", "a_0002.png"], ["a_0000", "a_0001", "a_0002"]),
        (["a_0000.tif", "a_0001.tif", "b_0000.tif"], ["a_0000", "a_0001", "b_0000"]),
        (["a_0000.png", "b_0000.png"], ["a", "b"]),  # nnU-Net's, all channels in one file
        (["IMG_0000.bmp"], ["IMG"]),
        (["a_0000.png", "b.png"], ["a_0000", "b"]),
    ],
)
def test_numbered_files_of_all_channels_are_cases(tmp_path, names, expected):
    for name in names:
        save(tmp_path / name)
    cases = list_cases(tmp_path, 3)
    assert [case.name for case in cases] == expected
    assert all(len(case.files) == 1 for case in cases)


def test_a_numbered_picture_of_all_channels_is_alone_when_named(tmp_path):
    for number in range(3):
        save(tmp_path / f"IMG_{number:04d}.png")
    assert found(tmp_path / "IMG_0000.png", 3) == {"IMG": ["IMG_0000.png"]}


def test_grey_pictures_with_channel_numbers_are_channels(tmp_path):
    names = [f"{case}_{channel:04d}.png" for case in "ab" for channel in range(3)]
    for name in names:
        save(tmp_path / name, channels=1)
    assert found(tmp_path, 3) == {"a": names[:3], "b": names[3:]}
    assert found(tmp_path / "b_0000.png", 3) == {"b": names[3:]}


def test_numbered_videos_are_cases(folder):
    path = folder("clip_0000.mp4", "clip_0001.mp4")
    assert list(found(path, 3)) == ["clip_0000", "clip_0001"]


def test_digits_of_other_scripts_are_no_channel_numbers(folder):
    path = folder("a_٠٠٠٠.nii", "a_٠٠٠١.nii")
    assert list(found(path, 2)) == ["a_٠٠٠٠", "a_٠٠٠١"]


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize(
    ("names", "strays"),
    [
        (["a.nii.gz", "b.nii.gz"], ["preview.png"]),
        (["a.mha", "b.mha", "c.mha"], ["p.jpg", "q.bmp"]),
        (["a.mp4", "b.avi"], ["cover.jpg"]),
        (["a.svs", "b.ndpi"], ["label.png"]),
    ],
)
def test_pictures_that_are_fewer_are_left_out_and_counted(folder, names, strays, frames):
    told = []
    path = folder(*names, *strays, "notes.txt", "dataset.json")
    cases = list_cases(path, 3, frames=frames, tell=told.append)
    assert sorted(case.files[0].name for case in cases) == sorted(names)
    (line,) = told
    count = f"{len(strays)} picture{'s' * (len(strays) > 1)} ({strays[0]})"
    assert line == f"{path}: {len(names)} cases; left out: {count}, 2 other files"


@pytest.mark.parametrize(
    "names",
    [
        ("a.nii.gz", "p.png"),
        ("a.mp4", "1.png", "2.png", "3.png"),
        ("a.nrrd", "b.svs", "p.png"),
        ("a.nrrd", "b.nrrd", "c.mp4"),
    ],
)
@pytest.mark.parametrize("frames", [False, True])
def test_what_nobody_can_decide_is_refused(folder, names, frames):
    with pytest.raises(InputError, match="different kinds of images"):
        list_cases(folder(*names), 3, frames=frames)


def test_a_preview_beside_folders(folder):
    path = folder("v1/1.png", "v2/1.png", "cover.jpg", "texts/a.txt")
    told = []
    cases = list_cases(path, 3, frames=True, tell=told.append)
    assert [case.name for case in cases] == ["v1", "v2"]
    assert told == [f"{path}: 2 cases; left out: 1 picture (cover.jpg), 1 folder (texts)"]


def test_dicom_beside_other_things(tmp_path):
    write_series(tmp_path, np.zeros((3, 4, 5)))
    save(tmp_path / "preview.png")
    save(tmp_path / "more" / "1.png")
    (tmp_path / "README.txt").touch()
    told = []
    (case,) = list_cases(tmp_path, 1, frames=True, tell=told.append)
    assert case == Case(tmp_path.name, (tmp_path,))
    assert told == [
        f"{tmp_path}: DICOM, 3 files; left out: 1 picture (preview.png), 1 folder (more), "
        f"1 other file"
    ]
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(InputError, match=r"different kinds of images \(3 DICOM, .*1 volume"):
        list_cases(tmp_path, 1)


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("out", ["out", ".", "results/today"])
def test_results_of_a_run_before_are_no_cases(folder, out, frames):
    path = folder("a_0000.nii.gz", "b_0000.nii.gz")
    output = path / out
    output.mkdir(parents=True, exist_ok=True)
    record(output, "a", "a.nii.gz", "a_frames", "a.ome.tif")
    expected = {"a": ["a_0000.nii.gz"], "b": ["b_0000.nii.gz"]}
    assert found(path, frames=frames, output=output) == expected
    assert found(path, frames=frames, output=path / "other") == expected


def test_a_run_that_was_interrupted_leaves_no_cases(folder):
    path = folder("in/a_0000.nii.gz", "in/a.nii.gz", "in/b_0000.nii.gz") / "in"
    assert list(found(path, output=path)) == ["a", "b"]
    path = folder("films/a.mp4", "films/a_overlay.mp4", "films/b_overlay.mp4") / "films"
    assert list(found(path, 3, output=path)) == ["a", "b_overlay"]
    assert list(found(path, 3, output=path / "out")) == ["a", "a_overlay", "b_overlay"]
    path = folder("videos/v/1.png", "videos/w/1.png", "videos/v_frames/1.png") / "videos"
    assert list(found(path, 3, frames=True, output=path)) == ["v", "w"]
    assert list(found(path, 3, frames=True, output=path / "out")) == ["v", "v_frames", "w"]


def test_the_output_folder_is_no_video_of_its_own(folder):
    path = folder("a.nii.gz", "b.nii.gz", "out/1.png", "out/2.png")
    told = []
    cases = list_cases(path, 1, frames=True, output=path / "out", tell=told.append)
    assert [case.name for case in cases] == ["a", "b"]
    assert told == [f"{path}: 2 cases; left out: 1 result of earlier runs"]


def test_results_among_frames_are_no_frames(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.jpg")
    record(tmp_path, "0", "0.png", "1.png", kind="picture")
    assert found(tmp_path, 3, frames=True) == {tmp_path.name: [tmp_path.name]}
    assert [file.name for file in frame_files(tmp_path)] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_folder_of_results_only_is_refused(tmp_path):
    record(tmp_path, "a", "a.nii.gz", "a.ome.tif")
    with pytest.raises(InputError, match="holds no image but 3 results of earlier runs; readable"):
        list_cases(tmp_path, 1)


@pytest.mark.parametrize("where", [".", "../here"])
def test_a_folder_is_named_however_it_is_given(tmp_path, monkeypatch, where):
    here = tmp_path / "here"
    for number in range(2):
        save(here / f"{number}.png")
    monkeypatch.chdir(here)
    assert [case.name for case in list_cases(where, 3, frames=True)] == ["here"]
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    assert [case.name for case in list_cases("..", 3, frames=True)] == ["here"]


@pytest.mark.parametrize("name", [".png", "..png", "...png"])
def test_a_name_of_dots_stays_in_the_output_folder(folder, name):
    path = folder(name)
    (case,) = list_cases(path / name, 3)
    assert case.name == name


def test_a_link_to_nowhere_is_not_dropped(folder):
    path = folder("a.nii.gz", "notes.txt")
    (path / "b.nii.gz").symlink_to(path / "unmounted" / "b.nii.gz")
    assert list(found(path)) == ["a", "b"]


@pytest.mark.parametrize("error", [KeyError("tag"), RuntimeError("codec"), OSError(5, "I/O")])
def test_a_file_that_cannot_be_looked_into_is_still_a_case(tmp_path, monkeypatch, error):
    """Its error belongs to it, and is said where it is opened; the listing goes on."""
    from nnunet_octreenca.images import cases

    stock = cases.open_reader

    def open_reader(path, **options):
        if path.name.startswith("a"):
            raise error
        return stock(path, **options)

    monkeypatch.setattr(cases, "open_reader", open_reader)
    for name in ("a_0001.png", "b_0002.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    assert found(tmp_path, 3) == {"a_0001": ["a_0001.png"], "b_0002": ["b_0002.png"]}
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    for name in "abc":
        planes = np.zeros((5, 8, 8), np.uint8)
        tifffile.imwrite(volumes / f"{name}.tif", planes, photometric="minisblack")
    assert set(found(volumes, 1, frames=True)) == {"a", "b", "c"}, "no video of frames"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"form": 1}', '{"form": 1, "outputs": 3}', ""])
def test_a_damaged_record_hides_nothing(tmp_path, content):
    (tmp_path / ".octreenca").mkdir()
    (tmp_path / ".octreenca" / "a.json").write_text(content)
    (tmp_path / "a.png").touch()
    assert found(tmp_path, 3) == {"a": ["a.png"]}
