"""Directions of W in files: ours, and those that other projects publish, read without running code.

Ours are safetensors: ``vector`` (1 or L, D), ``w_avg`` (D,) where it is known, and the rest as JSON in the
header's ``i2i_lightning.direction``. Published ones are tensors alone: a ``.pt`` with (1, D) or (L, D), as of
e4e; a ``.npy`` boundary, as of InterFaceGAN; principal components with mean and deviations, as of GANSpace
(``.npz``) and of what took them over (``.pt``). Their length is kept as the scale, so that published
strengths mean here what they mean there.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypedDict

from i2i_lightning.checkpoints.io import read_tensors, write_beside
from i2i_lightning.types import UserError

HEADER = "i2i_lightning.direction"
COMPONENTS = (("comp", "mean", "std"), ("lat_comp", "lat_mean", "lat_stdev"))
"""Names of components, their mean and their deviations: in a ``.pt``, and in GANSpace's own ``.npz``."""


class DirectionFields(TypedDict):
    """A direction as plain fields, named as those of :class:`~i2i_lightning.editing.directions.Direction`."""

    name: str
    vector: Tensor
    rows: tuple[int, ...] | None
    scale: float
    fingerprint: str | None
    w_avg: Tensor | None
    source: str


def save_direction(path: str | Path, direction: Mapping[str, Any]) -> None:
    """Write ``direction`` to ``path``, whole or not at all.

    Args:
        path: Where to.
        direction: The fields of :class:`DirectionFields`, as ``vars`` of a direction gives them.

    Raises:
        UserError: If it holds a number that is not finite, or the file cannot be written.
    """
    tensors = {"vector": direction["vector"]}
    if direction["w_avg"] is not None:
        tensors["w_avg"] = direction["w_avg"]
    tensors = {name: value.detach().cpu().float().contiguous().clone() for name, value in tensors.items()}
    _check_finite(tensors, Path(path))
    words = ("name", "rows", "scale", "fingerprint", "source")
    content = save(tensors, {HEADER: json.dumps({word: direction[word] for word in words})})
    write_beside(Path(path), content)


def load_directions(path: str | Path) -> list[DirectionFields]:
    """Return the directions in a file: one, or all principal components.

    Args:
        path: ``.safetensors`` of :func:`save_direction`, or ``.pt``, ``.npy`` or ``.npz`` of another project.

    Raises:
        UserError: If the file is missing, damaged or something else, would run code, or holds a number that
            is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such direction file")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return [_ours(path)]
    if suffix in (".pt", ".pth"):
        content = read_tensors(path)
    elif suffix in (".npy", ".npz"):
        content = _arrays(path)
    else:
        raise UserError(f"{path}: no direction file by its suffix; give .safetensors, .pt, .npy or .npz")
    return _published(content, path)


def _ours(path: Path) -> DirectionFields:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({str(error).splitlines()[0]})") from None
    try:
        words = json.loads(header[HEADER])
        rows, fingerprint = words["rows"], words["fingerprint"]
        found = DirectionFields(
            name=str(words["name"]),
            vector=tensors["vector"],
            rows=None if rows is None else tuple(int(row) for row in rows),
            scale=float(words["scale"]),
            fingerprint=None if fingerprint is None else str(fingerprint),
            w_avg=tensors.get("w_avg"),
            source=str(words["source"]),
        )
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"{path}: not a direction file of i2i_lightning: its header has no {HEADER}; "
            "i2i-edit operation=direction writes such files"
        ) from None
    _check_finite(tensors, path)
    if found["vector"].dim() != 2:
        raise UserError(f"{path}: vector has shape {tuple(found['vector'].shape)}; (1 or rows, w_dim) is one")
    return found


def _arrays(path: Path) -> Any:
    """Return the array of a ``.npy``, or those of a ``.npz``, as tensors."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return torch.from_numpy(np.array(loaded))
        with loaded:
            # Not the others: GANSpace keeps what it was called with as a pickle beside them.
            names = [name for triple in COMPONENTS for name in triple if name in loaded.files]
            return {name: torch.from_numpy(np.array(loaded[name])) for name in names}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        text = str(error)
        if "allow_pickle" in text or "pickle" in text:
            raise UserError(
                f"{path}: refused, it is a pickle, which could run code; numpy.save one plain array"
            ) from None
        raise UserError(f"{path}: not a whole file of arrays ({text.splitlines()[0]})") from None


def _published(content: Any, path: Path) -> list[DirectionFields]:
    if isinstance(content, Tensor):
        vector = _as_rows(content, path)
        _check_finite({"its direction": vector}, path)
        return [_field(path.stem, vector, None, path, "")]
    if isinstance(content, Mapping):
        for components, mean, deviations in COMPONENTS:
            if components in content:
                return _components(content, (components, mean, deviations), path)
    kind = f"holds {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else "no tensor"
    raise UserError(
        f"{path}: no direction ({kind}); published ones are a tensor (1, w_dim) or (rows, w_dim), or "
        "components with comp, mean and std"
    )


def _components(content: Mapping[str, Any], names: tuple[str, str, str], path: Path) -> list[DirectionFields]:
    missing = [name for name in names if not isinstance(content.get(name), Tensor)]
    if missing:
        raise UserError(f"{path}: principal components without {missing[0]}, a tensor")
    vectors, mean, deviations = (content[name].float() for name in names)
    _check_finite(dict(zip(names, (vectors, mean, deviations), strict=True)), path)
    vectors, mean, deviations = vectors.flatten(1), mean.flatten(), deviations.flatten()
    if not len(vectors) == len(deviations) > 0 or vectors.shape[1] != len(mean):
        raise UserError(
            f"{path}: {len(vectors)} components of length {vectors.shape[1]} with {len(deviations)} "
            f"deviations and a mean of length {len(mean)} do not belong together"
        )
    found = []
    for index, (vector, deviation) in enumerate(zip(vectors, deviations, strict=True)):
        one = _field(f"{path.stem}_{index}", vector[None], mean, path, f", component {index}")
        one["scale"] *= float(deviation)
        found.append(one)
    return found


def _as_rows(tensor: Tensor, path: Path) -> Tensor:
    """Return ``(1 or L, D)`` of what is published as (D,), (1, D), (L, D), (1, 1, D) or (1, L, D)."""
    shape = tuple(tensor.shape)
    vector = tensor.float()
    if vector.dim() == 3 and len(vector) == 1:
        vector = vector[0]
    vector = vector[None] if vector.dim() == 1 else vector
    if vector.dim() != 2 or not tensor.is_floating_point() or vector.numel() == 0:
        raise UserError(
            f"{path}: {tensor.dtype} of shape {shape} is no direction; one is (w_dim,), (1, w_dim) or "
            "(rows, w_dim)"
        )
    # As many equal rows as some generator had rows: it is a direction of W, for any number of them.
    return vector[:1].clone() if torch.equal(vector, vector[:1].expand_as(vector)) else vector.clone()


def _field(name: str, vector: Tensor, mean: Tensor | None, path: Path, detail: str) -> DirectionFields:
    length = float(vector.square().sum(1).mean().sqrt())
    if length == 0:
        raise UserError(f"{path}: {name} is zero, and leads nowhere")
    return DirectionFields(
        name=name,
        vector=vector / length,
        rows=None,
        scale=length,
        fingerprint=None,
        w_avg=mean,
        source=f"{path.name}{detail}",
    )


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"{path}: {name} holds numbers that are not finite")
