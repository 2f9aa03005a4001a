"""A signal stops a run where nothing is lost, and leaves the process as it was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from i2i_lightning.callbacks import stopping
from i2i_lightning.callbacks.stopping import GracefulStop
from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.methods.schedules import Linear
from i2i_lightning.strategies import signals
from i2i_lightning.strategies.signals import Stopped
from i2i_lightning.types import UserError
from tests.methods.test_resume import BATCHES, EPOCHS, assert_same, run

PARTS = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "batches_seen",
    "epoch",
    "global_step",
    "NoisyData",
)


@pytest.fixture(autouse=True)
def handlers_are_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A suite that a shell started in the background ignores interrupts.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = [signal.getsignal(signum) for signum in signals.SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in signals.SIGNALS] == before
    signal.signal(signal.SIGINT, ours)


class SendAt(L.Callback):
    """Send this process a signal in a hook, once that hook has been called ``calls`` times."""

    def __init__(self, hook: str, calls: int, signum: int) -> None:
        self.calls, self.signum = calls, signum
        setattr(self, hook, self.send)

    def send(self, *_: Any, **__: Any) -> None:
        self.calls -= 1
        if self.calls == 0:
            os.kill(os.getpid(), self.signum)


def whole(root: Path, accumulate: int = 1) -> dict[str, Any]:
    return run(root / "whole", Linear(EPOCHS, 2), accumulate=accumulate)


def stopped(root: Path, send: SendAt, accumulate: int = 1) -> tuple[Stopped, Path]:
    with pytest.raises(Stopped) as stop:
        run(root / "stopped", Linear(EPOCHS, 2), accumulate=accumulate, extra=[send, GracefulStop()])
    return stop.value, root / "stopped" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("hook", "calls", "accumulate", "batches"),
    [
        ("on_train_epoch_start", 1, 1, 1),
        ("on_train_batch_start", 2, 1, 2),
        ("on_train_batch_end", 4, 1, 4),
        ("on_train_batch_end", 4, 2, 5),  # its gradients wait for the next batch's
        ("on_train_batch_end", BATCHES, 1, BATCHES),  # at the end of the epoch
        ("on_validation_batch_start", 2, 1, BATCHES),
        ("on_train_epoch_end", 2, 1, 2 * BATCHES),
        ("on_save_checkpoint", 2, 1, 2),
    ],
)
def test_stops_where_it_can_be_continued(
    tmp_path: Path, hook: str, calls: int, accumulate: int, batches: int
) -> None:
    stop, last = stopped(tmp_path, SendAt(hook, calls, signal.SIGTERM), accumulate)
    assert (stop.signum, stop.agreed, stop.requeued, stop.code) == (signal.SIGTERM, True, False, 143)
    saved = read_checkpoint(last)
    assert saved["batches_seen"] == batches
    resumed = run(tmp_path / "stopped", Linear(EPOCHS, 2), accumulate=accumulate, resume=last)
    expected = whole(tmp_path, accumulate)
    for part in PARTS:
        assert_same(expected[part], resumed[part], part)
    assert_same(expected["random_state"]["torch"], resumed["random_state"]["torch"])


def test_the_last_epoch_is_finished(tmp_path: Path) -> None:
    send = SendAt("on_validation_start", EPOCHS, signal.SIGTERM)
    done = run(tmp_path, Linear(EPOCHS, 2), extra=[send, GracefulStop()])
    assert done["epoch"] == EPOCHS - 1


def test_before_training_a_signal_stops_at_once(tmp_path: Path) -> None:
    stop, last = stopped(tmp_path, SendAt("on_fit_start", 1, signal.SIGUSR1))
    assert (stop.signum, stop.agreed) == (signal.SIGUSR1, False)
    assert not last.exists()


def test_a_second_interrupt_stops_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Twice(L.Callback):
        def on_validation_start(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one stops at once")

    with pytest.raises(Stopped) as stop:
        run(tmp_path, Linear(EPOCHS, 2), extra=[Twice(), GracefulStop()])
    assert (stop.value.agreed, stop.value.code) == (False, 130)
    assert "press Ctrl+C again to stop at once" in capfd.readouterr().err
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["batches_seen"] == BATCHES - 1


def test_other_signals_may_come_often(tmp_path: Path) -> None:
    class Often(L.Callback):
        def on_validation_start(self, *_: Any) -> None:
            for signum in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), signum)

    with pytest.raises(Stopped) as stop:
        run(tmp_path, Linear(EPOCHS, 2), extra=[Often(), GracefulStop()])
    assert (stop.value.agreed, stop.value.signum) == (True, signal.SIGUSR2)


@pytest.mark.parametrize(
    ("signum", "asks"), [(signal.SIGUSR1, 1), (signal.SIGUSR2, 1), (signal.SIGTERM, 1), (signal.SIGINT, 0)]
)
def test_slurm_is_asked_to_start_the_job_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, asks: int
) -> None:
    asked: list[int] = []

    def requeue() -> bool:
        asked.append(int(read_checkpoint(tmp_path / "stopped/checkpoints/last.ckpt")["batches_seen"]))
        return True

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # Lightning then leaves SLURM alone
    monkeypatch.setattr(stopping, "requeue", requeue)
    stop, _ = stopped(tmp_path, SendAt("on_train_batch_start", 2, signum))
    assert asked == [2] * asks, "once the checkpoint is there"
    assert stop.requeued is bool(asks)


def test_another_handler_does_not_get_in_between(tmp_path: Path) -> None:
    """Lightning's and submitit's own handlers for these signals save in mid-step, or not at all."""
    theirs: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: theirs.append(signum))
    try:
        stop, _ = stopped(tmp_path, SendAt("on_train_batch_start", 2, signal.SIGUSR2))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stop.agreed
    assert not theirs


def test_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"callbacks\.stopping\.check_every=0: give at least 1"):
        GracefulStop(check_every=0)
