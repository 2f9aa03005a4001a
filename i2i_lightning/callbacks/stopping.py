"""Stop where nothing is lost: after Ctrl+C, before a time limit, when another job needs the machine."""

from __future__ import annotations

import multiprocessing
import signal
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.strategies import signals
from i2i_lightning.strategies.requeue import requeue
from i2i_lightning.types import UserError


class GracefulStop(Checkpoint):
    """Write ``last.ckpt`` and stop after SIGINT (Ctrl+C), SIGTERM, SIGUSR1 or SIGUSR2.

    A signal only leaves a note. All processes agree on it after a batch, the checkpoint is written after the
    next one that leaves nothing half done (an epoch's last batch: once its validation and its end are over),
    and every process raises :class:`~i2i_lightning.strategies.signals.Stopped`. Nothing of an epoch's end is
    run in the middle of it, so that a continued run has the same log as one that was never stopped. At the
    end of the last epoch the run is finished instead. Where SLURM sent the signal it is asked to start the
    job again, once the checkpoint is on the disk. A second Ctrl+C stops at once.

    It derives from Lightning's ``Checkpoint`` to come last: every other callback must have seen the batch.

    Args:
        check_every: Batches between two agreements; None for every batch on a CPU or in a single process, and
            every 20 on several GPUs, where each makes the host wait for the device.

    Raises:
        UserError: If ``check_every`` is not at least 1.
    """

    def __init__(self, check_every: int | None = None) -> None:
        super().__init__()
        if check_every is not None and check_every < 1:
            raise UserError(
                f"callbacks.stopping.check_every={check_every}: give at least 1, or null to choose by device"
            )
        self.check_every = check_every
        self._signum: signal.Signals | None = None
        self._listens = False

    # -------------------- listening

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen, if the command does not already, and keep Lightning from taking its turn.

        Lightning's own handler for SIGTERM broadcasts inside of the handler, and stops without a checkpoint.
        """
        if stage != "fit":
            return
        self._signum = None
        if not signals.is_listening():
            signals.listen(speaks=trainer.is_global_zero)
            self._listens = True
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there is something to save."""
        signals.listen()  # others may have set handlers while the run was set up
        signals.be_patient()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put back the handlers that were there before."""
        self._hang_up()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put back the handlers that were there before."""
        self._hang_up()

    def _hang_up(self) -> None:
        # A rank that was spawned ends now in any case, and its parent may send it one more signal.
        if self._listens and multiprocessing.parent_process() is None:
            self._listens = False
            signals.stop_listening()

    # -------------------- stopping

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if all know that they are to, and this batch can be continued from."""
        every = self.check_every
        if every is None:
            every = 1 if pl_module.device.type == "cpu" or trainer.world_size == 1 else 20
        if (batch_idx + 1) % every == 0:
            self._agree(trainer)
        if self._signum is None or batch_idx + 1 >= trainer.num_training_batches:
            return
        if not getattr(pl_module, "holds_batches", False):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after an epoch, unless it was the last one."""
        self._agree(trainer)
        finished = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
        if self._signum is not None and trainer.is_last_batch and not finished:
            self._stop(trainer)

    def _agree(self, trainer: Trainer) -> None:
        """Let every process know of a signal that any of them has received."""
        if self._signum is not None:
            return
        mine = signals.received()
        if trainer.world_size > 1:
            if not trainer.strategy.reduce_boolean_decision(mine is not None, all=False):
                return
            number = torch.tensor(0 if mine is None else int(mine), device=trainer.strategy.root_device)
            mine = signal.Signals(int(trainer.strategy.reduce(number, reduce_op="max")))
        self._signum = mine

    def _stop(self, trainer: Trainer) -> None:
        assert self._signum is not None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.save_now(trainer)
        requeued = trainer.is_global_zero and signals.wants_requeue(self._signum) and requeue()
        # Nobody leaves before the first is done: the end of a process that was spawned ends the others.
        requeued = bool(trainer.strategy.broadcast(requeued))
        raise signals.Stopped(self._signum, agreed=True, requeued=requeued)
