"""Checkpoints that a run resumes from exactly, bit for bit.

A checkpoint holds parameters, optimisers, schedulers, averages, counts, callback states, the data position
and the random states of all processes, as plain containers that load with ``weights_only=True``. It is
written beside, sealed with a checksum and renamed.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from i2i_lightning.callbacks.finite import NonFiniteGuard
from i2i_lightning.callbacks.random_state import gather_random_states, restore_random_states, seed_rank
from i2i_lightning.callbacks.readings import batches_trained
from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.checkpoints.seal import seal
from i2i_lightning.metrics.better import BETTER
from i2i_lightning.types import UserError

log = logging.getLogger(__name__)

LAST = "last.ckpt"
_BETTER = {**BETTER, "judge_iou": "higher", "parsing_iou": "higher"}


class Checkpoints(Checkpoint):
    """Write ``checkpoints/last.ckpt``, ``best.ckpt`` and, if asked, ``epoch_0010.ckpt`` into the run folder.

    ``last_1.ckpt`` is what ``last.ckpt`` was before, ``last_2.ckpt`` the one before that: should the newest
    be damaged, a run goes on from there. Whenever a process is killed, what has the name of a checkpoint is a
    whole one, and ``last.ckpt`` is there once it was written.

    A checkpoint that falls on an epoch's last batch is written at the epoch's end, after validation and after
    the schedulers stepped, so that a resumed run begins with the next epoch.

    Args:
        monitor: Logged metric that decides which epoch is best; None keeps no best.
        mode: Whether smaller (``min``) or larger (``max``) is better.
        every_n_batches: Write ``last.ckpt`` every so many batches of an epoch too; None for epoch ends alone.
        every_n_epochs: Write ``last.ckpt`` at the end of every so many epochs, and of the last one.
        keep_every_n_epochs: Also keep a numbered checkpoint every so many epochs; None keeps none.
        keep_last: How many of the last checkpoints to keep.

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
        keep_last: int = 2,
    ) -> None:
        super().__init__()
        if mode not in ("min", "max"):
            raise UserError(f"callbacks.checkpoints.mode={mode}: give min or max")
        metric = (monitor or "").removeprefix("val/").removesuffix("_ab").removesuffix("_ba")
        if _BETTER.get(metric) == "near 1":
            raise UserError(
                f"callbacks.checkpoints.monitor={monitor}: it is best near 1, neither largest nor smallest; "
                "monitor another metric"
            )
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
            ("keep_last", keep_last),
        ):
            if value is not None and value < 1:
                raise UserError(f"callbacks.checkpoints.{key}={value}: give at least 1")
        self.monitor = monitor
        self.mode = mode
        self.every_n_batches = every_n_batches
        self.every_n_epochs = every_n_epochs
        self.keep_every_n_epochs = keep_every_n_epochs
        self.keep_last = keep_last
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self._due = False
        self._stops = False
        self._last_after = -1
        self._random_states: list[dict[str, Any]] | None = None
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
        (``trainer.max_time``) writes what it has; batches that wait for others take their step first.
        """
        every = self.every_n_batches
        self._stops = self._stops or trainer.should_stop
        self._due = self._due or self._stops or (every is not None and (batch_idx + 1) % every == 0)
        holds = getattr(pl_module, "holds_batches", False)
        trainer.should_stop = self._stops and not holds
        if self._due and not holds and batch_idx + 1 < trainer.num_training_batches:
            self._write(trainer, LAST)

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
            names += [LAST]
            self._write(trainer, names[0])
        for name in names[1:]:
            self._copy(trainer, names[0], name)

    def save_now(self, trainer: Trainer) -> None:
        """Write ``last`` unless it is of this very batch; to be called where an epoch's batch or end is over.

        All processes must call it. After a batch that leaves something half done there is nothing to save.
        """
        if self._last_after != batches_trained(trainer):
            self._write(trainer, LAST)

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
            if hasattr(logger, "sync"):
                logger.sync()
        self._last_after = batches_trained(trainer)  # every name is followed by last.ckpt in the end
        path = self.folder(trainer) / name

        def save(beside: Path) -> None:
            trainer.save_checkpoint(beside)
            seal(beside)
            if name == LAST:
                self._rotate(path.parent)

        if trainer.is_global_zero:
            write_beside(path, save)
        else:
            trainer.save_checkpoint(path)  # takes part in the strategy's collective; only rank 0 writes
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]

    def _copy(self, trainer: Trainer, source: str, name: str) -> None:
        if not trainer.is_global_zero:
            return
        folder = self.folder(trainer)
        if name == LAST:
            self._rotate(folder)
        _link(folder / source, folder / name)

    def _rotate(self, folder: Path) -> None:
        """Give the last checkpoints the names of those before them, the oldest first.

        The newest keeps its name as well, until the next one is renamed onto it: there is no moment without.
        """
        for number in range(self.keep_last - 1, 0, -1):
            newer = folder / previous(number - 1)
            if newer.is_file():
                _link(newer, folder / previous(number))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add all random states, and make Lightning's progress counters say what has truly been done."""
        checkpoint["random_state"], *others = gather_random_states(trainer)
        checkpoint["random_states_of_others"] = others
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
        self._resumes_between_epochs = bool(checkpoint.get("between_epochs", False))
        if "random_state" in checkpoint:
            others = checkpoint.get("random_states_of_others")
            self._random_states = [checkpoint["random_state"], *(others or [])]
            # Checkpoints from before every process drew numbers of its own have one state for all.
            was = trainer.world_size if others is None else len(self._random_states)
            shared_anew = not getattr(getattr(trainer, "datamodule", None), "goes_on", True)
            if was != trainer.world_size and not (self._resumes_between_epochs or shared_anew):
                raise UserError(
                    f"this checkpoint was written in the middle of an epoch by {was} "
                    f"process{'es' if was > 1 else ''}, whose shares of it are not those of "
                    f"{trainer.world_size}: give trainer.devices={was}, or resume from the end of an epoch "
                    "(checkpoints/best.ckpt)"
                )
            if was != trainer.world_size and trainer.is_global_zero:
                log.warning(
                    "this run was trained by %s processes and goes on with %s: it will not be bit for bit "
                    "what it would have been",
                    was,
                    trainer.world_size,
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the random states, and enter the next epoch as an uninterrupted run would."""
        if self._resumes_between_epochs:
            # Lightning would otherwise try to finish an epoch that is already over.
            trainer.fit_loop.restarting = False
            self._resumes_between_epochs = False
        self._due, self._stops, self._last_after = False, False, -1
        if self._random_states is None:
            seed_rank(trainer)
        else:
            restore_random_states(trainer, self._random_states, batches_trained(trainer))
            self._random_states = None


def previous(number: int) -> str:
    """Return the name of the checkpoint ``number`` before the last one; 0 is the last itself."""
    return f"last_{number}.ckpt" if number else LAST


def _link(source: Path, target: Path) -> None:
    # A hard link costs nothing, and stays what it is: files are replaced by a rename, never written into.
    def link(beside: Path) -> None:
        beside.unlink(missing_ok=True)
        try:
            os.link(source, beside)
        except OSError:  # a file system without links
            shutil.copyfile(source, beside)

    write_beside(target, link)
