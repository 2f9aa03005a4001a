from __future__ import annotations

import csv
import math
import resource
from pathlib import Path

import pytest

from i2i_lightning.loggers.csv_log import CSVLog


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_step_and_growing_columns(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    log.log_metrics({"a": 1.5}, step=0)
    log.log_metrics({"b": 2}, step=0)
    log.log_metrics({"a": 0.25}, step=1)
    assert len(read(tmp_path)) == 1, "a step is written when the next one begins"
    log.save()
    log.log_metrics({"val/l1": 1 / 3, "epoch": 0}, step=1)
    log.log_metrics({"a": math.nan, "b": 1e-9}, step=2)
    log.finalize("success")
    assert read(tmp_path) == [
        {"step": "0", "epoch": "", "a": "1.5", "b": "2", "val/l1": ""},
        {"step": "1", "epoch": "0", "a": "0.25", "b": "", "val/l1": "0.3333333"},
        {"step": "2", "epoch": "", "a": "nan", "b": "1e-09", "val/l1": ""},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_full_disk_costs_rows_but_leaves_no_half_ones(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    for step in range(3):
        log.log_metrics({"a": step, "b": 0.5}, step=step)
    log.save()
    size = (tmp_path / "metrics.csv").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, before[1]))  # room for half a row
    try:
        log.log_metrics({"a": 3, "b": 0.5}, step=3)
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                log.log_metrics({"a": 4, "b": 0.5}, step=4)
        with pytest.raises(OSError, match="File too large"):
            log.log_metrics({"a": 5, "c": 0.5}, step=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.log_metrics({"a": 6, "c": 1}, step=6)
    log.finalize("success")
    assert [(row["step"], row["a"], row["b"], row["c"]) for row in read(tmp_path)] == [
        ("0", "0", "0.5", ""),
        ("1", "1", "0.5", ""),
        ("2", "2", "0.5", ""),
        ("3", "3", "0.5", ""),
        ("6", "6", "", "1"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_step_that_was_saved_early_is_completed_not_doubled(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    for step in range(3):
        log.log_metrics({"a": step}, step=step)
        log.save()
        log.log_metrics({"b": 10 * step}, step=step)
        log.save()
    assert read(tmp_path) == [{"step": str(s), "a": str(s), "b": str(10 * s)} for s in range(3)]


def test_continuing_drops_the_rows_that_are_written_again(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    for step in range(0, 50, 10):
        log.log_metrics({"a": step, "old": 1}, step=step)
    log.finalize("failed")
    again = CSVLog(tmp_path)
    for step in (30, 40, 50):
        again.log_metrics({"a": -step, "new": 2}, step=step)
    again.finalize("success")
    assert [(row["step"], row["a"], row["old"], row["new"]) for row in read(tmp_path)] == [
        ("0", "0", "1", ""),
        ("10", "10", "1", ""),
        ("20", "20", "1", ""),
        ("30", "-30", "", "2"),
        ("40", "-40", "", "2"),
        ("50", "-50", "", "2"),
    ]


def test_half_a_line_left_by_a_killed_process_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,a,b\n0,1,2\n1,1,2\n2,1")
    log = CSVLog(tmp_path)
    log.log_metrics({"a": 7}, step=5)
    log.finalize("success")
    assert [row["step"] for row in read(tmp_path)] == ["0", "1", "5"]
