"""Validation metrics against the target: averaged over the images of the whole validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from i2i_lightning.metrics.image import psnr, ssim
from i2i_lightning.types import UserError

MAX_PSNR_DB = 100.0
"""PSNR of equal images is infinite, and one such image would make every mean infinite: it counts as this
much."""

METRICS = ("l1", "psnr", "ssim")


class ValidationMetrics(Callback):
    """Log ``val/l1``, ``val/psnr`` and ``val/ssim`` (``test/...`` when testing).

    ``l1`` is measured on the network's own values, in units of the [-1, 1] range (one-hot maps: of {0, 1}),
    so that it compares with the training term. ``psnr`` (dB) and ``ssim`` are measured on the images as they
    would be saved: uint8 RGB from the data module's ``display_output``. Each is a mean over images, not over
    batches, and over all processes; nothing is downloaded. The names can be monitored by checkpoints and
    schedules.

    Args:
        metrics: Any of l1, psnr, ssim.
    """

    def __init__(self, metrics: Sequence[str] = METRICS) -> None:
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise UserError(
                f"callbacks.validation.metrics: no metric {', '.join(unknown)}; there is {', '.join(METRICS)}"
            )
        self.metrics = tuple(metrics)
        self._sums: dict[str, Tensor] = {}
        self._num_images = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new average."""
        self._sums, self._num_images = {}, 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the batch's images; the sums stay on the device."""
        if not isinstance(outputs, Mapping) or "fake_b" not in outputs or "real_b" not in outputs:
            raise TypeError(
                "ValidationMetrics needs real_a, fake_b and real_b from "
                f"{type(pl_module).__name__}.validation_step"
            )
        with torch.no_grad():
            values = self._measure(trainer, outputs)
        for name, per_image in values.items():
            total = per_image.sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._num_images += len(outputs["fake_b"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means under ``val/``."""
        self._log(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means under ``test/``."""
        self._log(trainer, pl_module, "test")

    def _measure(self, trainer: Trainer, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        real_a, fake_b, real_b = outputs["real_a"], outputs["fake_b"], outputs["real_b"]
        values = {}
        if "l1" in self.metrics:
            values["l1"] = (fake_b.float() - real_b.float()).abs().flatten(1).mean(1)
        if "psnr" in self.metrics or "ssim" in self.metrics:
            datamodule = trainer.datamodule  # type: ignore[attr-defined]
            image, target = (
                datamodule.display_output(fake_b, real_a),
                datamodule.display_output(real_b, real_a),
            )
            if "psnr" in self.metrics:
                values["psnr"] = psnr(image, target).clamp(max=MAX_PSNR_DB)
            if "ssim" in self.metrics:
                if min(image.shape[-2:]) < 11:
                    raise UserError(
                        f"callbacks.validation.metrics: ssim needs images of at least 11x11 px, these have "
                        f"{image.shape[-2]}x{image.shape[-1]}; give callbacks.validation.metrics=[l1,psnr]"
                    )
                values["ssim"] = ssim(image, target)
        return values

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        zero = torch.zeros((), device=pl_module.device)
        sums = torch.stack([self._sums.get(name, zero) for name in self.metrics] + [zero + self._num_images])
        if trainer.world_size > 1:
            # Sums, not means: processes may have different numbers of images, or none.
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        for name, total in zip(self.metrics, sums[:-1], strict=True):
            pl_module.log(f"{stage}/{name}", total / sums[-1], batch_size=1, sync_dist=trainer.world_size > 1)
