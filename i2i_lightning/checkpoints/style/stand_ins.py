"""All that a pickle may name, and what stands for it: functions that make numbers and plain containers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from i2i_lightning.checkpoints.style.machine import Machine, Name, Names, named, set_items
from i2i_lightning.checkpoints.style.torch_files import read_legacy
from i2i_lightning.checkpoints.style.values import (
    Array,
    Buffer,
    Instance,
    Kind,
    Refused,
    Storage,
    shown,
    sides_of,
    view,
)

# -------------------- numpy

_CODES = re.compile(r"[<>|=]?(f2|f4|f8|i1|i2|i4|i8|u1|u2|u4|u8|b1)")


def _kind(machine: Machine, arguments: tuple[Any, ...]) -> Kind:
    """Stand for ``numpy.dtype(code, align, copy)``."""
    code = arguments[0]
    if not isinstance(code, str) or (found := _CODES.fullmatch(code)) is None:
        objects = isinstance(code, str) and code.lstrip("<>|=").startswith("O")
        raise Refused(
            "it has an array of Python objects"
            if objects
            else f"it has an array of numbers of an unknown kind ({shown(code)})"
        )
    return Kind(found[1], code[0] if code[0] in "<>" else "<")


def _new_array(machine: Machine, arguments: tuple[Any, ...]) -> Array:
    """Stand for ``numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), b"b")``."""
    cls, *_ = arguments
    if not isinstance(cls, Name) or cls.path != "numpy.ndarray":
        raise Refused(f"it has an array of the class {named(cls)}")
    return Array()


def _scalar(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """Stand for ``numpy.core.multiarray.scalar(dtype, bytes)``: one number of Python."""
    kind, content = arguments
    return view(content, kind, (), "C").item()


def _from_buffer(machine: Machine, arguments: tuple[Any, ...]) -> Array:
    """Stand for ``numpy.core.numeric._frombuffer(bytes, dtype, shape, order)``, as protocol 5 has it."""
    content, kind, shape, order = arguments
    return Array(view(content, kind, shape, order))


# -------------------- plain Python


def _encode(machine: Machine, arguments: tuple[Any, ...]) -> Buffer:
    """Stand for ``_codecs.encode(text, "latin1")``, which is how protocol 2 writes bytes."""
    text, encoding = arguments
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"it encodes {shown(text)} as {shown(encoding)}")
    machine.budget.copied_bytes -= len(text)
    if machine.budget.copied_bytes < 0:
        raise Refused("it makes more bytes than it has")
    return memoryview(text.encode("latin-1"))


def _empty_bytes(machine: Machine, arguments: tuple[Any, ...]) -> Buffer:
    """Stand for ``bytes()``, which is how protocol 2 writes no bytes."""
    if arguments:
        raise Refused("it makes bytes in a way that is not known")
    return memoryview(b"")


def _dict(machine: Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Stand for ``collections.OrderedDict()``, or of pairs, as older versions wrote it."""
    made: dict[Any, Any] = {}
    (pairs,) = arguments or ([],)
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Refused("it makes a dict of what are no pairs")
        set_items(made, list(pair))
    return made


def _list(machine: Machine, arguments: tuple[Any, ...]) -> list[Any]:
    """Stand for ``set([...])``."""
    (items,) = arguments
    if not isinstance(items, list):
        raise Refused(f"it makes a set of {shown(items)}")
    return list(items)


# -------------------- torch


def _storage(machine: Machine, arguments: tuple[Any, ...]) -> Storage:
    """Stand for ``torch.storage._load_from_bytes(bytes)``: one storage as ``torch.save`` wrote it.

    torch loads it by a pickle of its own, which may name anything; here only the types of storages.
    """
    (content,) = arguments
    if not isinstance(content, memoryview):
        raise Refused(f"it loads a storage from {shown(content)}")
    loaded, _ = read_legacy(content, STORAGE_TYPES, machine.budget)
    if not isinstance(loaded, Storage):
        raise Refused("it loads something else than the numbers of a tensor from inside of itself")
    return loaded


def _tensor(machine: Machine, arguments: tuple[Any, ...]) -> Array:
    """Stand for ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``."""
    storage, offset, shape, strides, *_ = arguments
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise Refused("it has a tensor without numbers")
    return Array.of(storage, offset, sides_of(shape), sides_of(strides))


def _parameter(machine: Machine, arguments: tuple[Any, ...]) -> Array:
    """Stand for ``torch._utils._rebuild_parameter(tensor, requires_grad, hooks)``."""
    tensor, *_ = arguments
    if not isinstance(tensor, Array):
        raise Refused("it has a parameter that is no tensor")
    return tensor


def _size(machine: Machine, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Stand for ``torch.Size(sides)``."""
    (sides,) = arguments
    return sides_of(tuple(sides) if isinstance(sides, list) else sides)


def _persistent(machine: Machine, arguments: tuple[Any, ...]) -> Instance:
    """Stand for ``torch_utils.persistence._reconstruct_persistent_obj(meta)``, which runs ``module_src``."""
    (meta,) = arguments
    if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("state")) is not dict:
        raise Refused("it has a persistent object of an unknown form")
    if meta.get("version") != 6:
        raise Refused(f"it has a persistent object of version {shown(meta.get('version'))}; 6 is known")
    if not isinstance(meta.get("class_name"), str):
        raise Refused("it has a persistent object without a class")
    return Instance("persistent", meta["class_name"], meta["state"])


# -------------------- names

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


def _table(*entries: tuple[str, Callable[[Machine, tuple[Any, ...]], Any]]) -> dict[tuple[str, str], Name]:
    table = {}
    for path, call in entries:
        module, _, name = path.rpartition(".")
        table[module, name] = Name(path, call=call)
    return table


STORAGE_TYPES: Names = {("torch", name): Name(f"torch.{name}", kind=kind) for name, kind in _STORAGES.items()}
NAMES: Names = {
    **_table(
        ("collections.OrderedDict", _dict),
        ("builtins.set", _list),
        ("__builtin__.set", _list),
        ("builtins.bytes", _empty_bytes),
        ("__builtin__.bytes", _empty_bytes),
        ("_codecs.encode", _encode),
        ("numpy.dtype", _kind),
        ("numpy.core.multiarray._reconstruct", _new_array),
        ("numpy._core.multiarray._reconstruct", _new_array),
        ("numpy.core.multiarray.scalar", _scalar),
        ("numpy._core.multiarray.scalar", _scalar),
        ("numpy.core.numeric._frombuffer", _from_buffer),
        ("numpy._core.numeric._frombuffer", _from_buffer),
        ("torch._utils._rebuild_tensor", _tensor),
        ("torch._utils._rebuild_tensor_v2", _tensor),
        ("torch._utils._rebuild_parameter", _parameter),
        ("torch.storage._load_from_bytes", _storage),
        ("torch.Size", _size),
        ("torch_utils.persistence._reconstruct_persistent_obj", _persistent),
    ),
    ("numpy", "ndarray"): Name("numpy.ndarray"),
    ("dnnlib.util", "EasyDict"): Name("dnnlib.util.EasyDict", make=dict),
    ("dnnlib.tflib.network", "Network"): Name(
        "dnnlib.tflib.network.Network", make=lambda: Instance("network", "Network")
    ),
    ("argparse", "Namespace"): Name("argparse.Namespace", make=lambda: Instance("namespace", "Namespace")),
    **STORAGE_TYPES,
}
"""All that a file may name, and what stands for it."""
