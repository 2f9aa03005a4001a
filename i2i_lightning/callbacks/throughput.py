"""How fast a run trains and how long it waits for data, measured on the host without asking the device."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler

from i2i_lightning.callbacks.readings import batch_size, log_step, logs_now


class FetchTimer(Profiler):
    """Add up the time that training waits for batches, and pass all else on to the run's own profiler.

    Lightning announces to its profiler when it begins and ends to fetch a batch; no callback hook lies that
    close to it, and the time between two hooks would also count logging and the transfer to the device.
    """

    def __init__(self, profiler: Profiler) -> None:
        super().__init__()
        self.profiler = profiler
        self.waited_s = 0.0
        """Seconds waited for training batches so far."""
        self.fetches = 0
        self._passes_on = not isinstance(profiler, PassThroughProfiler)
        self._began = 0.0

    def start(self, action_name: str) -> None:
        """Note the beginning of a fetch."""
        if action_name == "[_TrainingEpochLoop].train_dataloader_next":
            self._began = time.perf_counter()
        if self._passes_on:
            self.profiler.start(action_name)

    def stop(self, action_name: str) -> None:
        """Add the time since the fetch began."""
        if action_name == "[_TrainingEpochLoop].train_dataloader_next":
            self.waited_s += time.perf_counter() - self._began
            self.fetches += 1
        if self._passes_on:
            self.profiler.stop(action_name)

    def summary(self) -> str:
        """Return the run's own profiler's summary."""
        return self.profiler.summary()

    def describe(self) -> None:
        """Let the run's own profiler report."""
        self.profiler.describe()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Set up the run's own profiler."""
        self.profiler._lightning_module = getattr(self, "_lightning_module", None)  # type: ignore[attr-defined]
        self.profiler.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        """Tear down the run's own profiler."""
        self.profiler.teardown(stage)


def fetch_timer(trainer: Trainer) -> FetchTimer:
    """Return the trainer's fetch timer; the first caller puts it in."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, FetchTimer):
        profiler = FetchTimer(profiler)
        trainer.profiler = profiler  # type: ignore[attr-defined]
    return profiler


class Pace:
    """Images per second and wait per batch since the last reading.

    A launch on a GPU returns before the work is done, yet the host can run only a few steps ahead: over many
    batches the host's rate is the device's. Validation and whatever else lies between ``pause`` and
    ``resume`` is left out.
    """

    def __init__(self, timer: FetchTimer, world_size: int) -> None:
        self.timer = timer
        self.world_size = world_size
        self.images = 0
        self.batches = 0
        self._seconds = 0.0
        self._since: float | None = None
        self._waited_s = timer.waited_s

    def resume(self) -> None:
        """Start, or go on, counting time."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop counting time until ``resume``."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def count(self, batch: Any) -> None:
        """Count a trained batch."""
        self.images += batch_size(batch) * self.world_size
        self.batches += 1

    def read(self, restart: bool = True) -> dict[str, float]:
        """Return ``images_per_s``, ``data_wait_ms`` (per batch) and ``data_wait_share`` (of the time)."""
        now = time.perf_counter()
        seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
        waited_s = self.timer.waited_s - self._waited_s
        values = {
            "images_per_s": self.images / seconds if seconds > 0 else 0.0,
            "data_wait_ms": 1000 * waited_s / max(self.batches, 1),
            "data_wait_share": min(waited_s / seconds, 1.0) if seconds > 0 else 0.0,
        }
        if restart:
            self.images, self.batches, self._seconds, self._waited_s = 0, 0, 0.0, self.timer.waited_s
            self._since = now if self._since is not None else None
        return values


class Throughput(Callback):
    """Log ``perf/images_per_s`` and ``perf/data_wait_ms`` whenever the loggers take the terms of a batch.

    Both are over the batches since the last time: images of all processes per second of training, validation
    left out, and milliseconds per batch that the step waited for the loader (transfer to the device not
    included). The first batch of a run is not counted, since kernels are chosen and workers start in it.
    """

    def __init__(self) -> None:
        self._pace: Pace | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the fetch timer in."""
        if stage == "fit":
            fetch_timer(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting time where the last epoch's end stopped it; the first fetch belongs to the epoch."""
        if self._pace is not None:
            self._pace.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's images; log when the loggers take this batch."""
        if self._pace is None:
            self._pace = Pace(fetch_timer(trainer), trainer.world_size)
            if not trainer.is_last_batch:
                self._pace.resume()
            return
        self._pace.count(batch)
        if logs_now(trainer) and trainer.loggers:
            values = self._pace.read()
            metrics = {f"perf/{name}": values[name] for name in ("images_per_s", "data_wait_ms")}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=log_step(trainer))
        if trainer.is_last_batch:
            self._pace.pause()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out."""
        if self._pace is not None:
            self._pace.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on after a validation in the middle of an epoch."""
        if self._pace is not None and not trainer.is_last_batch:
            self._pace.resume()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the run, so that another fit starts afresh."""
        self._pace = None
