"""Pictures of any sizes, decoded once: in one block of memory, or in one memory-mapped file per side.

What is stored is exact: unsigned integers as they were decoded and resized, never a second lossy coding.

*Memory.* One flat tensor per side of a pair, or for the one side of unpaired pictures. Forked workers share
its pages; workers that are spawned get it through shared memory, because PyTorch moves a tensor there when it
is sent to another process.

*Disk.* One folder per data set, split and options, named after a digest of all that its content depends on:
the sources' paths, sizes and modification times, and every option. A changed source is therefore another
folder. It is built beside its place and renamed, under a lock, so that of several processes one builds and
the others wait, and a build that is killed leaves nothing that looks finished. Mapped files are shared by all
processes of a machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from i2i_lightning.data.checks import FileProblem
from i2i_lightning.types import UserError

Array = npt.NDArray[Any]
Pictures = tuple[Array, ...]
"""What one index stands for: the two sides of a pair, or one picture where there are no pairs."""
T = TypeVar("T")

FORMAT_VERSION = 1
# Of the memory that is free now, leave half to the training itself.
MEMORY_SHARE = 0.5
_INDEX_NAME = "index.json"


@dataclass(frozen=True)
class Layout:
    """Where each picture of one side lies in its block.

    Args:
        dtype: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        shapes: The shape of each picture, channels first.
    """

    dtype: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """The byte at which each picture starts, and at the end the size of the block: int64 ``(N + 1,)``."""
        sizes = [int(np.prod(shape)) * np.dtype(self.dtype).itemsize for shape in self.shapes]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def num_bytes(self) -> int:
        """The size of the block in bytes."""
        return int(self.offsets[-1])


class Block:
    """Pictures one after the other in one run of bytes; ``block[i]`` is a view, not a copy.

    Args:
        layout: Where each lies.
        bytes_: uint8 ``(layout.num_bytes,)``; None maps ``path`` instead.
        path: A file of exactly that size.
    """

    def __init__(self, layout: Layout, bytes_: Tensor | None, path: Path | None = None) -> None:
        self.layout = layout
        self.path = path
        self._bytes = bytes_
        self._offsets = layout.offsets.tolist()
        self._dtype = np.dtype(layout.dtype)
        self._mapped = self._map()

    def __getitem__(self, index: int) -> Array:
        """Return picture ``index``, channels first, as a view."""
        # The tensor's memory moves when it is first sent to a spawned process: never keep an array of it.
        flat = self._mapped if self._bytes is None else self._bytes.numpy()
        part = flat[self._offsets[index] : self._offsets[index + 1]]
        return part.view(self._dtype).reshape(self.layout.shapes[index])

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file travels by name; numpy would send its content.
        return {**self.__dict__, "_mapped": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._mapped = self._map()

    def _map(self) -> Any:
        if self.path is None:
            return None
        # Copy-on-write: nobody writes, but torch complains of arrays that are read-only.
        return np.memmap(self.path, dtype=np.uint8, mode="c")


@dataclass
class CachedPictures:
    """Decoded pictures, a block for each side; ``cached[i]`` is one view per side, channels first."""

    blocks: tuple[Block, ...]
    in_memory: bool

    def __getitem__(self, index: int) -> Pictures:
        """Return the picture of every side at ``index``."""
        return tuple(block[index] for block in self.blocks)


def available_cores() -> int:
    """Return how many CPU cores this process may use, which on a shared machine is fewer than it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(function: Callable[[int], T], names: Sequence[str], title: str) -> list[T | FileProblem]:
    """Call ``function(i)`` for every name, in as many threads as there are cores.

    Decoding and resizing release the interpreter lock, so that threads are as fast as processes here and need
    no copies. The bar appears only where the work takes more than a second or so.

    Args:
        function: Called with each index; raises :class:`FileProblem` for what cannot be used.
        names: The name of each index, for the report.
        title: What the progress bar says.

    Returns:
        For every name, in order, the result or the problem; a problem without a name gets this one.
    """

    def attempt(index: int) -> T | FileProblem:
        try:
            return function(index)
        except FileProblem as problem:
            problem.name = problem.name or names[index]
            return problem

    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        outcomes = pool.map(attempt, range(len(names)))
        return list(
            tqdm(outcomes, total=len(names), desc=title, unit="item", delay=1, leave=False, disable=None)
        )


def fill(
    load: Callable[[int], Pictures],
    names: Sequence[str],
    runs: Sequence[Array],
    layouts: Sequence[Layout],
    title: str,
) -> list[FileProblem]:
    """Decode every picture into one run of bytes per side.

    Args:
        load: Returns the sides at an index, channels first, of the shapes and types in ``layouts``.
        names: The name of each index.
        runs: For each side, writable uint8 ``(layout.num_bytes,)``.
        layouts: For each side, where each picture goes.
        title: What the progress bar says.

    Returns:
        What could not be decoded, and why.
    """
    targets = [(flat, layout, layout.offsets) for flat, layout in zip(runs, layouts, strict=True)]

    def decode_into(index: int) -> None:
        for (flat, layout, offsets), picture in zip(targets, load(index), strict=True):
            if picture.shape != layout.shapes[index] or picture.dtype != layout.dtype:
                raise FileProblem("with pixels unlike their header", "was the file replaced just now?")
            part = flat[offsets[index] : offsets[index + 1]]
            part.view(picture.dtype).reshape(picture.shape)[...] = picture

    return [outcome for outcome in in_threads(decode_into, names, title) if outcome is not None]


def build_in_memory(
    load: Callable[[int], Pictures], names: Sequence[str], layouts: Sequence[Layout], title: str
) -> tuple[CachedPictures, list[FileProblem]]:
    """Decode every picture into memory; see :func:`fill`. The cache is only good without problems."""
    runs = [torch.empty(layout.num_bytes, dtype=torch.uint8) for layout in layouts]
    problems = fill(load, names, [run.numpy() for run in runs], layouts, title)
    blocks = tuple(Block(layout, run) for layout, run in zip(layouts, runs, strict=True))
    return CachedPictures(blocks, in_memory=True), problems


@dataclass(frozen=True)
class DiskCache:
    """One folder of mapped files, and the lock beside it.

    Args:
        root: The folder of all caches.
        slug: Readable start of the folder's name.
        digest: What the content depends on; see :func:`digest`.
    """

    root: Path
    slug: str
    digest: str

    @property
    def folder(self) -> Path:
        """The folder of the finished cache."""
        return self.root / f"{self.slug}-{self.digest}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the only right to build this cache, on all processes that see ``root``."""
        from filelock import FileLock

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / f".{self.folder.name}.lock")
            lock.acquire()
        except OSError as error:
            raise UserError(
                f"data.cache_dir={self.root}: not writable ({error.strerror}); choose another"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def open(self) -> CachedPictures | None:
        """Return the cache if it is there and whole."""
        try:
            index = json.loads((self.folder / _INDEX_NAME).read_text())
            blocks = []
            for side in sorted(index):
                shapes = tuple(tuple(shape) for shape in index[side]["shapes"])
                layout = Layout(index[side]["dtype"], shapes)
                path = self.folder / f"{side}.bin"
                if path.stat().st_size != layout.num_bytes:
                    return None
                blocks.append(Block(layout, None, path))
        except (OSError, ValueError, KeyError):
            return None
        return CachedPictures(tuple(blocks), in_memory=False)

    def build(
        self, load: Callable[[int], Pictures], names: Sequence[str], layouts: Sequence[Layout], title: str
    ) -> list[FileProblem]:
        """Decode every picture into this folder, or leave nothing behind; to be called under the lock.

        Raises:
            UserError: If the disk has no room.
        """
        needed = sum(layout.num_bytes for layout in layouts)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise UserError(
                f"data.cache_dir={self.root}: {gib(free)} free, the decoded pixels need {gib(needed)}; "
                "choose another data.cache_dir, or data.cache=none"
            )
        beside = self.root / f".{self.folder.name}.building"
        # Nobody else builds while we hold the lock: what is there was left by a process that was killed.
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            files = [
                np.memmap(beside / f"{side}.bin", dtype=np.uint8, mode="w+", shape=(layout.num_bytes,))
                for side, layout in zip("ab", layouts, strict=False)
            ]
            problems = fill(load, names, files, layouts, title)
            if problems:
                return problems
            for file in files:
                file.flush()
            del files
            index = {
                side: {"dtype": layout.dtype, "shapes": layout.shapes}
                for side, layout in zip("ab", layouts, strict=False)
            }
            (beside / _INDEX_NAME).write_text(json.dumps(index))
            shutil.rmtree(self.folder, ignore_errors=True)
            beside.rename(self.folder)
            return []
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    @property
    def stamp(self) -> Path:
        """A file that says that all files could be decoded once, for data sets that are not cached."""
        return self.root / f"{self.slug}-{self.digest}.checked"


def digest(options: dict[str, Any], sources: Sequence[Path]) -> str:
    """Return 16 hexadecimal digits that change when an option or a source file does.

    Args:
        options: Whatever the pixels depend on besides the files, as plain values.
        sources: The files, of which path, size and modification time count.
    """
    import PIL

    states = []
    for path in sources:
        try:
            state = path.stat()
        except OSError:
            states.append((os.path.abspath(path), -1, -1))
        else:
            states.append((os.path.abspath(path), state.st_size, state.st_mtime_ns))
    text = json.dumps([FORMAT_VERSION, PIL.__version__, options, states], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_cache_dir() -> Path:
    """Return the user's folder for things that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "i2i_lightning"


def available_memory_bytes() -> int | None:
    """Return the bytes of memory that are free for us now, or None where the system does not say.

    The smaller of what the machine has and what the control group of a container or a SLURM job leaves.
    """
    bounds = []
    with contextlib.suppress(OSError, KeyError):
        bounds.append(_fields("/proc/meminfo")["MemAvailable:"] * 1024)
    for limit, usage, details, reclaimable in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        group = Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError, ValueError):
            used = int((group / usage).read_text())
            # The usage counts cached files, which the kernel gives up when memory is asked for.
            used -= _fields(group / details).get(reclaimable, 0)
            bounds.append(max(int((group / limit).read_text()) - used, 0))
    return min(bounds) if bounds else None


def _fields(path: str | Path) -> dict[str, int]:
    """Return the first two words of each line of a kernel file, as name and number."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) >= 2 and words[1].isdigit()}


def gib(num_bytes: int) -> str:
    """Return a number of bytes for people: ``"1.4 GiB"``, or MiB for less than one."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
