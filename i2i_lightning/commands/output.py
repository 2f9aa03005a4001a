"""What a command writes that leaves no run: a folder, or one file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_output(output: str | None, overwrite: bool) -> None:
    """Raise ``UserError`` if ``output`` cannot be the folder to write into.

    Args:
        output: What was asked for; None for a new folder.
        overwrite: Whether it may hold files already.
    """
    from i2i_lightning.sampling.videos import FORMATS
    from i2i_lightning.types import UserError

    folder = Path(output or ".")
    if folder.is_file() or folder.suffix.lower().lstrip(".") in ("png", "jpg", *FORMATS):
        raise UserError(f"output={output}: names a file; give a folder")
    if output is not None and not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"output={output}: is there already and not empty; give another folder, or overwrite=true"
        )


def check_file(output: str, overwrite: bool, example: str) -> Path:
    """Return the file to write.

    Args:
        output: What was asked for.
        overwrite: Whether it may be there already.
        example: A name for it, for the message.

    Raises:
        UserError: If it cannot be written, or not without a loss.
    """
    from i2i_lightning.types import UserError

    path = Path(output).expanduser()
    if path.is_dir():
        raise UserError(f"output={output}: a folder; give a file, such as {path / example}")
    if path.exists() and not overwrite:
        raise UserError(f"output={output}: is there already; overwrite=true replaces it")
    return path


@contextmanager
def output_folder(output: str | None, command: str) -> Iterator[Path]:
    """Give the folder to write into: ``output``, else a new ``outputs/<command>/<time>``.

    One that was not there before, and in which nothing came to be, is removed in the end, with parents that
    it leaves empty.
    """
    from i2i_lightning.cli import record
    from i2i_lightning.config import unused_folder

    was_there = output is not None and Path(output).is_dir()
    if output is None:
        output = unused_folder(f"outputs/{command}/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    folder = Path(output)
    try:
        yield folder
    finally:
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
                record.remove_empty_parents(folder.resolve())
