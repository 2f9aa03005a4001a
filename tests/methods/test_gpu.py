"""On a CUDA device: mixed precision trains, and a step never waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch.utils.data import DataLoader

from i2i_lightning.methods.base import Method
from i2i_lightning.methods.cyclegan import CycleGAN, CycleGANLoss
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.strategies.precision import bf16, fp16, fp32, tf32

pytestmark = pytest.mark.gpu

ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)


def pix2pix() -> Method:
    return Pix2Pix(UNet(3, 3, 6, 16), PatchGAN(6, 16), Pix2PixLoss(), ADAM, ema_decay=0.99)


def cyclegan() -> Method:
    """Return one with pools that are full after the first batches."""
    generators = [ResNetGenerator(3, 3, 8, 1) for _ in range(2)]
    discriminators = [PatchGAN(3, 8, 2, "instance") for _ in range(2)]
    return CycleGAN(*generators, *discriminators, CycleGANLoss(), ADAM, pool_size=3, augment=["color"])


class SyncIsAnError(L.Callback):
    """Make every wait for the device raise, from the second batch on (the first one builds Adam's state)."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx else "default")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("build", [pix2pix, cyclegan])
@pytest.mark.parametrize("precision", [fp32, tf32, bf16, fp16])
def test_trains_in_every_precision_without_waiting(
    precision: Callable[[], Precision], build: Callable[[], Method]
) -> None:
    items = [{key: torch.rand(3, 64, 64) * 2 - 1 for key in ("real_a", "real_b")} for _ in range(8)]
    method = build()
    # A gradient scaler looks for infinities on the host, by design: it is exempt.
    callbacks = [] if precision is fp16 else [SyncIsAnError()]
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        plugins=[precision()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=100,
        callbacks=callbacks,  # type: ignore[arg-type]
    )
    trainer.fit(method, DataLoader(items, batch_size=2))  # type: ignore[arg-type]
    assert all(math.isfinite(value.item()) for value in method.step_terms.values())
