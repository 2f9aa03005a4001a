"""The run's ``metrics.csv``: one row per logged batch, one file per run, resumes included."""

from __future__ import annotations

import csv
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

FIRST_COLUMNS = ("step", "epoch")


class CSVLog(Logger):
    """Write every logged number into ``<save_dir>/metrics.csv``.

    ``step`` is the number of the batch in the run, counted from 0, however many optimisers a batch steps.
    Everything logged under one step shares a row; a number that a step does not have leaves its cell empty.

    An existing file is continued: rows from the first step logged now onwards are dropped, since the run is
    about to write them again, and earlier rows stay. Rows are appended as the next step begins; the file is
    rewritten, beside and renamed, only when a new column appears.

    Args:
        save_dir: The run folder.
        file_name: Name of the file in it.
    """

    def __init__(self, save_dir: str | os.PathLike[str], file_name: str = "metrics.csv") -> None:
        super().__init__()
        self.path = Path(save_dir) / file_name
        self._columns: list[str] = []
        self._step: int | None = None
        self._row: dict[str, float] = {}
        self._row_is_written = True
        self._row_start = 0
        self._file: TextIO | None = None
        self._opened = False

    @property
    def name(self) -> str:
        """The file's name; part of no path."""
        return self.path.name

    @property
    def version(self) -> str:
        """A run folder has one log."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Add numbers to the row of ``step``; a new step writes the row before it."""
        step = step if step is not None else (0 if self._step is None else self._step + 1)
        if step != self._step:
            self._write_row()
            self._step, self._row = step, {}
            self._row_start = -1
        self._row |= {name: float(value) for name, value in metrics.items()}
        self._row_is_written = False

    @rank_zero_only
    def save(self) -> None:
        """Write what is pending; call it before a checkpoint, so that a resume finds every earlier row."""
        self._write_row()

    @rank_zero_only
    def sync(self) -> None:
        """Wait until what was written is on the disk; ``save``, which Lightning calls often, does not."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is pending and close the file."""
        self._write_row()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when a process is spawned."""
        return {**self.__dict__, "_file": None}

    def _write_row(self) -> None:
        if self._row_is_written or self._step is None:
            return
        if not self._opened:
            self._continue_file(self._step)
        row = {"step": self._step, **self._row}
        if self._row_start >= 0 and self.path.exists():
            # The step was saved before it was complete, or only half of its row: it is written again.
            os.truncate(self.path, self._row_start)
        if new := [name for name in row if name not in self._columns]:
            self._add_columns(new)
        if self._file is None:
            self._file = self.path.open("a", newline="", encoding="utf-8")
        self._row_start = os.fstat(self._file.fileno()).st_size
        cells = {name: _cell(value) for name, value in row.items()}
        try:
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(cells)
            self._file.flush()
        except OSError:
            # What the full disk did not take must not come out later, in the middle of other rows: the file
            # is opened anew, and cut where this row began.
            with suppress(OSError):
                self._file.close()
            self._file = None
            raise
        self._row_is_written = True

    def _continue_file(self, step: int) -> None:
        """Keep the rows of an earlier part of this run that come before ``step``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        columns, rows = read_rows(self.path) if self.path.exists() else ([], [])
        if "step" in columns:
            earlier = [row for row in rows if row["step"].isdecimal() and int(row["step"]) < step]
            self._replace(columns, earlier)
        self._opened = True

    def _add_columns(self, names: list[str]) -> None:
        rows = read_rows(self.path)[1] if self._columns and self.path.exists() else []
        self._replace(sorted([*self._columns, *names], key=_is_later_column), rows)

    def _replace(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with beside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
        self._columns = columns


def _is_later_column(name: str) -> int:
    return FIRST_COLUMNS.index(name) if name in FIRST_COLUMNS else len(FIRST_COLUMNS)


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a log, and every whole row; a cell that a step does not have is empty."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        # A process that was killed may have left half a line; such a row has empty (None) cells.
        rows = [row for row in reader if None not in row and None not in row.values()]
        return list(reader.fieldnames or []), rows


def _cell(value: float) -> str:
    """Write a whole number as such, and any other with seven digits: what single precision holds."""
    return (
        str(int(value))
        if math.isfinite(value) and abs(value) < 1e15 and value == int(value)
        else f"{value:.7g}"
    )
