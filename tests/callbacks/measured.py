"""Validate each case and print its figures: as one process, or as a rank of several, as the environment says.

``python measured.py <folder of pictures>``; a rank prints one line of JSON for each case.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn

from i2i_lightning.callbacks.toyfaces import ToyFacesReport
from i2i_lightning.callbacks.validation import ValidationMetrics
from i2i_lightning.data.toyfaces.module import ToyFacesDataModule
from i2i_lightning.data.unpaired import UnpairedDataModule
from i2i_lightning.methods.base import Method
from i2i_lightning.methods.cyclegan import CycleGAN, CycleGANLoss
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.metrics import inception
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet

ADAM = partial(torch.optim.Adam, lr=2e-4)


class TinyFeatures(nn.Module):
    """In the place of Inception: a fixed projection of a small picture."""

    def __init__(self, folder: Any = None) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(12, 10, generator=torch.Generator().manual_seed(3)))

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2)
        return (small.flatten(1) @ self.weight).relu()


def pix2pix() -> Method:
    """Its outputs depend on the batch (batch norm by its statistics) and on noise (dropout)."""
    return Pix2Pix(UNet(3, 3, 5, 4), PatchGAN(6, 4, 1), Pix2PixLoss(), ADAM)


def cyclegan() -> Method:
    generators = [ResNetGenerator(3, 3, 4, 1, dropout=True) for _ in range(2)]
    discriminators = [PatchGAN(3, 4, 1, "instance") for _ in range(2)]
    return CycleGAN(*generators, *discriminators, CycleGANLoss(), ADAM)


def faces(count: int, val_batch_size: int) -> LightningDataModule:
    return ToyFacesDataModule(
        "photo_to_cartoon", crop_px=32, num_train=4, num_val=count, num_test=1, val_batch_size=val_batch_size
    )


def sets(root: Path, val_batch_size: int) -> LightningDataModule:
    """Five pictures of a, three of b."""
    return UnpairedDataModule(
        root, preprocess="none", crop_px=None, load_px=None, val_batch_size=val_batch_size, cache="none"
    )


def figures(method: Method, data: LightningDataModule, metrics: list[str], judge: bool) -> dict[str, float]:
    """Return what a validation logs."""
    several = "WORLD_SIZE" in os.environ
    callbacks: list[Any] = [ValidationMetrics(metrics, "toyfaces" if judge else None, kid_subset_size=2)]
    if judge:
        callbacks.append(ToyFacesReport(num_val_faces=3, report=False))
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", 1)),
        strategy="ddp_find_unused_parameters_true" if several else "auto",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.validate(method, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


PAIRED = ["l1", "psnr", "ssim", "fid", "kid", "pixel_accuracy", "class_accuracy", "mean_iou"]


def cases(root: Path) -> dict[str, dict[str, float]]:
    """Return the figures of every case."""
    torch.set_num_threads(1)
    found = {}
    for val_batch_size in (1, 2, 3):
        seed_everything(1, verbose=False)
        found[f"pairs in {val_batch_size}s"] = figures(pix2pix(), faces(7, val_batch_size), PAIRED, True)
        seed_everything(1, verbose=False)
        data = sets(root, val_batch_size)
        found[f"sets in {val_batch_size}s"] = figures(cyclegan(), data, ["fid", "kid"], False)
    seed_everything(1, verbose=False)
    found["one pair"] = figures(pix2pix(), faces(1, 2), ["l1", "psnr"], True)
    return found


if __name__ == "__main__":
    inception.InceptionFeatures = TinyFeatures  # type: ignore[assignment, misc]
    results = cases(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
