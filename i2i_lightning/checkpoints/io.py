"""Checkpoint files: written beside and renamed, read without running code, compared with a method."""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2i_lightning.checkpoints.seal import what_is_wrong
from i2i_lightning.types import UserError

ZIP_WRITER_SAYS = ("PytorchStreamWriter", "inline_container", "unexpected pos", "strerror", "iostream")
"""What torch's RuntimeErrors about a file hold."""


def write_beside(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write to a temporary file next to ``path`` and rename it onto ``path`` when it is whole.

    What was written is on the disk before it gets its name, and so is the name when this returns: a power
    loss leaves the earlier file or the new one.

    Args:
        path: Where the file is to be. Its folder is made.
        content: What is in it, text in UTF-8; or what writes the whole file to the path it is given.

    Raises:
        UserError: If the file cannot be written. What stood at ``path`` is left as it was.
    """
    if path.exists() and not path.is_file():
        # The renaming would put a file in the place of a device or a pipe: root can lose /dev/null that way.
        raise UserError(f"{path}: is there and not a plain file; give another name")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            beside.write_bytes(content)
        elif isinstance(content, str):
            beside.write_text(content, encoding="utf-8")
        else:
            content(beside)
        _flush_to_disk(beside)
        os.replace(beside, path)
        _flush_to_disk(path.parent)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer; others are not about this file.
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in ZIP_WRITER_SAYS):
            raise
        earlier = "; an earlier file of this name is untouched" if path.exists() else ""
        raise UserError(f"{path}: cannot be written ({_why_unwritten(error)}){earlier}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what ``write_beside`` began in ``folder``, and below, in processes that are dead by now.

    Call it where nobody else writes into ``folder``.
    """
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and path.is_file():
            with suppress(OSError):
                path.unlink()


def _flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where the system can say so."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # A full disk or a quota may be told only now; what cannot be synchronised at all says EINVAL.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _why_unwritten(error: OSError | RuntimeError) -> str:
    """Return why a file could not be written, without numbers of errors and lines of torch's source."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    if "unexpected pos" in text:
        return "torch could not write all of it; is the disk full?"
    named = re.search(r"strerror: (.+)", text)
    return named[1] if named else text


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU without executing anything in it.

    Raises:
        UserError: If there is no such file, it is damaged or not whole, it would run code, or it is not a
            checkpoint of ours.
    """
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of i2i_lightning: it has no 'state_dict'")
    return checkpoint


def read_tensors(path: str | Path) -> Any:
    """Read what ``torch.save`` wrote, if it is plain containers of tensors, onto the CPU.

    A file that was sealed is compared with its seal first.

    Raises:
        UserError: If there is no such file, it is damaged or not whole, or it holds anything that could run
            code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if not start.startswith((b"PK", b"\x80")):
            raise UserError(
                f"{path}: not a checkpoint file, neither its beginning nor its name is that of one"
            )
        if (wrong := what_is_wrong(path)) is not None:
            raise UserError(f"{path}: not a whole checkpoint file ({wrong})")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on kinds of pickles that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from error
    except Exception as error:
        # A damaged or forged file fails in as many ways as readers of zip archives and pickles have.
        # torch's own goes on for four sentences.
        reason = first_line(error).partition(". ")[0]
        raise UserError(f"{path}: not a whole checkpoint file ({reason})") from error


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Word why a pickle was not read: it names what could run, or has a form torch never writes."""
    refused = f"{path}: refused, it is not a plain file of tensors"
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        return f"{refused}, as torch.save writes of a state_dict; nothing of it was run"
    module = named[1].partition(".")[0]
    text = f"{refused}: it names {named[1]}; nothing of it was run"
    if module in sys.stdlib_module_names or hasattr(builtins, module):
        return text
    return (
        f"{text}\nif this is a network saved whole, save its weights where its code is at hand, "
        "torch.save(net.state_dict(), 'latest_net_G.pth'), and give that file"
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def check_networks(method: nn.Module, saved: Mapping[str, Tensor], where: str) -> None:
    """Compare saved weights with the networks that are to take them.

    Args:
        method: The method, freshly built.
        saved: The checkpoint's ``state_dict``.
        where: The key and file to name.

    Raises:
        UserError: If a weight is missing, superfluous or of another shape, naming the first that are.
    """
    wanted = method.state_dict()
    wrong = [f"{key} is missing" for key in wanted if key not in saved]
    wrong += [f"{key} is not part of this method" for key in saved if key not in wanted]
    wrong += [
        f"{key} has shape {tuple(value.shape)}, this method wants {tuple(wanted[key].shape)}"
        for key, value in saved.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 2} more)" if len(wrong) > 2 else ""
        raise UserError(
            f"{where}: its networks are not those of this run: {'; '.join(wrong[:2])}{more}\n"
            "choose the generator, discriminator and method options it was trained with"
        )
