"""Signals that ask a process to stop: Ctrl+C, SLURM's warning, pre-emption, ``kill``.

Before training there is nothing to save, and a signal ends the process at once. While a run trains, a signal
only leaves a note, which :class:`~i2i_lightning.callbacks.stopping.GracefulStop` reads where it can save. A
process has one handler for each signal, hence one note; this module imports nothing but the standard library,
so that a command can listen before it imports torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
"""What asks for a stop; Windows knows the first two alone."""
GRACEFUL = b"\nstopping at the next place to save; press Ctrl+C again to stop at once\n"


class Stopped(SystemExit):
    """A signal has asked this process to stop; its ``code`` is 128 and the signal's number, as in a shell.

    Lightning tidies up and passes a ``SystemExit`` on, and a process that it has spawned ends by it quietly.
    Its parent learns from the code whether the job was requeued: there is 64 more then.

    Args:
        signum: The signal.
        agreed: Whether every process of the run stops by itself.
        requeued: Whether SLURM will start the job again.
    """

    def __init__(self, signum: signal.Signals, agreed: bool = False, requeued: bool = False) -> None:
        super().__init__(128 + int(signum))
        self.code: int = 128 + int(signum) + (64 if requeued else 0)
        self.signum = signum
        self.agreed = agreed
        self.requeued = requeued

    def __str__(self) -> str:
        return "interrupted by hand" if self.signum == signal.SIGINT else f"stopped by {self.signum.name}"


class _Note:
    """What this process knows of signals."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.interrupts = 0
        self.patient = False
        self.speaks = False
        self.forward: Callable[[signal.Signals], None] | None = None
        self.before: dict[signal.Signals, Any] = {}
        self.process = os.getpid()
        self.parent: int | None = None


_note = _Note()


def wants_requeue(signum: signal.Signals) -> bool:
    """Say whether a signal means that a job of a cluster is to be started again another time.

    After Ctrl+C nobody wants it to go on.
    """
    return signum != signal.SIGINT and "SLURM_JOB_ID" in os.environ


def received() -> signal.Signals | None:
    """Return the first signal since this process began to listen; None if there was none."""
    return _note.received


def is_listening() -> bool:
    """Return whether this process has our handlers, whoever may have been put in their place since."""
    return bool(_note.before)


def listen(speaks: bool = True) -> None:
    """Set our handlers, in the place of whatever is there. Does nothing outside of the main thread.

    Args:
        speaks: Whether to tell a person who pressed Ctrl+C how it goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if not is_listening():
        _note.__init__()  # type: ignore[misc]
        _note.speaks = speaks
        _note.parent = os.getppid() if multiprocessing.parent_process() is not None else None
        _note.before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum in SIGNALS:
        # What a parent told us to ignore (nohup, a shell's background job) is still for others to send.
        if not (signum == signal.SIGINT and _note.before[signum] == signal.SIG_IGN):
            signal.signal(signum, _handle)


def be_patient(patient: bool = True) -> None:
    """From now on leave a note of a signal instead of ending this process; or the other way round."""
    _note.patient = patient


def forward(send: Callable[[signal.Signals], None] | None) -> None:
    """Pass signals on by ``send``: this process only waits for the ones that train. None ends that."""
    _note.forward = send


def stop_listening() -> None:
    """Put the handlers back that were there before."""
    before, _note.before = _note.before, {}
    if threading.current_thread() is threading.main_thread():
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


@contextmanager
def listening(speaks: bool = True) -> Iterator[None]:
    """Listen within the context."""
    already = is_listening()
    listen(speaks)
    try:
        yield
    finally:
        if not already:
            stop_listening()


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _note.process:
        return  # a worker that was forked, and has not yet left the group of processes that is signalled
    signum = signal.Signals(number)
    if _note.parent not in (None, os.getppid()):
        os._exit(128 + number)  # the parent of spawned ranks was killed, and with it went the run's lock
    if _note.received is None:
        _note.received = signum
    if _note.forward is not None:
        _note.forward(signal.SIGTERM)  # never SIGINT: a terminal has sent that to all of us already
    if signum == signal.SIGINT:
        _note.interrupts += 1
        if _note.interrupts == 1 and _note.patient and _note.speaks:
            os.write(2, GRACEFUL)  # print may not be entered twice
    if not _note.patient or _note.interrupts > 1:
        _note.patient = False
        raise Stopped(_note.received)
