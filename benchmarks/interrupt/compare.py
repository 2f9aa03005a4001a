"""What two runs left behind: whether it can be read, and whether it is the same bit for bit."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAY_DIFFER = ("resumes.jsonl",)
"""Files that a run has only because it was continued."""
CLOCKS = ("seconds",)
"""Keys in a checkpoint that tell the time: how long the gallery's run has trained."""


def compare(left: Path, right: Path) -> list[str]:
    """Return how two ended runs differ, and what of the second cannot be read."""
    differences = unreadable(right)
    names = [files_of(side) for side in (left, right)]
    differences += [f"{name} is missing" for name in sorted(names[0] - names[1])]
    differences += [f"{name} is left over" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        a, b = left / name, right / name
        with contextlib.suppress(Exception):  # unreadable: said above
            differences += [f"{name}: {difference}" for difference in compare_files(a, b)]
    return differences


def files_of(chain: Path) -> set[str]:
    """Return the files of a run and its cache, except for locks and what only a continued run has."""
    found = set()
    for folder in ("run", "cache"):
        for path in (chain / folder).rglob("*"):
            if path.is_file() and path.name not in MAY_DIFFER and "lock" not in path.name:
                found.add(str(path.relative_to(chain)))
    return found


def compare_files(a: Path, b: Path) -> list[str]:
    """Return how two files of one name differ, up to times, folders and whatever else no resume can keep."""
    if a.suffix == ".ckpt":
        from i2i_lightning.checkpoints.io import read_checkpoint

        return differences_of(read_checkpoint(a), read_checkpoint(b))
    if a.name == "metrics.csv":
        return differences_of(rows_of(a), rows_of(b))
    if a.suffix in (".png", ".bin"):
        return [] if a.read_bytes() == b.read_bytes() else ["other bytes"]
    return []


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of ``metrics.csv`` without what measures time."""
    with path.open(newline="") as file:
        rows = [
            {key: value for key, value in row.items() if value and not key.startswith("perf/")}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row.keys() - {"step", "epoch"}]


def differences_of(a: Any, b: Any, where: str = "") -> list[str]:
    """Return where two trees of containers, tensors and numbers are not the same bit for bit."""
    import torch

    if type(a) is not type(b):
        return [f"{where}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
        return [] if same else [f"{where}: other values"]
    if isinstance(a, Mapping):
        found = [f"{where}/{key}: only on one side" for key in sorted(map(str, set(a) ^ set(b)))]
        for key in a:
            if key in b and key not in CLOCKS:
                found += differences_of(a[key], b[key], f"{where}/{key}")
        return found
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        pairs = enumerate(zip(a, b, strict=True))
        return [words for index, (x, y) in pairs for words in differences_of(x, y, f"{where}/{index}")]
    if isinstance(a, float) and math.isnan(a) and math.isnan(b):
        return []
    return [] if a == b else [f"{where}: {a!r} and {b!r}"]


def _bits(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().view(torch.uint8) if tensor.is_floating_point() and tensor.dim() else tensor


def unreadable(chain: Path, whole_only: bool = False) -> list[str]:
    """Return the files of a run and its cache that cannot be read, and those that were begun and not ended.

    Args:
        chain: Where the run and its cache are.
        whole_only: Look only at what must be whole at any time: checkpoints, pictures, pages.
    """
    problems = []
    for folder in ("run", "cache"):
        for path in sorted((chain / folder).rglob("*")):
            name = str(path.relative_to(chain))
            begun = path.name.endswith((".tmp", ".building", ".part"))
            if begun or ".building" in name:
                problems += [] if whole_only else [f"{name} was begun and not ended"]
            elif path.is_file() and not (whole_only and path.suffix not in (".ckpt", ".png", ".html")):
                try:
                    read(path)
                except Exception as error:
                    why = " ".join(str(error).split()) or repr(error)
                    problems.append(f"{name} cannot be read: {why[:200]}")
    return problems


def read(path: Path) -> None:
    """Read a file as what its name says it is, or raise."""
    if path.suffix == ".ckpt":
        from i2i_lightning.checkpoints.io import read_checkpoint

        read_checkpoint(path)
    elif path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
    elif path.suffix == ".yaml":
        import yaml

        if yaml.safe_load(path.read_text()) is None:
            raise ValueError("it is empty")
    elif path.suffix == ".html":
        if not path.read_text().rstrip().endswith("</html>"):
            raise ValueError("its end is missing")
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("a row is not whole")
    else:
        path.read_bytes()
