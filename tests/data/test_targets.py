"""The images of an inversion: which are found, what is refused, and which process has which chunk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning.data.alignment import crop, face_quad
from i2i_lightning.data.targets import Chunks, TargetImages, find_files
from i2i_lightning.types import UserError

SIDE = 16


def picture(path: Path, size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB", seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def targets(images: Any, **options: Any) -> TargetImages:
    data = TargetImages(images if images is None else _text(images), SIDE, 3, **options)
    data.setup()
    return data


def _text(images: Any) -> Any:
    return [str(one) for one in images] if isinstance(images, list) else str(images)


class Numbers:
    """Images that are all of their own number."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (torch.full((1, 2, 2), index, dtype=torch.uint8),)


def chunks(data: TargetImages, rank: int = 0) -> Chunks:
    return Chunks(Numbers(), data.names, data.plan, data.batch_size, rank, (1, 2, 2))


def faces(count: int, size: int, replicas: int = 1) -> TargetImages:
    """Return data that ``replicas`` processes share."""
    data = TargetImages(None, SIDE, 3, num_faces=count, batch_size=size)
    data.trainer = SimpleNamespace(world_size=replicas, fit_loop=SimpleNamespace())  # type: ignore[assignment]
    data.setup()
    return data


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_every_image_is_in_one_chunk_of_one_process(replicas: int, size: int) -> None:
    data = faces(7, size, replicas)
    mine = [chunks(data, rank) for rank in range(replicas)]
    numbers = range(-(-7 // (size * replicas)))
    assert data.trainer is not None
    assert data.trainer.fit_loop.max_epochs == len(numbers)
    given = [index for chunk in numbers for rank in mine for index in rank.indices(chunk)]
    assert given == list(range(7))
    assert all(len(rank.indices(chunk)) <= size for rank in mine for chunk in numbers)


def test_a_chunk_holds_its_own_images_and_may_be_empty() -> None:
    first, second = (
        Chunks(Numbers(), ["a", "b", "c"], [["a", "b", "c"], ["a"]], 2, rank, (1, 2, 2)) for rank in (0, 1)
    )
    chunk = first.__getitems__([(0, 0), (0, 1)])
    assert chunk["name"] == ["a", "b"]
    assert chunk["real"][:, 0, 0, 0].tolist() == [0, 1]
    assert second.__getitems__([(0, 0)])["real"].flatten().unique().tolist() == [2]
    empty = second.__getitems__([(1, 0)])
    assert empty["name"] == []
    assert empty["real"].shape == (0, 1, 2, 2)


@pytest.mark.parametrize("half_done", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 1, 1), (6, 2, 1)),
        ((6, 2, 1), (6, 1, 1)),
        ((6, 1, 1), (6, 1, 2)),
        ((6, 1, 2), (6, 1, 1)),
        ((5, 3, 1), (7, 3, 1)),
        ((6, 2, 1), (3, 2, 1)),
        ((6, 2, 1), (6, 2, 1)),
    ],
    ids=lambda value: "{} images by {} on {}".format(*value),
)
def test_a_resumed_run_has_every_image_that_is_not_finished_once(
    before: tuple[int, int, int], after: tuple[int, int, int], half_done: bool
) -> None:
    """Whatever becomes of the images, of how many are searched for at once, and of the processes."""
    stopped = faces(*before)
    resumed = faces(*after)
    items = 5 if half_done else 0
    resumed.load_state_dict({**stopped.state_dict(), "epoch": 1, "items": items})
    finished = set(stopped.plan[0])
    left = [name for chunk in resumed.plan[1:] for name in chunk]
    assert sorted(left) == [name for name in resumed.names if name not in finished]
    assert resumed.plan[0] == stopped.plan[0]
    assert resumed.trainer.fit_loop.max_epochs == len(resumed.plan)  # type: ignore[union-attr]
    same_chunk = before[1:] == after[1:] and set(stopped.plan[1]) <= set(resumed.names)
    assert resumed.goes_on == (not half_done or same_chunk)
    assert resumed.state_dict()["items"] == (items if resumed.goes_on else 0)
    if half_done and resumed.goes_on:
        assert resumed.plan[1] == stopped.plan[1]
    again = faces(*after)
    again.load_state_dict({**resumed.state_dict(), "epoch": len(resumed.plan), "items": 0})
    assert again.plan == resumed.plan


def test_a_checkpoint_without_a_plan_is_refused() -> None:
    with pytest.raises(UserError, match=r"resume: .* which images its chunks had"):
        faces(2, 1).load_state_dict({"epoch": 1, "items": 0})


def test_a_file_a_folder_a_pattern_and_a_list(tmp_path: Path) -> None:
    for index, name in enumerate(("a.png", "b.png", "sub/c.png")):
        picture(tmp_path / name, seed=index)
    (tmp_path / "notes.txt").write_text("no image")
    assert targets(tmp_path / "b.png").names == ["b"]
    assert targets(tmp_path).names == ["a", "b", "sub/c"]
    assert targets(tmp_path / "*.png").names == ["a", "b"]
    assert targets(tmp_path / "**" / "*.png").names == ["a", "b", "c"]
    assert targets([tmp_path / "sub" / "c.png", tmp_path / "a.png"]).names == ["c", "a"]
    assert targets(tmp_path, limit=2).names == ["a", "b"]
    assert targets(tmp_path, limit=2).num_train_images == 2


def test_pixels_come_as_they_are(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    (image,) = targets(file).preview_batch(4)["real"]
    levels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    torch.testing.assert_close(image, levels / 127.5 - 1)


def test_crop_takes_the_middle(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", (SIDE + 6, SIDE))
    (image,) = targets(file, fit="crop").preview_batch(1)["real"]
    levels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[:, :, 3 : 3 + SIDE]
    torch.testing.assert_close(image, levels / 127.5 - 1)


def test_grey_images_are_converted_where_asked(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", mode="L")
    (image,) = targets(file, convert="match").preview_batch(1)["real"]
    assert image.shape == (3, SIDE, SIDE)
    assert torch.equal(image[0], image[2])


def test_of_what_the_generator_decides_no_key_is_advised(tmp_path: Path) -> None:
    """``data.channels`` is filled in, and no network could take other images."""
    grey = picture(tmp_path / "grey" / "a.png", mode="L")
    palette = tmp_path / "palette" / "a.png"
    palette.parent.mkdir()
    Image.open(grey).convert("P").save(palette)
    array = tmp_path / "array" / "a.npy"
    array.parent.mkdir()
    np.save(array, np.zeros((SIDE, SIDE, 4), np.uint8))
    match = ", or data.convert=match to convert"
    for file, what, mend in (
        (grey, "grey (1 channel) where this generator draws RGB", f"(save it as RGB{match})"),
        (palette, "palette images", f"(save it as RGB{match})"),
        (array, "of other channels: this generator draws RGB", "(shape (16, 16, 4)) (save it as RGB)"),
    ):
        with pytest.raises(UserError) as slip:
            targets(file)
        assert f"1 {what}: {file}" in str(slip.value)
        assert mend in str(slip.value)
        assert "data.channels" not in str(slip.value)


def test_without_images_they_are_unseen_toy_faces() -> None:
    data = targets(None, num_faces=2)
    assert data.names == ["test_00000", "test_00001"]
    assert data.preview_batch(2)["real"].shape == (2, 3, SIDE, SIDE)
    with pytest.raises(UserError, match="toy faces are RGB, the generator's have 1"):
        TargetImages(None, SIDE, 1).setup()


def test_unusable_files_are_listed_together(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    picture(tmp_path / "wide.png", (SIDE + 1, SIDE))
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    for nothing in ([], "", [""]):
        with pytest.raises(UserError, match="names none; give a file, a folder, a quoted pattern, or a list"):
            TargetImages(nothing, SIDE, 3).setup()
    with pytest.raises(UserError) as slip:
        targets(tmp_path)
    text = str(slip.value)
    assert text.startswith(f"images={tmp_path}: 2 files cannot be used\n")
    for words in ("wide.png (17x16)", "data.fit=crop", "torn.png"):
        assert words in text
    assert "good.png" not in text


def test_places_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="no images"):
        find_files(str(tmp_path))
    for missing in ("nowhere", "nowhere/*.png"):
        with pytest.raises(UserError, match="no such file or folder, and no image matches"):
            find_files(str(tmp_path / missing))


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [picture(tmp_path / folder / "a.png") for folder in ("one", "two")]
    with pytest.raises(UserError, match="two are called a; their results would overwrite each other"):
        targets(files)


def test_duplicates_among_many_are_found_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    class Name(str):
        compared = 0

        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, other)  # type: ignore[arg-type]

    found = [(Name(f"{index}"), Path()) for index in range(300)]
    monkeypatch.setattr("i2i_lightning.data.targets.find_files", lambda _: [*found, (Name("7"), Path())])
    with pytest.raises(UserError, match="two are called 7;"):
        targets("many")
    assert Name.compared < 3000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "crp"}, "data.fit=crp"),
        ({"convert": "yes"}, "data.convert=yes"),
        ({"limit": 0}, "data.limit=0: give at least 1"),
        ({"num_faces": 0}, "data.num_faces=0: give at least 1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as slip:
        TargetImages(None, SIDE, 3, **options)
    assert message in str(slip.value)
    assert len(str(slip.value).splitlines()) == 1


FACE = [[30.0, 30.0]] * 36 + [[20.0, 20.0]] * 6 + [[40.0, 20.0]] * 6 + [[22.0, 42.0]] + [[30.0, 42.0]] * 5
FACE += [[38.0, 42.0]] + [[30.0, 42.0]] * 13


def test_faces_are_cut_out_of_photos(tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png", (60, 70))
    (tmp_path / "a.landmarks.json").write_text(json.dumps(FACE))
    data = targets(photo, fit="align")
    found = data.preview_batch(1)["real"]
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = crop(pixels, face_quad(torch.tensor(FACE)), SIDE)
    assert found.shape == (1, 3, SIDE, SIDE)
    assert float((found - wanted).abs().max()) <= 0.5 / 127.5 + 1e-6
    photo.unlink()
    with pytest.raises(UserError, match=rf"^{re.escape(str(photo))}: missing, though"):
        data.preview_batch(1)


def mask(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """Write a mask that is white in ``box``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    image.paste(255, box)
    image.save(path)
    return path


def batch_of(data: TargetImages) -> Any:
    """Return the only chunk of ``data``, as the network sees it."""
    given: dict[str, Any] = {}

    class Loaders(TargetImages):
        def _loader(self, dataset: Any, *_: Any) -> Any:
            given["chunk"] = dataset.__getitems__([(0, 0)])

    data.__class__ = Loaders
    module = SimpleNamespace(steps_per_chunk=lambda _: 1)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, lightning_module=module)  # type: ignore[assignment]
    data.train_dataloader()
    return data.to_network(given["chunk"])


@pytest.mark.parametrize("fit", ["crop", "align"])
def test_masks_are_cut_as_their_images_are(tmp_path: Path, fit: str) -> None:
    for index, name in enumerate(("a.png", "sub/b.png")):
        file = picture(tmp_path / "in" / name, (60, 70), seed=index)
        file.with_suffix(".landmarks.json").write_text(json.dumps(FACE))
    box = (20, 10, 50, 40)
    mask(tmp_path / "masks" / "sub" / "b.png", (0, 0, 60, 70), (60, 70))
    mask(tmp_path / "masks" / "a.bmp", box, (60, 70))
    data = targets(tmp_path / "in", fit=fit, masks=str(tmp_path / "masks"))
    found = batch_of(data)["mask"]
    assert found.shape == (2, 1, SIDE, SIDE)
    assert float(found[1].min()) == 1
    # The same picture as an image: cut, it is white where the mask is 1.
    white = Image.new("RGB", (60, 70))
    white.paste((255, 255, 255), box)
    white.save(tmp_path / "in" / "a.png")
    like = targets(tmp_path / "in" / "a.png", fit=fit).preview_batch(1)["real"]
    torch.testing.assert_close(found[0], (like[0, :1] + 1) / 2)
    assert 0.1 < float(found[0].mean()) < 0.9


def test_masks_that_do_not_fit_are_told(tmp_path: Path) -> None:
    for index, name in enumerate("abc"):
        picture(tmp_path / "in" / f"{name}.png", seed=index)
    images, masks = tmp_path / "in", tmp_path / "masks"
    mask(masks / "a.png", (0, 0, 4, 4))
    with pytest.raises(
        UserError, match=r"^data\.masks=.*: no mask of b, c; each image takes one of its name$"
    ):
        targets(images, masks=str(masks))
    mask(masks / "b.png", (0, 0, 0, 0))
    mask(masks / "c.png", (0, 0, 4, 4), (20, 16))
    with pytest.raises(UserError) as slip:
        targets(images, masks=str(masks))
    text = str(slip.value)
    assert text.startswith(f"data.masks={masks}: 2 files cannot be used\n")
    assert f"empty (all black): {masks / 'b.png'}" in text
    assert f"not of their image's size: {masks / 'c.png'} (20x16, the image 16x16)" in text
    mask(masks / "c.bmp", (0, 0, 4, 4))
    with pytest.raises(UserError, match=r"^data\.masks=.*: two are called c$"):
        targets(images, masks=str(masks))
    (masks / "c.bmp").unlink()
    with pytest.raises(UserError, match=r"^data\.masks=.*nowhere"):
        targets(images, masks=str(tmp_path / "nowhere"))
    picture(tmp_path / "wide" / "a.png", (3 * SIDE, SIDE))
    mask(masks / "a.png", (0, 0, 4, 4), (3 * SIDE, SIDE))
    with pytest.raises(UserError, match="empty"):  # what it lets through is cut off
        targets(tmp_path / "wide", fit="crop", masks=str(masks))


def test_masks_of_toy_faces(tmp_path: Path) -> None:
    mask(tmp_path / "test_00000.png", (0, 0, 8, SIDE))
    found = batch_of(targets(None, num_faces=1, masks=str(tmp_path)))["mask"]
    assert float(found[..., :8].min()) == 1
    assert float(found[..., 8:].max()) == 0


def test_a_mask_that_was_painted_on_a_layer_is_its_alpha(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 8, SIDE))
    layer.save(tmp_path / "test_00000.png")
    found = batch_of(targets(None, num_faces=1, masks=str(tmp_path)))["mask"]
    assert float(found[..., :8].min()) == 1
    assert float(found[..., 8:].max()) == 0


def test_files_of_several_depths_are_of_one_scale(tmp_path: Path) -> None:
    """Stacked as they are, 8-bit pixels among floats would pass for 0 to 255."""
    images, masks = tmp_path / "in", tmp_path / "masks"
    picture(images / "a.png", seed=0)
    np.save(images / "b.npy", np.full((SIDE, SIDE, 3), 0.5, np.float32))
    found = batch_of(targets(images))["real"]
    with Image.open(images / "a.png") as eight_bit:
        expected = torch.from_numpy(np.array(eight_bit)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(found[0], expected)
    assert float(found[1].min()) == float(found[1].max()) == 0.5
    mask(masks / "a.png", (0, 0, 4, 4))
    np.save(masks / "b.npy", np.full((SIDE, SIDE), -1, np.float32))
    with pytest.raises(UserError, match=r"empty \(all black\)") as slip:
        targets(images, masks=str(masks))
    assert "b.npy" in str(slip.value)


def test_a_label_is_that_of_all_images() -> None:
    found = batch_of(targets(None, num_faces=2, label=1, label_dim=3))
    assert found["label"].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert "label" not in batch_of(targets(None, num_faces=1))
    for options, message in (
        ({"label": 1}, "data.label=1: this generator is unconditional; leave it out"),
        ({"label_dim": 3}, "data.label: this generator has 3 classes; give data.label=0 to 2"),
        ({"label": 3, "label_dim": 3}, "data.label=3: this generator has classes from 0 to 2"),
    ):
        with pytest.raises(UserError) as slip:
            TargetImages(None, SIDE, 3, **options)  # type: ignore[arg-type]
        assert str(slip.value) == message


def test_every_image_has_a_file_to_begin_with(tmp_path: Path) -> None:
    for index, name in enumerate(("a.png", "sub/b.png")):
        picture(tmp_path / "in" / name, seed=index)
    with pytest.raises(UserError, match=r"^data\.start=.*nowhere"):
        targets(tmp_path / "in", start=str(tmp_path / "nowhere"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UserError, match=r"^data\.start=.*: no latent file of sub/b \(sub/b\.safetensors\);"):
        targets(tmp_path / "in", start=str(tmp_path))
    (tmp_path / "sub" / "b.safetensors").touch()
    found = batch_of(targets(tmp_path / "in", start=str(tmp_path)))
    assert found["start"] == [str(tmp_path / name) for name in ("a.safetensors", "sub/b.safetensors")]


@pytest.mark.parametrize(
    ("key", "before"),
    [("label", "null"), ("masks", "null"), ("start", "null"), ("fit", "refuse"), ("convert", "none")],
)
def test_a_search_does_not_go_on_with_other_targets(key: str, before: str) -> None:
    stopped, resumed = faces(2, 1), faces(2, 1)
    setattr(resumed, key, 1)
    with pytest.raises(UserError) as slip:
        resumed.load_state_dict({**stopped.state_dict(), "epoch": 1})
    assert str(slip.value) == f"resume: the search began with data.{key}={before}, and this says data.{key}=1"


def test_photos_without_one_face_are_listed_together(tmp_path: Path) -> None:
    for name, faces in (("a", []), ("b", [FACE, FACE]), ("c", [FACE])):
        picture(tmp_path / f"{name}.png", (60, 70))
        (tmp_path / f"{name}.landmarks.json").write_text(json.dumps(faces))
    with pytest.raises(UserError) as raised:
        targets(tmp_path, fit="align")
    text = str(raised.value)
    assert "2 files cannot be used\n  2 not one face to align (data.fit=align): " in text
    assert "a.landmarks.json: no face was found" in text
    assert "b.landmarks.json: 2 faces were found" in text
    assert "c.png" not in text
