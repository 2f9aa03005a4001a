"""The folder that a command writes into where it leaves no run."""

from __future__ import annotations

import time
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


def output_folder(output: str | None, command: str) -> Path:
    """Return the folder to write into: ``output``, else a new ``outputs/<command>/<time>``."""
    from i2i_lightning.config import unused_folder

    if output is not None:
        return Path(output)
    return Path(unused_folder(f"outputs/{command}/{time.strftime('%Y-%m-%d_%H-%M-%S')}"))
