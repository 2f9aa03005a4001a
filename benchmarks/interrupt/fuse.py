"""Inside of a process that is to die: it follows itself through the moments and ends where a plan says."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

STARTING, RESUMING = "starting", "resuming"
SPOTS: dict[str, tuple[str, ...]] = {
    "cache": ("i2i_lightning.data.cache:DiskCache.build",),
    "step": ("i2i_lightning.methods.base:Method.training_step",),
    "saving": (
        "i2i_lightning.callbacks.checkpoints:Checkpoints._write",
        "i2i_lightning.callbacks.checkpoints:Checkpoints._copy",
        # The files are written in a few of many thousand lines: these have stretches of their own.
        "i2i_lightning.callbacks.checkpoints:Checkpoints._rotate",
        "i2i_lightning.callbacks.checkpoints:seal",
        "i2i_lightning.checkpoints.io:_flush_to_disk",
    ),
    "validating": ("lightning.pytorch.loops.evaluation_loop:_EvaluationLoop.run",),
    "writing": (
        "i2i_lightning.loggers.csv_log:CSVLog._write_row",
        "i2i_lightning.callbacks.previews:PreviewGrid.on_train_epoch_end",
        "i2i_lightning.callbacks.gallery:Gallery.write",
    ),
}
"""The functions that make up a moment, besides starting and resuming."""
MOMENTS = (STARTING, "cache", "step", "saving", "validating", "writing", RESUMING)
FIRST_BATCH = "lightning.pytorch.loops.fit_loop:_FitLoop.advance"
"""Where starting and resuming end."""
OF_ANY_RANK = ("cache",)
"""Moments that come to whichever process is quicker; the others are the first one's."""


@dataclass(frozen=True)
class Plan:
    """When one attempt is killed.

    Args:
        moment: One of ``MOMENTS``; empty lets the attempt live.
        spot: One of its functions; ``starting`` and ``resuming`` are their own.
        entry: The how manieth call of it in this attempt, from 1.
        by_line: Whether a line of code is hit, or a point of time.
        lines: Lines of the stretch after which the kill falls.
        seconds: Seconds of the stretch after which it falls.
        measure: ``time`` or ``lines``: note how long every stretch is, in seconds or in lines of code.
    """

    moment: str = ""
    spot: str = ""
    entry: int = 1
    by_line: bool = True
    lines: int = 0
    seconds: float = 0.0
    measure: str = ""


class Fuse:
    """Follows a process through the moments, and kills its process group where the plan says so.

    Args:
        plan: Where.

    Attributes:
        stretches: If the plan says ``measure``: spot, seconds and lines of every stretch, in order.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.stretches: list[tuple[str, float, int]] = []
        self.lines = 0
        self.is_armed = False
        self.assassin = _assassin() if plan.moment and not plan.by_line else None
        if plan.measure == "lines":
            sys.settrace(self._count)

    def wrap(self, spot: str) -> None:
        """Make a function tell when it begins and ends."""
        module_name, _, path = spot.partition(":")
        owner_name, _, name = path.rpartition(".")
        module = importlib.import_module(module_name)
        owner = getattr(module, owner_name) if owner_name else module
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            with self.stretch(spot):
                return inner(*args, **kwargs)

        setattr(owner, name, outer)

    @contextlib.contextmanager
    def stretch(self, spot: str) -> Iterator[None]:
        """Be in ``spot`` for as long as the context lasts."""
        end = self.enter(spot)
        try:
            yield
        finally:
            end()

    def enter(self, spot: str) -> Callable[[], None]:
        """Begin a stretch; return what ends it."""
        self.counts[spot] += 1
        fatal = spot == self.plan.spot and self.counts[spot] == self.plan.entry and not self.is_armed
        began, lines = time.perf_counter(), self.lines
        if fatal:
            self.is_armed = True
            if self.plan.by_line:
                self.lines = 0
                sys.settrace(self._count)
            else:
                assert self.assassin is not None
                os.write(self.assassin, struct.pack("d", self.plan.seconds))

        def end() -> None:
            if fatal:
                die()  # the stretch was shorter than it used to be: its end is as good a moment
            if self.plan.measure:
                self.stretches.append((spot, time.perf_counter() - began, self.lines - lines))

        return end

    def _count(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.is_armed and self.lines >= self.plan.lines:
                die()
        return self._count


def die() -> None:
    """Kill this process and all that belong to it, without another word."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _assassin() -> int:
    """Start a process that kills the group so many seconds after it is told to; return how to tell it."""
    hears, tells = os.pipe()
    if os.fork() == 0:
        os.close(tells)
        message = os.read(hears, 8)  # nothing, once all others of the group have ended
        if message:
            time.sleep(struct.unpack("d", message)[0])
            die()
        os._exit(0)
    os.close(hears)
    return tells


def attempt(words: Sequence[str], plan: Plan, folder: Path, is_first: bool) -> int:
    """Be one process of one attempt: run the command line under the plan, return its exit status.

    Args:
        words: The command line of ``i2i-train``.
        plan: When to die.
        folder: Where what was measured is written.
        is_first: Whether the run begins with this attempt.
    """
    import torch

    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    fuse = Fuse(plan if rank == 0 or plan.measure or plan.moment in OF_ANY_RANK else Plan())
    for spots in SPOTS.values():
        for spot in spots:
            fuse.wrap(spot)
    ends = [fuse.enter(STARTING if is_first else RESUMING)]

    module_name, _, path = FIRST_BATCH.partition(":")
    loop = getattr(importlib.import_module(module_name), path.partition(".")[0])
    advance = loop.advance

    def first_batch(self: Any) -> Any:
        while ends:
            ends.pop()()
        return advance(self)

    loop.advance = first_batch
    from i2i_lightning.commands.train import APP

    code = APP.main(list(words))
    sys.settrace(None)
    if plan.measure:
        (folder / f"note_{rank}.json").write_text(json.dumps(fuse.stretches))
    return code
