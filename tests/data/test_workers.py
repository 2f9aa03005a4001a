"""Workers outlive the signals that are meant for the run, and never keep a process from ending."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.mark.parametrize("signum", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_to_all_leaves_the_workers_at_work(checkout: Path, signum: str) -> None:
    done = run(
        checkout,
        f"""
        signal.signal(signal.{signum}, lambda *_: None)
        next(batches)
        os.killpg(0, signal.{signum})
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.{signum})
        print(sum(1 for _ in batches))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "19"


@pytest.mark.parametrize("signum", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_before_a_worker_is_ready_leaves_it_at_work(checkout: Path, signum: str) -> None:
    """Each worker sleeps before its first line, and the signal comes in that time."""
    done = run(
        checkout,
        f"""
        start = multiprocessing.process.BaseProcess.run
        multiprocessing.process.BaseProcess.run = lambda self: (time.sleep(0.5), start(self))
        batches = iter(data.val_dataloader())
        heard = []
        signal.signal(signal.{signum}, lambda *_: heard.append(1))
        os.killpg(0, signal.{signum})
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.{signum})
        print(sum(1 for _ in batches), heard)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "20 [1]"


@pytest.mark.slow
def test_workers_that_are_not_forked_are_born_deaf_too(checkout: Path) -> None:
    """Python starts a process of its own beside the first of them, and lets signals in again then."""
    done = run(
        checkout,
        """
        data.multiprocessing_context = "spawn"
        batches = iter(data.val_dataloader())
        signal.signal(signal.SIGTERM, lambda *_: None)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM)
        print(sum(1 for _ in batches))
        """,
    )
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr


def test_an_error_in_mid_epoch_ends_the_process(checkout: Path) -> None:
    """At its end a process asks its workers to go, which do not listen, and waits for them."""
    done = run(checkout, "next(batches)\nmultiprocessing.held = batches\nraise SystemExit(3)")
    assert (done.returncode, done.stderr) == (3, "")


def test_a_process_that_another_started_keeps_its_exit_status(checkout: Path) -> None:
    """A rank of ``trainer=ddp_spawn`` tells its parent by it why it stopped."""
    done = run(
        checkout,
        """
        def rank():
            mine = iter(data.train_dataloader())
            next(mine)
            raise SystemExit(143)
        process = multiprocessing.get_context("fork").Process(target=rank)
        process.start()
        process.join()
        print(process.exitcode)
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "143\n", "")


def run(checkout: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` after an epoch of 20 batches has begun in two workers."""
    began = """
        import multiprocessing, os, signal, time
        from i2i_lightning.data.toyfaces.module import ToyFacesDataModule
        data = ToyFacesDataModule(crop_px=32, num_train=20, num_val=20, num_test=1, num_workers=2)
        data.setup("fit")
        batches = iter(data.train_dataloader())
    """
    quiet = ["-W", "ignore:This DataLoader will create"]  # torch warns of two workers where there is one core
    return subprocess.run(
        [sys.executable, *quiet, "-c", textwrap.dedent(began) + textwrap.dedent(code)],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
