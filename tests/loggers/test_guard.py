from __future__ import annotations

import pickle
from typing import Any

import pytest

from i2i_lightning.loggers.guard import GuardedLogger


class Flaky:
    """A logger whose server is away while ``is_away``."""

    def __init__(self) -> None:
        self.is_away = False
        self.taken: list[float] = []
        self.name = "flaky"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.taken.append(metrics["a"])
        if self.is_away:
            raise TimeoutError("no answer\nfrom 10.0.0.1")

    def finalize(self, status: str) -> None:
        self.log_metrics({"a": -1})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("i2i_lightning.loggers.guard.time.monotonic", lambda: now[0])
    return now


def test_failures_warn_once_and_are_tried_again_ever_more_rarely(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    inner = Flaky()
    logger = GuardedLogger(inner, first_pause_s=10)
    logger.log_metrics({"a": 0})
    inner.is_away = True
    for seconds in range(1, 101):
        clock[0] += 1
        logger.log_metrics({"a": seconds}, step=seconds)
    assert inner.taken == [0, 1, 11, 31, 71], "10, 20, 40 seconds apart"
    assert [record.message for record in caplog.records] == [
        "Flaky cannot log (TimeoutError: no answer); training goes on, and it is tried again from time to "
        "time"
    ]
    inner.is_away = False
    clock[0] += 60
    logger.log_metrics({"a": 200})
    logger.log_metrics({"a": 201})
    assert inner.taken[-2:] == [200, 201]


def test_the_end_of_a_run_is_told_even_in_a_pause(clock: list[float]) -> None:
    inner = Flaky()
    inner.is_away = True
    logger = GuardedLogger(inner)
    logger.log_metrics({"a": 0})
    logger.finalize("success")
    assert inner.taken == [0, -1]


def test_it_looks_like_the_logger_it_guards_and_travels_to_spawned_processes() -> None:
    logger: Any = GuardedLogger(Flaky())
    assert logger.name == "flaky"
    assert hasattr(logger, "log_metrics")
    assert not hasattr(logger, "log_image")
    logger.log_metrics({"a": 1})
    again = pickle.loads(pickle.dumps(logger))
    again.log_metrics({"a": 2})
    assert again.taken == [1, 2]


def test_a_logger_that_cannot_even_begin(caplog: pytest.LogCaptureFixture) -> None:
    """Lightning asks every logger for its ``experiment`` as a run is set up."""

    class Unborn(Flaky):
        @property
        def experiment(self) -> None:
            raise OSError("no space left on device")

    logger = GuardedLogger(Unborn())
    assert hasattr(logger, "experiment")
    assert logger.experiment is None
    assert len(caplog.records) == 1
    assert "Unborn cannot log (OSError: no space left on device)" in caplog.records[0].message


def test_what_is_no_failure_passes(clock: list[float]) -> None:
    class Interrupted(Flaky):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedLogger(Interrupted()).log_metrics({"a": 1})
