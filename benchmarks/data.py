"""The data path against the plain PyTorch loop: ``python -m benchmarks.data``.

The plain loop is written out below and does what the usual pix2pix code does for each pair: open the A|B file
with PIL, convert to RGB, resize both halves to 286 with the bicubic filter, cut 256, mirror half of them, to
float in [0, 1], normalise to [-1, 1], and stack in a ``DataLoader`` without workers. Ours is the data module
as configured by default, up to the same float batch. Both run in turn, on one core, on the same files.

The first epoch decodes (ours once and for all, in threads where there are more cores); from the second epoch
on ours reads its cache. "The same pixels" compares whole batches: same file, same window, same mirroring.

The floor is what any loader that ends in float batches must move per pair: read a window of both sides and
write the batch, read that and write the floats, at the speed at which one core copies memory here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped]

from i2i_lightning.data.paired import PairedDataModule
from i2i_lightning.data.pairs import list_images
from i2i_lightning.data.sampler import item_rng

LOAD_PX, CROP_PX = 286, 256


class PlainPairs(Dataset[dict[str, Tensor]]):
    """Side-by-side pairs, decoded whenever they are asked for, as the usual code does it.

    Args:
        paths: The A|B images.
        seed: If given, windows and mirroring are those of the data module in epoch 0, to compare pixels.
    """

    def __init__(self, paths: list[Path], seed: int | None = None) -> None:
        self.paths = paths
        self.seed = seed
        self.to_tensor = transforms.ToTensor()
        self.normalize = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        both = Image.open(self.paths[index]).convert("RGB")
        width, height = both.size
        half = width // 2
        if self.seed is None:
            left = random.randint(0, LOAD_PX - CROP_PX)
            top = random.randint(0, LOAD_PX - CROP_PX)
            mirrored = random.random() > 0.5
        else:
            row, column, coin = item_rng(self.seed, 0, index).random(3)
            free = LOAD_PX - CROP_PX + 1
            top, left, mirrored = int(row * free), int(column * free), bool(coin > 0.5)
        sides = []
        for side in (both.crop((0, 0, half, height)), both.crop((half, 0, width, height))):
            side = side.resize((LOAD_PX, LOAD_PX), Image.Resampling.BICUBIC)
            side = side.crop((left, top, left + CROP_PX, top + CROP_PX))
            if mirrored:
                side = side.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            sides.append(self.normalize(self.to_tensor(side)))
        return {"real_a": sides[0], "real_b": sides[1]}


@dataclass(frozen=True)
class Seconds:
    """A stretch of work on one core: the time the core spent on it, and the time on the clock."""

    cpu: float
    wall: float


def timed(work: Callable[[], object]) -> Seconds:
    """Return the seconds that ``work()`` takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def median(times: Sequence[Seconds]) -> Seconds:
    """Return the median of either time."""
    return Seconds(statistics.median(t.cpu for t in times), statistics.median(t.wall for t in times))


def plain_epoch(paths: list[Path], batch_size: int) -> None:
    """Run one epoch of the plain loop."""
    for _ in DataLoader(PlainPairs(paths), batch_size=batch_size, shuffle=True, num_workers=0):
        pass


def our_epoch(data: PairedDataModule, epoch: int, floats: bool = True) -> None:
    """Run one epoch of ours; ``floats=False`` leaves the step to floats to the device, as on a GPU."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    for batch in loader:
        if floats:
            data.to_network(batch)


def largest_difference(data: PairedDataModule, paths: list[Path]) -> float:
    """Return the largest difference of our floats in [-1, 1] from the plain loop's, over all pairs."""
    plain = PlainPairs(paths, seed=data.seed)
    assert data.train_set is not None
    worst = 0.0
    for index in range(len(paths)):
        item: dict[str, Any] = data.train_set[0, index]
        ours = data.to_network({"real_a": item["real_a"][None], "real_b": item["real_b"][None], "name": []})
        theirs = plain[index]
        for key in ("real_a", "real_b"):
            worst = max(worst, float((ours[key][0] - theirs[key]).abs().max()))
    return worst


def copy_rate() -> float:
    """Return how many bytes a second one core reads and writes in a large copy."""
    source = np.zeros(2**26, np.uint8)
    target = np.empty_like(source)
    return 2 * source.nbytes / median([timed(partial(np.copyto, target, source)) for _ in range(7)]).cpu


def make_set(root: Path, count: int) -> None:
    """Write ``count`` A|B JPEGs of 512 x 256 with detail at all scales, as large as the facades files."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 1)):
        (root / split).mkdir(parents=True)
        for index in range(number):
            picture = np.zeros((256, 512, 3))
            for cells in (4, 16, 64, 256):
                coarse = rng.integers(0, 256, (cells, 2 * cells, 3), dtype=np.uint8)
                smooth = Image.fromarray(coarse).resize((512, 256), Image.Resampling.BICUBIC)
                picture += np.asarray(smooth) / 4
            Image.fromarray(picture.astype(np.uint8)).save(root / split / f"{index:04d}.jpg", quality=85)


def measure(root: Path, batch_size: int, repeats: int) -> dict[str, Any]:
    """Return all figures, times in milliseconds per pair."""
    paths = list_images(root / "train")
    data = PairedDataModule(root, batch_size=batch_size, load_px=LOAD_PX, crop_px=CROP_PX, num_workers=0)
    set_up = timed(partial(data.setup, "fit"))
    first = timed(partial(our_epoch, data, 0))
    assert data.val_set is not None
    # Validation images are decoded as well; count them, so that the rate is per pair.
    decoded = len(paths) + len(data.val_set)
    difference = largest_difference(data, paths)
    plain, ours, ours_integers = [], [], []
    for epoch in range(1, repeats + 1):
        # In turn, so that all meet the same machine.
        plain.append(timed(partial(plain_epoch, paths, batch_size)))
        ours.append(timed(partial(our_epoch, data, epoch)))
        ours_integers.append(timed(partial(our_epoch, data, epoch, floats=False)))
    per_pair = 1e3 / len(paths)
    plain_ms, ours_ms = median(plain).cpu * per_pair, median(ours).cpu * per_pair
    first_ms = set_up.cpu * 1e3 / decoded + first.cpu * per_pair
    window_bytes = 2 * 3 * CROP_PX * CROP_PX
    # Read the window, write the batch, read it again, write floats of four bytes.
    floor_ms = window_bytes * (1 + 1 + 1 + 4) / copy_rate() * 1e3
    return {
        "pairs": len(paths),
        "batch_size": batch_size,
        "repeats": repeats,
        "plain_ms": plain_ms,
        "plain_wall_ms": median(plain).wall * per_pair,
        "ours_first_epoch_ms": first_ms,
        "ours_first_epoch_wall_ms": set_up.wall * 1e3 / decoded + first.wall * per_pair,
        "ours_later_epochs_ms": ours_ms,
        "ours_later_epochs_wall_ms": median(ours).wall * per_pair,
        "ours_integers_ms": median(ours_integers).cpu * per_pair,
        "ours_integers_wall_ms": median(ours_integers).wall * per_pair,
        "floor_ms": floor_ms,
        "ratio_first_epoch": plain_ms / first_ms,
        "ratio_later_epochs": plain_ms / ours_ms,
        "spread_plain": spread(plain),
        "spread_ours": spread(ours),
        "largest_difference": difference,
        "bytes_to_device": window_bytes,
        "bytes_to_device_plain": 4 * window_bytes,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"Pillow {PIL.__version__}",
        "date": date.today().isoformat(),
    }


def spread(times: Sequence[Seconds]) -> float:
    """Return the range of the core's times as a share of their median."""
    return (max(t.cpu for t in times) - min(t.cpu for t in times)) / median(times).cpu


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor()
    )


def table(result: dict[str, Any]) -> str:
    """Return the figures as a table for people."""
    lines = [f"{CROP_PX} px pairs, one core           CPU ms/pair  wall ms/pair  pairs/s  ratio"]
    for name, key in (
        ("plain PyTorch, every epoch", "plain"),
        ("ours, first epoch (decodes)", "ours_first_epoch"),
        ("ours, from the second epoch", "ours_later_epochs"),
        ("  floats made on the device", "ours_integers"),
        ("floor: copying the bytes", "floor"),
    ):
        cpu = result[f"{key}_ms"]
        wall = f"{result[f'{key}_wall_ms']:13.3f}" if f"{key}_wall_ms" in result else " " * 13
        lines.append(f"{name:28} {cpu:12.3f} {wall} {1e3 / cpu:8.0f} {result['plain_ms'] / cpu:6.1f}")
    levels = result["largest_difference"] * 127.5
    return "\n".join(
        [
            *lines,
            f"pairs/s and ratio by CPU time; {result['pairs']} pairs, batch {result['batch_size']}, "
            f"median of {result['repeats']} epochs in turn (spread: plain {result['spread_plain']:.0%}, "
            f"ours {result['spread_ours']:.0%})",
            f"same pixels: largest difference {levels:.1g} of 255 levels (rounding of the floats)",
            f"to the device: {result['bytes_to_device'] / 1024:.0f} KiB a pair, "
            f"plain {result['bytes_to_device_plain'] / 1024:.0f} KiB",
            f"{result['machine']}; {result['versions']}; {result['date']}",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--root", type=Path, help="folder with train/ and val/ of A|B images; default: made here"
    )
    parser.add_argument("--pairs", type=int, default=200, help="how many pairs to make without --root")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args(arguments)
    # One thread here, and one core for the pool that decodes.
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        root = options.root
        if root is None:
            root = Path(folder) / "pairs"
            make_set(root, options.pairs)
        result = measure(root, options.batch_size, options.repeats)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
