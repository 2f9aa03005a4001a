"""Which files make up the two sides of unpaired data: folders, or lists of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from i2i_lightning.data.checks import require_folder
from i2i_lightning.data.decode import EXTENSIONS
from i2i_lightning.data.pairs import FOLDER_PATTERNS, SPLITS, content_of, hold_out, list_images, name_below
from i2i_lightning.types import UserError

LIST_SUFFIX = ".txt"
LEAST_TO_TRAIN = 2
"""Pictures of a side that training takes: a discriminator that has seen a single one knows it by heart."""


@dataclass(frozen=True)
class Side:
    """The files of one side of one split.

    Args:
        label: What messages call it: ``trainA``.
        names: Each file's path without suffix, below the folder; as written, for a list.
        paths: The files.
    """

    label: str
    names: list[str]
    paths: list[Path]


@dataclass
class FoundSides:
    """The two sides of every split.

    Args:
        where: The config keys and values that say where they were looked for.
        splits: Sides A and B of ``train``, ``val`` and ``test``. ``val`` and ``test`` may be the same.
        notes: What was decided for want of a split, by the split it concerns, to be said aloud.
    """

    where: str
    splits: dict[str, tuple[Side, Side]]
    notes: dict[str, str] = field(default_factory=dict)


def find_sides(
    root: str | os.PathLike[str] | None,
    folder_a: str | os.PathLike[str] | None = None,
    folder_b: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.1,
) -> FoundSides:
    """Find both sides of all splits.

    Args:
        root: The data set's folder with ``trainA`` and ``trainB``, or one of the like, and perhaps the same
            for ``val`` and ``test``; each a folder, or a list ``trainA.txt``.
        folder_a: Side A instead: a folder (with the splits as subfolders, or without splits), or a ``.txt``
            with a path on each line, relative to it.
        folder_b: Side B instead.
        val_fraction: Without any ``val`` or ``test``: this share of each side is taken out of the training.

    Raises:
        UserError: If a side is missing, empty, too small, or both are the same.
    """
    if folder_a is not None or folder_b is not None:
        if folder_a is None or folder_b is None:
            missing = "data.folder_a" if folder_a is None else "data.folder_b"
            raise UserError(f"{missing} is missing: give both sides, or data.root alone")
        found = _explicit(Path(folder_a).expanduser(), Path(folder_b).expanduser())
    elif root is None:
        raise UserError(
            "data.root is missing: say where trainA and trainB are (data.root=/path/to/the/data), "
            "or give data.folder_a and data.folder_b"
        )
    else:
        found = _below(Path(root).expanduser())
    for sides in found.splits.values():
        _check_sides(found.where, sides)
    _complete_splits(found, val_fraction)
    return found


def _below(root: Path) -> FoundSides:
    require_folder("data.root", root)
    found = FoundSides(f"data.root={root}", {})
    for split in SPLITS:
        for patterns in FOLDER_PATTERNS:
            names = [pattern.format(split=split) for pattern in patterns]
            a, b = (_folder_or_list(root / name) for name in names)
            if a is not None and b is not None:
                found.splits[split] = _side(a, f"{split}A"), _side(b, f"{split}B")
                break
            if a is not None or b is not None:
                there, absent = names if a is not None else reversed(names)
                raise UserError(f"{found.where}: {there} is there, {absent} is not")
    if not found.splits and (root / "A").is_dir() and (root / "B").is_dir():
        found.splits["train"] = _side(root / "A", "A"), _side(root / "B", "B")
    if "train" not in found.splits:
        raise UserError(
            f"{found.where}: unpaired data needs trainA and trainB (or train/A and train/B) there; "
            f"it holds {content_of(root)}"
        )
    return found


def _folder_or_list(path: Path) -> Path | None:
    """Return ``path`` if it is a folder, or the list of that name, or None."""
    if path.is_dir():
        return path
    as_list = path.with_name(path.name + LIST_SUFFIX)
    return as_list if as_list.is_file() else None


def _explicit(path_a: Path, path_b: Path) -> FoundSides:
    found = FoundSides(f"data.folder_a={path_a} data.folder_b={path_b}", {})
    if path_a.resolve() == path_b.resolve():
        raise UserError(f"{found.where}: this is the same twice; the two sides are different sets of images")
    splits = [_splits_of("data.folder_a", path_a), _splits_of("data.folder_b", path_b)]
    for split in SPLITS:
        there = [split in side for side in splits]
        if all(there):
            found.splits[split] = (
                _side(splits[0][split], f"{split}A"),
                _side(splits[1][split], f"{split}B"),
            )
        elif any(there):
            has, lacks = (path_a, path_b) if there[0] else (path_b, path_a)
            raise UserError(f"{has} has a folder {split}, {lacks} has none: both sides need the same splits")
    return found


def _splits_of(key: str, path: Path) -> dict[str, Path]:
    """Return where each split of one side is: in subfolders, or everything for the training."""
    if path.suffix.lower() == LIST_SUFFIX:
        if not path.is_file():
            raise UserError(f"{key}={path}: no such file")
        return {"train": path}
    require_folder(key, path)
    if not (path / "train").is_dir():
        return {"train": path}
    return {split: path / split for split in SPLITS if (path / split).is_dir()}


def _side(path: Path, label: str) -> Side:
    if path.is_dir():
        paths = list_images(path)
        return Side(label, [name_below(path, file) for file in paths], paths)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as a list of files ({error})") from None
    files = [Path(line) for line in lines if line and not line.startswith("#")]
    names = [file.with_suffix("").as_posix() for file in files]
    return Side(label, names, [path.parent / file for file in files])


def _check_sides(where: str, sides: Sequence[Side]) -> None:
    for side in sides:
        if not side.paths:
            raise UserError(f"{where}: no images in {side.label} (readable are {', '.join(EXTENSIONS)})")
        if side.label in ("trainA", "trainB", "A", "B") and len(side.paths) < LEAST_TO_TRAIN:
            raise UserError(
                f"{where}: 1 image in {side.label} ({side.paths[0].name}) is too few to learn a look from; "
                f"give at least {LEAST_TO_TRAIN}"
            )
    left, right = ({path.resolve() for path in side.paths} for side in sides)
    if left == right:
        raise UserError(
            f"{where}: {sides[0].label} and {sides[1].label} are the same files; "
            "the two sides are different sets of images"
        )


def _complete_splits(found: FoundSides, val_fraction: float) -> None:
    """Let every split exist: ``val`` and ``test`` stand in for each other, or are held out of ``train``."""
    splits = found.splits
    if "val" not in splits and "test" not in splits:
        parts = [_hold_out(found.where, side, val_fraction) for side in splits["train"]]
        (train_a, held_a), (train_b, held_b) = parts
        splits["train"] = train_a, train_b
        splits["val"] = splits["test"] = held_a, held_b
        found.notes["train"] = (
            f"{found.where} has neither val nor test: {_counts(splits['val'])} are held out of the training "
            "for validation (data.val_fraction)"
        )
    elif "val" not in splits:
        splits["val"] = splits["test"]
        found.notes["val"] = f"{found.where} has no val: validating on test ({_counts(splits['val'])})"
    elif "test" not in splits:
        splits["test"] = splits["val"]
        found.notes["test"] = f"{found.where} has no test: testing on val ({_counts(splits['test'])})"


def _hold_out(where: str, side: Side, val_fraction: float) -> tuple[Side, Side]:
    """Return what of a side trains and what validates."""
    least = LEAST_TO_TRAIN + 1
    if len(side.paths) < least:
        raise UserError(
            f"{where}: {len(side.paths)} images in {side.label} are too few where there is neither val nor "
            f"test: one of them validates; give at least {least}"
        )
    parts = hold_out(list(zip(side.names, side.paths, strict=True)), val_fraction)
    train, held = (Side(side.label, *map(list, zip(*part, strict=True))) for part in parts)
    return train, held


def _counts(sides: tuple[Side, Side]) -> str:
    return f"{len(sides[0].paths)} and {len(sides[1].paths)} images"
