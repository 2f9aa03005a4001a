"""Read what other projects have pickled, without ``pickle``: nothing that a file names is ever called."""

from __future__ import annotations

import mmap
import pickle
from pathlib import Path
from typing import Any

from i2i_lightning.checkpoints.style.machine import Budget, Machine
from i2i_lightning.checkpoints.style.stand_ins import NAMES
from i2i_lightning.checkpoints.style.torch_files import MAGIC, read_archive, read_legacy
from i2i_lightning.checkpoints.style.values import Buffer, Refused
from i2i_lightning.types import UserError

MAX_FILE_BYTES = 4 << 30
"""Of a file that is opened; the largest published ones have a third of it."""


def read_pickled(path: str | Path) -> Any:
    """Return what a ``.pkl`` or ``.pt`` file holds: containers, numbers, texts, bytes, and values of ours.

    Dicts of all classes are dicts, sets are lists, and arrays of numpy and torch are
    :class:`~i2i_lightning.checkpoints.style.values.Array`.

    Args:
        path: A pickle of protocol 2 to 5, or what ``torch.save`` wrote, in its present or its earlier form.

    Raises:
        UserError: If there is no such file, it is damaged, not whole or too large, or it names anything that
            is not in :data:`~i2i_lightning.checkpoints.style.stand_ins.NAMES`. One line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size == 0:
                raise Refused("it is empty")
            if size > MAX_FILE_BYTES:
                raise Refused(
                    f"it has {size / 2**30:.1f} GiB; files of up to {MAX_FILE_BYTES >> 30} GiB are read"
                )
            # Mapped, not read: of a large file only what is needed comes into memory.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _read(data)
    except Refused as error:
        raise UserError(f"{path}: refused: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read(data: Buffer) -> Any:
    """Tell the three kinds of file apart by their beginning."""
    budget = Budget(copied_bytes=len(data))
    start = data[:4].tobytes()
    if start == b"PK\x03\x04":
        return read_archive(data, NAMES, budget)
    if not start.startswith(pickle.PROTO):
        raise Refused("it is no pickle of protocol 2 or later, and no archive of torch")
    first = Machine(data, 0, NAMES, budget).load()
    if type(first) is int and first == MAGIC:
        loaded, _ = read_legacy(data, NAMES, budget)
        return loaded
    return first
