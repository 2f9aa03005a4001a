"""One set of pictures: pixels, splits, classes, caches, resume, a clear line for every slip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning.data.images import ImageFolderDataModule
from i2i_lightning.data.sampler import item_rng
from i2i_lightning.types import UserError
from tests.data.conftest import picture

MakeFolder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> MakeFolder:
    """Write pictures ``name.png`` of different content and return the folder."""

    def make(*names: str, height: int = 36, width: int = 48) -> Path:
        root = tmp_path / "pictures"
        for number, name in enumerate(names):
            path = root / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number, height, width)).save(path)
        return root

    return make


FLAT = tuple(f"{index:02d}" for index in range(10))
SPLIT = ("train/a", "train/b", "train/sub/c", "train/d", "val/e", "val/f", "test/g")
CLASSES = tuple(
    f"{split}/{pet}/{index}" for split in ("train", "val") for pet in ("dog", "cat") for index in "12"
)


def module(
    root: Path | None, tmp_path: Path, stage: str | None = None, **options: Any
) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root, **{"cache_dir": tmp_path / "cache", "crop_px": 24, **options})
    data.setup(stage)
    return data


def slip(root: Path | None, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        module(root, tmp_path, **options)
    assert 1 <= len(str(error.value).splitlines()) <= 3
    return str(error.value)


def test_items_are_the_pixels_of_pil(folder: MakeFolder, tmp_path: Path) -> None:
    root = folder(*SPLIT)
    data = module(root, tmp_path, load_px=30, seed=3)
    coins = set()
    for index, name in enumerate(("a", "b", "d", "sub/c")):
        item = data.train_set[2, index]  # type: ignore[index]
        row, column, coin = item_rng(3, 2, index).random(3)
        top, left = int(row * 7), int(column * 17)  # the shorter side is 30, the longer 40
        with Image.open(root / "train" / f"{name}.png") as image:
            expected = image.resize((40, 30), Image.Resampling.BICUBIC).crop((left, top, left + 24, top + 24))
        if coin > 0.5:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert item["name"] == name
        np.testing.assert_array_equal(item["real"].numpy(), np.asarray(expected).transpose(2, 0, 1))
        coins.add(bool(coin > 0.5))
    assert coins == {True, False}
    straight = module(root, tmp_path, flip=False).train_set[2, 1]  # type: ignore[index]
    with Image.open(root / "train" / "b.png") as image:
        resized = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    left = int(item_rng(0, 2, 1).random(3)[1] * 9)
    np.testing.assert_array_equal(straight["real"].numpy(), resized[:, :, left : left + 24])


def test_batches_are_what_methods_and_callbacks_take(folder: MakeFolder, tmp_path: Path) -> None:
    data = module(folder(*SPLIT), tmp_path, batch_size=3, val_batch_size=2)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert set(batch) == {"real", "name"}
    assert batch["real"].shape == (3, 3, 24, 24)  # type: ignore[typeddict-item]
    assert batch["real"].dtype == torch.float32  # type: ignore[typeddict-item]
    assert batch["real"].min() >= -1  # type: ignore[typeddict-item]
    held = data.preview_batch(5)
    assert held["name"] == ["e", "f"]  # type: ignore[typeddict-item]
    shown = data.display_output(held["real"], held["real"])  # type: ignore[typeddict-item]
    assert torch.equal(shown[1], data.val_set[0, 1]["real"])  # type: ignore[index]
    assert (data.size_px, data.sizes_px, data.channels) == ((24, 24), {(24, 24)}, 3)
    assert (data.num_train_images, data.label_dim, data.one_sided) == (4, 0, True)
    assert [format.kind for format in data.formats()] == ["image", "image"]
    assert [batch["name"] for batch in data.test_dataloader()] == [["g"]]


def test_a_share_is_held_out_where_there_are_no_splits(folder: MakeFolder, tmp_path: Path) -> None:
    data = module(folder(*FLAT), tmp_path, val_fraction=0.2)
    train, val = (set(dataset.names) for dataset in (data.train_set, data.val_set))  # type: ignore[union-attr]
    assert len(val) == 2
    assert train | val == set(FLAT)
    assert not train & val
    assert data.test_set.names == data.val_set.names  # type: ignore[union-attr]


def test_folders_are_classes(folder: MakeFolder, tmp_path: Path) -> None:
    data = module(folder(*CLASSES), tmp_path, labels="folders", label_dim=2, batch_size=4)
    assert data.classes == ("cat", "dog")
    batch = data.to_network(next(iter(data.train_dataloader())))
    for name, label in zip(batch["name"], batch["label"].tolist(), strict=True):
        assert label == [float(name.startswith("cat/")), float(name.startswith("dog/"))]
    assert data.preview_batch(4)["label"].dtype == torch.float32  # type: ignore[typeddict-item]


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_workers_and_caches_do_not_change_a_bit(folder: MakeFolder, tmp_path: Path, cache: str) -> None:
    root = folder(*FLAT)
    expected = module(root, tmp_path, load_px=30)
    data = module(root, tmp_path, load_px=30, cache=cache, num_workers=2, batch_size=4)
    data.multiprocessing_context = "fork"
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
    names = expected.train_set.names  # type: ignore[union-attr]
    seen = [item for batch in loader for item in zip(batch["name"], batch["real"], strict=True)]
    assert len(seen) == 8
    for name, real in seen:
        assert torch.equal(real, expected.train_set[3, names.index(name)]["real"])  # type: ignore[index]


def test_a_stopped_epoch_goes_on_with_the_same_pictures(folder: MakeFolder, tmp_path: Path) -> None:
    root = folder(*FLAT)
    whole, data = module(root, tmp_path), module(root, tmp_path)
    loader = whole.train_dataloader()
    loader.sampler.set_epoch(2)  # type: ignore[attr-defined]
    expected = [(batch["name"][0], batch["real"].sum()) for batch in loader]
    data.load_state_dict({"epoch": 2, "items": 4})
    rest = [(batch["name"][0], batch["real"].sum()) for batch in data.train_dataloader()]
    assert rest == expected[4:]


def test_slips_of_folders(folder: MakeFolder, tmp_path: Path) -> None:
    root = folder(*SPLIT)
    assert slip(None, tmp_path).startswith("data.root is missing")
    assert "no such folder" in slip(tmp_path / "picture", tmp_path)
    assert "did you mean" in slip(tmp_path / "picture", tmp_path)
    (root / "empty").mkdir()
    assert "no images" in slip(root / "empty", tmp_path)
    assert "1 training images are too few; give at least 3" in slip(root / "test", tmp_path)
    assert "at most 4" in slip(root, tmp_path, batch_size=5)
    Image.fromarray(picture(1, channels=1)[:, :, 0]).save(root / "train" / "d.png")
    text = slip(root, tmp_path)
    assert "1 grey (1 channel) where data.channels=3: train/d.png" in text
    assert "set data.channels=1, or data.convert=match" in text
    (root / "train" / "a.png").write_bytes(b"")
    assert "2 files cannot be used" in slip(root, tmp_path)


def test_slips_of_classes(folder: MakeFolder, tmp_path: Path) -> None:
    root = folder(*CLASSES)
    labels = {"labels": "folders", "label_dim": 2}
    assert "data.label_dim=0 with data.labels=folders" in slip(root, tmp_path, labels="folders")
    assert "data.label_dim=3 with data.labels=none" in slip(root, tmp_path, label_dim=3)
    assert "data.label_dim=3: " in slip(root, tmp_path, labels="folders", label_dim=3)
    assert "has 2 class folders (cat, dog)" in slip(root, tmp_path, labels="folders", label_dim=3)
    assert "data.labels=folder" in slip(root, tmp_path, labels="folder")
    folder(*CLASSES, "val/bird/1")
    assert "val has classes that train has not: bird" in slip(root, tmp_path, **labels)
    folder(*CLASSES, "train/stray")
    assert "train has images in no folder: stray" in slip(root, tmp_path, **labels)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 0}, "data.channels=0"),
        ({"crop_px": 24, "load_px": 16}, "data.crop_px=24 is larger than data.load_px=16"),
        ({"cache": "ram"}, "data.cache=ram"),
        ({"val_fraction": 1.5}, "data.val_fraction=1.5"),
    ],
)
def test_slips_of_options(folder: MakeFolder, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    assert says in slip(folder(*FLAT), tmp_path, **options)
