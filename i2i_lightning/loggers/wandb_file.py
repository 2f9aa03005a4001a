"""How far an offline part of a W&B run has come, read from its ``.wandb`` file.

The file is a log of length-delimited records in blocks of 32 KiB (the format of LevelDB's log), each record
a protocol buffer of W&B's own. There is no public reader for it in Python, and what a killed process left
behind may end in the middle of a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768
HEADER = struct.Struct("<IHB")
"""Of each piece of a record: checksum, length, and which piece it is."""
FILE_HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def last_step(path: Path) -> int:
    """Return the highest step of a history row in ``path``; -1 if there is none.

    Reads from the end: a day's file is large, and its last row is in one of its last blocks.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    blocks = -(-len(data) // BLOCK)
    count = 1
    while True:
        first = max(0, blocks - count)
        steps = []
        for payload in records(data, first):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            try:
                record.ParseFromString(payload)
            except DecodeError:
                continue
            if record.WhichOneof("record_type") == "history":
                steps.append(int(record.history.step.num))
        if steps or first == 0:
            return max(steps, default=-1)
        count *= 8


def records(data: bytes, first_block: int = 0) -> Iterator[bytes]:
    """Yield the payload of every whole record that begins in ``first_block`` or later."""
    position = first_block * BLOCK or FILE_HEADER
    pieces: list[bytes] | None = None
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:
            position += left
            continue
        _, length, piece = HEADER.unpack_from(data, position)
        start = position + HEADER.size
        if piece not in (FULL, FIRST, MIDDLE, LAST) or start + length > len(data):
            # Unwritten or damaged: what follows can be read again from the next block on.
            position, pieces = position + left, None
            continue
        payload, position = data[start : start + length], start + length
        if piece == FULL:
            yield payload
        elif piece == FIRST:
            pieces = [payload]
        elif pieces is not None:
            pieces.append(payload)
            if piece == LAST:
                yield b"".join(pieces)
                pieces = None
