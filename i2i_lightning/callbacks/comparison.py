"""A table of the preview samples for loggers that show tables: input, output, target and figures of each."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from i2i_lightning.callbacks.previews import preview
from i2i_lightning.callbacks.readings import log_step
from i2i_lightning.loggers.pictures import Pixels
from i2i_lightning.metrics.image import SSIM_WINDOW_PX, l1, psnr, ssim
from i2i_lightning.types import UserError

FIGURES = {"l1": l1, "psnr": psnr, "ssim": ssim}


class ComparisonTable(Callback):
    """Hand W&B a table of the preview samples, one row each; other loggers have no tables.

    A row has the epoch, the sample's name, its pictures (input, output, target or cycle) and, where there is
    a target, ``l1``, ``psnr`` and ``ssim`` of the output as it would be saved. A method that translates both
    ways has a row for each, and says which in ``direction``; one without an input side has pictures alone.

    Args:
        num_samples: Samples, as many as the previews' grid shows by default.
        every_n_epochs: Epochs between two tables; the last epoch has one in any case.
    """

    def __init__(self, num_samples: int = 8, every_n_epochs: int = 5) -> None:
        for key, value in (("num_samples", num_samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise UserError(f"callbacks.comparison.{key}={value}: give at least 1")
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Translate the samples and log the table."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs and not trainer.should_stop:
            return
        takers = [logger for logger in trainer.loggers if hasattr(logger, "log_table")]
        # All processes translate, or none: a method may synchronise its statistics between them.
        if not takers or not hasattr(pl_module, "preview") or not hasattr(trainer, "datamodule"):
            return
        shown = preview(trainer, self.num_samples)
        if not shown.samples or not trainer.is_global_zero:
            return
        several = len(set(shown.directions)) > 1
        pictures = list(dict.fromkeys(name for sample in shown.samples for name in sample))
        measured = list(FIGURES) if shown.has_inputs else []
        columns = ["epoch", "name", *(["direction"] if several else []), *pictures, *measured]
        rows = []
        for name, direction, sample in zip(shown.names, shown.directions, shown.samples, strict=True):
            figures = measure(sample["output"], sample.get("target"))
            rows.append(
                [
                    epoch,
                    name,
                    *([f"{direction[0]} to {direction[1]}"] if several else []),
                    *(sample.get(column) for column in pictures),
                    *(figures.get(figure) for figure in measured),
                ]
            )
        for logger in takers:
            logger.log_table("comparison", columns=columns, data=rows, step=log_step(trainer))


def measure(output: Pixels, target: Pixels | None) -> dict[str, float]:
    """Return the figures of ``output`` beside ``target``; none without a target."""
    if target is None or output.shape != target.shape:
        return {}
    made, wanted = (torch.from_numpy(pixels).permute(2, 0, 1)[None] for pixels in (output, target))
    figures: dict[str, Any] = dict(FIGURES)
    if min(output.shape[:2]) < SSIM_WINDOW_PX:
        del figures["ssim"]
    values = {name: float(figure(made, wanted)) for name, figure in figures.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}
