"""Pairs from files: pixels against PIL, determinism, caches, and one short message for every slip."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.data import dataset as dataset_module
from i2i_lightning.data import files as files_module
from i2i_lightning.data.cache import CachedPictures
from i2i_lightning.data.dataset import FilePairs, PairedDataset
from i2i_lightning.data.paired import PairedDataModule
from i2i_lightning.data.sampler import item_rng
from i2i_lightning.types import UserError

MakeSet = Callable[..., Path]
SMALL = {"load_px": 32, "crop_px": 24}


def module(root: Path | None, tmp_path: Path, **options: Any) -> PairedDataModule:
    data = PairedDataModule(root, cache_dir=tmp_path / "cache", **{**SMALL, **options})
    data.setup("fit")
    return data


def epoch(data: PairedDataModule, number: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the training items of an epoch by name."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return {
        name: (a, b)
        for batch in loader
        for name, a, b in zip(batch["name"], batch["real_a"], batch["real_b"], strict=True)
    }


def same(left: dict[str, tuple[Tensor, Tensor]], right: dict[str, tuple[Tensor, Tensor]]) -> bool:
    return list(left) == list(right) and all(
        torch.equal(x, y) for name in left for x, y in zip(left[name], right[name], strict=True)
    )


@pytest.mark.parametrize("direction", ["a_to_b", "b_to_a"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_items_are_the_pixels_of_pil(
    side_by_side: MakeSet, tmp_path: Path, direction: str, suffix: str
) -> None:
    root = side_by_side(suffix=suffix)
    data = module(root, tmp_path, direction=direction, seed=3)
    flips = set()
    for index in range(6):
        item = data.train_set[2, index]  # type: ignore[index]
        row, column, coin = item_rng(3, 2, index).random(3)
        top, left, mirrored = int(row * 9), int(column * 9), coin > 0.5
        flips.add(mirrored)
        sides = []
        with Image.open(root / "train" / f"{item['name']}.{suffix}") as image:
            for half in (0, 1):
                side = image.crop((40 * half, 0, 40 * half + 40, 40)).resize(
                    (32, 32), Image.Resampling.BICUBIC
                )
                side = side.crop((left, top, left + 24, top + 24))
                side = side.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else side
                sides.append(np.asarray(side).transpose(2, 0, 1))
        if direction == "b_to_a":
            sides.reverse()
        np.testing.assert_array_equal(item["real_a"].numpy(), sides[0])
        np.testing.assert_array_equal(item["real_b"].numpy(), sides[1])
    assert flips == {True, False}


def test_validation_is_resized_to_the_window_and_not_mirrored(side_by_side: MakeSet, tmp_path: Path) -> None:
    root = side_by_side()
    data = module(root, tmp_path)
    for batch in data.val_dataloader():
        with Image.open(root / "val" / f"{batch['name'][0]}.png") as image:
            expected = image.crop((0, 0, 40, 40)).resize((24, 24), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(batch["real_a"][0].numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_network_batches_are_floats(side_by_side: MakeSet, tmp_path: Path) -> None:
    data = module(side_by_side(), tmp_path, batch_size=3)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["real_a"].shape == (3, 3, 24, 24)
    assert batch["real_a"].dtype == torch.float32
    assert batch["real_b"].abs().max() <= 1
    assert (data.in_channels, data.out_channels, data.size_px) == (3, 3, (24, 24))
    assert data.num_train_images == 6
    preview = data.preview_batch(5)
    assert preview["name"] == ["0", "1"]
    shown = data.display_output(preview["real_b"], preview["real_a"])
    assert torch.equal(shown[0], data.val_set[0, 0]["real_b"])  # type: ignore[index]


def test_both_sides_move_together(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for index in range(4):
            side = np.random.default_rng(index).integers(0, 256, (30, 30, 3), dtype=np.uint8)
            Image.fromarray(np.concatenate([side, side], 1)).save(tmp_path / "set" / split / f"{index}.png")
    data = module(tmp_path / "set", tmp_path)
    for number in range(4):
        for a, b in epoch(data, number).values():
            assert torch.equal(a, b)


@pytest.mark.parametrize("pattern", ["{split}{side}", "{split}/{side}"])
def test_two_folders_equal_side_by_side(
    side_by_side: MakeSet, two_folders: MakeSet, tmp_path: Path, pattern: str
) -> None:
    one = module(side_by_side(), tmp_path)
    two = module(two_folders(pattern=pattern), tmp_path, layout="folders")
    assert same(epoch(one, 1), epoch(two, 1))


def test_csv_equals_two_folders(two_folders: MakeSet, tmp_path: Path) -> None:
    root = two_folders()
    rows = [
        f"{split}A/{index}.png,{split}B/{index}.png,{split}"
        for split, n in (("train", 6), ("val", 2))
        for index in range(n)
    ]
    (root / "pairs.csv").write_text("\n".join(["a,b,split", *rows]))
    table = module(root / "pairs.csv", tmp_path, layout="csv")
    folders = module(root, tmp_path, layout="folders")
    for mine, other in zip(epoch(table).values(), epoch(folders).values(), strict=True):
        assert torch.equal(mine[0], other[0])
        assert torch.equal(mine[1], other[1])


# Determinism.


def test_items_depend_on_seed_and_epoch(side_by_side: MakeSet, tmp_path: Path) -> None:
    root = side_by_side()
    data = module(root, tmp_path)
    assert same(epoch(data, 4), epoch(data, 4))
    assert not same(epoch(data, 4), epoch(data, 5))
    assert not same(epoch(data, 4), epoch(module(root, tmp_path, seed=1), 4))
    assert same(epoch(data, 4), epoch(module(root, tmp_path, batch_size=3), 4))


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_workers_and_caches_do_not_change_a_bit(side_by_side: MakeSet, tmp_path: Path, cache: str) -> None:
    root = side_by_side()
    expected = [epoch(module(root, tmp_path), number) for number in (0, 1)]
    data = module(root, tmp_path, cache=cache, num_workers=2, batch_size=2)
    data.multiprocessing_context = "fork"
    loader = data.train_dataloader()
    for number in (0, 1):
        # The same loader: its workers outlive the epoch.
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        seen = {
            name: (a, b)
            for batch in loader
            for name, a, b in zip(batch["name"], batch["real_a"], batch["real_b"], strict=True)
        }
        assert same(seen, expected[number])


def test_spawned_workers_share_the_memory_cache(side_by_side: MakeSet, tmp_path: Path) -> None:
    root = side_by_side()
    expected = epoch(module(root, tmp_path), 3)
    data = module(root, tmp_path, num_workers=1, batch_size=2)
    data.multiprocessing_context = "spawn"
    assert same(epoch(data, 3), expected)
    source = data.train_set.source  # type: ignore[union-attr]
    assert source.blocks[0]._bytes.is_shared()
    data.num_workers = 0
    assert same(epoch(data, 3), expected)


# Caches.


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    decoded: list[Path] = []
    original = dataset_module.decode

    def counting(path: Path, side: Any) -> Any:
        decoded.append(path)
        return original(path, side)

    monkeypatch.setattr(dataset_module, "decode", counting)
    return decoded


def test_every_file_is_decoded_once(
    side_by_side: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = count_decoding(monkeypatch)
    data = module(side_by_side(), tmp_path)
    assert len(decoded) == len(set(decoded)) == 8
    assert data.cache_in_memory
    assert data.effective_num_workers == 0
    for number in range(3):
        epoch(data, number)
    data.setup("validate")
    assert len(decoded) == 8
    assert not (tmp_path / "cache").exists()


def test_disk_cache_outlives_the_run_and_notices_changes(
    side_by_side: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = side_by_side()
    decoded = count_decoding(monkeypatch)
    first = epoch(module(root, tmp_path, cache="disk"))
    assert len(decoded) == 8
    assert same(epoch(module(root, tmp_path, cache="disk")), first)
    assert len(decoded) == 8

    changed = root / "train" / "3.png"
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(changed)
    second = epoch(module(root, tmp_path, cache="disk"))
    assert len(decoded) == 8 + 6
    assert not torch.equal(second["3"][0], first["3"][0])
    assert torch.equal(second["4"][0], first["4"][0])

    state = changed.stat()
    os.utime(changed, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    module(root, tmp_path, cache="disk")
    assert len(decoded) == 8 + 6 + 6
    module(root, tmp_path, cache="disk", load_px=30)
    assert len(decoded) == 8 + 6 + 6 + 8


def test_without_a_cache_everything_is_still_checked_once(
    side_by_side: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = side_by_side()
    decoded = count_decoding(monkeypatch)
    data = module(root, tmp_path, cache="none")
    assert len(decoded) == 8
    assert not data.cache_in_memory
    module(root, tmp_path, cache="none")
    assert len(decoded) == 8
    truncate(root / "train" / "1.png")
    with pytest.raises(UserError, match="truncated"):
        module(root, tmp_path, cache="none")


def test_disk_is_chosen_where_memory_is_short(
    side_by_side: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(files_module, "rank_zero_info", notes.append)
    monkeypatch.setattr(files_module, "available_memory_bytes", lambda: 2 * 6 * 6 * 32 * 32 - 1)
    root = side_by_side()
    data = module(root, tmp_path)
    assert not data.train_set.source.in_memory  # type: ignore[union-attr]
    assert data.val_set.source.in_memory  # type: ignore[union-attr]
    assert not data.cache_in_memory
    assert any("train is cached on disk" in note and "memory that are free" in note for note in notes)
    monkeypatch.setattr(files_module, "available_memory_bytes", lambda: None)
    assert module(root, tmp_path).cache_in_memory


# Kinds of pixels.


def test_sixteen_bit_pairs_stay_exact(tmp_path: Path) -> None:
    root = tmp_path / "set"
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 24, 24, 3)).astype(np.uint16)
    for split in ("train", "val"):
        for side in "AB":
            (root / (split + side)).mkdir(parents=True)
        for index in range(4):
            np.save(root / f"{split}A" / f"{index}.npy", pixels[index])
            Image.fromarray(pixels[index, :, :, 0]).save(root / f"{split}B" / f"{index}.png")
    options: dict[str, Any] = {
        "layout": "folders",
        "load_px": 24,
        "crop_px": 24,
        "out_channels": 1,
        "seed": 1,
    }
    for cache in ("memory", "disk"):
        data = module(root, tmp_path, cache=cache, **options)
        mirrored = 0
        for name, (a, b) in epoch(data).items():
            assert a.dtype == b.dtype == torch.uint16
            expected = pixels[int(name)].transpose(2, 0, 1)
            flipped = not np.array_equal(a.numpy(), expected)
            mirrored += flipped
            expected = expected[:, :, ::-1] if flipped else expected
            np.testing.assert_array_equal(a.numpy(), expected)
            np.testing.assert_array_equal(b.numpy(), expected[:1])
        assert 0 < mirrored < 4
        batch = data.to_network(next(iter(data.val_dataloader())))
        levels = (batch["real_a"].double() + 1) * 32767.5
        np.testing.assert_allclose(levels[0].numpy(), pixels[0].transpose(2, 0, 1), atol=0.01)


def test_many_channels_to_labels(tmp_path: Path) -> None:
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for side in "AB":
            (root / (split + side)).mkdir(parents=True)
        for index in range(3):
            np.save(root / f"{split}A" / f"{index}.npy", rng.uniform(-1, 1, (40, 50, 7)).astype(np.float32))
            labels = Image.fromarray(rng.integers(0, 4, (40, 50)).astype(np.uint8))
            labels.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
            labels.save(root / f"{split}B" / f"{index}.png")
    data = module(
        root, tmp_path, layout="folders", in_channels=7, out_kind="labels", out_channels=4, batch_size=3
    )
    raw = next(iter(data.train_dataloader()))
    assert raw["real_a"].dtype == torch.float32
    assert raw["real_b"].shape == (3, 24, 24)
    assert raw["real_b"].dtype == torch.uint8
    batch = data.to_network(raw)
    assert batch["real_b"].shape == (3, 4, 24, 24)
    assert set(batch["real_b"].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(batch["real_b"].argmax(1), raw["real_b"].long())
    assert data.display_input(batch["real_a"]).shape == (3, 3, 24, 24)
    shown = data.display_output(batch["real_b"], batch["real_a"])
    colours = {tuple(colour) for colour in shown.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert colours == {(10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120)}


def test_one_file_for_grey_and_colour(side_by_side: MakeSet, tmp_path: Path) -> None:
    root = side_by_side()
    data = module(root, tmp_path, in_channels=1, convert="match", preprocess="crop")
    item = data.val_set[0, 0]  # type: ignore[index]
    assert item["real_a"].shape == (1, 24, 24)
    with Image.open(root / "val" / "0.png") as image:
        grey = np.asarray(image.convert("L").crop((8, 8, 32, 32)))
    np.testing.assert_array_equal(item["real_a"][0].numpy(), grey)


def test_rectangles(side_by_side: MakeSet, tmp_path: Path) -> None:
    data = module(side_by_side(), tmp_path, load_px=[20, 40], crop_px=[16, 32], batch_size=2)
    assert data.size_px == (16, 32)
    assert all(a.shape == (3, 16, 32) for a, _ in epoch(data).values())
    assert next(iter(data.val_dataloader()))["real_b"].shape == (1, 3, 16, 32)


def test_whole_pictures(side_by_side: MakeSet, tmp_path: Path) -> None:
    root = side_by_side(px=37)
    data = module(root, tmp_path, preprocess="none", multiple_px=8, batch_size=2)
    assert data.size_px == (40, 40)
    assert next(iter(data.train_dataloader()))["real_a"].shape == (2, 3, 40, 40)
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(root / "train" / "odd.png")
    assert module(root, tmp_path, preprocess="none", batch_size=1).size_px is None
    for cache in ("memory", "none"):
        with pytest.raises(UserError, match=r"data.batch_size=2: train pictures of 2 sizes .* cannot share"):
            module(root, tmp_path, preprocess="none", batch_size=2, cache=cache)
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(root / "val" / "odd.png")
    data = module(root, tmp_path, preprocess="none")
    assert len(data.preview_batch(8)["name"]) == 2


# Slips: one error of one to three lines that names what and how many.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def message(root: Path | None, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        module(root, tmp_path, **options)
    text = str(error.value)
    assert 1 <= len(text.splitlines()) <= 3
    return text


def test_missing_root(tmp_path: Path) -> None:
    assert "no such folder" in message(tmp_path / "nowhere", tmp_path)
    assert "data.root is missing" in message(None, tmp_path)


def test_unmatched_pair(two_folders: MakeSet, tmp_path: Path) -> None:
    root = two_folders()
    (root / "trainB" / "4.png").unlink()
    text = message(root, tmp_path, layout="folders")
    assert "1 file cannot be used" in text
    assert "trainA/4.png" in text


BROKEN = {
    "truncated": (truncate, "truncated or damaged: train/2.jpg"),
    "text": (lambda path: path.write_text("<html>not found</html>"), "text, not images"),
    "empty": (lambda path: path.write_bytes(b""), "empty (0 bytes): train/2.jpg"),
    "cmyk": (lambda path: Image.new("CMYK", (80, 40)).save(path), "CMYK images: train/2.jpg"),
    "one pixel": (
        lambda path: Image.new("RGB", (1, 1)).save(path),
        "smaller than 8 px on a side: train/2.jpg (1x1)",
    ),
    "grey": (lambda path: Image.new("L", (80, 40)).save(path), "1 grey (1 channel) where data.in_channels=3"),
    "odd width": (lambda path: Image.new("RGB", (81, 40)).save(path), "odd width"),
}


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
@pytest.mark.parametrize("slip", BROKEN)
def test_broken_files(side_by_side: MakeSet, tmp_path: Path, slip: str, cache: str) -> None:
    root = side_by_side(suffix="jpg")
    damage, expected = BROKEN[slip]
    damage(root / "train" / "2.jpg")
    text = message(root, tmp_path, cache=cache)
    assert text.startswith(f"data.root={root}: 1 file cannot be used")
    assert expected in text


def test_many_problems_in_one_report(side_by_side: MakeSet, tmp_path: Path) -> None:
    root = side_by_side(count=12, suffix="jpg")
    for index in range(5):
        truncate(root / "train" / f"{index}.jpg")
    (root / "train" / "6.jpg").write_bytes(b"")
    (root / "train" / "7.jpg").write_text("text")
    (root / "val" / "0.jpg").write_bytes(b"")
    text = message(root, tmp_path)
    assert "8 files cannot be used" in text
    assert "5 truncated or damaged: train/0.jpg, train/1.jpg, train/2.jpg and 2 more" in text
    assert "2 empty (0 bytes): train/6.jpg, val/0.jpg" in text
    assert "and 1 with other problems" in text


def test_label_id_out_of_range(two_folders: MakeSet, tmp_path: Path) -> None:
    root = two_folders()
    for split, count in (("train", 6), ("val", 2)):
        for index in range(count):
            ids = np.full((40, 40), 31 if (split, index) == ("train", 5) else 3, np.uint8)
            Image.fromarray(ids).save(root / f"{split}A" / f"{index}.png")
    text = message(root, tmp_path, layout="folders", in_kind="labels", in_channels=12)
    assert "label id outside 0..11: trainA/5.png (id 31)" in text
    assert "data.in_channels=12" in text
    data = module(root, tmp_path, layout="folders", in_kind="labels", in_channels=32)
    assert next(iter(data.train_dataloader()))["real_a"].shape == (1, 24, 24)


def test_sides_of_different_size(two_folders: MakeSet, tmp_path: Path) -> None:
    root = two_folders()
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(root / "trainB" / "1.png")
    text = message(root, tmp_path, layout="folders")
    assert "differ in size" in text
    assert "trainA/1.png (A 40x40, B 40x48)" in text


def test_missing_file_of_a_table(two_folders: MakeSet, tmp_path: Path) -> None:
    root = two_folders()
    (root / "t.csv").write_text("a,b,split\ntrainA/0.png,trainB/77.png,train\nvalA/0.png,valB/0.png,val\n")
    text = message(root / "t.csv", tmp_path, layout="csv")
    assert "1 missing" in text
    assert "trainB/77.png" in text


def test_mixed_depths(two_folders: MakeSet, tmp_path: Path) -> None:
    root = two_folders()
    np.save(root / "trainB" / "3.npy", np.zeros((40, 40, 3), np.uint16))
    (root / "trainB" / "3.png").unlink()
    assert "1 uint16 among uint8 files: trainB/3.npy" in message(root, tmp_path, layout="folders")


def test_too_few_pairs(side_by_side: MakeSet, tmp_path: Path) -> None:
    text = message(side_by_side(), tmp_path, batch_size=7)
    assert "6 training pairs are too few for data.batch_size=7; at most 6" in text


def test_picture_smaller_than_the_window(side_by_side: MakeSet, tmp_path: Path) -> None:
    text = message(side_by_side(), tmp_path, preprocess="crop", crop_px=64)
    assert "smaller than data.crop_px=64" in text
    assert "(40x40)" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"layout": "folder"},
            "data.layout=folder: choose one of side_by_side, folders, csv (did you mean folders?)",
        ),
        ({"direction": "BtoA"}, "data.direction=BtoA: choose one of a_to_b, b_to_a"),
        ({"in_kind": "label"}, "did you mean labels?"),
        ({"cache": "ram"}, "data.cache=ram: choose one of memory, disk, none"),
        ({"convert": "rgb"}, "data.convert=rgb: choose one of none, match"),
        ({"out_channels": 0}, "data.out_channels=0"),
        ({"load_px": 20}, "data.crop_px=24 is larger than data.load_px=20"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    assert expected in message(tmp_path, tmp_path, **options)


def test_cache_folder_that_cannot_be_made(side_by_side: MakeSet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = PairedDataModule(side_by_side(), cache="disk", cache_dir=tmp_path / "file" / "cache", **SMALL)
    with pytest.raises(UserError, match=r"data.cache_dir=.* not writable"):
        data.setup("fit")


def test_sets_are_only_read_when_needed(side_by_side: MakeSet, tmp_path: Path) -> None:
    root = side_by_side(splits=("train", "val", "test"))
    data = module(root, tmp_path)
    assert data.test_set is None
    truncate(root / "test" / "0.png")
    with pytest.raises(UserError, match=r"test/0\.png"):
        data.setup("test")
    shutil.rmtree(root / "test")
    data.setup("test")
    assert isinstance(data.test_set, PairedDataset)


def test_second_epoch_is_fast(side_by_side: MakeSet, tmp_path: Path) -> None:
    """Far below half of decoding anew, even on a busy machine; the benchmark has the figures."""
    root = side_by_side(count=20, px=256, suffix="jpg")
    data = module(root, tmp_path, load_px=286, crop_px=256)
    source = data.train_set.source  # type: ignore[union-attr]
    assert isinstance(source, CachedPictures)
    files = FilePairs(
        [_files(root, index) for index in range(20)], data.input, data.output, data.geometry, True, root
    )
    times = []
    for get in (lambda index: files[index], lambda index: data.train_set[1, index]):  # type: ignore[index]
        start = time.perf_counter()
        for index in range(20):
            get(index)
        times.append(time.perf_counter() - start)
    assert times[1] < times[0] / 2


def _files(root: Path, index: int) -> Any:
    from i2i_lightning.data.pairs import PairFiles

    return PairFiles(str(index), root / "train" / f"{index}.jpg", None)
