"""Caches are exact, whole or absent, and shared."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from i2i_lightning.data import cache as cache_module
from i2i_lightning.data.cache import (
    Block,
    CachedPictures,
    DiskCache,
    Layout,
    Pictures,
    available_memory_bytes,
    build_in_memory,
    digest,
    gib,
    in_threads,
)
from i2i_lightning.data.checks import FileProblem
from i2i_lightning.types import UserError

SHAPES_A = ((3, 4, 5), (3, 6, 2), (3, 1, 1))
SHAPES_B = ((4, 5), (6, 2), (1, 1))
LAYOUTS = Layout("uint8", SHAPES_A), Layout("uint16", SHAPES_B)
NAMES = ["x", "y", "z"]


def load(index: int) -> Pictures:
    rng = np.random.default_rng(index)
    a = rng.integers(0, 256, SHAPES_A[index], dtype=np.uint8)
    return a, rng.integers(0, 65536, SHAPES_B[index]).astype(np.uint16)


def check(pairs: CachedPictures) -> None:
    for index in range(3):
        for cached, expected in zip(pairs[index], load(index), strict=True):
            assert cached.dtype == expected.dtype
            np.testing.assert_array_equal(cached, expected)


def test_memory_cache_is_exact() -> None:
    pairs, problems = build_in_memory(load, NAMES, LAYOUTS, "test")
    assert not problems
    assert pairs.in_memory
    assert pairs.blocks[0].layout.num_bytes == 60 + 36 + 3
    check(pairs)


def test_disk_cache_is_exact_and_found_again(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "new" / "folder", "train", "0123")
    assert disk.open() is None
    with disk.lock():
        assert disk.build(load, NAMES, LAYOUTS, "test") == []
    pairs = disk.open()
    assert pairs is not None
    assert not pairs.in_memory
    check(pairs)
    check(pickle.loads(pickle.dumps(pairs)))
    # What travels to a worker is the file's name, not its content.
    assert len(pickle.dumps(Block(Layout("uint8", ((99,),)), None, pairs.blocks[0].path))) < 2000


def test_disk_cache_with_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, "train", "0123")
    with disk.lock():
        disk.build(load, NAMES, LAYOUTS, "test")
    (disk.folder / "a.bin").write_bytes(b"short")
    assert disk.open() is None
    with disk.lock():
        disk.build(load, NAMES, LAYOUTS, "test")
    pairs = disk.open()
    assert pairs is not None
    check(pairs)


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def broken(index: int) -> Pictures:
        if index == 1:
            raise FileProblem("bad")
        return load(index)

    disk = DiskCache(tmp_path, "train", "0123")
    with disk.lock():
        problems = disk.build(broken, NAMES, LAYOUTS, "test")
    assert [problem.name for problem in problems] == ["y"]
    assert disk.open() is None
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_leftovers_of_a_killed_build_are_replaced(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, "train", "0123")
    left = tmp_path / ".train-0123.building"
    left.mkdir()
    (left / "a.bin").write_bytes(b"half")
    with disk.lock():
        disk.build(load, NAMES, LAYOUTS, "test")
    pairs = disk.open()
    assert pairs is not None
    check(pairs)


def test_full_disk_is_noticed_before(tmp_path: Path) -> None:
    huge = Layout("uint8", ((2**40, 2**12),))
    disk = DiskCache(tmp_path, "train", "0123")
    with disk.lock(), pytest.raises(UserError, match=r"data.cache_dir=.* free, the decoded pixels need"):
        disk.build(load, ["x"], (huge, huge), "test")


def _build(root: Path, log: Path) -> None:
    def load_and_count(index: int) -> Pictures:
        with log.open("a") as file:
            file.write("x")
        return load(index)

    disk = DiskCache(root, "train", "0123")
    with disk.lock():
        if disk.open() is None:
            disk.build(load_and_count, NAMES, LAYOUTS, "test")


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [context.Process(target=_build, args=(tmp_path / "cache", log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert log.read_text() == "xxx"
    pairs = DiskCache(tmp_path / "cache", "train", "0123").open()
    assert pairs is not None
    check(pairs)


def test_digest_changes_with_sources_and_options(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"1")
    os.utime(source, ns=(0, 1_000))
    digests = [digest({"load_px": 286}, [source])]
    assert digest({"load_px": 286}, [source]) == digests[0]
    digests.append(digest({"load_px": 256}, [source]))
    os.utime(source, ns=(0, 2_000))
    digests.append(digest({"load_px": 286}, [source]))
    source.write_bytes(b"22")
    os.utime(source, ns=(0, 1_000))
    digests.append(digest({"load_px": 286}, [source]))
    digests.append(digest({"load_px": 286}, []))
    source.unlink()
    digests.append(digest({"load_px": 286}, [source]))
    assert len(set(digests)) == len(digests)


def test_threads_keep_the_order_and_name_the_problems() -> None:
    def work(index: int) -> int:
        if index % 3 == 1:
            raise FileProblem("bad", name="own" if index == 4 else "")
        return index * index

    outcomes = in_threads(work, [f"n{index}" for index in range(6)], "test")
    assert [o.name if isinstance(o, FileProblem) else o for o in outcomes] == [0, "n1", 4, 9, "own", 25]


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda index: 1 // index, ["x"], "test")


def test_memory_that_is_free() -> None:
    free = available_memory_bytes()
    assert free is None or 2**20 < free < 2**46
    assert gib(3 * 2**29) == "1.5 GiB"
    assert gib(2**19) == "0.5 MiB"


def test_memory_without_a_kernel_that_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache_module, "Path", lambda path: tmp_path / "absent" / str(path).lstrip("/"))
    assert available_memory_bytes() is None


def test_block_survives_being_sent_to_another_process() -> None:
    pairs, _ = build_in_memory(load, NAMES, LAYOUTS, "test")
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    # Putting it moves the tensor to shared memory; views taken afterwards must be of the new place.
    queue.put(pairs.blocks[0]._bytes)
    received = queue.get()
    check(pairs)
    assert pairs.blocks[0]._bytes is not None
    assert torch.equal(received, pairs.blocks[0]._bytes)
