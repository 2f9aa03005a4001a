"""Problems with files, collected over a whole data set and reported as one short message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from i2i_lightning.types import UserError

SHOWN_NAMES = 3
SHOWN_GROUPS = 2


class FileProblem(Exception):
    """What is wrong with one file or pair.

    Args:
        what: What is wrong, in words that are the same for every file with this problem.
        mend: What its user can do about it; empty if that is plain.
        detail: What differs from file to file (a size, a label id), shown behind the name.
        name: The file or pair; empty where whoever catches it knows better and sets it.
    """

    def __init__(self, what: str, mend: str = "", detail: str = "", name: str = "") -> None:
        super().__init__(what, mend, detail, name)
        self.what, self.mend, self.detail, self.name = what, mend, detail, name


def first_names(names: Sequence[str]) -> str:
    """Return the first few names and how many more there are: ``"a, b, c and 7 more"``."""
    shown = ", ".join(names[:SHOWN_NAMES])
    return shown if len(names) <= SHOWN_NAMES else f"{shown} and {len(names) - SHOWN_NAMES} more"


def group_problems(problems: Iterable[FileProblem]) -> list[tuple[str, int]]:
    """Return a line for each kind of problem, with its count, the commonest first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        shown = f"{problem.name} ({problem.detail})" if problem.detail else problem.name
        groups.setdefault((problem.what, problem.mend), []).append(shown)
    by_size = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        (f"{len(names)} {what}: {first_names(names)}" + (f" ({mend})" if mend else ""), len(names))
        for (what, mend), names in by_size
    ]


def raise_problems(where: str, problems: Iterable[FileProblem]) -> None:
    """Raise one UserError of two or three lines for all ``problems``; return if there are none.

    Args:
        where: The data set, as ``key=value`` of the config.
        problems: Any number of them, in the order to show.

    Raises:
        UserError: A line with the count, then one line for each of the commonest kinds of problem.
    """
    groups = group_problems(problems)
    if not groups:
        return
    lines = [line for line, _ in groups[:SHOWN_GROUPS]]
    others = sum(count for _, count in groups[SHOWN_GROUPS:])
    if others:
        lines[-1] += f"; and {others} with other problems"
    count = sum(count for _, count in groups)
    raise UserError("\n  ".join([f"{where}: {count} file{'s' if count > 1 else ''} cannot be used", *lines]))


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise a UserError that lists ``choices`` unless ``value`` is one of them."""
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"{key}={value}: choose one of {', '.join(choices)}{hint}")


def require_folder(key: str, path: Path) -> None:
    """Raise a UserError unless ``path`` is a folder; name what exists instead."""
    if path.is_dir():
        return
    if path.exists():
        raise UserError(f"{key}={path}: this is a file; a folder is needed")
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    try:
        names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())
    except OSError:
        names = []
    inside = [name for name in names if not name.startswith(".")]
    close = difflib.get_close_matches(path.name, inside, n=1)
    if close:
        hint = f"did you mean {parent / close[0]}?"
    else:
        hint = f"{parent} holds: {first_names(inside) or 'no folders'}"
    raise UserError(f"{key}={path}: no such folder ({hint})")
