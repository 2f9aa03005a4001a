"""Small generators, checkpoints of them, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.types import ImageFormat

Save = Callable[..., Path]


def write_checkpoint(
    path: Path,
    *,
    input: ImageFormat | None = None,
    output: ImageFormat | None = None,
    weights_seed: int = 0,
    test_mode: str = "train",
    **options: Any,
) -> Path:
    """Write a checkpoint of a small ResNet with random weights, as training would; return its path."""
    input, output = input or ImageFormat("image", 3), output or ImageFormat("image", 3)
    config = {
        "in_channels": input.channels,
        "out_channels": output.channels,
        "base_channels": 4,
        "num_blocks": 1,
        "norm": "instance",
        "dropout": False,
        "upsample": "transpose",
        "init": "normal",
        "init_gain": 0.1,
        **options,
    }
    torch.manual_seed(weights_seed)
    network = ResNetGenerator(**config)
    checkpoint = {
        "state_dict": {f"generator.{key}": value for key, value in network.state_dict().items()},
        "method_config": {
            "_target_": "i2i_lightning.methods.pix2pix.Pix2Pix",
            "generator": {"_target_": "i2i_lightning.networks.resnet.ResNetGenerator", **config},
            "test_mode": test_mode,
        },
        "translation": {
            "directions": {
                "ab": {"generator": "generator", "input": input.to_dict(), "output": output.to_dict()}
            },
            "test_mode": test_mode,
            "z_dim": 0,
            "size_px": None,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def save_checkpoint(tmp_path: Path) -> Save:
    """Write a checkpoint into the run folder ``run``; see :func:`write_checkpoint`."""

    def save(name: str = "best.ckpt", **options: Any) -> Path:
        return write_checkpoint(tmp_path / "run" / "checkpoints" / name, **options)

    return save


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return something like a photo: smooth shading with edges in it, uint8 ``(height, width, channels)``."""
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(channels):
        coarse = rng.integers(40, 216, (6, 8), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        plane = np.array(smooth, dtype=np.int16)
        planes.append(plane)
    image = np.stack(planes, axis=2)
    for _ in range(12):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        down, across = int(rng.integers(1, height // 3 + 2)), int(rng.integers(1, width // 3 + 2))
        image[top : top + down, left : left + across] += rng.integers(-60, 60, channels).astype(np.int16)
    return image.clip(0, 255).astype(np.uint8)
