"""A checkpoint file carries a digest of its own content: torch does not notice a flipped byte.

What ``torch.save`` writes is a zip archive, and an archive may end in a comment. The seal is the comment
``sha256:<hex>`` of the file as it was without one; every reader of zip archives, torch's included, passes
over it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

PREFIX = b"sha256:"
SEAL_BYTES = len(PREFIX) + 64
END_BYTES = 22
"""Length of the record that ends an archive; its last two bytes are the length of the comment behind it."""
_END = b"PK\x05\x06"
_COMMENT_LENGTH = struct.pack("<H", SEAL_BYTES)
_CHUNK_BYTES = 1 << 20


def seal(path: Path) -> None:
    """Add the seal to a zip archive that has no comment, and wait until it is on the disk.

    Raises:
        ValueError: If the file is no such archive.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = _read_at(file, size - END_BYTES, END_BYTES)
        if not end.startswith(_END) or end[-2:] != b"\0\0":
            raise ValueError(f"{path}: not a zip archive without a comment")
        digest = _digest(file, size)
        file.seek(size - 2)
        file.write(_COMMENT_LENGTH + PREFIX + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def what_is_wrong(path: Path) -> str | None:
    """Return why a checkpoint file cannot be trusted, in a few words; None if nothing is wrong with it.

    The whole file is read. Of a file without a seal, from before there were any or from elsewhere, only the
    end is looked at.

    Raises:
        OSError: If the file cannot be read at all.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return "it is empty"
        whole = size - SEAL_BYTES
        end = _read_at(file, whole - END_BYTES, END_BYTES) if whole >= END_BYTES else b""
        comment = _read_at(file, whole, SEAL_BYTES)
        if end.startswith(_END) and end.endswith(_COMMENT_LENGTH) and comment.startswith(PREFIX):
            same = _digest(file, whole).encode() == comment[len(PREFIX) :]
            return None if same else "its content is not what was written: checksum mismatch"
        is_archive = _read_at(file, 0, 2) == b"PK"
        end = _read_at(file, size - END_BYTES, END_BYTES)
    # What torch writes has no comment of its own.
    if is_archive and not (end.startswith(_END) and end.endswith(b"\0\0")):
        return "its end is missing or damaged"
    return None


def _digest(file: BinaryIO, size: int) -> str:
    """Return the digest of the first ``size`` bytes, the length of a comment behind them taken as 0."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    file.seek(0)
    left = size - 2
    while left > 0:
        count = file.readinto(buffer[: min(left, _CHUNK_BYTES)])  # type: ignore[attr-defined]
        if not count:
            break
        digest.update(buffer[:count])
        left -= count
    digest.update(b"\0\0")
    return digest.hexdigest()


def _read_at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(max(position, 0))
    return file.read(count)
