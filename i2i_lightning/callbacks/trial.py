"""A run as a trial of an Optuna study: it reports while it trains, and stops early where that looks vain."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer

from i2i_lightning.types import UserError

if TYPE_CHECKING:
    import optuna

MISSING = "a study needs optuna: pip install 'i2i_lightning[sweeps]'"
PRUNED = "pruned_after_epoch"
"""Attribute of a trial that was stopped early; the sweeper records its state from it."""


class FolderLock:
    """A lock for the journal that the system releases with a killed process, which Optuna's own are not."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let it go."""
        self._lock.release()


def open_storage(storage: str) -> optuna.storages.BaseStorage:
    """Open where a study is kept.

    Args:
        storage: Path of a journal (a text file, one line for each event), or a database's address
            (``sqlite:///file.db``).

    Raises:
        UserError: If Optuna is not installed, or the storage cannot be opened.
    """
    try:
        from optuna.storages import RDBStorage
        from optuna.storages.journal import JournalFileBackend, JournalStorage
    except ImportError as error:
        raise UserError(MISSING) from error
    if "://" in storage:
        try:
            return RDBStorage(storage)
        except Exception as error:  # whatever the database's driver raises
            raise UserError(f"sweep.storage={storage}: {str(error).splitlines()[0]}") from error
    journal = Path(storage)
    journal.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = FolderLock(journal.with_name(f"{journal.name}.lock"))
    with held(lock):
        _drop_half_line(journal)
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))


@contextlib.contextmanager
def held(lock: FolderLock) -> Iterator[None]:
    """Wait for the lock, and hold it for as long as the context lasts."""
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _drop_half_line(journal: Path) -> None:
    """Cut off what a dying machine left of its last line, which would spoil the one that comes next."""
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())


class TrialReport(Callback):
    """Report a validation metric to the study after each epoch; stop the run where its pruner says so.

    A pruned run ends as any run does that is told to stop: with a checkpoint, pages and reports.

    Args:
        storage: Where the study is kept; see :func:`open_storage`.
        study: Its name.
        trial: Number of the trial that this run is.
        monitor: Logged metric to report.
        pruner: Name of the pruner; None reports alone. See :func:`make_pruner`.
        pruner_startup_trials: Trials that are never pruned.
        pruner_warmup_epochs: Epochs after which the first trial may be pruned.
    """

    def __init__(
        self,
        storage: str,
        study: str,
        trial: int,
        monitor: str,
        pruner: str | None = "median",
        pruner_startup_trials: int = 5,
        pruner_warmup_epochs: int = 2,
    ) -> None:
        self.storage, self.study_name, self.number, self.monitor = storage, study, trial, monitor
        self.pruner = make_pruner(pruner, pruner_startup_trials, pruner_warmup_epochs)
        self._trial: optuna.Trial | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the study, in the process that logs."""
        if not trainer.is_global_zero:
            return
        import optuna

        study = optuna.load_study(
            study_name=self.study_name, storage=open_storage(self.storage), pruner=self.pruner
        )
        self._trial = optuna.Trial(study, study.trials[self.number]._trial_id)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask whether to go on.

        Raises:
            UserError: If the metric is not measured: better now than when every trial has been trained.
        """
        if not trainer.is_last_batch:
            return  # broken off: the figure is of part of an epoch
        vain = False
        validated = trainer.fit_loop.epoch_loop._should_check_val_epoch()
        if validated and self.monitor.startswith("val/") and self.monitor not in trainer.callback_metrics:
            there = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(f"sweep.monitor={self.monitor}: nothing logs this metric; there is: {there}")
        if self._trial is not None and self.monitor in trainer.callback_metrics:
            epoch = trainer.current_epoch + 1
            self._trial.report(float(trainer.callback_metrics[self.monitor]), epoch)
            if epoch != trainer.max_epochs and self._trial.should_prune():
                self._trial.set_user_attr(PRUNED, epoch)
                vain = True
        if trainer.world_size > 1:
            vain = trainer.strategy.reduce_boolean_decision(vain, all=False)
        if vain:
            trainer.should_stop = True


def make_pruner(name: str | None, startup_trials: int, warmup_epochs: int) -> optuna.pruners.BasePruner:
    """Return what stops vain trials.

    Args:
        name: ``median`` stops a trial whose best value so far is worse than the median of the others at the
            same epoch; ``halving`` lets the better part of the trials go on at each doubling of epochs; None
            stops none.
        startup_trials: Trials that ``median`` lets finish before it stops any.
        warmup_epochs: Epochs of each trial that are not judged.

    Raises:
        UserError: If Optuna is not installed, or there is no such pruner.
    """
    try:
        from optuna import pruners
    except ImportError as error:
        raise UserError(MISSING) from error
    if name is None:
        return pruners.NopPruner()
    if name == "median":
        # Optuna takes steps to begin at 0; ours are epochs.
        return pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_epochs + 1)
    if name == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup_epochs), reduction_factor=2)
    raise UserError(f"sweep.pruner={name}: give median, halving or null")
