"""What a run does when the machine lets it down: one line, an exit status, and a checkpoint to go on from."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.cli import messages
from i2i_lightning.commands import fitting as command
from i2i_lightning.commands.train import APP

TINY = [
    "data=paired",
    "data.load_px=36",
    "data.crop_px=32",
    "data.batch_size=2",
    "data.val_batch_size=2",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "generator.base_channels=4",
    "discriminator.base_channels=4",
    "discriminator.num_layers=1",
    "callbacks.previews=null",
    "callbacks.gallery=null",
    "callbacks.validation.metrics=[l1]",
    "hydra.run.dir=run",
]
LAST = Path("run", "checkpoints", "last.ckpt")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("I2I_DEBUG", raising=False)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    root = tmp_path / "pairs"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (36, 72, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
    return root


class At(Callback):
    """Do something when a batch of an epoch is about to be trained; batches count from 0, epochs from 1."""

    def __init__(self, epoch: int, batch: int, do: Callable[[Trainer], Any]) -> None:
        self.epoch, self.batch, self.do = epoch, batch, do

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch + 1, batch_idx) == (self.epoch, self.batch):
            self.epoch = -1  # once, though the run comes by here again
            self.do(trainer)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let something happen in a run: ``meanwhile(epoch, batch, do)``."""

    def arrange(epoch: int, batch: int, do: Callable[[Trainer], Any]) -> None:
        entries, event = command.entries, At(epoch, batch, do)

        def with_the_event(group: Any) -> list[Any]:
            built = entries(group)
            return [event, *built] if "finite" in (group or {}) else built

        monkeypatch.setattr(command, "entries", with_the_event)

    return arrange


def epochs_in(checkpoint: Path) -> int:
    return int(read_checkpoint(checkpoint)["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"])


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what the command said of its end; warnings that Lightning wraps over lines are left out."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors, errors
    lines = errors.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("i2i-train: "))
    return lines[first:]


WAY_ON = "Continue with resume=run"


# -------------------- the disk


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Forbid this process to write files of more than so many bytes, as a quota does; 0 allows all again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(largest: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest or soft, hard))

    yield limit
    limit(0)


def test_a_checkpoint_that_finds_no_room_stops_the_run(
    pairs: Path, meanwhile: Any, small_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    meanwhile(3, 0, lambda trainer: small_files(4096))
    words = [*TINY, f"data.root={pairs}", "trainer.max_epochs=4"]
    assert APP.main(words) == 1
    small_files(0)
    line, way_on = said(capsys)
    assert "run/checkpoints/" in line
    assert "cannot be written (" in line
    assert way_on == WAY_ON
    assert epochs_in(LAST) == 2, "the checkpoint before is whole"
    assert not list(Path("run").rglob("*.tmp"))
    assert APP.main(["resume=run"]) == 0
    assert epochs_in(LAST) == 4


def test_a_full_disk(pairs: Path, meanwhile: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    place.mkdir()

    def mount(options: str) -> bool:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
        )
        return done.returncode == 0

    if os.geteuid() != 0 or not mount("size=16m"):
        pytest.skip("needs the right to mount a small disk")
    try:

        def fill(trainer: Trainer) -> None:
            with (place / "ballast").open("wb") as file:
                try:
                    while True:
                        file.write(b"x" * 65536)
                        file.flush()
                except OSError:
                    pass

        meanwhile(2, 0, fill)
        words = [word for word in TINY if word != "callbacks.previews=null"]
        assert APP.main([*words, f"data.root={pairs}", "trainer.max_epochs=3"]) == 1
        line, way_on = said(capsys)
        assert "No space left on device" in line or "is the disk full?" in line
        assert way_on == WAY_ON
        assert epochs_in(LAST) == 1
        (place / "ballast").unlink()
        assert APP.main(["resume=run"]) == 0
        assert epochs_in(LAST) == 3
    finally:
        subprocess.run(["umount", str(place)], check=False)


def test_pictures_that_find_no_room_are_left_out(
    pairs: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run", "images").write_text("a file where the folder should be")
    words = [word for word in TINY if word not in ("callbacks.previews=null", "callbacks.gallery=null")]
    assert APP.main([*words, f"data.root={pairs}", "trainer.max_epochs=3"]) == 0, capsys.readouterr().err
    told = [record.message for record in caplog.records if "training goes on without" in record.message]
    assert len(told) == 1, "once, not in every epoch"
    assert "run/images/epoch_0001.png: cannot be written" in told[0]
    assert Path("run", "index.html").is_file()
    assert epochs_in(LAST) == 3


# -------------------- the data


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_go_are_named(
    workers: int, pairs: Path, meanwhile: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = pairs.with_name("aside")
    meanwhile(3, 0, lambda trainer: pairs.rename(aside))
    words = [*TINY, f"data.root={pairs}", "data.cache=none", f"data.cache_dir={pairs.parent / 'cache'}"]
    assert APP.main([*words, f"data.num_workers={workers}", "trainer.max_epochs=4"]) == 1
    line, way_on = said(capsys)
    assert line.startswith(f"i2i-train: {pairs}/")
    assert line.endswith(".png: missing, though its header was in order when the run began")
    assert way_on == WAY_ON
    before = epochs_in(LAST)
    assert before in (1, 2), "workers read ahead"
    aside.rename(pairs)
    assert APP.main(["resume=run"]) == 0
    assert epochs_in(LAST) == 4


def test_a_dead_worker(pairs: Path, meanwhile: Any, capsys: pytest.CaptureFixture[str]) -> None:
    others = set(multiprocessing.active_children())  # of earlier tests

    def kill_them(trainer: Trainer) -> None:  # that of the training, and that of the validation
        workers = [child for child in multiprocessing.active_children() if child not in others]
        assert len(workers) == 2
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.5)

    meanwhile(2, 0, kill_them)
    # The worker is at most two of an epoch's four batches ahead: its death is noticed in this very epoch.
    tiny = [word for word in TINY if not word.startswith("data.batch_size")]
    words = [
        *tiny,
        "data.batch_size=1",
        f"data.root={pairs}",
        "data.cache=none",
        f"data.cache_dir={pairs.parent / 'cache'}",
    ]
    assert APP.main([*words, "data.num_workers=1", "trainer.max_epochs=3"]) == 1
    line, way_on = said(capsys)
    # torch hears of it by a signal or by a pipe that closed, whichever comes first.
    assert line.startswith("i2i-train: a worker of the data loader ")
    assert "was killed (Killed)" in line or "ended unexpectedly" in line
    assert "data.num_workers" in line
    assert way_on == WAY_ON
    assert epochs_in(LAST) == 1
    assert APP.main(["resume=run", "data.num_workers=0"]) == 0
    assert epochs_in(LAST) == 3


# -------------------- the loggers


def test_a_log_that_cannot_be_written_stops_nothing(
    pairs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from i2i_lightning.loggers.csv_log import CSVLog

    calls = []

    def unreachable(self: CSVLog, *args: Any, **kwargs: Any) -> None:
        calls.append(args)
        raise ConnectionError("no answer from the server\nand a long story")

    monkeypatch.setattr(CSVLog, "log_metrics", unreachable)
    assert APP.main([*TINY, f"data.root={pairs}", "trainer.max_epochs=2"]) == 0
    told = [record.message for record in caplog.records if "cannot log" in record.message]
    assert told == [
        "CSVLog cannot log (ConnectionError: no answer from the server); training goes on, and it is tried "
        "again from time to time"
    ]
    assert len(calls) == 1, "left alone for a while"
    assert epochs_in(LAST) == 2


# -------------------- the devices


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trainer.devices=0", "trainer.devices=0: give at least 1, or auto for all there are"),
        ("trainer.devices=two", "trainer.devices=two: give a number, auto, or the GPUs to take"),
        ("trainer.devices=[0,1]", "trainer.devices=[0, 1]: processors have no numbers"),
        ("trainer.devices=2", "trainer.strategy=auto does not suit 2 devices: take trainer=ddp"),
        (
            "trainer.devices=2 trainer.strategy=ddp",
            "trainer.strategy=ddp: players take turns, which it takes for an error; take "
            "trainer.strategy=ddp_find_unused_parameters_true",
        ),
        ("trainer.strategy=horovod", "trainer.strategy=horovod: give one of auto, ddp_find_unused"),
        ("trainer=multi_node trainer.accelerator=cpu", "trainer.num_nodes=2: nobody has told this process"),
        ("trainer=mps", "trainer.accelerator=mps: torch finds no Apple GPU on this machine"),
        ("trainer=gpu", "trainer.accelerator=gpu: torch finds no GPU on this machine; take trainer=cpu"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: give one of auto, cpu, gpu, cuda, mps"),
    ],
)
def test_what_this_machine_cannot_do(
    words: str, message: str, pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("MASTER_ADDR", "NODE_RANK", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert APP.main([*TINY, f"data.root={pairs}", *words.split()]) == 1
    lines = said(capsys)
    assert lines[0].startswith(f"i2i-train: {message}")
    assert len(lines) <= 2
    assert not Path("run").exists()


# -------------------- what other processes tell


IN_A_WORKER = """Caught {name} in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "torch/utils/data/_utils/worker.py", line 375, in _worker_loop
    data = fetcher.fetch(index)
           ^^^^^^^^^^^^^^^^^^^^
{qualified}: {text}
"""
IN_A_SPAWNED_PROCESS = """

-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "torch/multiprocessing/spawn.py", line 90, in _wrap
    fn(i, *args)
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "lightning/pytorch/trainer/call.py", line 49, in _call_and_handle_interrupt
    return trainer_fn(*args, **kwargs)
{qualified}: {text}
"""


@pytest.mark.parametrize("frame", [IN_A_WORKER, IN_A_SPAWNED_PROCESS])
@pytest.mark.parametrize(
    ("qualified", "text", "message"),
    [
        ("i2i_lightning.types.UserError", "a.png: missing\n  and b.png", "a.png: missing\n  and b.png"),
        ("i2i_lightning.callbacks.finite.NonFiniteLossError", "the loss", "the loss"),
        ("OSError", "[Errno 28] No space left on device: '/x/y'", "/x/y: No space left on device"),
        ("PermissionError", "[Errno 13] Permission denied: '/x/y'", "/x/y: Permission denied"),
        (
            "RuntimeError",
            "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
            "a worker of the data loader ended unexpectedly; if memory is short, take fewer: "
            "data.num_workers=1, or 0",
        ),
        (
            "RuntimeError",
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that ...",
            "a worker of the data loader died for want of shared memory: enlarge /dev/shm, or take "
            "data.num_workers=0",
        ),
        ("ZeroDivisionError", "division by zero", None),
        ("somewhere.else.Error", "text", None),
    ],
)
def test_errors_of_other_processes_are_told_as_ones_own(
    frame: str, qualified: str, text: str, message: str | None, tmp_path: Path
) -> None:
    told = RuntimeError(frame.format(name=qualified.rpartition(".")[2], qualified=qualified, text=text))
    assert messages.explain(told, [], tmp_path, "train") == message
