"""The weights that identities are compared by, from the file that users of pSp and e4e have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from i2i_lightning.checkpoints.io import read_tensors
from i2i_lightning.checkpoints.reference import cleaned
from i2i_lightning.losses.identity import CROP, Box, Identity
from i2i_lightning.networks.arcface import FACE_PX, IRSE50
from i2i_lightning.types import UserError
from i2i_lightning.weights.download import sha256_of


def load_identity(path: str | Path | None, crop: Box | None = CROP) -> Identity | None:
    """Return the distance of identities by the recogniser in a file; None without a file.

    Args:
        path: ``model_ir_se50.pth`` as pSp and e4e use it, or the same weights as ``.safetensors``; nothing in
            it is run. They are the user's to bring.
        crop: As for :class:`Identity`.

    Raises:
        UserError: If the file is missing, damaged or something else, or the crop is wrong.
    """
    if path is None:
        return None
    path = Path(path).expanduser()
    state = _read(path)
    with torch.device("meta"):  # nothing is drawn from the random numbers of the run
        network = IRSE50()
    _check(state, network.state_dict(), path)
    network.load_state_dict(state, assign=True)
    # Half precision is for keeping weights, not for comparing identities.
    dtype = torch.promote_types(next(network.parameters()).dtype, torch.float32)
    source = f"ArcFace IR-SE50, {path.name}, sha256 {sha256_of(path)}"
    return Identity(network.to(dtype), FACE_PX, source, crop)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the model_ir_se50.pth that pSp and e4e use")
    if path.suffix.lower() != ".safetensors":
        held = read_tensors(path)
        if not isinstance(held, Mapping):
            raise UserError(f"{path}: it holds a {type(held).__name__}, not the weights of a network")
        return cleaned(held, str(path))
    try:
        return cleaned(load_file(path), str(path))
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a whole safetensors file ({str(error).splitlines()[0]})") from None


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raise ``UserError`` where ``state`` is not that of the network, naming the first difference."""
    wrong = [f"{key} is missing" for key in wanted if key not in state]
    wrong += [f"{key} is no part of it" for key in state if key not in wanted]
    for key, value in state.items():
        if key not in wanted:
            continue
        if value.shape != wanted[key].shape:
            wrong.append(f"{key} has shape {tuple(value.shape)} and not {tuple(wanted[key].shape)}")
        elif not value.is_floating_point() and wanted[key].is_floating_point():
            wrong.append(f"{key} is {value.dtype}")
        elif not bool(torch.isfinite(value).all()):
            wrong.append(f"{key} holds NaN or infinity")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{path}: not the IR-SE50 of pSp's and e4e's model_ir_se50.pth: {wrong[0]}{more}")
