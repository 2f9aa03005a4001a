"""One attempt at a run: its processes are started as one group, and waited for until the last has ended."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.interrupt.fuse import Plan, attempt

LIMIT_S = 300.0
"""An attempt that takes longer hangs."""
GRACE_S = 30.0
"""So do processes that outlive one that failed by more than this."""
HUNG = 124
PACKAGES = (
    "callbacks",
    "checkpoints",
    "cli",
    "data",
    "loggers",
    "losses",
    "methods",
    "networks",
    "strategies",
)
MODULES = ("i2i_lightning.commands.train", "i2i_lightning.metrics.suite", "hydra.utils", "lightning.pytorch")


@dataclass(frozen=True)
class Ending:
    """How an attempt ended.

    Args:
        code: The worst exit status of its processes; -9 if they were killed, 124 if one had to be.
        seconds: How long it lived.
        log: What it printed.
    """

    code: int
    seconds: float
    log: str

    @property
    def was_killed(self) -> bool:
        """Whether it was killed as planned."""
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Order:
    """What the processes of an attempt are told.

    Args:
        words: The command line of ``i2i-train``.
        plan: When they are killed.
        chain: Folder for what they print and measure: ``log_<rank>.txt``, ``note_<rank>.json``.
        is_first: Whether the run begins with this attempt.
    """

    words: tuple[str, ...]
    plan: Plan
    chain: Path
    is_first: bool

    def obey(self) -> int:
        """Be one of these processes; return the exit status."""
        return attempt(self.words, self.plan, self.chain, self.is_first)

    def to_json(self) -> str:
        """Return it as text for a new interpreter."""
        return json.dumps([self.words, asdict(self.plan), str(self.chain), self.is_first])

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Return what ``to_json`` wrote."""
        words, plan, chain, is_first = json.loads(text)
        return cls(tuple(words), Plan(**plan), Path(chain), is_first)


def run_attempt(order: Order, ranks: int = 1, fresh: bool = False) -> Ending:
    """Start the processes of an attempt as one group, and wait until the last of them has ended.

    Args:
        order: What they are told.
        ranks: How many train together.
        fresh: Start new interpreters instead of forking this one.
    """
    began = time.perf_counter()
    environment = {}
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    group = 0
    processes = []
    for rank in range(ranks):
        more = environment | ({"LOCAL_RANK": str(rank)} if ranks > 1 else {})
        start = _spawn if fresh else _fork
        pid = start(order, more, group, order.chain / f"log_{rank}.txt")
        with contextlib.suppress(OSError):  # the child does it as well: whoever comes first
            os.setpgid(pid, group or pid)
        group = group or pid
        processes.append(pid)
    codes, hung = _wait(processes, group)
    logs = [(order.chain / f"log_{rank}.txt").read_text(errors="replace") for rank in range(ranks)]
    # A process of the group that is killed takes no other way out; the others' statuses follow from it.
    code = HUNG if hung else -signal.SIGKILL if -signal.SIGKILL in codes else max(codes, key=abs)
    return Ending(code, time.perf_counter() - began, "".join(logs))


def _fork(order: Order, environment: Mapping[str, str], group: int, log: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, group)
        os.environ.update(environment)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0, closefd=False), write_through=True)
        code = order.obey()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _spawn(order: Order, environment: Mapping[str, str], group: int, log: Path) -> int:
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.interrupt", "--attempt", order.to_json()],
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            preexec_fn=lambda: os.setpgid(0, group),
        )
    process.returncode = 0  # waited for by its number, with all others
    return process.pid


def _wait(processes: Sequence[int], group: int) -> tuple[list[int], bool]:
    """Return the exit statuses of all processes, and whether some did not end by themselves."""
    codes: list[int] = []
    left = set(processes)
    deadline = time.perf_counter() + LIMIT_S
    hung = False
    while left:
        for pid in list(left):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                left.remove(pid)
                codes.append(os.waitstatus_to_exitcode(status))
                if codes[-1] != 0:
                    deadline = min(deadline, time.perf_counter() + GRACE_S)
        if left and not hung and time.perf_counter() > deadline:
            hung = True
            _kill(group)
        time.sleep(0.01)
    # Loader workers of a process that was killed are of its group; one that failed may have left some.
    _kill(group)
    return codes, hung


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def import_all() -> None:
    """Import what a run will, so that processes forked from this one have it."""
    import i2i_lightning

    for package in PACKAGES:
        found = importlib.import_module(f"{i2i_lightning.__name__}.{package}")
        for module in pkgutil.walk_packages(found.__path__, f"{found.__name__}."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # of an extra that is not installed
                    importlib.import_module(module.name)
    for name in MODULES:
        importlib.import_module(name)
