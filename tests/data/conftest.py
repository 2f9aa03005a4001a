"""Small data sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeSet = Callable[..., Path]


def picture(seed: int, height: int = 40, width: int = 40, channels: int = 3) -> np.ndarray:
    """Return smooth noise, uint8 ``(height, width, channels)``, that JPEG and resizing leave recognisable."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, channels), dtype=np.uint8)
    planes = [
        np.asarray(Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=2)


@pytest.fixture
def side_by_side(tmp_path: Path) -> MakeSet:
    """Make ``root/<split>/<i>.png`` with A left and B right; return the root."""

    def make(
        count: int = 6,
        val: int = 2,
        suffix: str = "png",
        splits: Sequence[str] = ("train", "val"),
        px: int = 40,
    ) -> Path:
        root = tmp_path / "pairs"
        for number, split in enumerate(splits):
            (root / split).mkdir(parents=True)
            for index in range(count if split == "train" else val):
                a, b = picture(1000 * number + index, px, px), picture(1000 * number + index + 500, px, px)
                Image.fromarray(np.concatenate([a, b], axis=1)).save(root / split / f"{index}.{suffix}")
        return root

    return make


@pytest.fixture
def two_folders(tmp_path: Path) -> MakeSet:
    """Make ``root/trainA/<i>.png``, ``root/trainB/<i>.png`` and the same for val; return the root."""

    def make(count: int = 6, val: int = 2, pattern: str = "{split}{side}") -> Path:
        root = tmp_path / "folders"
        for number, split in enumerate(("train", "val")):
            for offset, side in enumerate("AB"):
                folder = root / pattern.format(split=split, side=side)
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(count if split == "train" else val):
                    Image.fromarray(picture(1000 * number + 500 * offset + index)).save(
                        folder / f"{index}.png"
                    )
        return root

    return make
