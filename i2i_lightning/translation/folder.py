"""A folder of images through a translator: in batches, with threads around it, and resumable."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.data.cache import available_cores
from i2i_lightning.data.checks import FileProblem, first_names
from i2i_lightning.data.decode import Header
from i2i_lightning.translation.files import Job, Reader, write_image
from i2i_lightning.translation.translator import TILE_PX, Translator
from i2i_lightning.types import UserError

RECORD_NAME = ".i2i-translate.json"

MOST_PER_BATCH = 64
CPU_BATCH_PX = 512
"""Side of the square whose area a batch has on a CPU: of larger ones the maps fall out of its caches, and 16
images of 256 px take 1.4 times as long each as 4 do."""
CHUNK = 2048
"""Files whose headers are read before the first of them is translated; batches are formed among them."""
AHEAD = 2
"""Batches that are decoded before their turn, and that wait to be written."""

# What makes every further file fail as well.
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass
class Outcome:
    """What has become of the jobs so far.

    Args:
        translated: How many were translated in this run.
        failed: Those that could not be, with why.
        seconds: The time it took.
    """

    translated: int = 0
    failed: list[FileProblem] = field(default_factory=list)
    seconds: float = 0.0


class Stopped(UserError):
    """The outputs can be written no further."""


# The record of an output folder.


def weights_digest(network: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any weight, and not with the file they came in."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def split_done(
    jobs: Sequence[Job], folder: Path, settings: Mapping[str, Any], checkpoint: str, overwrite: bool
) -> tuple[list[Job], int]:
    """Return the jobs that are left to do and how many are done, and put the settings on record.

    A file is done if it was written after the record, which is renewed whenever the settings are. So a run
    that overwrites and is interrupted goes on where it was.

    Args:
        jobs: All of them.
        folder: The output folder; it is made.
        settings: All that the outputs depend on, as plain values; ``weights`` stands for the checkpoint.
        checkpoint: What to call the checkpoint in a later message.
        overwrite: Do all again.

    Raises:
        UserError: If the folder holds outputs of other settings or of unknown origin and ``overwrite`` is
            false, or cannot be written.
    """
    record = folder / RECORD_NAME
    earlier = _read_record(record)
    if not overwrite and earlier is not None and earlier["settings"] == settings:
        since = record.stat().st_mtime_ns
        left = [job for job in jobs if _written_ns(job.output) < since]
        return left, len(jobs) - len(left)
    present = [job for job in jobs if _written_ns(job.output) >= 0]
    if present and not overwrite:
        if earlier is None:
            names = first_names([job.output.relative_to(folder).as_posix() for job in present])
            files = "a file of unknown origin is" if len(present) == 1 else "files of unknown origin are"
            what = f"{files} there already ({names})"
        else:
            what = f"holds images made with {_difference(earlier, settings)}"
        raise UserError(f"output={folder}: {what}: overwrite=true, or another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = {"checkpoint": checkpoint, "settings": dict(settings)}
        write_beside(record, json.dumps(written, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"output={folder}: cannot be written ({error.strerror})") from None
    except UserError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise UserError(f"output={folder}: cannot be written ({reason})") from None
    return list(jobs), 0


def _difference(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return what was different in an earlier run: another checkpoint, or the first options that changed."""
    before = earlier["settings"]
    if before.get("weights") != settings["weights"]:
        return f"another checkpoint ({earlier.get('checkpoint')})"
    changed = [key for key in settings if before.get(key) != settings[key]]
    return ", ".join(f"{key}={_word(before.get(key))}, now {_word(settings[key])}" for key in changed[:3])


def _word(value: Any) -> str:
    """Return ``value`` as it is written on the command line."""
    return json.dumps(value).strip('"').replace(" ", "")


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("settings"), dict) else None


def _written_ns(path: Path) -> int:
    """Return when ``path`` was written, or -1 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


# The work.


def translate_files(
    translator: Translator,
    jobs: Sequence[Job],
    reader: Reader,
    outcome: Outcome,
    batch_size: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Translate files; decode and encode in threads meanwhile.

    A file that cannot be read is noted, and the rest is done. Memory holds a few batches, whatever the number
    of files.

    Args:
        translator: What translates.
        jobs: What to do.
        reader: Reads the files.
        outcome: Filled as the work goes on, so that it is known what was done when it is interrupted.
        batch_size: The most images per batch; None takes as many as a tile's area holds, fewer on a CPU.
        progress: Called with the name of each file that is finished or given up.

    Raises:
        Stopped: If the disk is full or the like.
    """
    began = time.perf_counter()
    threads = max(available_cores(), 2)
    readers, writers = ThreadPoolExecutor(threads), ThreadPoolExecutor(threads)
    writing: deque[tuple[Job, Future[None]]] = deque()

    def give_up(job: Job, problem: FileProblem) -> None:
        problem.name = job.name
        outcome.failed.append(problem)
        progress(job.name)

    def finish(waiting: int) -> None:
        """Note what is written, until no more than ``waiting`` files are not."""
        while len(writing) > waiting:
            job, future = writing.popleft()
            try:
                future.result()
            except (OSError, ValueError) as error:
                _raise_if_hopeless(error, job)
                give_up(job, FileProblem("could not be written", detail=_brief(error)))
            else:
                outcome.translated += 1
                progress(job.name)

    try:
        batches = _batches(translator, jobs, reader, batch_size, readers, give_up)
        for good, pictures in _decoded(translator, batches, reader, readers, give_up):
            outputs = translator.pictures(pictures, [job.key for job in good], tile_batch=batch_size or 1)
            for job, pixels in zip(good, outputs, strict=True):
                writing.append((job, writers.submit(write_image, job.output, pixels, translator.output)))
            finish(AHEAD * len(good))
        finish(0)
    except BaseException:
        # Interrupted, or the disk is full: files that are being written will be whole, and count.
        readers.shutdown(cancel_futures=True)
        writers.shutdown()
        outcome.translated += sum(future.exception() is None for _, future in writing)
        raise
    finally:
        readers.shutdown()
        writers.shutdown()
        outcome.seconds = time.perf_counter() - began


GiveUp = Callable[[Job, FileProblem], None]


def _batches(
    translator: Translator,
    jobs: Sequence[Job],
    reader: Reader,
    batch_size: int | None,
    readers: ThreadPoolExecutor,
    give_up: GiveUp,
) -> Iterator[list[Job]]:
    """Yield jobs whose pictures are padded to one size and are of one type, in batches."""

    def header(job: Job) -> Header | FileProblem:
        try:
            return reader.header(job.source)
        except FileProblem as problem:
            return problem

    for first in range(0, len(jobs), CHUNK):
        chunk = jobs[first : first + CHUNK]
        groups: dict[tuple[tuple[int, int], str], list[Job]] = {}
        for job, found in zip(chunk, readers.map(header, chunk), strict=True):
            if isinstance(found, FileProblem):
                give_up(job, found)
            else:
                size = translator.padded_size(found.height, found.width)
                groups.setdefault((size, found.dtype), []).append(job)
        for (size, _), group in groups.items():
            count = 1 if translator.is_tiled(*size) else batch_size or _fitting(translator, size)
            for start in range(0, len(group), count):
                yield group[start : start + count]


def _fitting(translator: Translator, size: tuple[int, int]) -> int:
    """Return how many images of ``size`` have the area of one tile together, or less on a CPU."""
    side = translator.tile_px or TILE_PX
    area = (min(side, CPU_BATCH_PX) if translator.device.type == "cpu" else side) ** 2
    return min(max(area // (size[0] * size[1]), 1), MOST_PER_BATCH)


def _decoded(
    translator: Translator,
    batches: Iterator[list[Job]],
    reader: Reader,
    readers: ThreadPoolExecutor,
    give_up: GiveUp,
) -> Iterator[tuple[list[Job], list[Tensor]]]:
    """Yield each batch with its pictures, while those of the next ones are decoded."""
    waiting: deque[list[tuple[Job, Future[Tensor]]]] = deque()
    for batch in chain(batches, repeat([], AHEAD)):
        if batch:
            waiting.append([(job, readers.submit(reader.read, job.source)) for job in batch])
        if not waiting or (batch and len(waiting) <= AHEAD):
            continue
        good: list[Job] = []
        pictures: list[Tensor] = []
        for job, future in waiting.popleft():
            try:
                picture = future.result()
                if pictures and translator.padded_size(*picture.shape[-2:]) != translator.padded_size(
                    *pictures[0].shape[-2:]
                ):
                    raise FileProblem("with pixels unlike their header", "was the file replaced just now?")
            except FileProblem as problem:
                give_up(job, problem)
            else:
                good.append(job)
                pictures.append(picture)
        if good:
            yield good, pictures


def _raise_if_hopeless(error: Exception, job: Job) -> None:
    """Raise Stopped if what kept ``job`` from being written keeps every other from it too."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in _HOPELESS:
        raise Stopped(f"{job.output}: {cause.strerror or cause}") from error


def _brief(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return (str(cause).splitlines() or [type(cause).__name__])[0][:80]
