"""How messages name what exists. Imports nothing but the standard library."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def closest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that ``word`` was probably meant to be: misspelt, or only begun."""
    names = list(options)
    near = difflib.get_close_matches(word, names, n=1)
    begun = [name for name in names if len(word) >= 2 and name.startswith(word)]
    return near[0] if near else begun[0] if begun else None


def did_you_mean(word: str, options: Iterable[str], prefix: str = "") -> str:
    """Return `` Did you mean <prefix><option>?``, or nothing if no option is close to ``word``."""
    option = closest(word, options)
    return f" Did you mean {prefix}{option}?" if option else ""


def no_such_key(parent: str, key: str, options: Iterable[str]) -> str:
    """Return the message for a ``key`` that ``parent`` (a dotted path; empty for the root) does not have."""
    names = sorted(name for name in options if not name.startswith("_"))
    dotted = f"{parent}." if parent else ""
    there = f"\n{parent or 'There'} {'has' if parent else 'is'}: {', '.join(names)}" if names else ""
    return f"{dotted}{key}: no such key.{did_you_mean(key, names, dotted)}{there}"


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``unet_64`` before ``unet_128``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
