from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.profilers import SimpleProfiler

from i2i_lightning.callbacks.throughput import FetchTimer, Throughput
from i2i_lightning.loggers.csv_log import CSVLog

WAIT_S = 0.02


class Slow:
    """A data set that takes its time."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Any) -> Any:
        time.sleep(WAIT_S)
        return self.items[key]


def rows(folder: Path) -> list[dict[str, str]]:
    import csv

    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_per_second_and_wait_are_those_of_the_run(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    class SlowShapes(shapes):  # type: ignore[misc]
        def setup(self, stage: str) -> None:
            super().setup(stage)
            self.train_set = Slow(self.train_set)

    trainer = make_trainer([Throughput()], logger=CSVLog(tmp_path), log_every_n_steps=3)
    trainer.fit(scripted(), datamodule=SlowShapes(batch_size=2, num_workers=0))
    logged = [row for row in rows(tmp_path) if row["perf/images_per_s"]]
    assert [row["step"] for row in logged] == ["2", "5", "8", "11"]
    for row in logged:
        wait_ms = float(row["perf/data_wait_ms"])
        assert 2 * WAIT_S * 1000 <= wait_ms < 10 * WAIT_S * 1000
        # Two images a batch, and a batch waits at least for both of them.
        assert float(row["perf/images_per_s"]) < 2000 / wait_ms


def test_validation_is_no_training_time(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    class SlowValidation(scripted):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            time.sleep(0.05)
            return super().validation_step(batch, batch_idx)

    trainer = make_trainer([Throughput()], logger=CSVLog(tmp_path), log_every_n_steps=3, max_epochs=3)
    trainer.fit(SlowValidation(), datamodule=shapes(batch_size=4, num_workers=0))
    values = [float(row["perf/images_per_s"]) for row in rows(tmp_path) if row["perf/images_per_s"]]
    # Five slow validation images an epoch: with them an epoch of 12 images would take more than 0.25 s.
    assert len(values) == 3
    assert min(values[1:]) > 60


def test_the_run_keeps_its_own_profiler(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    profiler = SimpleProfiler()
    trainer = make_trainer([Throughput()], profiler=profiler, max_epochs=1)
    trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    assert isinstance(trainer.profiler, FetchTimer)
    assert trainer.profiler.fetches == 3
    fetched = profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]
    assert sum(fetched) == pytest.approx(trainer.profiler.waited_s, abs=0.01)
