"""What ``torch.save`` writes, of today and of before 2020, read without torch."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from i2i_lightning.checkpoints.style.machine import Budget, Machine, Name, Names
from i2i_lightning.checkpoints.style.values import Buffer, Refused, Storage

MAGIC = 0x1950A86A20F9469CFC6C
"""The number that begins a file of before 2020, and the storages inside of a pickle to this day."""
PROTOCOL = 1001
MAX_STORAGE = 1 << 32
"""Elements."""
MAX_DIRECTORY_BYTES = 16 << 20
"""Of the table of contents of a zip archive, some 200 000 files."""
_END_BYTES = 22
_LARGEST_COMMENT = 65535
_LOCAL_BYTES = 30


@dataclass
class Storages:
    """The storages of one file of torch, by their keys.

    Args:
        fetch: Returns the bytes of a key; None where they come behind the pickle.
    """

    fetch: Callable[[str], Buffer] | None = None
    known: dict[str, Storage] = field(default_factory=dict)

    def __call__(self, identity: object) -> Storage:
        """Return the storage of ``("storage", type, key, location, count, ...)``."""
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise Refused("it refers to something outside of itself (a persistent id)")
        _, cls, key, _, count, *rest = identity
        if not isinstance(cls, Name) or cls.kind is None or not isinstance(key, str):
            raise Refused("it has numbers of an unknown kind")
        if type(count) is not int or not 0 <= count <= MAX_STORAGE or any(part is not None for part in rest):
            raise Refused("it has a storage of an impossible size")
        if key not in self.known:
            storage = Storage(cls.kind, count)
            if self.fetch is not None:
                self.fill(storage, self.fetch(key))
            self.known[key] = storage
        known = self.known[key]
        if (known.kind, known.count) != (cls.kind, count):
            raise Refused("it describes a storage in two ways")
        return known

    @staticmethod
    def fill(storage: Storage, content: Buffer) -> None:
        """Give a storage its bytes."""
        if len(content) < storage.nbytes:
            raise Refused("it ends early: it lacks numbers of a tensor")
        storage.data = content[: storage.nbytes]


def read_legacy(data: Buffer, names: Names, budget: Budget) -> tuple[Any, int]:
    """Return what ``torch.save`` wrote before it wrote archives, and where it ends.

    It is five pickles (a magic number, a version, the machine's sizes, the object, the keys of its storages)
    and the storages, each behind its length.
    """
    position = 0

    def following(persistent: Callable[[Any], Any] | None = None) -> Any:
        nonlocal position
        machine = Machine(data, position, names if persistent else {}, budget, persistent)
        loaded = machine.load()
        position = machine.position
        return loaded

    storages = Storages()
    magic, version, system = following(), following(), following()
    if type(magic) is not int or magic != MAGIC or type(version) is not int or version != PROTOCOL:
        raise Refused("it is not what torch.save writes")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Refused("it was written on a machine with another order of bytes")
    loaded, keys = following(storages), following()
    if not isinstance(keys, list) or len(keys) > len(storages.known):
        raise Refused("it is not what torch.save writes")
    for key in keys:
        storage = storages.known.get(key) if isinstance(key, str) else None
        if storage is None or storage.data is not None:
            raise Refused("it has numbers that belong to no tensor")
        start, end = position + 8, position + 8 + storage.nbytes
        if data[position:start] != storage.count.to_bytes(8, "little"):
            raise Refused("it ends early: it lacks numbers of a tensor")
        storages.fill(storage, data[start:end])
        position = end
    if any(storage.data is None for storage in storages.known.values()):
        raise Refused("it ends early: it lacks numbers of a tensor")
    return loaded, position


def read_archive(data: Buffer, names: Names, budget: Budget) -> Any:
    """Return what ``torch.save`` writes: a zip archive of a pickle and a file per storage, uncompressed."""
    entries = _entries(data)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("it is a zip archive, but not of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{folder}code/") for name in entries):
        raise Refused("it is TorchScript, a program that cannot be loaded back as a network")

    def content(name: str) -> Buffer:
        if name not in entries:
            raise Refused("it is not whole: it lacks numbers of a tensor")
        entry = entries[name]
        start = entry.header_offset
        header = data[start : start + _LOCAL_BYTES]
        if len(header) < _LOCAL_BYTES or header[:4].tobytes() != b"PK\x03\x04":
            raise Refused("its archive is damaged")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused("its archive is compressed, as torch.save does not write it")
        start += (
            _LOCAL_BYTES + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        found = data[start : start + entry.file_size]
        if len(found) != entry.file_size or zlib.crc32(found) != entry.CRC:
            raise Refused("its archive is damaged: a checksum does not agree")
        return found

    if f"{folder}byteorder" in entries and content(f"{folder}byteorder").tobytes() != b"little":
        raise Refused("it was written on a machine with another order of bytes")
    storages = Storages(lambda key: content(f"{folder}data/{key}"))
    return Machine(content(pickles[0]), 0, names, budget, storages).load()


def _entries(data: Buffer) -> dict[str, zipfile.ZipInfo]:
    """Return the table of contents of a zip archive, whose size is looked at before it is read."""
    tail = data[max(0, len(data) - _END_BYTES - _LARGEST_COMMENT) :].tobytes()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _END_BYTES:
        raise Refused("its archive is not whole: it has no table of contents")
    if int.from_bytes(tail[end + 12 : end + 16], "little") > MAX_DIRECTORY_BYTES:
        raise Refused("its archive has too large a table of contents")
    try:
        with zipfile.ZipFile(_Reader(data)) as archive:
            return {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError, EOFError):
        raise Refused("its archive is damaged") from None


class _Reader:
    """A file on a buffer that is not copied, as much of one as ``zipfile`` needs.

    Args:
        data: The bytes.
    """

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.position = 0

    def seekable(self) -> bool:
        """Return that it can be moved in."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position counted from the beginning (0), from here (1) or from the end (2)."""
        position = offset + (0, self.position, len(self.data))[whence]
        if position < 0:
            raise OSError("before the beginning")
        self.position = position
        return position

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes."""
        end = len(self.data) if count < 0 else self.position + count
        taken = self.data[self.position : end].tobytes()
        self.position += len(taken)
        return taken

    def close(self) -> None:
        """Do nothing: the buffer is not this file's."""
