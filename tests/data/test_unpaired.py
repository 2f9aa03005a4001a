"""Two sets without pairs: who meets whom, independent transforms, caches, a clear line for every slip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.data.cache import CachedPictures
from i2i_lightning.data.sampler import EpochSampler, item_rng
from i2i_lightning.data.unpaired import UnpairedDataModule
from i2i_lightning.types import UserError
from tests.data.conftest import picture

MakeSets = Callable[..., Path]
SMALL = {"load_px": 32, "crop_px": 24}


@pytest.fixture
def sets(tmp_path: Path) -> MakeSets:
    """Make ``root/trainA/a0.png`` ... and ``trainB``, ``testA``, ``testB``; return the root."""

    def make(a: int = 4, b: int = 7, test: tuple[int, int] = (2, 3)) -> Path:
        root = tmp_path / "zoo"
        for split, counts in (("train", (a, b)), ("test", test)):
            for number, (side, count) in enumerate(zip("AB", counts, strict=True)):
                (root / (split + side)).mkdir(parents=True)
                for index in range(count):
                    pixels = picture(1000 * (split == "test") + 500 * number + index, 36, 40)
                    Image.fromarray(pixels).save(root / (split + side) / f"{side.lower()}{index}.png")
        return root

    return make


def module(root: Path | None, tmp_path: Path, stage: str = "fit", **options: Any) -> UnpairedDataModule:
    data = UnpairedDataModule(root, cache_dir=tmp_path / "cache", **{**SMALL, **options})
    data.setup(stage)
    return data


def epoch(data: UnpairedDataModule, number: int = 0) -> list[tuple[str, str, Tensor, Tensor]]:
    """Return the training items of an epoch, in their order."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return [
        item
        for batch in loader
        for item in zip(batch["name_a"], batch["name_b"], batch["real_a"], batch["real_b"], strict=True)
    ]


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for one, two in zip(left, right, strict=True)
        for x, y in zip(one, two, strict=True)
    )


def test_items_are_the_pixels_of_pil(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    data = module(root, tmp_path, seed=3)
    mirrored = set()
    for index in range(7):
        item = data.train_set[2, index]  # type: ignore[index]
        partner, *draws = item_rng(3, 2, index).random(7)
        assert item["name_b"] == f"b{index}"
        assert item["name_a"] == f"a{int(partner * 4)}"
        coins = []
        for side, (row, column, coin) in zip("ab", (draws[:3], draws[3:]), strict=True):
            top, left = int(row * 9), int(column * 9)
            with Image.open(root / f"train{side.upper()}" / f"{item[f'name_{side}']}.png") as image:
                expected = image.resize((32, 32), Image.Resampling.BICUBIC)
            expected = expected.crop((left, top, left + 24, top + 24))
            if coin > 0.5:
                expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            np.testing.assert_array_equal(
                item[f"real_{side}"].numpy(), np.asarray(expected).transpose(2, 0, 1)
            )
            coins.append(bool(coin > 0.5))
        mirrored.add(tuple(coins))
    assert len(mirrored) > 2  # the two sides are mirrored independently


@pytest.mark.parametrize(("rule", "length", "walked"), [("longer", 7, "b"), ("a", 4, "a"), ("b", 7, "b")])
def test_an_epoch_walks_through_one_set(
    sets: MakeSets, tmp_path: Path, rule: str, length: int, walked: str
) -> None:
    data = module(sets(), tmp_path, epoch=rule)
    assert data.num_train_images == length
    items = epoch(data)
    names = [item["ab".index(walked)] for item in items]
    assert sorted(names) == [f"{walked}{index}" for index in range(length)]
    assert names != sorted(names)


def test_partners_are_uniform_and_change_with_the_epoch(sets: MakeSets, tmp_path: Path) -> None:
    dataset = module(sets(), tmp_path).train_set
    draws = [dataset.partners(number, index)[0] for number in range(300) for index in range(7)]  # type: ignore[union-attr]
    counts = Counter(draws)
    assert len(counts) == 28
    # 75 meetings of each couple are expected; 5 standard deviations of a binomial.
    assert all(abs(count - 75) < 5 * 75**0.5 for count in counts.values())


def test_partners_depend_on_seed_epoch_and_index_alone(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    data = module(root, tmp_path)
    assert same(epoch(data, 4), epoch(data, 4))
    assert not same(epoch(data, 4), epoch(data, 5))
    assert not same(epoch(data, 4), epoch(module(root, tmp_path, seed=1), 4))
    assert same(epoch(data, 4)[:6], epoch(module(root, tmp_path, batch_size=3), 4))  # the seventh is dropped
    state = torch.get_rng_state()
    epoch(data, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_ranks_share_an_epoch(sets: MakeSets, tmp_path: Path) -> None:
    dataset = module(sets(b=8), tmp_path).train_set
    assert dataset is not None
    whole = {index: dataset[3, index] for index in range(8)}
    seen = []
    for rank in (0, 1):
        sampler = EpochSampler(8, True, 0, 2, rank)
        sampler.set_epoch(3)
        for key in sampler:
            item = dataset[key]
            assert item["name_a"] == whole[key[1]]["name_a"]
            assert torch.equal(item["real_a"], whole[key[1]]["real_a"])
            seen.append(key[1])
    assert sorted(seen) == list(range(8))


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_workers_and_caches_do_not_change_a_bit(sets: MakeSets, tmp_path: Path, cache: str) -> None:
    root = sets()
    expected = epoch(module(root, tmp_path), 1)
    data = module(root, tmp_path, cache=cache, num_workers=2)
    data.multiprocessing_context = "fork"
    assert same(epoch(data, 1), expected)
    if cache != "none":
        for source in data.train_set.sources:  # type: ignore[union-attr]
            assert isinstance(source, CachedPictures)
            assert source.in_memory == (cache == "memory")
        assert data.cache_in_memory == (cache == "memory")


def test_a_stopped_epoch_goes_on_with_the_same_couples(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    expected = epoch(module(root, tmp_path), 2)
    data = module(root, tmp_path)
    data.load_state_dict({"epoch": 2, "items": 3})
    loader = data.train_dataloader()
    names = [(batch["name_a"][0], batch["name_b"][0]) for batch in loader]
    assert names == [(a, b) for a, b, _, _ in expected[3:]]


def test_validation_goes_through_both_in_order(sets: MakeSets, tmp_path: Path) -> None:
    root = sets(test=(2, 5))
    data = module(root, tmp_path, val_batch_size=2)
    batches = [data.to_network(batch) for batch in data.val_dataloader()]
    assert [name for batch in batches for name in batch["name_a"]] == ["a0", "a1", "a0", "a1", "a0"]
    assert [name for batch in batches for name in batch["name_b"]] == [f"b{index}" for index in range(5)]
    assert [first for batch in batches for first in batch["first_a"].tolist()] == [True, True, *[False] * 3]
    assert all(batch["first_b"].all() for batch in batches)
    with Image.open(root / "testB" / "b4.png") as image:
        expected = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC))
    shown = data.display_output(batches[-1]["real_b"], batches[-1]["real_a"])[0]
    np.testing.assert_array_equal(shown.permute(1, 2, 0).numpy(), expected)


def test_network_batches_are_floats(sets: MakeSets, tmp_path: Path) -> None:
    data = module(sets(), tmp_path, batch_size=3)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["real_a"].shape == batch["real_b"].shape == (3, 3, 24, 24)
    assert batch["real_a"].dtype == torch.float32
    assert "first_a" not in batch
    assert (data.in_channels, data.out_channels, data.size_px, data.aligned) == (3, 3, (24, 24), False)
    assert data.formats()[0].to_dict() == data.formats()[1].to_dict()
    assert data.preview_batch(2)["name_b"] == ["b0", "b1"]  # type: ignore[typeddict-item]


def test_any_two_folders_and_lists_of_files(sets: MakeSets, tmp_path: Path) -> None:
    root = sets(a=12, b=14)
    folders = module(None, tmp_path, folder_a=root / "trainA", folder_b=root / "trainB")
    assert folders.num_train_images == 13  # a tenth of each side validates
    assert len(folders.val_set) == 1  # type: ignore[arg-type]
    for side in "AB":
        names = sorted(path.name for path in (root / f"train{side}").iterdir())
        lines = ["# a list", "", *(f"train{side}/{name}" for name in names)]
        (root / f"{side.lower()}.txt").write_text("\n".join(lines))
    lists = module(None, tmp_path, folder_a=root / "a.txt", folder_b=root / "b.txt")
    assert [item[2].sum() for item in epoch(lists)] == [item[2].sum() for item in epoch(folders)]
    assert epoch(lists)[0][0] == f"trainA/{epoch(folders)[0][0]}"
    for name in ("trainA", "trainB"):
        (root / name).rename(root / "images" if name == "trainA" else root / "others")
        (root / f"{name}.txt").write_text(
            "\n".join(
                path.relative_to(root).as_posix()
                for path in sorted((root / ("images" if name == "trainA" else "others")).iterdir())
            )
        )
    assert module(root, tmp_path).num_train_images == 14


def test_two_folders_with_splits_in_them(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    for side, name in zip("AB", ("horses", "zebras"), strict=True):
        for split in ("train", "test"):
            (root / name).mkdir(exist_ok=True)
            (root / f"{split}{side}").rename(root / name / split)
    data = module(None, tmp_path, folder_a=root / "horses", folder_b=root / "zebras")
    assert (data.num_train_images, len(data.val_set)) == (7, 3)  # type: ignore[arg-type]
    (root / "zebras" / "test").rename(root / "zebras" / "later")
    text = message(None, tmp_path, folder_a=root / "horses", folder_b=root / "zebras")
    assert "horses has a folder test" in text
    assert "zebras has none" in text


def test_kinds_and_channels_of_each_side(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    for path in (root / "trainB").iterdir():
        Image.fromarray(np.full((36, 40), 2, np.uint8)).save(path)
    for path in (root / "testB").iterdir():
        Image.fromarray(np.full((36, 40), 2, np.uint8)).save(path)
    data = module(root, tmp_path, out_kind="labels", out_channels=4)
    batch = data.to_network(next(iter(data.train_dataloader())))
    assert batch["real_b"].shape == (1, 4, 24, 24)
    assert batch["real_b"][:, 2].min() == 1
    assert [side.kind for side in data.formats()] == ["image", "labels"]


def test_whole_pictures_of_other_sizes_on_each_side(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    for path in [*(root / "trainB").iterdir(), *(root / "testB").iterdir()]:
        Image.fromarray(picture(0, 60, 50)).save(path)
    data = module(root, tmp_path, preprocess="none", batch_size=2)
    raw = next(iter(data.train_dataloader()))
    assert raw["real_a"].shape[-2:] == (36, 40)
    assert raw["real_b"].shape[-2:] == (60, 48)
    assert data.size_px is None
    assert data.sizes_px == {(36, 40), (60, 48)}


# Slips.


def message(root: Path | None, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        module(root, tmp_path, **options)
    text = str(error.value)
    assert 1 <= len(text.splitlines()) <= 3
    return text


def test_an_empty_side(sets: MakeSets, tmp_path: Path) -> None:
    text = message(sets(b=0), tmp_path)
    assert "no images in trainB (readable are .png," in text
    assert len(text.splitlines()) == 1


def test_a_missing_side(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    (root / "trainB").rename(root / "zebras")
    assert message(root, tmp_path) == f"data.root={root}: trainA is there, trainB is not"
    (root / "trainA").rename(root / "horses")
    (root / "testA").rename(root / "x")
    (root / "testB").rename(root / "y")
    assert "needs trainA and trainB" in message(root, tmp_path)
    assert "data.root is missing" in message(None, tmp_path)
    assert "data.folder_b is missing" in message(None, tmp_path, folder_a=root)
    assert "no such file" in message(None, tmp_path, folder_a=root / "none.txt", folder_b=root / "x")
    assert "did you mean" in message(None, tmp_path, folder_a=root / "horse", folder_b=root / "x")


def test_one_image_on_a_side(sets: MakeSets, tmp_path: Path) -> None:
    text = message(sets(a=1), tmp_path)
    assert "1 image in trainA (a0.png) is too few to learn a look from; give at least 2" in text
    assert len(text.splitlines()) == 1


def test_too_few_to_hold_any_out(sets: MakeSets, tmp_path: Path) -> None:
    root = sets(a=2)
    text = message(None, tmp_path, folder_a=root / "trainA", folder_b=root / "trainB")
    assert "2 images in trainA are too few" in text
    assert "at least 3" in text


def test_grey_among_colour(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    Image.fromarray(picture(1, channels=1)[:, :, 0]).save(root / "trainB" / "b3.png")
    text = message(root, tmp_path)
    assert "1 grey (1 channel) where data.out_channels=3: trainB/b3.png" in text
    assert "data.convert=match" in text
    item = module(root, tmp_path, convert="match").train_set[0, 3]  # type: ignore[index]
    assert (item["real_b"][0] == item["real_b"][2]).all()


def test_one_folder_given_twice(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    text = message(None, tmp_path, folder_a=root / "trainA", folder_b=root / "trainA")
    assert "the same twice" in text
    assert len(text.splitlines()) == 1
    (root / "trainB").rename(root / "gone")
    (root / "trainB").symlink_to(root / "trainA")
    text = message(root, tmp_path)
    assert "trainA and trainB are the same files" in text


def test_a_file_that_a_list_names_is_missing(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    for side in "ab":
        (root / f"{side}.txt").write_text("\n".join(f"train{side.upper()}/{side}{i}.png" for i in range(5)))
    text = message(None, tmp_path, folder_a=root / "a.txt", folder_b=root / "b.txt")
    assert "1 missing" in text
    assert "trainA/a4.png" in text


def test_broken_files_of_both_sides_in_one_report(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    (root / "trainA" / "a1.png").write_bytes(b"")
    (root / "testB" / "b2.png").write_bytes(b"")
    text = message(root, tmp_path)
    assert "2 files cannot be used" in text
    assert "2 empty (0 bytes): trainA/a1.png, testB/b2.png" in text


def test_too_few_for_a_batch(sets: MakeSets, tmp_path: Path) -> None:
    text = message(sets(), tmp_path, batch_size=8)
    assert "7 training images are too few for data.batch_size=8; at most 7" in text
    assert "4 training images" in message(tmp_path / "zoo", tmp_path, batch_size=5, epoch="a")


def test_pictures_of_several_sizes_cannot_share_a_batch(sets: MakeSets, tmp_path: Path) -> None:
    root = sets()
    Image.fromarray(picture(0, 60, 50)).save(root / "trainB" / "b0.png")
    text = message(root, tmp_path, preprocess="none", batch_size=2)
    assert "2 sizes (36x40, 60x48)" in text
    assert module(root, tmp_path, preprocess="none").sizes_px == {(36, 40), (60, 48)}


def test_an_unknown_epoch(tmp_path: Path) -> None:
    assert "data.epoch=shorter: choose one of longer, a, b" in message(tmp_path, tmp_path, epoch="shorter")


def test_horses_and_zebras(test_data: Path, tmp_path: Path) -> None:
    root = test_data / "horse2zebra_128"
    text = message(root, tmp_path, load_px=143, crop_px=128)
    assert "data.convert=match" in text
    assert "grey (1 channel)" in text
    data = module(root, tmp_path, stage="test", convert="match", load_px=143, crop_px=128)
    assert len(data.test_set) == 140  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_lightning_counts_the_epoch(sets: MakeSets, tmp_path: Path) -> None:
    class Counting(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.couples: list[tuple[str, str]] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.couples += list(zip(batch["name_a"], batch["name_b"], strict=True))
            return self.weight * batch["real_a"].mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    data, counting = UnpairedDataModule(sets(), **SMALL), Counting()  # type: ignore[arg-type]
    trainer.fit(counting, datamodule=data)
    assert len(counting.couples) == 14
    assert {b for _, b in counting.couples[:7]} == {f"b{index}" for index in range(7)}
    assert counting.couples[:7] != counting.couples[7:]
