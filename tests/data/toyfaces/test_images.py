"""ToyFaces as pictures of one kind: what is drawn, by whom, and the classes that attributes make."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from i2i_lightning.data.toyfaces import crew, images
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.images import ToyFacesImagesDataModule, ToyFacesPictures
from i2i_lightning.data.toyfaces.labels import CLASSES
from i2i_lightning.types import UserError


def module(stage: str | None = None, **options: Any) -> ToyFacesImagesDataModule:
    data = ToyFacesImagesDataModule(**{"crop_px": 32, "num_train": 8, "num_val": 3, "num_test": 2, **options})
    data.setup(stage)
    return data


@pytest.mark.parametrize("kind", ["photo", "cartoon"])
def test_batches_are_the_drawings(kind: str) -> None:
    data = module(kind=kind, flip=False, batch_size=4)
    assert (data.size_px, data.channels, data.label_dim, data.num_train_images) == ((32, 32), 3, 0, 8)
    assert data.one_sided
    assert data.judged_style() == kind
    batch = data.to_network(next(iter(data.train_dataloader())))
    assert set(batch) == {"real", "name"}
    faces = ToyFaces("train", 32, (kind,), 8)
    for name, real in zip(batch["name"], batch["real"], strict=True):
        drawn = faces[int(name[-5:])][kind]
        np.testing.assert_array_equal(data.display_output(real[None], real[None])[0], drawn)
        np.testing.assert_allclose(real.numpy(), drawn / 127.5 - 1, atol=1e-6)
    held = data.preview_batch(2)
    assert held["name"] == ["val_00000", "val_00001"]  # type: ignore[typeddict-item]
    assert len(data.test_set) == 2  # type: ignore[arg-type]


def test_training_pictures_are_mirrored_and_held_out_ones_are_not() -> None:
    data, plain = module(seed=4), module(flip=False)
    mirrored = set()
    for epoch in range(3):
        for index in range(8):
            item, straight = data.train_set[epoch, index], plain.train_set[epoch, index]  # type: ignore[index]
            flipped = torch.equal(item["real"], straight["real"].flip(-1))
            assert flipped or torch.equal(item["real"], straight["real"])
            mirrored.add(flipped)
    assert mirrored == {True, False}
    assert torch.equal(data.val_set[1, 2]["real"], plain.val_set[0, 2]["real"])  # type: ignore[index]


@pytest.mark.parametrize("label", ["glasses", "hair_style", "smiling"])
def test_attributes_are_classes(label: str) -> None:
    data = module(label=label, label_dim=len(CLASSES[label]), batch_size=8)
    batch = data.to_network(next(iter(data.train_dataloader())))
    faces = ToyFaces("train", 32, (), 8)
    assert batch["label"].shape == (8, len(CLASSES[label]))
    assert batch["label"].sum(1).tolist() == [1.0] * 8
    for name, one_hot in zip(batch["name"], batch["label"], strict=True):
        item = faces[int(name[-5:])]
        found = CLASSES[label][int(one_hot.argmax())]
        if label == "smiling":
            assert item["attributes"][label] == (found == "yes")
        else:
            assert getattr(item["face"], label) == found


def test_several_processes_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = ToyFaces("train", 32, (), 7, first=3)
    alone = [ToyFacesPictures(faces, "photo")[index][0] for index in range(7)]
    monkeypatch.setattr(images, "WORTH_A_CREW", 0)
    monkeypatch.setattr(images, "available_cores", lambda: 2)
    started = []
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> Any:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    together = ToyFacesPictures(faces, "photo")
    np.testing.assert_array_equal([together[index][0] for index in range(7)], alone)
    assert [process.args[-1] for process in started] == ["0", "1"]
    assert all(process.poll() is not None for process in started)


def test_what_a_process_leaves_undone_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = ToyFaces("val", 32, ("cartoon",), 5)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    drawn = list(crew.draw_together(faces, "cartoon", 2))
    np.testing.assert_array_equal(drawn, [faces[index]["cartoon"] for index in range(5)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "edges"}, "data.kind=edges: choose one of photo, cartoon"),
        ({"crop_px": 8}, "data.crop_px=8"),
        ({"num_train": 0}, "data.num_train=0"),
        ({"label": "hat"}, "data.label=hat: choose one of"),
        ({"label": "glasses", "label_dim": 2}, "data.label_dim=2: data.label=glasses has 4 classes"),
        ({"label_dim": 2}, "data.label_dim=2: data.label=null has 0 classes"),
    ],
)
def test_slips(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as slip:
        ToyFacesImagesDataModule(**options)
    assert says in str(slip.value)
