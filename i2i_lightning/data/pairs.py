"""Which files form a pair: side-by-side images, two folders matched by stem, or a CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from i2i_lightning.data.checks import FileProblem, first_names, raise_problems, require_folder
from i2i_lightning.data.decode import EXTENSIONS
from i2i_lightning.types import UserError

T = TypeVar("T")

LAYOUTS = ("side_by_side", "folders", "csv")
SPLITS = ("train", "val", "test")

# Where the A and B folders of a split may be; the first that exists counts.
FOLDER_PATTERNS = (
    ("{split}A", "{split}B"),
    ("{split}_A", "{split}_B"),
    ("{split}/A", "{split}/B"),
    ("A/{split}", "B/{split}"),
)


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair.

    Args:
        name: The path without suffix, below the split's folder.
        a: Side A, or the file that holds both.
        b: Side B; None if it is the right half of ``a``.
    """

    name: str
    a: Path
    b: Path | None


@dataclass
class FoundPairs:
    """The pairs of each split.

    Args:
        where: The config key and value that say where they were looked for.
        splits: The pairs of ``train``, ``val`` and ``test``. ``val`` and ``test`` may be the same list.
        problems: What is wrong with the folders of each split.
        notes: What was decided for want of a split, by the split it concerns, to be said aloud.
    """

    where: str
    splits: dict[str, list[PairFiles]]
    problems: dict[str, list[FileProblem]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def find_pairs(
    root: str | os.PathLike[str] | None,
    layout: str,
    folder_a: str | os.PathLike[str] | None = None,
    folder_b: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.1,
) -> FoundPairs:
    """Find the pairs of all splits.

    Args:
        root: The data set's folder, or the CSV file.
        layout: ``side_by_side``: one image A|B a pair, below ``root/train``, ``root/val``, ``root/test``, or
            in ``root`` itself. ``folders``: A and B matched by stem, in ``root/trainA`` and ``root/trainB``
            or one of the like. ``csv``: a table with the columns ``a``, ``b`` and perhaps ``split``, paths
            relative to it.
        folder_a: For ``folders``: side A, instead of ``root``; with the splits as subfolders, or without
            splits.
        folder_b: For ``folders``: side B.
        val_fraction: Without any ``val`` or ``test``: this share of the pairs is taken out of the training.

    Returns:
        The pairs, sorted by name, and what was odd about the folders.

    Raises:
        UserError: If a folder or column is missing, or there are no pairs at all.
    """
    explicit = folder_a is not None or folder_b is not None
    if explicit and layout == "folders":
        if folder_a is None or folder_b is None:
            missing = "data.folder_a" if folder_a is None else "data.folder_b"
            raise UserError(f"{missing} is missing: give both folders, or data.root alone")
        found = _explicit_folders(Path(folder_a).expanduser(), Path(folder_b).expanduser())
    elif explicit:
        raise UserError(f"data.folder_a and data.folder_b need data.layout=folders, not {layout}")
    elif root is None:
        raise UserError("data.root is missing: say where the pairs are (data.root=/path/to/the/data)")
    elif layout == "csv":
        found = _csv(Path(root).expanduser())
    elif layout == "side_by_side":
        found = _side_by_side(Path(root).expanduser())
    else:
        found = _folders(Path(root).expanduser())
    _complete_splits(found, val_fraction)
    return found


def _side_by_side(root: Path) -> FoundPairs:
    require_folder("data.root", root)
    splits = {}
    for split in SPLITS:
        if (root / split).is_dir():
            splits[split] = [
                PairFiles(name_below(root / split, path), path, None) for path in list_images(root / split)
            ]
    if not splits and any(path.parent == root for path in list_images(root)):
        splits["train"] = [PairFiles(name_below(root, path), path, None) for path in list_images(root)]
    if "train" not in splits:
        two_folders = any((root / a.format(split="train")).is_dir() for a, _ in FOLDER_PATTERNS)
        hint = "; it looks like data.layout=folders" if two_folders else f"; it holds {content_of(root)}"
        raise UserError(f"data.root={root}: data.layout=side_by_side needs a folder train there{hint}")
    return FoundPairs(f"data.root={root}", splits)


def _folders(root: Path) -> FoundPairs:
    require_folder("data.root", root)
    found = FoundPairs(f"data.root={root}", {})
    for split in SPLITS:
        for pattern_a, pattern_b in FOLDER_PATTERNS:
            a, b = root / pattern_a.format(split=split), root / pattern_b.format(split=split)
            if a.is_dir() and b.is_dir():
                found.splits[split], found.problems[split] = _match(a, b)
                break
            if a.is_dir() or b.is_dir():
                there, absent = (a, b) if a.is_dir() else (b, a)
                raise UserError(
                    f"{found.where}: {there.relative_to(root)} is there, {absent.relative_to(root)} is not"
                )
    if not found.splits and (root / "A").is_dir() and (root / "B").is_dir():
        found.splits["train"], found.problems["train"] = _match(root / "A", root / "B")
    if "train" not in found.splits:
        raise UserError(
            f"{found.where}: data.layout=folders needs trainA and trainB (or train/A and train/B) there; "
            f"it holds {content_of(root)}"
        )
    return found


def _explicit_folders(folder_a: Path, folder_b: Path) -> FoundPairs:
    require_folder("data.folder_a", folder_a)
    require_folder("data.folder_b", folder_b)
    found = FoundPairs(f"data.folder_a={folder_a} data.folder_b={folder_b}", {})
    for split in SPLITS:
        if (folder_a / split).is_dir() and (folder_b / split).is_dir():
            found.splits[split], found.problems[split] = _match(folder_a / split, folder_b / split)
    if "train" not in found.splits:
        found.splits["train"], found.problems["train"] = _match(folder_a, folder_b)
    return found


def _match(folder_a: Path, folder_b: Path) -> tuple[list[PairFiles], list[FileProblem]]:
    """Match the images of two folders by their paths without suffix."""
    problems = []
    sides: list[dict[str, Path]] = []
    for folder in (folder_a, folder_b):
        by_stem: dict[str, Path] = {}
        for path in list_images(folder):
            stem = name_below(folder, path)
            if stem in by_stem:
                what = "whose stem another file of the folder has too"
                problems.append(FileProblem(what, "which one is meant?", name=_shown(path, folder)))
            by_stem[stem] = path
        sides.append(by_stem)
    for mine, other, folder, other_folder in (
        (sides[0], sides[1], folder_a, folder_b),
        (sides[1], sides[0], folder_b, folder_a),
    ):
        for stem in mine.keys() - other.keys():
            what = f"without a file of the same stem in {other_folder}"
            problems.append(FileProblem(what, "add or delete", name=_shown(mine[stem], folder)))
    problems.sort(key=lambda problem: problem.name)
    pairs = [
        PairFiles(stem, sides[0][stem], sides[1][stem]) for stem in sorted(sides[0].keys() & sides[1].keys())
    ]
    return pairs, problems


def _csv(path: Path) -> FoundPairs:
    if path.is_dir():
        tables = sorted(entry.name for entry in path.glob("*.csv"))
        hint = f"; it holds {first_names(tables)}" if tables else ""
        raise UserError(f"data.root={path}: with data.layout=csv give the CSV file, not its folder{hint}")
    try:
        # Excel begins UTF-8 files with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError:
        raise UserError(f"data.root={path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.root={path}: not readable as CSV ({error})") from None
    if not {"a", "b"} <= set(columns):
        raise UserError(
            f"data.root={path}: the first line must name the columns a, b and perhaps split; "
            f"it names {', '.join(columns) or 'nothing'}"
        )
    splits: dict[str, list[PairFiles]] = {}
    for line, row in enumerate(rows, start=2):
        a, b = (row["a"] or "").strip(), (row["b"] or "").strip()
        split = (row.get("split") or "train").strip().lower()
        if not a or not b:
            raise UserError(f"data.root={path}: line {line} needs a path in both columns a and b")
        if split not in SPLITS:
            raise UserError(
                f"data.root={path}: line {line} has split={split}; choose one of {', '.join(SPLITS)}"
            )
        files = PairFiles(Path(a).with_suffix("").as_posix(), path.parent / a, path.parent / b)
        splits.setdefault(split, []).append(files)
    if "train" not in splits:
        raise UserError(f"data.root={path}: no pairs" + (" with split=train" if splits else ""))
    return FoundPairs(f"data.root={path}", splits)


def _complete_splits(found: FoundPairs, val_fraction: float) -> None:
    """Let every split exist: ``val`` and ``test`` stand in for each other, or are held out of ``train``."""
    splits = found.splits
    for split, pairs in splits.items():
        if not pairs and not found.problems.get(split):
            raise UserError(f"{found.where}: no images in {split} (readable are {', '.join(EXTENSIONS)})")
    if "val" not in splits and "test" not in splits:
        everything = splits["train"]
        if len(everything) < 2 and not found.problems.get("train"):
            raise UserError(
                f"{found.where}: {len(everything)} pair is too few: one trains and one validates, "
                "give at least 2"
            )
        train, held_out = hold_out(everything, val_fraction)
        names = {pair.name for pair in held_out}  # a table may name a pair twice
        splits["train"] = [pair for pair in train if pair.name not in names]
        splits["val"] = splits["test"] = held_out
        found.notes["train"] = (
            f"{found.where} has neither val nor test: {len(held_out)} of {len(everything)} pairs are held "
            "out of the training for validation (data.val_fraction)"
        )
    elif "val" not in splits:
        splits["val"] = splits["test"]
        found.problems["val"] = found.problems.get("test", [])
        found.notes["val"] = f"{found.where} has no val: validating on test ({len(splits['val'])} pairs)"
    elif "test" not in splits:
        splits["test"] = splits["val"]
        found.problems["test"] = found.problems.get("val", [])
        found.notes["test"] = f"{found.where} has no test: testing on val ({len(splits['test'])} pairs)"


def hold_out(items: Sequence[T], val_fraction: float) -> tuple[list[T], list[T]]:
    """Return what trains and what validates: an even share of ``items``, at least one of them.

    Raises:
        UserError: If ``val_fraction`` is no share.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"data.val_fraction={val_fraction}: must lie between 0 and 1")
    every = max(round(1 / val_fraction), 2)
    indices = range(len(items))
    held = set(indices[every // 2 :: every] or indices[-1:])
    train = [item for index, item in enumerate(items) if index not in held]
    return train, [items[index] for index in sorted(held)]


def list_images(folder: Path) -> list[Path]:
    """Return the readable files below ``folder``, sorted by path; hidden files and folders are left out."""
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS)
        ]
    return sorted(paths)


def report(found: FoundPairs, splits: Sequence[str], more: Sequence[FileProblem] = ()) -> None:
    """Raise one UserError for the problems of ``splits`` and ``more``, if there are any."""
    raise_problems(found.where, [*(p for split in splits for p in found.problems.get(split, [])), *more])


def name_below(folder: Path, path: Path) -> str:
    """Return a file's path below ``folder`` without its suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder.parent).as_posix()


def content_of(folder: Path) -> str:
    """Return the first names in ``folder``, for messages."""
    return first_names(sorted(entry.name for entry in folder.iterdir())) or "nothing"
