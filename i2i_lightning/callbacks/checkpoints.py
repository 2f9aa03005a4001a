"""Checkpoints that a run resumes from exactly, bit for bit on one device.

A checkpoint holds parameters, optimisers, schedulers, averages, counts, callback states, the data position
and every random state, as plain containers that load with ``weights_only=True``. It is written beside and
renamed.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from i2i_lightning.callbacks.finite import NonFiniteGuard
from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.metrics.suite import BETTER
from i2i_lightning.types import UserError

_BETTER = {**BETTER, "judge_iou": "higher", "parsing_iou": "higher"}


class Checkpoints(Checkpoint):
    """Write ``checkpoints/last.ckpt``, ``best.ckpt`` and, if asked, ``epoch_0010.ckpt`` into the run folder.

    A checkpoint that falls on an epoch's last batch is written at the epoch's end, after validation and after
    the schedulers stepped, so that a resumed run begins with the next epoch.

    Args:
        monitor: Logged metric that decides which epoch is best; None keeps no best.
        mode: Whether smaller (``min``) or larger (``max``) is better.
        every_n_batches: Write ``last.ckpt`` every so many batches of an epoch too; None for epoch ends alone.
        every_n_epochs: Write ``last.ckpt`` at the end of every so many epochs, and of the last one.
        keep_every_n_epochs: Also keep a numbered checkpoint every so many epochs; None keeps none.

    Raises:
        UserError: If a number is impossible, or ``mode`` would keep the worst epoch of a known metric.
    """

    def __init__(
        self,
        monitor: str | None = "val/l1",
        mode: Literal["min", "max"] = "min",
        every_n_batches: int | None = None,
        every_n_epochs: int = 1,
        keep_every_n_epochs: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("min", "max"):
            raise UserError(f"callbacks.checkpoints.mode={mode}: give min or max")
        metric = (monitor or "").removeprefix("val/").removesuffix("_ab").removesuffix("_ba")
        right = {"lower": "min", "higher": "max"}.get(_BETTER.get(metric, ""), mode)
        if mode != right:
            raise UserError(
                f"callbacks.checkpoints.monitor={monitor} with callbacks.checkpoints.mode={mode} would keep "
                f"the worst epoch: {metric} is better {_BETTER[metric]}\n"
                f"give callbacks.checkpoints.mode={right}"
            )
        for key, value in (
            ("every_n_batches", every_n_batches),
            ("every_n_epochs", every_n_epochs),
            ("keep_every_n_epochs", keep_every_n_epochs),
        ):
            if value is not None and value < 1:
                raise UserError(f"callbacks.checkpoints.{key}={value}: give at least 1")
        self.monitor = monitor
        self.mode = mode
        self.every_n_batches = every_n_batches
        self.every_n_epochs = every_n_epochs
        self.keep_every_n_epochs = keep_every_n_epochs
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self._due = False
        self._random_state: dict[str, Any] | None = None
        self._resumes_between_epochs = False

    def state_dict(self) -> dict[str, Any]:
        """Return what is best so far."""
        return {"best_value": self.best_value, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what is best so far."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]

    # -------------------- when to write

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last`` in the middle of an epoch, at the next batch after which no gradients are waiting.

        An epoch's last batch is left to the epoch's end. A run that is told to stop here
        (``trainer.max_time``) writes what it has.
        """
        every = self.every_n_batches
        self._due = self._due or trainer.should_stop or (every is not None and (batch_idx + 1) % every == 0)
        waits = getattr(pl_module, "holds_gradients", False) or batch_idx + 1 >= trainer.num_training_batches
        if self._due and not waits:
            self._write(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``last``, ``best`` and the kept epochs; the module's own epoch end has already run."""
        if not trainer.is_last_batch:
            return  # stopped in mid-epoch: what can be resumed was written after the batch
        epoch = trainer.current_epoch + 1
        is_best = self._note_best(trainer, epoch)
        keeps = self.keep_every_n_epochs is not None and epoch % self.keep_every_n_epochs == 0
        ends = epoch == trainer.max_epochs or trainer.should_stop
        # Last comes last: a run killed in between resumes from the one before, and finds its best again.
        names = ["best.ckpt"] if is_best else []
        names += [f"epoch_{epoch:04d}.ckpt"] if keeps else []
        if names or ends or epoch % self.every_n_epochs == 0:
            names += ["last.ckpt"]
            self._write(trainer, names[0])
        for name in names[1:]:
            self._copy(trainer, names[0], name)

    def _note_best(self, trainer: Trainer, epoch: int) -> bool:
        if self.monitor is None or not trainer.fit_loop.epoch_loop._should_check_val_epoch():
            return False
        if not trainer.num_val_batches or sum(map(int, trainer.num_val_batches)) == 0:
            return False
        if self.monitor not in trainer.callback_metrics:
            there = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(
                f"callbacks.checkpoints.monitor={self.monitor}: nothing logs this metric; there is: {there}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        better = self.best_value is None or (
            value < self.best_value if self.mode == "min" else value > self.best_value
        )
        if not math.isfinite(value) or not better:
            return False
        self.best_value, self.best_epoch = value, epoch
        return True

    # ------------------------------------------------------------------------------------------------ writing

    def folder(self, trainer: Trainer) -> Path:
        """Return the run's checkpoint folder."""
        return Path(trainer.default_root_dir) / "checkpoints"

    def _write(self, trainer: Trainer, name: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NonFiniteGuard):
                callback.check_now(trainer)
        self._due = False
        for logger in trainer.loggers:
            logger.save()  # what was logged up to here is part of what a resume takes up
        path = self.folder(trainer) / name
        if trainer.is_global_zero:
            write_beside(path, trainer.save_checkpoint)
        else:
            trainer.save_checkpoint(path)  # takes part in the strategy's collective; only rank 0 writes

    def _copy(self, trainer: Trainer, source: str, name: str) -> None:
        # A hard link costs nothing, and stays what it is: files are replaced by a rename, never written into.
        if not trainer.is_global_zero:
            return
        written = self.folder(trainer) / source

        def link(path: Path) -> None:
            path.unlink(missing_ok=True)
            try:
                os.link(written, path)
            except OSError:  # a file system without links
                shutil.copyfile(written, path)

        write_beside(self.folder(trainer) / name, link)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add every random state, and make Lightning's progress counters say what has truly been done."""
        checkpoint["random_state"] = random_state()
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        if progress["is_last_batch"] or progress["current"]["processed"] >= trainer.num_training_batches:
            # Between epochs: everything of this epoch is over, whatever hook we are in.
            for counter in ("total", "current"):
                done = loops["epoch_progress"][counter]
                loops["epoch_progress"][counter] = dict.fromkeys(done, done["ready"])
            checkpoint["between_epochs"] = True
        else:
            checkpoint["between_epochs"] = False

    # -------------------- resuming

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random state until training starts: building the run must not draw from it."""
        self._random_state = checkpoint.get("random_state")
        self._resumes_between_epochs = bool(checkpoint.get("between_epochs", False))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the random state back, and enter the next epoch as an uninterrupted run would."""
        if self._resumes_between_epochs:
            # Lightning would otherwise try to finish an epoch that is already over.
            trainer.fit_loop.restarting = False
            self._resumes_between_epochs = False
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's generators as plain containers."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set the generators back to what ``random_state`` returned; CUDA's where as many devices are there."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
