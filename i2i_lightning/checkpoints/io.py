"""Our own checkpoint files: written beside and renamed, read without running code, used as a warm start."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2i_lightning.types import UserError


def write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Run ``write`` on a temporary file next to ``path`` and rename it onto ``path`` when it is whole.

    Args:
        path: Where the file is to be. Its folder is made.
        write: Writes the whole file to the path it is given.

    Raises:
        UserError: If the file cannot be written. What stood at ``path`` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        raise UserError(
            f"{path}: cannot be written ({error}); an earlier file of this name is untouched"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU without executing anything in it.

    Raises:
        UserError: If there is no such file, it is not whole, it would run code, or it is not a checkpoint of
            ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, it is not a plain file of tensors ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a whole checkpoint file ({_first_line(error)})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of i2i_lightning: it has no 'state_dict'")
    return checkpoint


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def warm_start(method: nn.Module, path: str | Path) -> None:
    """Load the weights of every network of ``method`` from a checkpoint, the discriminators' included.

    Optimisers, schedules and counts start afresh. An averaged network starts from the checkpoint's average
    or, where the checkpoint has none, from its current network.

    Args:
        method: The method to fill, freshly built.
        path: A checkpoint of this project.

    Raises:
        UserError: If the networks differ, naming the first weights that do.
    """
    saved: dict[str, Tensor] = read_checkpoint(path)["state_dict"]
    wanted = method.state_dict()
    for key in wanted:
        if key.startswith("averages.") and key not in saved:
            saved[key] = saved.get(key.removeprefix("averages."), wanted[key])
    saved = {key: value for key, value in saved.items() if key in wanted or not key.startswith("averages.")}
    check_networks(method, saved, f"warm_start={path}")
    method.load_state_dict(saved)


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
