"""A run as its folder tells of it, at any moment: begun, running, finished, failed, or half written.

Nothing is taken for granted: a file may be missing, or end in the middle of a line.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import yaml

FAILURE = "failure.json"
"""What a sweep leaves in the folder of a job that failed: why, and which overrides it had."""
STUDY = "study.json"
"""What a study by Optuna leaves in its folder: its trials, for people and for reports."""

STATES = ("finished", "running", "stopped", "failed", "pruned", "waiting")

SHOWN_ROWS = ("outputs",)
"""Rows of a report that tell of the run; others are what to compare it with."""
LONG_GROUPS = re.compile(r".*_by_\w+")
"""Groups of a report with a number for each class or parameter."""

Curve = list[tuple[float, float]]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick, where PyYAML has it


@dataclass
class RunRecord:
    """What is known of a run.

    Args:
        folder: Where it lies.
        name: Its path below the sweep's folder.
        state: One of :data:`STATES`; ``stopped`` was interrupted, or killed.
        reason: Why it failed, stopped or was pruned.
        overrides: The overrides that it was begun with, as they were typed.
        config: Its resolved config.
        source: Its config before references were resolved.
        epochs_done: Epochs that were validated.
        max_epochs: Epochs that it is to train.
        metrics: Its figures by name: the newest of each validation, the report's, an evaluation's.
        references: By row of the report that is not of this run (``real``, ``copied_input``): such figures.
        curves: By column of ``metrics.csv``: points over epochs.
    """

    folder: Path
    name: str
    state: str
    reason: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    epochs_done: int = 0
    max_epochs: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def seed(self) -> str:
        """The seed, as text; nothing where it is not known."""
        value = self.overrides.get("seed", self.config.get("seed", ""))
        return str(value)


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders below ``folder`` (or itself), in the order of their numbers and names."""
    marks = (".hydra/overrides.yaml", "metrics.csv", FAILURE)
    found = set()
    for place, *_ in os.walk(folder):  # which passes over what vanishes meanwhile
        if any(Path(place, mark).is_file() for mark in marks):
            found.add(Path(place))
    inside = [run for run in found if not any(parent in found for parent in run.parents)]
    return sorted(inside, key=lambda run: _natural(str(run.relative_to(folder))))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_run(
    folder: Path, root: Path, is_running: Callable[[Path], bool] = lambda folder: False
) -> RunRecord:
    """Return all that the files in ``folder`` tell of a run.

    Args:
        folder: The run folder.
        root: Folder of the sweep, below which it is named.
        is_running: Says whether a process trains the run in a folder.
    """
    failure = read_json(folder / FAILURE)
    words = _list(read_yaml(folder / ".hydra" / "overrides.yaml")) or _list(failure.get("overrides"))
    config, source = read_yaml(folder / "config.yaml"), read_yaml(folder / ".hydra" / "config.yaml")
    run = RunRecord(
        folder=folder,
        name=str(folder.relative_to(root)) if folder != root else folder.name,
        state="waiting",
        overrides=dict(split(str(word)) for word in words),
        config=config if isinstance(config, dict) else {},
        source=source if isinstance(source, dict) else {},
    )
    trainer = run.config.get("trainer")
    epochs = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    run.max_epochs = epochs if isinstance(epochs, int) and epochs > 0 else None
    rows = read_rows(folder / "metrics.csv")
    run.curves = curves(rows)
    run.epochs_done = _epochs_done(rows)
    run.metrics = {
        name: points[-1][1]
        for name, points in run.curves.items()
        if name.startswith(("val/", "test/", "perf/"))
    }
    report, run.references = read_report(folder / "report.json")
    run.metrics |= report
    for file in sorted(folder.glob("evaluation/*/metrics.json")):
        run.metrics |= _evaluated(read_json(file), file.parent.name)
    run.metrics = {name: value for name, value in run.metrics.items() if math.isfinite(value)}
    run.state, run.reason = _state(run, failure, is_running(folder))
    return run


def split(word: str) -> tuple[str, str]:
    """Return key and value of an override, without its plus signs and quotes; ``~key`` has no value.

    >>> split("++loss.lambda_l1=10"), split("~callbacks.gallery")
    (('loss.lambda_l1', '10'), ('callbacks.gallery', ''))
    """
    key, _, value = word.partition("=")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return key.lstrip("+~"), value


# ------------------------------------------------------------------------------------------------- files


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one where there is none, or half of one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_yaml(path: Path) -> Any:
    """Return what a file holds; None where it is missing or cannot be read."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a CSV file; a last line without its end is being written and left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [row for row in reader if None not in row and None not in row.values()]


def curves(rows: list[dict[str, str]]) -> dict[str, Curve]:
    """Return each column as points over epochs, without those that are not finite.

    A validation is placed at the end of its epoch; a batch where it lies among those of its epoch, as far as
    the rows tell.
    """
    steps = [_number(row.get("step", "")) for row in rows]
    epochs = [_number(row.get("epoch", "")) for row in rows]
    begin: dict[float, float] = {}
    for step, epoch in zip(steps, epochs, strict=True):
        begin.setdefault(epoch, step)
    ordered = sorted((epoch, step) for epoch, step in begin.items() if math.isfinite(epoch + step))
    lengths = [
        (later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in itertools.pairwise(ordered)
    ]
    last_step = max((step for step in steps if math.isfinite(step)), default=0.0)
    length = lengths[len(lengths) // 2] if lengths else last_step + 1
    found: dict[str, dict[float, float]] = {}
    for row, step, epoch in zip(rows, steps, epochs, strict=True):
        for name, text in row.items():
            value = _number(text) if name not in ("step", "epoch") else math.nan
            if not math.isfinite(value):
                continue
            x = epoch + 1 if name.startswith(("val/", "test/")) else (step + 1) / max(length, 1.0)
            if math.isfinite(x):
                found.setdefault(name, {})[x] = value  # what a resumed run wrote again counts
    return {name: sorted(points.items()) for name, points in found.items()}


def _epochs_done(rows: list[dict[str, str]]) -> int:
    validated = [row for row in rows if any(name.startswith("val/") and value for name, value in row.items())]
    epochs = [_number(row.get("epoch", "")) for row in validated or rows[:-1]]
    return int(max((epoch for epoch in epochs if math.isfinite(epoch)), default=-1)) + 1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_report(path: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the figures of a ``report.json``, and those of its other rows by their names.

    ``judge: {outputs: {iou: 0.7}, real: {iou: 0.9}}`` becomes ``judge_iou`` of the run and of ``real``;
    ``sharpness: {outputs: 0.8}`` keeps its name; groups with a number for each class or parameter are left to
    the run's own page.
    """
    own: dict[str, float] = {}
    references: dict[str, dict[str, float]] = {}
    for group, value in read_json(path).items():
        if _is_number(value):
            own["judge_iou_ratio" if group == "iou_ratio" else group] = float(value)
        if not isinstance(value, dict) or LONG_GROUPS.fullmatch(group):
            continue
        if not any(row in value for row in SHOWN_ROWS):
            own |= {f"{group}_{name}": float(x) for name, x in value.items() if _is_number(x)}
            continue
        for row, figures in value.items():
            named = dict(_named(group, figures))
            if row in SHOWN_ROWS:
                own |= named
            elif named:
                references.setdefault(row, {}).update(named)
    return own, references


def _named(group: str, figures: Any) -> Iterator[tuple[str, float]]:
    if _is_number(figures):
        yield group, float(figures)
    elif isinstance(figures, Mapping):
        for name, value in figures.items():
            if _is_number(value) and name != "of_minus_1_to_1":
                plain = name == "of_255" or name.endswith("_probability")
                yield (group if name == "of_255" else name) if plain else f"{group}_{name}", float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _evaluated(report: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return the figures of an ``i2i-evaluate``, as ``test_last/psnr``; of one that went both ways, both."""
    found: dict[str, float] = {}
    directions = report.get("directions")
    parts: dict[str, Any] = directions if isinstance(directions, dict) else {}
    for direction, part in parts.items():
        suffix = f"_{direction}" if len(parts) > 1 else ""
        figures = part.get("figures") if isinstance(part, dict) else None
        outputs = figures.get("outputs") if isinstance(figures, dict) else None
        for metric, value in (outputs if isinstance(outputs, dict) else {}).items():
            mean: Any = value.get("mean") if isinstance(value, dict) else value
            if _is_number(mean):
                found[f"{name}/{metric}{suffix}"] = float(mean)
    return found


# ------------------------------------------------------------------------------------------------- state


def _state(run: RunRecord, failure: Mapping[str, Any], is_running: bool) -> tuple[str, str]:
    """Return how far a run is, and why it went no further."""
    page, said = page_state(run.folder / "index.html")
    if is_running:
        return "running", ""
    if failure:
        return "failed", str(failure.get("error", "")).strip().partition("\n")[0]
    early = said.startswith("early")  # by a signal, or by a time limit
    if (run.folder / "finished.json").is_file() or (page == "finished" and not early):
        return "finished", ""
    if page == "finished":
        return "stopped", said
    if page == "stopped":
        by_signal = not said or said.startswith(("interrupted", "stopped by"))
        return ("stopped" if by_signal else "failed"), said
    if run.max_epochs is not None and run.epochs_done >= run.max_epochs:
        return "finished", ""
    if not run.curves and not page:
        return "waiting", ""
    # It began, its lock is free, and it never said that it ended.
    return ("stopped", "killed") if (run.folder / ".lock").is_file() else ("running", "")


def page_state(path: Path) -> tuple[str, str]:
    """Return the state that a run's page shows, and the words behind it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(40_000)
    except OSError:
        return "", ""
    match = re.search(r"<p class='state (\w+)'>(.*?)</p>", text)
    if match is None:
        return "", ""
    label = unescape(match[2])
    return match[1], label.partition(": ")[2]
