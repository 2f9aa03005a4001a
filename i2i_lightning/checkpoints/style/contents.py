"""What the reader of each kind of file hands over, and what the readers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from i2i_lightning.checkpoints.style.values import Array, Refused, shown

Numbers = NDArray[Any]
NOISE_SEED = 0
"""Of the noise maps that are drawn where a file has none: the same at every reading."""
MAX_DRAWN_PX = 1024
"""Side of such maps: that of the largest generators that were published without theirs."""
MAX_GROWTH = 4
"""How many times as large as in the file its weights may become in float32, of which fp16 makes twice."""


@dataclass(frozen=True)
class StyleNetwork:
    """One network of a file.

    Args:
        config: Of a generator what :func:`i2i_lightning.networks.style.build` takes, of a discriminator the
            constructor's arguments.
        state: Its weights under this project's names; not copied yet.
        averaged: Whether the weights are a moving average over training.
        notes: What was assumed or made up, a few words each.
        provenance: What the file says of its making.
    """

    config: dict[str, Any]
    state: Mapping[str, Numbers | Tensor]
    averaged: bool = False
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


class Weights:
    """The named arrays of one network of a file, each of which is to be used.

    Args:
        arrays: The arrays by their names in the file.

    Raises:
        Refused: If many of them are the same numbers, of each of which a copy would be made.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        known = [value for value in arrays.values() if isinstance(value, Array)]
        wanted, held = 4 * sum(array.size for array in known), bytes_under(known)
        if wanted > MAX_GROWTH * held:
            raise Refused(f"its weights would take {wanted} bytes and are made of {held}: they share numbers")
        self.arrays = arrays
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def take(self, name: str, rank: int | None = None) -> Numbers:
        """Return an array, which may be a single number.

        Args:
            name: Its name.
            rank: How many dimensions it has to have.

        Raises:
            Refused: If it is missing, or not of this kind.
        """
        if name not in self.arrays:
            raise Refused(f"it lacks {name}")
        value = self.arrays[name]
        if type(value) is float:  # TensorFlow's numbers without dimensions are saved as such
            value = Array(np.array(value, np.float32))
        if not isinstance(value, Array):
            raise Refused(f"{name} is {shown(value)}, not an array")
        values = value.values
        if values.dtype.kind != "f":
            raise Refused(f"{name} has numbers of the kind {values.dtype}")
        if rank is not None and values.ndim != rank:
            raise Refused(f"{name} has shape {values.shape}, not {rank} dimensions")
        self.used.add(name)
        return values

    def count(self, before: str, after: str) -> int:
        """Return how many of ``<before><number><after>`` there are, from 0 on."""
        number = 0
        while f"{before}{number}{after}" in self.arrays:
            number += 1
        return number

    def finish(self, *ignored: str) -> None:
        """Raise ``Refused`` if an array is left whose name has none of the endings ``ignored``."""
        left = [name for name in self.arrays if name not in self.used and not name.endswith(ignored)]
        if left:
            raise Refused(f"it has {shown(left[0])}, which is no part of the networks known here")


def bytes_under(arrays: Iterable[Array]) -> int:
    """Return how many bytes of the file are under any of ``arrays``."""
    total = reached = 0
    for start, end in sorted(array.extent() for array in arrays):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def drawn_maps(sizes: Sequence[int]) -> list[Numbers]:
    """Return a noise map ``(size, size)`` for each of ``sizes``, for a file that has none.

    Raises:
        Refused: If they would be larger than those of any published generator.
    """
    if max(sizes) > MAX_DRAWN_PX:
        raise Refused(
            f"it lacks its noise maps; they are drawn for up to {MAX_DRAWN_PX} px, not {max(sizes)}"
        )
    draws = np.random.RandomState(NOISE_SEED)
    return [draws.standard_normal((size, size)).astype(np.float32) for size in sizes]


def text_keys(value: object, what: str) -> dict[str, Any]:
    """Return a dict of the file's whose keys must be texts.

    Raises:
        Refused: If it is none.
    """
    if type(value) is not dict or any(type(key) is not str for key in value):
        raise Refused(f"{what} is {shown(value)}, not a dict of names")
    return value


def setting(value: object, what: str, allowed: tuple[object, ...]) -> None:
    """Raise ``Refused`` unless ``value`` is one of those that the networks here have.

    Args:
        value: What the file says.
        what: The setting, for the message.
        allowed: The values that are known.
    """
    if not any(type(value) is type(known) and value == known for known in allowed):
        told = shown(value) if value is not None else "not set"
        raise Refused(f"its {what} is {told}; known here is {' or '.join(map(str, allowed))}")


def number(value: object, what: str) -> float:
    """Return a finite number that a file says.

    Raises:
        Refused: If it is none.
    """
    if type(value) not in (int, float) or not abs(value) < 1e9:  # type: ignore[arg-type]
        raise Refused(f"its {what} is {shown(value)}, not a number")
    return float(value)  # type: ignore[arg-type]


FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
"""The low-pass filter of all published configurations."""


def check_filter(values: Numbers, gain: float = 1.0) -> None:
    """Raise ``Refused`` unless ``values`` is the low-pass filter that the networks here have."""
    if values.shape != (4, 4) or not np.allclose(values, FILTER * gain, rtol=1e-5, atol=0):
        raise Refused("its low-pass filter is not that of [1, 3, 3, 1]")
