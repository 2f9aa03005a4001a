"""The data module: every task's shapes and ranges, truth, flips, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning.data.toyfaces.__main__ import main
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES, CLASS_PALETTE, LANDMARK_NAMES
from i2i_lightning.data.toyfaces.module import (
    ToyFacesDataModule,
    ToyFacesPairs,
    class_palette,
)
from i2i_lightning.data.toyfaces.parameters import VECTOR_NAMES
from i2i_lightning.data.toyfaces.render import render
from i2i_lightning.data.toyfaces.tasks import TASKS
from i2i_lightning.types import UserError


def module(task: str = "regions_to_photo", **options) -> ToyFacesDataModule:
    settings = {"crop_px": 32, "num_train": 6, "num_val": 3, "num_test": 2, "batch_size": 2, **options}
    return ToyFacesDataModule(task, **settings)


def through(data: ToyFacesDataModule, loader) -> list:
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task):
    data = module(task)
    data.setup("fit")
    table = TASKS[task]
    batch = through(data, data.train_dataloader())[0]
    assert batch["real_a"].shape == (2, table.in_channels, 32, 32)
    assert batch["real_b"].shape == (2, table.out_channels, 32, 32)
    assert (data.in_channels, data.out_channels) == (table.in_channels, table.out_channels)
    assert data.size_px == (32, 32)
    assert data.num_train_images == 6
    for side, kind in (("real_a", table.in_kind), ("real_b", table.out_kind)):
        values = batch[side]
        assert values.dtype == torch.float32
        if kind == "labels":
            assert set(values.unique().tolist()) == {0.0, 1.0}
            assert (values.sum(1) == 1).all()
        else:
            assert values.min() >= -1.0001
            assert values.max() <= 1.0001
    shown = data.display_output(batch["real_b"], batch["real_a"])
    assert shown.dtype == torch.uint8
    assert shown.shape == data.display_input(batch["real_a"]).shape == (2, 3, 32, 32)
    assert "parsing" not in batch


def test_pairs_are_what_render_draws():
    data = module("parsing_to_photo")
    data.setup("fit")
    batch = data.preview_batch(3)
    faces = ToyFaces("val", 32, ("photo", "parsing"))
    for index in range(3):
        item = faces[index]
        photo = data.display_output(batch["real_b"], batch["real_a"])[index]
        np.testing.assert_array_equal(photo.numpy(), item["photo"])
        np.testing.assert_array_equal(batch["real_a"][index].argmax(0).numpy(), item["parsing"])
        assert batch["name"][index] == item["name"] == f"val_{index:05d}"


def test_val_and_test_batches_carry_the_truth():
    data = module()
    data.setup()
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        faces = ToyFaces(split, 32, ("parsing",))
        for index, batch in enumerate(through(data, loader)):
            item = faces[index]
            assert batch["parsing"].dtype == torch.long
            np.testing.assert_array_equal(batch["parsing"][0].numpy(), item["parsing"])
            assert batch["landmarks"].shape == (1, len(LANDMARK_NAMES), 2)
            np.testing.assert_array_equal(batch["landmarks"][0].numpy(), item["landmarks"])
            assert batch["parameters"].shape == (1, len(VECTOR_NAMES))
            np.testing.assert_array_equal(batch["parameters"][0].numpy(), item["parameters"])


def test_lab_is_the_photo_again():
    data = module("grey_to_colour_lab")
    data.setup("fit")
    batch = data.preview_batch(2)
    shown = data.display_output(batch["real_b"], batch["real_a"])
    photos = np.stack(
        [render(ToyFaces("val", 32, ()).parameters(i), 32, ["photo"])["photo"] for i in range(2)]
    )
    assert np.abs(shown.numpy().astype(int) - photos).max() <= 1
    grey = data.display_input(batch["real_a"]).int()
    assert (grey - grey.float().mean(1, keepdim=True).round().int()).abs().max() <= 1


def test_grey_and_low_are_pillows():
    photo = ToyFaces("val", 32, ("photo",))[0]["photo"]
    picture = Image.fromarray(photo.transpose(1, 2, 0))
    for task, expected in (
        ("grey_to_colour", np.asarray(picture.convert("L"))[None]),
        ("low_to_high", np.asarray(picture.resize((8, 8), 3).resize((32, 32), 3)).transpose(2, 0, 1)),
    ):
        pairs = ToyFacesPairs(ToyFaces("val", 32, (), 1), task)
        np.testing.assert_array_equal(pairs.a[0], expected)
        np.testing.assert_array_equal(pairs.b[0], photo)


def test_flips_are_joint_and_a_function_of_the_key():
    faces = ToyFaces("train", 32, (), 8)
    plain, flipping = (
        ToyFacesPairs(faces, "regions_to_photo"),
        ToyFacesPairs(faces, "regions_to_photo", flip=True),
    )
    seen = set()
    for epoch in range(4):
        for index in range(8):
            item, straight = flipping[epoch, index], plain[epoch, index]
            flipped = not torch.equal(item["real_a"], straight["real_a"])
            seen.add(flipped)
            for side in ("real_a", "real_b"):
                expected = straight[side].flip(-1) if flipped else straight[side]
                assert torch.equal(item[side], expected)
            assert torch.equal(flipping[epoch, index]["real_b"], item["real_b"])
    assert seen == {True, False}


def test_loading_touches_no_global_random_state_and_repeats():
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = []
    for _ in range(2):
        data = module(seed=5)
        data.setup("fit")
        runs.append(through(data, data.train_dataloader()))
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()
    for first, second in zip(*runs, strict=True):
        assert first["name"] == second["name"]
        assert torch.equal(first["real_b"], second["real_b"])


def test_more_faces_only_append():
    few, many = ToyFaces("train", 32, ("photo",), 2), ToyFaces("train", 32, ("photo",), 4100)
    assert len(many) == 4100
    assert len(ToyFaces("test")) == 200
    np.testing.assert_array_equal(few[1]["photo"], many[1]["photo"])
    assert many[4099]["name"] == "train_04099"
    with pytest.raises(IndexError, match="face 2 of 2"):
        few[2]


def test_class_colours_are_the_mean_of_each_class():
    pairs = ToyFacesPairs(ToyFaces("train", 32, (), 5), "edges_to_photo")
    drawn = [
        render(ToyFaces("train", 32, ()).parameters(index), 32, ["photo", "parsing"]) for index in range(5)
    ]
    skin = np.concatenate([item["photo"][:, item["parsing"] == 1].T for item in drawn])
    np.testing.assert_allclose(pairs.class_colours[1], skin.mean(0))
    assert pairs.class_colours.shape == (len(CLASS_NAMES), 3)


def test_palette_is_that_of_the_classes():
    assert class_palette().tolist() == [list(colour) for colour in CLASS_PALETTE]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "photo_to_song"}, r"data.task=photo_to_song: choose one of .*regions_to_photo"),
        ({"crop_px": 8}, "data.crop_px=8"),
        ({"crop_px": [64, 32]}, r"data.crop_px=\[64, 32\]: toy faces are square"),
        ({"num_train": 0}, "data.num_train=0"),
        ({"in_channels": 7}, "data.in_channels=7: the task regions_to_photo has 3"),
        ({"version": 9}, "version=9"),
        ({"batch_size": 0}, "data.batch_size=0"),
    ],
)
def test_slips_are_named(options, message):
    with pytest.raises(UserError, match=message):
        module(**{"task": "regions_to_photo", **options})


def test_contact_sheet(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    words = [str(path), "--size", "32", "--count", "3", "--columns", "2", "--kinds", "photo", "edges"]
    monkeypatch.setattr("sys.argv", ["toyfaces", *words])
    main()
    assert Image.open(path).size == (2 * 2 * 32, 2 * 32)
