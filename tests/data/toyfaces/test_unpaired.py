"""ToyFaces without pairs: no face on both sides, and the truth beside held-out items alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.render import render
from i2i_lightning.data.toyfaces.unpaired import ToyFacesUnpairedDataModule
from i2i_lightning.types import UserError


def module(**options: Any) -> ToyFacesUnpairedDataModule:
    settings = {"crop_px": 32, "num_train_a": 6, "num_train_b": 4, "num_val": 3, "num_test": 2, **options}
    return ToyFacesUnpairedDataModule(**settings)


def test_no_face_is_on_both_sides() -> None:
    data = module(flip=False)
    data.setup()
    numbers = {
        "train": (range(6), range(6, 10)),
        "val": (range(3), range(3, 6)),
        "test": (range(2), range(2, 4)),
    }
    for split, (faces_a, faces_b) in numbers.items():
        dataset = getattr(data, f"{split}_set")
        assert dataset.names[0] == [f"{split}_{number:05d}" for number in faces_a]
        assert dataset.names[1] == [f"{split}_{number:05d}" for number in faces_b]
    item = data.train_set[0, 2]  # type: ignore[index]
    faces = ToyFaces("train", 32, ("photo", "cartoon"), 10)
    np.testing.assert_array_equal(item["real_a"], faces[2]["photo"])
    np.testing.assert_array_equal(item["real_b"], faces[int(item["name_b"][-5:])]["cartoon"])


def test_training_batches_carry_no_truth() -> None:
    data = module(batch_size=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"real_a", "real_b", "name_a", "name_b"}
    floats = data.to_network(batch)
    assert floats["real_a"].shape == (2, 3, 32, 32)
    assert floats["real_b"].min() >= -1
    assert data.num_train_images == len(data.train_set) == 6  # type: ignore[arg-type]
    assert module(epoch="b").num_train_images == 4


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_batches_carry_the_partners(split: str) -> None:
    data = module(val_batch_size=2)
    data.setup()
    batch = data.to_network(next(iter(getattr(data, f"{split}_dataloader")())))
    size = len(data.faces[split][0])
    faces = ToyFaces(split, 32, ("photo", "cartoon", "parsing"), 2 * size)
    for index in range(2):
        for letter, other, number in (("a", "cartoon", index), ("b", "photo", size + index)):
            face = faces[number]
            partner = batch[f"partner_{letter}"]  # type: ignore[literal-required]
            show = data.display_output if letter == "a" else lambda image, _: data.display_input(image)
            np.testing.assert_array_equal(show(partner, partner)[index].numpy(), face[other])
            np.testing.assert_array_equal(batch[f"parsing_{letter}"][index], face["parsing"])  # type: ignore[literal-required]
            np.testing.assert_array_equal(batch[f"landmarks_{letter}"][index], face["landmarks"])  # type: ignore[literal-required]
            np.testing.assert_array_equal(batch[f"parameters_{letter}"][index], face["parameters"])  # type: ignore[literal-required]
    assert batch["parsing_a"].dtype == torch.long
    assert batch["first_a"].all()


def test_sides_are_mirrored_independently_and_repeatably() -> None:
    data, plain = module(seed=1), module(seed=1, flip=False)
    data.setup("fit")
    plain.setup("fit")
    mirrored = set()
    for epoch in range(3):
        for index in range(6):
            item, straight = data.train_set[epoch, index], plain.train_set[epoch, index]  # type: ignore[index]
            assert item["name_b"] == straight["name_b"]
            mirrored.add(tuple(not torch.equal(item[k], straight[k]) for k in ("real_a", "real_b")))
            assert torch.equal(data.train_set[epoch, index]["real_b"], item["real_b"])  # type: ignore[index]
    assert len(mirrored) == 4


def test_other_tasks() -> None:
    data = module(task="parsing_to_photo")
    data.setup("fit")
    batch = data.preview_batch(2)
    assert batch["real_a"].shape == (2, 11, 32, 32)
    assert batch["partner_b"].shape == (2, 11, 32, 32)  # type: ignore[typeddict-item]
    assert data.display_input(batch["real_a"]).shape == (2, 3, 32, 32)
    assert data.formats()[0].kind == "labels"
    low = module(task="low_to_high")
    low.setup("fit")
    photo = render(ToyFaces("val", 32, (), 3).parameters(0), 32, ["photo"])["photo"]
    shown = low.display_output(low.preview_batch(1)["partner_a"], torch.empty(0))[0]  # type: ignore[typeddict-item]
    np.testing.assert_array_equal(shown.numpy(), photo)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "grey_to_colour_lab"}, "data.task=grey_to_colour_lab: without pairs, choose one of"),
        ({"num_train_b": 0}, "data.num_train_b=0"),
        ({"crop_px": 8}, "data.crop_px=8"),
        ({"in_channels": 4}, "data.in_channels=4: the task photo_to_cartoon has 3"),
    ],
)
def test_slips(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as slip:
        module(**options)
    assert says in str(slip.value)
