"""Reading published weights of every layout into one: tensors under torchvision's names.

Nothing is unpickled but through an allow-list. ``torch.load`` has one of its own (``weights_only``); the two
other layouts are read here: a pickle of numpy arrays as flax saves it, and the tensors inside of a
TorchScript archive, whose code is neither compiled nor run.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from i2i_lightning.types import UserError
from i2i_lightning.weights.catalogue import Layout

# torchvision's index of each convolution; the file has them in this order.
FLAX_CONVOLUTIONS: Mapping[str, tuple[int, ...]] = {
    "VGG16_0": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "AlexNet_0": (0, 3, 6, 8, 10),
}

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BRANCHES: Mapping[str, str] = {
    "5b 5c 5d": "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool",
    "6a": "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
    "6b 6c 6d 6e": "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2"
    " branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5 branch_pool",
    "7a": "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
    "7b 7c": "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a"
    " branch3x3dbl_3b branch_pool",
}
INCEPTION_CONVOLUTIONS: tuple[str, ...] = (
    *_STEM,
    *(
        f"Mixed_{block}.{branch}"
        for blocks, branches in _BRANCHES.items()
        for block in blocks.split()
        for branch in branches.split()
    ),
)
"""The 94 convolutions of Inception-v3, in the order of torchvision and of the TorchScript file."""


def read(path: Path, layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of a weights file, float32 on the CPU, under torchvision's names.

    Args:
        path: The file; its content should have been checked.
        layout: What to expect in it.

    Raises:
        UserError: If it is something else, or would construct anything but tensors and plain containers.
    """
    readers: dict[Layout, Callable[[Path], dict[str, Tensor]]] = {
        "torchvision": _read_features,
        "inception_pth": _read_inception,
        "flax_pickle": _read_flax,
        "torchscript_inception": _read_torchscript_inception,
    }
    if layout not in readers:
        raise UserError(f"{path}: is a generator; load it with i2i_lightning.checkpoints")
    try:
        return readers[layout](path)
    except pickle.UnpicklingError as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"{path}: refused, it is not a plain file of tensors ({first})") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        if isinstance(error, UserError):
            raise
        first = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: not weights of the layout {layout} ({first})") from error


def _read_features(path: Path) -> dict[str, Tensor]:
    saved: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value for key, value in saved.items() if key.startswith("features.")}


def _read_inception(path: Path) -> dict[str, Tensor]:
    saved: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    wanted = [
        f"{name}.{part}"
        for name in INCEPTION_CONVOLUTIONS
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    ]
    return {key: saved[key] for key in wanted}


def _read_flax(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        saved = _NumpyUnpickler(file).load()
    ((network, indices),) = [item for item in FLAX_CONVOLUTIONS.items() if item[0] in saved]
    state = {}
    for number, index in enumerate(indices):
        convolution = saved[network][f"Conv_{number}"]
        # (height, width, in, out) to (out, in, height, width).
        kernel = np.ascontiguousarray(convolution["kernel"].transpose(3, 2, 0, 1), dtype=np.float32)
        state[f"features.{index}.weight"] = torch.from_numpy(kernel)
        state[f"features.{index}.bias"] = torch.from_numpy(np.array(convolution["bias"], np.float32))
    return state


def _read_torchscript_inception(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (index,) = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        with archive.open(index) as file:
            root = _TorchScriptUnpickler(file, archive, index.removesuffix(".pkl")).load()
    layers = list(_leaves(root))
    state = {}
    for name, layer in zip(INCEPTION_CONVOLUTIONS, layers, strict=True):
        state[f"{name}.conv.weight"] = layer["weight"]
        state[f"{name}.bn.weight"] = torch.ones_like(layer["beta"])
        state[f"{name}.bn.bias"] = layer["beta"]
        state[f"{name}.bn.running_mean"] = layer["mean"]
        state[f"{name}.bn.running_var"] = layer["var"]
    return state


def _leaves(module: _Inert) -> Iterator[dict[str, Tensor]]:
    """Yield the fields of every layer that has weights, in the order in which they were saved."""
    if "weight" in module.fields:
        yield module.fields
    for value in module.fields.values():
        if isinstance(value, _Inert):
            yield from _leaves(value)


class _NumpyUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings, numbers and numpy arrays of numbers, and refuses everything else."""

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # Private, and the only names under which a pickled array asks for its constructor.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]


class _Inert:
    """Stands for every class of a TorchScript file: keeps the fields, does nothing."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)


class _TorchScriptUnpickler(pickle.Unpickler):
    """Reads the fields of a TorchScript module: float32 tensors, numbers, and :class:`_Inert` for classes.

    Args:
        file: The archive's ``data.pkl``.
        archive: The archive, for the tensors' bytes.
        folder: Where in the archive those are.
    """

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call: functions of this file in place of every name that is known."""
        if module.startswith("__torch__."):
            return _Inert
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch", "FloatStorage"): torch.float32,
            ("torch.jit._pickle", "build_intlist"): list,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]

    def persistent_load(self, key: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        """Return the numbers of one storage."""
        _, dtype, name, _, _ = key
        return torch.frombuffer(bytearray(self._archive.read(f"{self._folder}/{name}")), dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()
