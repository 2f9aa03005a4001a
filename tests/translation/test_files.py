"""Files: what an input names, what each becomes, and that pixels survive writing and reading."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning.data.checks import FileProblem
from i2i_lightning.data.decode import SideFormat, decode, read_header
from i2i_lightning.translation.files import (
    Reader,
    check_format,
    default_format,
    find_inputs,
    plan_jobs,
    write_image,
)
from i2i_lightning.types import ImageFormat, UserError

from .conftest import picture

RGB = ImageFormat("image", 3)


def save(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture(16, 16) if pixels is None else pixels
    Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos [1]"  # a name that looks like a pattern
    for name in ("b.png", "a.JPG", "trip/day 1/c.webp", ".hidden/x.png", ".thumb.png"):
        save(folder / name)
    (folder / "notes.txt").write_text("notes")
    (folder / "trip" / "map.pdf").write_text("pdf")
    return folder


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


# Inputs.


def test_a_folder_is_searched_all_the_way_down(photos: Path) -> None:
    found = find_inputs(str(photos))
    assert names(found.images, found.root) == ["a.JPG", "b.png", "trip/day 1/c.webp"]
    assert found.others == ["notes.txt", "trip/map.pdf"]


def test_a_file(photos: Path) -> None:
    found = find_inputs(str(photos / "b.png"))
    assert found.is_file
    assert (found.root, names(found.images, found.root)) == (photos, ["b.png"])
    with pytest.raises(UserError, match=r"notes.txt: not an image by its suffix \(readable are .png"):
        find_inputs(str(photos / "notes.txt"))


def test_a_pattern(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.jpg", "y/deep/3.png", "y/4.txt"):
        save(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    found = find_inputs(str(tmp_path / "*" / "*.*"))
    assert names(found.images, tmp_path) == ["x/1.png", "x/2.jpg"]
    assert found.others == ["y/4.txt"]
    found = find_inputs(str(tmp_path / "**" / "*.png"))
    assert found.root == tmp_path
    assert names(found.images, tmp_path) == ["x/1.png", "y/deep/3.png"]
    with pytest.raises(UserError, match="this pattern matches nothing"):
        find_inputs(str(tmp_path / "*.tiff"))
    with pytest.raises(UserError, match=r"matches no image, only 4.txt"):
        find_inputs(str(tmp_path / "y" / "*.txt"))


def test_the_outputs_are_not_inputs(photos: Path) -> None:
    out = photos / "out"
    save(out / "b.png")
    assert names(find_inputs(str(photos), leave_out=out).images, photos) == [
        "a.JPG",
        "b.png",
        "trip/day 1/c.webp",
    ]


def test_links_are_followed_once(photos: Path) -> None:
    (photos / "trip" / "round").symlink_to(photos)
    elsewhere = save(photos.parent / "elsewhere" / "d.png").parent
    (photos / "link").symlink_to(elsewhere)
    found = find_inputs(str(photos))
    assert names(found.images, photos) == ["a.JPG", "b.png", "link/d.png", "trip/day 1/c.webp"]


def test_nothing_to_translate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_inputs(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images below this folder$"):
        find_inputs(str(tmp_path / "empty"))
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"no images below this folder; it holds a\.txt"):
        find_inputs(str(tmp_path / "empty"))


# Outputs.


def test_names_and_folders_are_kept(photos: Path, tmp_path: Path) -> None:
    jobs = plan_jobs(find_inputs(str(photos)), str(tmp_path / "out"), None, RGB)
    assert [job.output.relative_to(tmp_path / "out").as_posix() for job in jobs] == [
        "a.png",
        "b.png",
        "trip/day 1/c.png",
    ]
    assert [job.key for job in jobs] == ["a", "b", "trip/day 1/c"]
    assert [job.name for job in jobs] == ["a.JPG", "b.png", "trip/day 1/c.webp"]
    jobs = plan_jobs(find_inputs(str(photos)), str(tmp_path / "out"), "jpg", RGB)
    assert jobs[2].output == tmp_path / "out" / "trip" / "day 1" / "c.jpg"


def test_one_file_becomes_a_file_or_goes_into_a_folder(photos: Path, tmp_path: Path) -> None:
    found = find_inputs(str(photos / "b.png"))
    assert plan_jobs(found, str(tmp_path / "x.webp"), None, RGB)[0].output == tmp_path / "x.webp"
    assert plan_jobs(found, str(tmp_path / "x"), "tiff", RGB)[0].output == tmp_path / "x" / "b.tiff"
    (tmp_path / "odd.png").mkdir()
    assert plan_jobs(found, str(tmp_path / "odd.png"), None, RGB)[0].output == tmp_path / "odd.png" / "b.png"
    with pytest.raises(UserError, match=r"x.webp with format=png: leave one of them out"):
        plan_jobs(found, str(tmp_path / "x.webp"), "png", RGB)
    with pytest.raises(UserError, match="one file for 3 images; give a folder"):
        plan_jobs(find_inputs(str(photos)), str(tmp_path / "x.png"), None, RGB)
    with pytest.raises(UserError, match="this is a file; give a folder"):
        plan_jobs(found, str(photos / "notes.txt"), None, RGB)
    with pytest.raises(UserError, match="format=gif: choose one of png, jpg, webp, tiff, npy"):
        plan_jobs(found, str(tmp_path / "x"), "gif", RGB)


def test_two_inputs_of_one_name(photos: Path, tmp_path: Path) -> None:
    save(photos / "trip" / "day 1" / "c.bmp")
    with pytest.raises(UserError, match=r"trip/day 1/c.bmp and trip/day 1/c.webp would both become c.png"):
        plan_jobs(find_inputs(str(photos)), str(tmp_path / "out"), None, RGB)


def test_inputs_are_not_replaced(photos: Path) -> None:
    with pytest.raises(UserError, match=r"b\.png would replace an input"):
        plan_jobs(find_inputs(str(photos)), str(photos), None, RGB)
    with pytest.raises(UserError, match=r"b\.png would replace an input"):
        plan_jobs(find_inputs(str(photos / "b.png")), str(photos / "b.png"), None, RGB)
    assert len(plan_jobs(find_inputs(str(photos)), str(photos), "tiff", RGB)) == 3


# Reading.


def test_readers_word_problems_for_translators(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", picture(16, 16, 1))
    deep = tmp_path / "deep.npy"
    np.save(deep, np.zeros((16, 16, 5), np.uint8))
    with pytest.raises(FileProblem) as caught:
        Reader(RGB).header(grey)
    assert caught.value.what == "grey (1 channel) where the checkpoint takes RGB images"
    assert caught.value.mend == "convert=match converts them"
    with pytest.raises(FileProblem) as caught:
        Reader(RGB).header(deep)
    assert caught.value.what == "not of 3 channels"
    assert caught.value.mend == "the checkpoint takes RGB images"
    colour = save(tmp_path / "colour.png")
    with pytest.raises(FileProblem) as caught:
        Reader(ImageFormat("labels", 5)).header(colour)
    assert caught.value.mend == "the checkpoint takes label maps of 5 classes"
    assert Reader(RGB, convert="match").read(grey).shape == (3, 16, 16)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    path.chmod(0)
    with pytest.raises(FileProblem, match="cannot be opened"):
        Reader(RGB).header(path)


def test_halves(tmp_path: Path) -> None:
    pair = picture(16, 40)
    path = save(tmp_path / "pair.png", pair)
    for side, part in (("left", pair[:, :20]), ("right", pair[:, 20:])):
        reader = Reader(RGB, side=side)
        assert (reader.header(path).height, reader.header(path).width) == (16, 20)
        np.testing.assert_array_equal(reader.read(path).permute(1, 2, 0).numpy(), part)
    with pytest.raises(FileProblem, match="odd width"):
        Reader(RGB, side="left").header(save(tmp_path / "odd.png", picture(16, 41)))


def test_resizing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(16, 40))
    reader = Reader(RGB, size=(24, 32))
    assert (reader.header(path).height, reader.header(path).width) == (24, 32)
    expected = np.asarray(Image.open(path).resize((32, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(reader.read(path).permute(1, 2, 0).numpy(), expected)


# Writing.


def noise(channels: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(channels)
    if dtype == "float32":
        return rng.uniform(-1, 1, (24, 40, channels)).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max + 1, (24, 40, channels)).astype(dtype)


@pytest.mark.parametrize(
    ("name", "dtype", "channels"),
    [
        *(("png", "uint8", channels) for channels in (1, 2, 3, 4)),
        *(("png", "uint16", channels) for channels in (1, 3, 4)),
        *(("tiff", dtype, c) for dtype in ("uint8", "uint16", "float32") for c in (1, 3, 4, 7)),
        *(("npy", dtype, c) for dtype in ("uint8", "uint16", "float32") for c in (1, 2, 5)),
    ],
)
def test_pixels_survive_exactly(tmp_path: Path, name: str, dtype: str, channels: int) -> None:
    """What training reads is what was written, at every depth and number of channels."""
    format = ImageFormat("image", channels, dtype)
    check_format(name, format)
    array = noise(channels, dtype)
    path = tmp_path / f"sub/a.{name}"
    write_image(path, torch.from_numpy(array).permute(2, 0, 1), format)
    side = SideFormat("in", "image", channels)
    assert read_header(path, side).dtype == dtype
    np.testing.assert_array_equal(decode(path, side), array)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("name", "channels"), [("jpg", 1), ("jpg", 3), ("webp", 3), ("webp", 4)])
def test_lossy_formats_are_close(tmp_path: Path, name: str, channels: int) -> None:
    array = picture(24, 40, channels)
    path = tmp_path / f"a.{name}"
    write_image(path, torch.from_numpy(array).permute(2, 0, 1), ImageFormat("image", channels))
    read = decode(path, SideFormat("in", "image", channels))
    assert np.abs(read.astype(int) - array).mean() < 8  # WebP halves the resolution of colour


@pytest.mark.parametrize("classes", [7, 256, 300])
@pytest.mark.parametrize("name", ["png", "tiff", "npy"])
def test_label_maps_survive(tmp_path: Path, classes: int, name: str) -> None:
    colours = tuple((i % 256, 7, 255 - i % 256) for i in range(classes)) if classes <= 256 else None
    format = ImageFormat("labels", classes, palette=colours)
    check_format(name, format)
    ids = np.random.default_rng(0).integers(0, classes, (24, 40))
    ids = ids.astype(np.uint8 if classes <= 256 else np.uint16)
    path = tmp_path / f"a.{name}"
    write_image(path, torch.from_numpy(ids), format)
    np.testing.assert_array_equal(decode(path, SideFormat("in", "labels", classes)), ids)
    if name == "png" and classes <= 256:
        image = Image.open(path)
        assert image.mode == "P"
        assert image.getpalette()[: 3 * 2] == [0, 7, 255, 1, 7, 254]


def test_formats_that_cannot_hold_the_outputs() -> None:
    assert default_format(RGB) == "png"
    assert default_format(ImageFormat("chroma", 2)) == "png"
    assert default_format(ImageFormat("image", 3, "uint16")) == "png"
    assert default_format(ImageFormat("image", 5)) == "npy"
    assert default_format(ImageFormat("image", 1, "float32")) == "npy"
    assert default_format(ImageFormat("labels", 35)) == "png"
    for name, format in (
        ("jpg", ImageFormat("labels", 35)),
        ("jpg", ImageFormat("image", 3, "uint16")),
        ("webp", ImageFormat("image", 1)),
        ("png", ImageFormat("image", 5)),
        ("png", ImageFormat("image", 2, "uint16")),
    ):
        with pytest.raises(UserError, match=f"format={name} cannot hold the outputs.*: choose .*tiff, npy"):
            check_format(name, format)
