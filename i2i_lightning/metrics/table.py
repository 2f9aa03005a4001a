"""Figures of several rows as a table for the terminal, and those of several seeds as mean and deviation."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from i2i_lightning.metrics.better import BETTER

Figures = Mapping[str, float]

_HEADS = {
    "l1": "L1",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips_alex": "LPIPS alex",
    "lpips_vgg": "LPIPS vgg",
    "fid": "FID",
    "kid": "KID",
    "judge_distance": "judge distance",
    "pixel_accuracy": "pixels",
    "class_accuracy": "classes",
    "mean_iou": "mean IoU",
}
_DIGITS = {"psnr": 2, "fid": 2, "l1": 4, "kid": 4, "judge_distance": 4, "lpips_alex": 4, "lpips_vgg": 4}
_ARROWS = {"lower": " ↓", "higher": " ↑", "near 1": " → 1"}


def mean_and_deviation(seeds: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Return each figure's mean over seeds, and its sample standard deviation where there are several.

    Args:
        seeds: The figures of each seed, the same names in each.

    >>> mean_and_deviation([{"psnr": 20.0}, {"psnr": 22.0}])
    {'psnr': {'mean': 21.0, 'std': 1.4142135623730951}}
    """
    merged = {}
    for name in seeds[0]:
        values = [figures[name] for figures in seeds]
        merged[name] = {"mean": statistics.fmean(values)}
        if len(values) > 1:
            merged[name]["std"] = statistics.stdev(values)
    return merged


def format_table(
    rows: Mapping[str, Figures | Sequence[Figures]],
    better: Mapping[str, str] | None = None,
    width: int | None = None,
) -> str:
    """Return figures as lines for the terminal: a row for each name, a column for each metric.

    The head of a column says by an arrow where better is. Several seeds are shown as mean ± deviation over
    seeds, KID and the judge's distance of one seed as mean ± deviation over its subsets. Columns that do not
    fit follow below.

    Args:
        rows: By name of the row, its figures, or those of each seed; a row need not have every metric.
        better: ``lower``, ``higher`` or ``near 1`` for metrics that the suite does not know.
        width: Columns of the terminal; None asks it.

    >>> print(format_table({"outputs": {"psnr": 21.5, "kid": 0.01, "kid_std": 0.002}}, width=80))
             PSNR dB ↑            KID ↓
    outputs      21.50  0.0100 ± 0.0020
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    known = {**BETTER, **(better or {})}
    seeds = {row: [f] if isinstance(f, Mapping) else list(f) for row, f in rows.items()}
    names = list(dict.fromkeys(name for runs in seeds.values() for figures in runs for name in figures))
    names = [name for name in names if not (name.endswith("_std") and name.removesuffix("_std") in names)]
    side = max(map(len, seeds), default=0)
    columns = []
    for name in names:
        head = _HEADS.get(name, name.replace("_", " ")) + _ARROWS.get(known.get(name, ""), "")
        cells = [_cell(name, runs) for runs in seeds.values()]
        wide = max(map(len, [head, *cells]))
        columns.append([text.rjust(wide) for text in (head, *cells)])
    lines: list[str] = []
    while columns:
        # As many columns as fit, but at least one.
        used, count = side, 0
        while count < len(columns) and (count == 0 or used + 2 + len(columns[count][0]) <= width):
            used += 2 + len(columns[count][0])
            count += 1
        block, columns = columns[:count], columns[count:]
        lines += [""] if lines else []
        for index, row in enumerate(["", *seeds]):
            lines.append("  ".join([row.ljust(side), *(column[index] for column in block)]))
    return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """Return ``value`` without the numbers in its dicts that are not there: JSON has no NaN."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not (isinstance(v, float) and math.isnan(v))}
        return {k: without_nan(v) for k, v in kept.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value


def _cell(name: str, runs: Sequence[Figures]) -> str:
    if not runs or any(math.isnan(figures.get(name, math.nan)) for figures in runs):
        return "–"
    digits = _DIGITS.get(name, 3)
    merged = mean_and_deviation([{name: figures[name]} for figures in runs])[name]
    std = merged.get("std", runs[0].get(f"{name}_std"))
    text = f"{merged['mean']:.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"
