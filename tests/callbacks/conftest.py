"""A data module of drawn shapes and a tiny method whose terms a test can script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch import Tensor, nn

from i2i_lightning.data.module import ImageDataModule


class ShapeSet:
    """Grey discs on a gradient, and the same discs in colour; (3, size, size) uint8."""

    def __init__(self, size: int, px: int, first: int) -> None:
        self.size, self.px, self.first = size, px, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = (key[1] if isinstance(key, tuple) else key) + self.first
        rng = np.random.default_rng(index)
        y, x = np.mgrid[: self.px, : self.px] / self.px
        disc = (y - rng.uniform(0.3, 0.7)) ** 2 + (x - rng.uniform(0.3, 0.7)) ** 2 < rng.uniform(0.02, 0.08)
        ground = 40 + 150 * (x if index % 2 else y)
        grey = np.where(disc, 230, ground)
        colour = rng.integers(30, 255, 3)[:, None, None]
        real_b = np.where(disc[None], colour, ground[None]).astype(np.uint8)
        return {
            "real_a": np.stack([grey] * 3).astype(np.uint8),
            "real_b": real_b,
            "name": f"shape_{index:03d}.png",
        }


class Shapes(ImageDataModule):
    in_channels = out_channels = 3

    def __init__(self, num_train: int = 12, num_val: int = 5, px: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_train, self.num_val, self.size_px = num_train, num_val, (px, px)

    def setup(self, stage: str) -> None:
        px = self.size_px[0]
        self.train_set = ShapeSet(self.num_train, px, 0)
        self.val_set = self.test_set = ShapeSet(self.num_val, px, 100)

    def to_network(self, batch: dict[str, Any]) -> Any:
        return {key: value if key == "name" else value.float() / 127.5 - 1 for key, value in batch.items()}

    def display_input(self, real_a: Tensor) -> Tensor:
        return self.display_output(real_a, real_a)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        return ((b.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


Script = Callable[[int], dict[str, float]]


class Scripted(LightningModule):
    """Two optimisers, one convolution each; the terms are what ``script`` says for the batch's number."""

    def __init__(
        self, script: Script | None = None, output: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Conv2d(3, 3, 3, padding=1)
        self.discriminator = nn.Conv2d(3, 1, 3)
        self.players = {"discriminator": [self.discriminator], "generator": [self.generator]}
        self.script = script or (lambda batch: dict(HEALTHY))
        self.output = output or (lambda real_a: torch.tanh(self.generator(real_a)))
        self.step_terms: dict[str, Tensor] = {}
        self.batches_seen = 0

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.01) for net in (self.discriminator, self.generator)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, net in zip(self.optimizers(), (self.discriminator, self.generator), strict=True):
            loss = net(batch["real_a"]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.step_terms = {key: torch.tensor(value) for key, value in self.script(self.batches_seen).items()}
        if (self.batches_seen + 1) % self.trainer.log_every_n_steps == 0:
            for logger in self.loggers:
                metrics = {f"train/{key}": float(value) for key, value in self.step_terms.items()}
                logger.log_metrics(metrics, step=self.batches_seen)
        self.batches_seen += 1

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                "real_a": batch["real_a"],
                "fake_b": self.output(batch["real_a"]),
                "real_b": batch["real_b"],
            }

    test_step = validation_step

    def preview(self, batch: Any) -> dict[str, Tensor]:
        return {"input": batch["real_a"], "output": self.output(batch["real_a"]), "target": batch["real_b"]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint["batches_seen"]


HEALTHY = {
    "discriminator/gan": 0.69,
    "discriminator/total": 0.69,
    "discriminator/logit_real": 0.1,
    "discriminator/logit_fake": -0.1,
    "discriminator/accuracy_real": 0.6,
    "discriminator/accuracy_fake": 0.5,
    "generator/l1": 0.25,
    "generator/gan": 0.7,
    "generator/total": 25.7,
}


@pytest.fixture
def healthy() -> dict[str, float]:
    return dict(HEALTHY)


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def shapes() -> type[Shapes]:
    return Shapes


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(callbacks: list[Callback], **options: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "log_every_n_steps": 2,
            "num_sanity_val_steps": 1,
            "default_root_dir": str(tmp_path / "run"),
        }
        return Trainer(callbacks=callbacks, **(defaults | options))

    return make
