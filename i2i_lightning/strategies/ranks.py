"""The processes of one run seen from the first: how they end, together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.multiprocessing.spawn import ProcessExitedException

from i2i_lightning.strategies import signals
from i2i_lightning.strategies.signals import Stopped
from i2i_lightning.types import UserError

LAST_WORDS_S = 60.0
"""Seconds that other processes are given to end by themselves after an agreed stop."""
WATCH_S = 0.5
GRACE_S = 30.0
"""Seconds that the first process is given to end in order after another one has died."""
PEER_IS_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "ncclremoteerror",
    "remote process exiting",
)
"""What torch's collectives say where a process of the run is no longer there."""


@contextmanager
def ending_together(trainer: Trainer) -> Iterator[None]:
    """Fit within this context: a stop ends all processes of the run, and so does the death of one.

    Processes that Lightning spawned get the signals that this one receives. Of those that it started by the
    command line each watches whether the first is still there: a collective on GPUs would wait for it for
    many minutes.

    Raises:
        Stopped: If a signal ended the run.
        UserError: If another process of the run died.
    """
    launcher: Any = trainer.strategy.launcher
    kind = type(launcher).__name__
    watch = None
    if "MultiProcessing" in kind:
        signals.forward(launcher.kill)
        signals.be_patient()
    elif "Subprocess" in kind and trainer.local_rank > 0:
        _end_with_parent()
    elif "Subprocess" in kind and not launcher.cluster_environment.creates_processes_externally:
        watch = _Watch(launcher)
        # Lightning's own watch kills this process without a word, and looks every five seconds alone.
        module: Any = subprocess_script
        lightnings, module._launch_process_observer = module._launch_process_observer, watch.follow
    try:
        yield
    except Stopped as stop:
        _let_others_end(launcher, stop.agreed)
        raise
    except ProcessExitedException as error:
        if (stopped := _stopped_by(error)) is not None:
            raise stopped from error
        how = error.signal_name or f"exit status {error.exit_code}"
        raise UserError(_died(error.error_index, how)) from error
    except RuntimeError as error:
        if trainer.world_size < 2 or not any(text in str(error).lower() for text in PEER_IS_GONE):
            raise
        if (signum := signals.received()) is not None:
            raise Stopped(signum) from error
        if watch is not None and watch.has_spoken(within_s=2 * WATCH_S):
            raise SystemExit(1) from error
        raise UserError("another process of this run is gone; this one cannot go on without it") from error
    finally:
        signals.be_patient(False)
        signals.forward(None)
        if watch is not None:
            module._launch_process_observer = lightnings
            watch.stop()


class _Watch(threading.Thread):
    """Watch the processes that this one started: when one dies, say so, and end the others.

    This process is given some time to end in order, since its collectives fail by themselves as a rule.
    """

    def __init__(self, launcher: Any) -> None:
        super().__init__(daemon=True, name="children-observer")
        self._launcher = launcher
        self._processes: list[subprocess.Popen[bytes]] = []
        self._spoken = threading.Event()
        self._stop_asked = threading.Event()

    def follow(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Begin to watch."""
        self._processes = processes
        self.start()

    def has_spoken(self, within_s: float) -> bool:
        """Say whether a death has been told, or is within the next seconds."""
        return self._spoken.wait(within_s)

    def stop(self) -> None:
        """Watch no longer."""
        self._stop_asked.set()

    def run(self) -> None:
        """Look, until asked to stop."""
        while not self._stop_asked.wait(WATCH_S):
            codes = [process.poll() for process in self._processes]
            died = [(rank, code) for rank, code in enumerate(codes, start=1) if code]
            if not died:
                continue
            if signals.received() is None:  # else everyone is ending, by themselves as a rule
                rank, code = died[0]
                how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                with suppress(OSError):  # whoever read it may be gone as well, and the others must still end
                    sys.stderr.write(f"{_died(rank, how)}\n")
                    sys.stderr.flush()
                self._spoken.set()
            if not self._stop_asked.wait(GRACE_S):
                self._launcher.kill(signal.SIGKILL)
                os._exit(1)


def _died(rank: int, how: str) -> str:
    return f"process {rank} of this run died ({how}); the others end too, and the last checkpoint is kept"


def _stopped_by(error: ProcessExitedException) -> Stopped | None:
    """Return the signal by which spawned processes stopped: the one they got, or this one."""
    told = {
        stop.code: stop
        for requeued in (False, True)
        for stop in (Stopped(signum, agreed=True, requeued=requeued) for signum in signals.SIGNALS)
    }
    stop, received = told.get(error.exit_code), signals.received()
    if received is None:
        return stop
    return Stopped(received, agreed=True, requeued=stop is not None and stop.requeued)


def _let_others_end(launcher: Any, agreed: bool) -> None:
    """Wait for the processes that this one started; end them where they know nothing of the stop."""
    processes = list(getattr(launcher, "procs", []))
    if not agreed and processes:
        launcher.kill(signal.SIGKILL)
    deadline = time.monotonic() + LAST_WORDS_S
    for process in processes:
        left = max(0.0, deadline - time.monotonic())
        if isinstance(process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                process.wait(left)
        elif isinstance(process, multiprocessing.process.BaseProcess):
            process.join(left)


def _end_with_parent() -> None:
    """End this process soon after its parent has died, whatever it waits for."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-observer").start()
