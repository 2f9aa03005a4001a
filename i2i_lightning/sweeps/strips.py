"""What the runs of a sweep make of the same inputs: pictures cut out of their newest previews."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from i2i_lightning.sweeps.runs import RunRecord

TILES = "tiles"
"""Name of the text by which a preview's PNG file says where its pictures are (``callbacks.previews``)."""


@dataclass
class Previewed:
    """The previews of a run after one epoch.

    Args:
        epoch: From 1.
        columns: What is in a row, in order: input, output, target, or two ways of them.
        rows: By name of the input: its pictures by column.
    """

    epoch: int
    columns: list[str]
    rows: dict[str, dict[str, Image.Image]]


@dataclass
class Strip:
    """The same inputs through several runs.

    Args:
        title: What is shown: ``output``, or ``output b`` of a method that goes both ways.
        source: Name of the column of inputs; None of a method that makes pictures from nothing.
        truth: Name of the column of targets; None where there are none.
        names: Names of the inputs.
        sources: The input of each name, where there are inputs.
        truths: The target of each name, where there are targets.
        outputs: For each run, the output of each name; None where it has none.
    """

    title: str
    source: str | None
    truth: str | None
    names: list[str]
    sources: list[Image.Image]
    truths: list[Image.Image]
    outputs: list[list[Image.Image | None]]


def newest_preview(folder: Path) -> Previewed | None:
    """Return the newest preview in a run folder that can be read; None if there is none."""
    for path in sorted((folder / "images").glob("epoch_*.png"), reverse=True):
        try:
            with Image.open(path) as grid:
                notes: dict[str, Any] = json.loads(grid.info[TILES])
                grid.load()
                return _cut(grid, notes, int(re.findall(r"\d+", path.stem)[-1]))
        except (OSError, ValueError, KeyError, IndexError, TypeError):  # another kind of file, or half of one
            continue
    return None


def _cut(grid: Image.Image, notes: dict[str, Any], epoch: int) -> Previewed:
    columns = [str(column) for column in notes["columns"]]
    rows: dict[str, dict[str, Image.Image]] = {}
    for index, (name, boxes) in enumerate(zip(notes["rows"], notes["boxes"], strict=True)):
        tiles = {}
        for column, (x, y, width, height) in zip(columns, boxes, strict=True):
            tile = grid.crop((x, y, x + width, y + height)).convert("RGB")
            factor = int(notes["enlarged"])
            if factor > 1:  # back to the pixels that the network made
                tile = tile.resize((width // factor, height // factor), Image.Resampling.NEAREST)
            tiles[column] = tile
        rows[str(name) or f"sample {index + 1}"] = tiles
    return Previewed(epoch, columns, rows)


def strips(previews: Sequence[Previewed | None], max_rows: int) -> list[Strip]:
    """Set the outputs of several runs on the same inputs beside each other.

    Rows are the inputs that most runs have in common, in the order of the first run. Of a method that goes
    both ways there is a strip for each way.

    Args:
        previews: Of each run, in order.
        max_rows: Inputs to show.
    """
    known = [shown for shown in previews if shown is not None]
    if not known:
        return []
    counts = {name: sum(name in shown.rows for shown in known) for name in known[0].rows}
    most = max(counts.values(), default=0)
    names = [name for name, count in counts.items() if count == most][:max_rows]
    columns = known[0].columns
    made = []
    for place, column in enumerate(columns):
        if not column.startswith("output"):
            continue
        source = next((other for other in reversed(columns[:place]) if other.startswith("input")), None)
        truth = next((other for other in columns[place + 1 :] if other.startswith("target")), None)
        first = known[0].rows
        made.append(
            Strip(
                title=column,
                source=source,
                truth=truth,
                names=names,
                sources=[first[name][source] for name in names] if source else [],
                truths=[first[name][truth] for name in names] if truth else [],
                outputs=[
                    [None if shown is None else shown.rows.get(name, {}).get(column) for name in names]
                    for shown in previews
                ],
            )
        )
    return made


def previewed_run(runs: Sequence[RunRecord]) -> tuple[RunRecord | None, Previewed | None]:
    """Return the run of a variant whose previews stand for it: the first that has finished, else the first.

    So the columns of a strip have the same seed, as far as the runs are there.
    """
    for run in sorted(runs, key=lambda run: run.state != "finished"):
        shown = newest_preview(run.folder)
        if shown is not None:
            return run, shown
    return None, None
