"""Jobs of a sweep that failed: noted in their folders, told at the end, while the others went on."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from i2i_lightning.cli import record
from i2i_lightning.cli.record import Run
from i2i_lightning.sweeps.runs import FAILURE


def note(folder: Path, overrides: Sequence[str], text: str) -> None:
    """Write into a job's folder why it failed.

    Args:
        folder: Its run folder, which is made if it is not there.
        overrides: Its overrides: it may have failed before it could write them down itself.
        text: Why.
    """
    from i2i_lightning.checkpoints.io import write_beside

    content = json.dumps({"error": text, "overrides": list(overrides)}, indent=1, ensure_ascii=False) + "\n"

    folder.mkdir(parents=True, exist_ok=True)
    write_beside(folder / FAILURE, content)


def forget(folder: Path) -> None:
    """Take the note back: the job begins again, or goes on."""
    (folder / FAILURE).unlink(missing_ok=True)


class Failures:
    """The failed jobs of one command.

    Args:
        program: The command's name.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.num_jobs = 0
        self._failed: list[tuple[Path, str]] = []
        self._errors: list[Exception] = []

    def add(self, run: Run, error: Exception, text: str | None) -> None:
        """Note that a job failed, and say so at once.

        Args:
            run: The job.
            error: What it raised.
            text: The words for it; None if it looks like a bug, which is shown with its traceback.
        """
        if text is None:
            traceback.print_exception(error)
            lines = str(error).strip().splitlines()
            text = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
        note(run.folder, run.overrides, text)
        print(f"{self.program}: job {run.folder.name} failed: {text}", file=sys.stderr, flush=True)
        self._failed.append((run.folder, text))
        self._errors.append(error)

    def include(self, error: BaseException) -> bool:
        """Say whether ``error`` is one of those that jobs raised."""
        return any(error is other for other in self._errors)

    def summary(self) -> str:
        """Return which jobs failed, a line for each with its folder."""
        others = ", the others are done" if len(self._failed) < self.num_jobs else ""
        first = f"{len(self._failed)} of {self.num_jobs} jobs failed{others}:"
        lines = [f"  {record.shown(folder)}: {text.partition(chr(10))[0]}" for folder, text in self._failed]
        return "\n".join([first, *lines])
