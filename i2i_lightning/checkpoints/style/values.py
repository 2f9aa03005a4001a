"""What is left of a pickle's objects when none of them is built: numbers, and notes on the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Buffer = memoryview
MAX_RANK = 8
"""Dimensions of an array."""
MAX_SIDE = 1 << 32


class Refused(Exception):
    """Why a file is not read, in a few words; whoever knows its name makes a ``UserError`` of it."""


class Missing(Refused):
    """That a file holds no network of the kind that is asked for, which is no fault of it."""


def shown(text: object) -> str:
    """Return what a file holds as it may stand in a message: short, in one line."""
    if isinstance(text, str):
        return repr(text[:60])[1:-1]
    if isinstance(text, (int, float)) and abs(text) < 1e18:
        return str(text)
    return f"a {type(text).__name__}"


class Array:
    """Numbers of a file: a view of its bytes, until ``values`` are asked for.

    Args:
        values: The numbers, where they are known already.
    """

    __slots__ = ("_offset", "_shape", "_storage", "_strides", "_values")

    def __init__(self, values: NDArray[Any] | None = None) -> None:
        self._values = values
        self._storage: Storage | None = None
        self._offset = 0
        self._shape: tuple[int, ...] = ()
        self._strides: tuple[int, ...] = ()

    @classmethod
    def of(cls, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """Return the part of a storage that starts at ``offset``, with strides in elements.

        Raises:
            Refused: If it is not inside of the storage, or names some element twice.
        """
        if not (len(shape) == len(strides) <= MAX_RANK) or offset < 0 or min((*shape, *strides, 0)) < 0:
            raise Refused("a tensor has an impossible shape")
        count = math.prod(shape)
        last = 0
        for stride, side in sorted(zip(strides, shape, strict=True)) if count > 1 else ():
            # No layout of torch has a step that ends among the elements of the shorter ones.
            if side > 1 and stride <= last:
                raise Refused("a tensor has an element twice")
            last += (side - 1) * stride
        if count and offset + last >= storage.count:
            raise Refused("a tensor is larger than its storage")
        array = cls()
        array._storage, array._offset, array._shape, array._strides = storage, offset, shape, strides
        return array

    def fill(self, values: NDArray[Any]) -> None:
        """Set the numbers of an array that was named before it was described.

        Raises:
            Refused: If it has some.
        """
        if self._values is not None or self._storage is not None:
            raise Refused("it describes an array twice")
        self._values = values

    @property
    def values(self) -> NDArray[Any]:
        """The numbers, which nobody may write to.

        Raises:
            Refused: If the file never said which.
        """
        viewed = self._viewed()
        if self._storage is None or self._storage.kind != "bfloat16":
            return viewed
        # Numpy does not know it: the upper half of float32.
        return (viewed.astype("<u4") << 16).view("<f4")

    @property
    def size(self) -> int:
        """How many numbers these are; 0 as long as the file has not said which."""
        if self._storage is not None:
            return math.prod(self._shape)
        return 0 if self._values is None else self._values.size

    def extent(self) -> tuple[int, int]:
        """Return where in memory the bytes begin and end that the numbers are read from."""
        if not self.size:
            return 0, 0
        viewed = self._viewed()
        start: int = viewed.__array_interface__["data"][0]
        steps = ((side - 1) * apart for side, apart in zip(viewed.shape, viewed.strides, strict=True))
        return start, start + sum(steps) + viewed.itemsize

    def _viewed(self) -> NDArray[Any]:
        """Return the numbers as the file has them."""
        if self._storage is not None:
            flat = self._storage.values()
            bytes_apart = tuple(stride * flat.itemsize for stride in self._strides)
            return np.lib.stride_tricks.as_strided(
                flat[self._offset :], self._shape, bytes_apart, writeable=False
            )
        if self._values is None:
            raise Refused("it names an array and does not describe it")
        return self._values


@dataclass(eq=False)
class Storage:
    """The bytes of torch's tensors.

    Args:
        kind: A numpy dtype, or ``bfloat16``.
        count: Elements.
        data: The bytes; None as long as they are not known.
    """

    kind: str
    count: int
    data: Buffer | None = None

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.count * (2 if self.kind == "bfloat16" else np.dtype(self.kind).itemsize)

    def values(self) -> NDArray[Any]:
        """Return all elements as a vector, a view of the file; those of bfloat16 as whole numbers."""
        if self.data is None:
            raise Refused("it lacks the numbers of a tensor")
        kind = "<u2" if self.kind == "bfloat16" else self.kind
        return np.frombuffer(self.data, kind, self.count) if self.count else np.empty(0, kind)


@dataclass(eq=False)
class Instance:
    """An object that is not built: the kind of its class, and what was saved of it.

    Args:
        kind: ``persistent`` (NVIDIA's modules for torch), ``network`` (those for TensorFlow) or
            ``namespace``.
        class_name: What the file calls its class.
        state: Its attributes; None as long as they are not known.
    """

    kind: str
    class_name: str = ""
    state: dict[str, Any] | None = None


@dataclass(eq=False)
class Kind:
    """A numpy dtype in the making: ``code`` such as ``f4``, and the order of its bytes."""

    code: str
    order: str = "<"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype."""
        return np.dtype(self.order + self.code)


def order_of(state: object) -> str:
    """Return the order of bytes in the state of a dtype, which must have no fields."""
    if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise Refused("it has an array of records")
    if state[1] not in ("<", ">", "|", "="):
        raise Refused("it has numbers in an unknown order of bytes")
    return ">" if state[1] == ">" else "<"


def array_of(state: object) -> NDArray[Any]:
    """Return the array that is described by ``(version, shape, dtype, is_fortran, bytes)``."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise Refused("it describes an array in a way that is not known")
    _, shape, kind, fortran, content = state
    return view(content, kind, shape, "F" if fortran is True else "C")


def view(content: object, kind: object, shape: object, order: object) -> NDArray[Any]:
    """Return bytes as the array that they are said to be, without a copy."""
    if not isinstance(kind, Kind) or order not in ("C", "F"):
        raise Refused("it has an array of numbers of an unknown kind")
    if not isinstance(content, memoryview):
        raise Refused(f"it has an array whose numbers are {shown(content)}")
    sides = sides_of(shape)
    if math.prod(sides) * kind.dtype.itemsize != len(content):
        raise Refused("it has an array whose shape and numbers do not agree")
    if len(content) == 0:
        return np.empty(sides, kind.dtype)
    return np.frombuffer(content, kind.dtype).reshape(sides, order="F" if order == "F" else "C")


def sides_of(shape: object) -> tuple[int, ...]:
    """Return a shape, or strides, if that is what it is."""
    if not isinstance(shape, tuple) or len(shape) > MAX_RANK:
        raise Refused("it has an array of an impossible shape")
    if any(type(side) is not int or not 0 <= side <= MAX_SIDE for side in shape):
        raise Refused("it has an array of an impossible shape")
    return shape
