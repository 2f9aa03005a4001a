"""A run is trained by one command at a time: the lock that it holds in its folder."""

from __future__ import annotations

import errno
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from i2i_lightning.types import UserError

try:
    import fcntl
except ImportError:  # Windows: there is no such lock, and no cluster either
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
PATIENCE_S = 2.0
"""How long to wait for a process that is just being killed."""


class RunLock:
    """The right to train in a run folder; the kernel takes it back when the process ends, however it ends.

    It is the kind of lock that a process does not share with what it starts: a data worker that outlives a
    killed run by some seconds does not keep it. Where a network file system has no locks, nobody is refused.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def acquire(self, patience_s: float = PATIENCE_S) -> None:
        """Take the lock.

        Args:
            patience_s: Seconds to wait for another process to end.

        Raises:
            UserError: If another process trains this run.
        """
        if fcntl is None or self._descriptor is not None:
            return
        deadline = time.monotonic() + patience_s
        descriptor = os.open(self.folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in TAKEN:  # a file system without locks
                    os.close(descriptor)
                    return
                if time.monotonic() > deadline:
                    holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
                    os.close(descriptor)
                    raise UserError(
                        f"{self.folder}: another process trains this run{f' ({holder})' if holder else ''}; "
                        "wait for it, or end it first"
                    ) from None
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back. The file stays: removing it could take it from under another process."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def is_running(folder: Path) -> bool:
    """Say whether a process on any machine trains the run in ``folder``."""
    if fcntl is None or not (folder / NAME).is_file():
        return False
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except OSError:  # not ours to read
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # those who ask do not see each other
    except OSError as error:
        return error.errno in TAKEN
    else:
        return False
    finally:
        os.close(descriptor)
