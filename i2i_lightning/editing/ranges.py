"""Lists of whole numbers as people write them: ``0-35``, or ``1,5,7-9``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from i2i_lightning.types import UserError

MOST = 1_000_000
"""Numbers that one list may hold: more is a slip of the keyboard."""


def whole_numbers(value: Any, key: str, largest: int, meaning: str = "numbers") -> list[int]:
    """Return the numbers that ``value`` lists, in its order.

    Args:
        value: A number, text such as ``1,5,7-9``, or a list of these.
        key: The config key to name in the error.
        largest: The largest number that there is; the smallest is 0.
        meaning: What they are, in the plural.

    Raises:
        UserError: If it is no such list, or a number is too large.
    """
    shown = as_written(value)
    found: list[int] = []
    for part in parts_of(value) or [""]:
        ends = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if ends is None:
            raise UserError(f"{key}={shown}: give {meaning} from 0 up and ranges of them: 0-35, or 1,5,7-9")
        first = int(ends[1])
        last = first if ends[2] is None else int(ends[2])
        if last < first:
            raise UserError(f"{key}={shown}: {part} counts down; write {last}-{first}")
        if last > largest:
            raise UserError(f"{key}={shown}: {last} is too large; there are {meaning} from 0 to {largest}")
        if len(found) + last - first >= MOST:
            raise UserError(f"{key}={shown}: these are more than {MOST:,} {meaning}")
        found += range(first, last + 1)
    return found


def parts_of(value: Any) -> list[str]:
    """Return what stands between the commas of ``value``, a text, or a list of texts and numbers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [part for item in value for part in parts_of(item)]
    return [part.strip() for part in str(value).split(",")]


def as_written(value: Any) -> str:
    """Return ``value`` as it was written on the command line, shortened where it is long."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        text = f"[{','.join(map(str, value))}]"
    else:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
