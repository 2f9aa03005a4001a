"""What a run writes into its records while it trains: that it goes on, and that it is finished."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from i2i_lightning.cli import record
from i2i_lightning.cli.app import quiet_others
from i2i_lightning.cli.record import Run


class Recorder(Callback):
    """Note a continuation once it trains, and the end of a run once all else about it is written.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.began = self.epoch_is_over = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in a spawned process, where nobody has hidden yet what Lightning says that helps no one."""
        self.__dict__.update(state)
        quiet_others()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a continuation only now: its data and checkpoint have loaded, and it has epochs to train."""
        self.began = True
        if trainer.is_global_zero and (self.run.checkpoint is not None or self.run.again):
            record.continued(self.run)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether an epoch came to its end: Lightning counts one that was broken off, too."""
        self.epoch_is_over = trainer.is_last_batch

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the end; a run that was stopped does not come here."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        epochs = trainer.max_epochs
        finished = epochs is not None and 0 <= epochs <= trainer.current_epoch
        if not self.began and self.run.checkpoint is not None:
            if finished:
                data = trainer.datamodule  # type: ignore[attr-defined]
                words = f"All {epochs} epochs are trained already; for more give trainer.max_epochs=..."
                print(getattr(data, "nothing_left", words))
            else:
                print(
                    f"trainer.max_time is used up, in epoch {trainer.current_epoch + 1} of {epochs}; "
                    "give more, or trainer.max_time=null"
                )
        if finished and (self.epoch_is_over or not self.began):
            assert epochs is not None
            record.finish(self.run, epochs)
