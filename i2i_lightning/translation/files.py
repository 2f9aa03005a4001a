"""Image files in and out of a generator: which they are, what each becomes, how they are read and written."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.data.checks import FileProblem, check_choice, first_names, require_folder
from i2i_lightning.data.decode import EXTENSIONS, Header, SideFormat, decode, read_header
from i2i_lightning.data.transforms import HeightWidth, resize
from i2i_lightning.translation.borders import palette
from i2i_lightning.translation.formats import describe, picture_channels
from i2i_lightning.types import ImageFormat, UserError

Array = npt.NDArray[Any]
Side = Literal["left", "right"]

SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff", "npy": ".npy"}
"""The suffix of each format that can be written."""

_FORMATS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}
_FORMATS |= {".npy": "npy"}
_QUALITY = 95


@dataclass(frozen=True)
class Job:
    """One image to translate.

    Args:
        source: The file to read.
        output: The file to write.
        key: What its dropout and noise depend on beside the seed: its path below the input, without suffix.
        name: Its path below the input, for people.
    """

    source: Path
    output: Path
    key: str
    name: str


@dataclass
class Found:
    """The files that an input names.

    Args:
        root: The folder that names are relative to.
        images: Files that may be images, sorted by path.
        others: Names of files that are none by their suffix, sorted.
        is_file: Whether the input named one file.
    """

    root: Path
    images: list[Path]
    others: list[str] = field(default_factory=list)
    is_file: bool = False


def find_inputs(input: str, leave_out: Path | None = None) -> Found:
    """Find the files that ``input`` names: one file, all below a folder, or all that a pattern matches.

    Hidden files and folders are left out.

    Args:
        input: A file, a folder, or a pattern with ``*``, ``?``, ``[...]`` and ``**``. What exists under its
            very name is no pattern.
        leave_out: A folder that is not searched: the outputs'.

    Raises:
        UserError: If there is nothing.
    """
    path = Path(input).expanduser()
    if path.is_file():
        if not path.name.lower().endswith(EXTENSIONS):
            readable = ", ".join(EXTENSIONS)
            raise UserError(f"input={input}: not an image by its suffix (readable are {readable})")
        return Found(path.parent, [path], is_file=True)
    if path.is_dir():
        found = _sorted(Found(path, []), _walk(path, leave_out))
        if not found.images:
            there = f"; it holds {first_names(found.others)}" if found.others else ""
            raise UserError(f"input={input}: no images below this folder{there}")
        return found
    if not glob.has_magic(input):
        require_folder("input", path)  # raises, with what there is instead
    parts = path.parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    matches = (Path(match) for match in glob.iglob(str(path), recursive=True))
    skipped = None if leave_out is None else leave_out.resolve()
    files = [
        match
        for match in matches
        if match.is_file() and (skipped is None or skipped not in match.resolve().parents)
    ]
    found = _sorted(Found(root, []), files)
    if not found.images:
        what = f"matches no image, only {first_names(found.others)}" if found.others else "matches nothing"
        raise UserError(f"input={input}: this pattern {what}; ** stands for any folders below")
    return found


def _walk(folder: Path, leave_out: Path | None) -> list[Path]:
    """Return all visible files below ``folder``; links are followed, but no folder is entered twice."""
    files: list[Path] = []
    entered = set() if leave_out is None else {leave_out.resolve()}
    if folder.resolve() in entered:
        entered.clear()  # in and out are one folder, which is for the names to settle
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = Path(parent).resolve()
        if place in entered:
            folders.clear()
            continue
        entered.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return files


def _sorted(found: Found, files: Sequence[Path]) -> Found:
    for path in sorted(files):
        if path.name.lower().endswith(EXTENSIONS):
            found.images.append(path)
        else:
            found.others.append(path.relative_to(found.root).as_posix())
    return found


def plan_jobs(found: Found, output: str, format: str | None, translated: ImageFormat) -> list[Job]:
    """Say what each file becomes.

    Args:
        found: The inputs.
        output: A folder; or a file, for one input.
        format: A key of :data:`SUFFIXES`; None takes the suffix of an output that names a file, else PNG, or
            .npy for what PNG cannot hold.
        translated: What the outputs are.

    Raises:
        UserError: If two inputs would become one file, or an output lies on an input.
    """
    if format is not None:
        check_choice("format", format, tuple(SUFFIXES))
    path = Path(output).expanduser()
    suffix = path.suffix.lower()
    names_a_file = found.is_file and suffix in _FORMATS and not path.is_dir()
    if not names_a_file and suffix in _FORMATS and not path.is_dir():
        raise UserError(f"output={output}: one file for {len(found.images)} images; give a folder")
    if names_a_file and format is not None and format != _FORMATS[suffix]:
        raise UserError(f"output={output} with format={format}: leave one of them out")
    chosen = _FORMATS[suffix] if names_a_file else format or default_format(translated)
    check_format(chosen, translated)
    jobs = []
    for source in found.images:
        name = source.relative_to(found.root)
        target = path if names_a_file else path / name.with_name(name.stem + SUFFIXES[chosen])
        jobs.append(Job(source, target, name.with_suffix("").as_posix(), name.as_posix()))
    if path.exists() and not names_a_file and not path.is_dir():
        raise UserError(f"output={output}: this is a file; give a folder")
    _check_distinct(jobs, output)
    return jobs


def _check_distinct(jobs: Sequence[Job], output: str) -> None:
    sources = {os.path.abspath(job.source): job for job in jobs}
    taken: dict[str, Job] = {}
    for job in jobs:
        target = os.path.abspath(job.output)
        if target in sources:
            raise UserError(f"output={output}: {job.output.name} would replace an input; give another folder")
        if target in taken:
            raise UserError(
                f"{taken[target].name} and {job.name} would both become {job.output.name}: "
                "rename one, or translate them into two folders"
            )
        taken[target] = job


# Reading.


@dataclass(frozen=True)
class Reader:
    """Reads image files as a generator takes them.

    Args:
        format: What the generator's input is.
        convert: ``none``, or ``match`` to let 8-bit files of other colour modes be converted.
        side: Take this half of files that hold two images side by side.
        size: Resize to this (height, width) first, as training does; None keeps the files' sizes.
    """

    format: ImageFormat
    convert: str = "none"
    side: Side | None = None
    size: HeightWidth | None = None

    @property
    def _side_format(self) -> SideFormat:
        kind = "labels" if self.format.kind == "labels" else "image"
        if self.format.kind == "lightness":
            # Grey becomes RGB without loss, and lightness is taken of that.
            return SideFormat("in", kind, 3, "match")
        return SideFormat("in", kind, self.format.channels, self.convert)

    def header(self, path: Path) -> Header:
        """Return the size and type of the pixels that :meth:`read` will return, without decoding them.

        Raises:
            FileProblem: If the file is not an image, or not one that the generator takes.
        """
        header = self._worded(read_header, path)
        if self.side is not None:
            if header.width % 2:
                detail = f"{header.height}x{header.width}"
                raise FileProblem("of odd width, not two halves side by side", f"side={self.side}", detail)
            header = replace(header, width=header.width // 2)
        return header if self.size is None else Header(*self.size, header.dtype)

    def read(self, path: Path) -> Tensor:
        """Return the pixels of a file whose header is good: ``(C, H, W)``, or ids ``(H, W)``.

        Raises:
            FileProblem: If they cannot be decoded.
        """
        array: Array = self._worded(decode, path)
        if self.side is not None:
            half = array.shape[1] // 2
            array = array[:, :half] if self.side == "left" else array[:, half:]
        if self.size is not None:
            array = resize(array, self.size, labels=self.format.kind == "labels")
        array = np.ascontiguousarray(array)
        pixels = torch.from_numpy(array if array.flags.writeable else array.copy())
        return pixels if pixels.dim() == 2 else pixels.permute(2, 0, 1)

    def _worded(self, read: Callable[[Path, SideFormat], Any], path: Path) -> Any:
        """Call ``read``; where it names keys of training data, name what a translation has instead."""
        side = self._side_format
        try:
            return read(path, side)
        except FileProblem as problem:
            taken = f"the checkpoint takes {describe(self.format)}"
            for words, instead in (
                (f"not of {side.channels_key} channels", f"not of {side.channels} channels"),
                (f"where {side.channels_key}", f"where {taken}"),
            ):
                problem.what = problem.what.replace(words, instead)
            if "data.convert=match" in problem.mend:
                problem.mend = "convert=match converts them"
            elif "data." in problem.mend:
                problem.mend = taken
            raise
        except OSError as error:
            raise FileProblem("that cannot be opened", detail=error.strerror or str(error)) from None


# Writing.


def default_format(format: ImageFormat) -> str:
    """Return ``png``, or ``npy`` for pixels that PNG cannot hold."""
    return "png" if _png_holds(format) else "npy"


def _png_holds(format: ImageFormat) -> bool:
    channels = {"uint8": (1, 2, 3, 4), "uint16": (1, 3, 4), "float32": ()}[format.dtype]
    return format.kind == "labels" or picture_channels(format) in channels


def check_format(name: str, format: ImageFormat) -> None:
    """Raise a UserError if files of format ``name`` cannot hold all bits and channels of the outputs."""
    channels, labels = picture_channels(format), format.kind == "labels"
    eight_bit = format.dtype == "uint8" and not labels
    holds = {
        "png": _png_holds(format),
        "jpg": eight_bit and channels in (1, 3),
        "webp": eight_bit and channels in (3, 4),
        "tiff": True,
        "npy": True,
    }
    if not holds[name]:
        able = ", ".join(key for key, able in holds.items() if able)
        what = describe(format) if labels else f"{format.dtype} with {channels} channels"
        raise UserError(f"format={name} cannot hold the outputs of this checkpoint ({what}): choose {able}")


def write_image(path: Path, pixels: Tensor, format: ImageFormat) -> None:
    """Write pixels ``(C, H, W)``, or ids ``(H, W)``, as the path's suffix says, beside it and then renamed.

    Raises:
        UserError: If the file cannot be written.
    """
    array = pixels.numpy()
    if array.ndim == 3:
        array = np.ascontiguousarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))
    # In memory first: PIL does not say why it could not write to a file.
    data = encode(array, _FORMATS[path.suffix.lower()], format)
    write_beside(path, data)


def encode(array: Array, name: str, format: ImageFormat) -> bytes:
    """Return pixels ``(H, W)`` or ``(H, W, C)`` as a file of format ``name``."""
    if name == "png" and array.dtype == np.uint16:
        return png_16_bit(array)
    file = io.BytesIO()
    if name == "npy":
        np.save(file, array)
    elif name == "tiff":
        _encode_tiff(file, array)
    else:
        image = Image.fromarray(array)
        if name == "png" and format.kind == "labels":
            image.putpalette(palette(format).tobytes())
        if name == "png":
            image.save(file, format="PNG", compress_level=4)
        else:
            options = {"subsampling": 0} if name == "jpg" else {}
            image.save(file, format={"jpg": "JPEG", "webp": "WEBP"}[name], quality=_QUALITY, **options)
    return file.getvalue()


def _encode_tiff(file: io.BytesIO, array: Array) -> None:
    import tifffile  # here, because few need it

    colour = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype.kind == "u"
    tifffile.imwrite(
        file,
        array,
        photometric="rgb" if colour else "minisblack",
        planarconfig="contig" if array.ndim == 3 else None,
        extrasamples=["unassalpha"] if colour and array.shape[2] == 4 else None,
    )


def png_16_bit(array: Array) -> bytes:
    """Return uint16 ``(H, W)``, or ``(H, W, 3 or 4)``, as a PNG; PIL writes colour at eight bits only.

    Each row is stored as its difference from the row above (filter 2 of the standard), byte by byte, which
    lets smooth pictures shrink.
    """
    height, width = array.shape[:2]
    colour_type = {1: 0, 3: 2, 4: 6}[1 if array.ndim == 2 else array.shape[2]]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = zlib.compress(filtered.tobytes(), 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def remove_leavings(jobs: Sequence[Job]) -> None:
    """Delete half-written files that a killed run left beside the places of ``jobs``."""
    for folder in {job.output.parent for job in jobs}:
        with contextlib.suppress(OSError):
            for path in folder.glob(".*.tmp"):
                if _FORMATS.get(Path(path.name[1:].rsplit(".", 2)[0]).suffix.lower()):
                    path.unlink()
