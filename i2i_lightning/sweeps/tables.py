"""A sweep as tables: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from i2i_lightning.sweeps.directions import base_name
from i2i_lightning.sweeps.variants import Sweep, Variant, count_states, shown
from i2i_lightning.sweeps.words import REFERENCES, digits, figure, head

ASIDE = (
    "judge_iou_ratio",
    "judge_parameter_error",
    "judge_attribute_error",
    "judge_pixel_accuracy",
    "images_per_s",
)
"""Figures that say what others beside them say, too: in the CSV files alone, unless there is nothing else."""
MAX_COLUMNS = 9


def main_metrics(sweep: Sweep) -> list[str]:
    """Return the figures for a table that people read: the telling ones, each measured at one place.

    Where every variant has a figure on held-out images, that on the validation images is left out.
    """
    chosen: list[str] = []
    for metric in sweep.metrics:
        base = base_name(metric)
        known = [other for other in chosen if base_name(other) == base and _way(other) == _way(metric)]
        everywhere = all(any(name in v.values for name in known) for v in sweep.variants if v.values)
        if base in ASIDE or (known and everywhere):
            continue
        chosen.append(metric)
    if sweep.ranked_by is not None:
        chosen = [sweep.ranked_by, *(metric for metric in chosen if metric != sweep.ranked_by)]
    return (chosen or sweep.metrics)[:MAX_COLUMNS]


def _way(metric: str) -> str:
    return metric[-3:] if metric.endswith(("_ab", "_ba")) else ""


def variants_csv(sweep: Sweep) -> str:
    """Return a row for each variant, best first: settings, and mean and deviation of every figure."""
    columns = ["rank", "label", *sweep.keys, "runs", "seeds", "state"]
    columns += [name for metric in sweep.metrics for name in (metric, f"{metric}_std")]
    rows = []
    for variant in sweep.variants:
        row: list[object] = [variant.rank or "", variant.label]
        row += [variant.settings[key] for key in sweep.keys]
        row += [len(variant.runs), variant.seeds, variant.state]
        for metric in sweep.metrics:
            row += [_cell(variant.mean(metric)), _cell(variant.deviation(metric))]
        rows.append(row)
    return _csv(columns, rows)


def runs_csv(sweep: Sweep) -> str:
    """Return a row for each run, in the order of the sweep, with all its figures."""
    metrics = sorted({name for run in sweep.runs for name in run.metrics})
    of = {id(run): variant for variant in sweep.variants for run in variant.runs}
    columns = ["run", "label", "seed", *sweep.keys, "state", "reason", "epochs", *metrics]
    rows = [
        [
            run.name,
            of[id(run)].label,
            run.seed,
            *(of[id(run)].settings[key] for key in sweep.keys),
            run.state,
            run.reason,
            run.epochs_done,
            *(_cell(run.metrics.get(name)) for name in metrics),
        ]
        for run in sweep.runs
    ]
    return _csv(columns, rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}"


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def markdown(sweep: Sweep) -> str:
    """Return the variants, best first, and the runs that did not finish."""
    lines = [f"# {title(sweep)}", "", summary(sweep), "", variants_table(sweep)]
    troubled = [run for run in sweep.runs if run.state != "finished"]
    if troubled:
        lines += ["", "## Runs that did not finish", ""]
        for run in troubled:
            epochs = f"epoch {run.epochs_done}{f' of {run.max_epochs}' if run.max_epochs else ''}"
            lines.append(f"- `{run.name}`: {run.state}, {epochs}{f': {run.reason}' if run.reason else ''}")
    return "\n".join(lines) + "\n"


def title(sweep: Sweep) -> str:
    """Return what to call a sweep: the name of its runs, and its folder."""
    names = {str(run.config.get("name")) for run in sweep.runs if run.config.get("name")}
    folder = sweep.folder.resolve().name
    return f"{next(iter(names))}: {folder}" if len(names) == 1 and folder not in names else folder


def summary(sweep: Sweep) -> str:
    """Return how far a sweep is, in a sentence or two."""
    states = ", ".join(f"{count} {state}" for state, count in count_states(sweep.runs).items())
    text = f"{_counted(len(sweep.variants), 'variant')}, {_counted(len(sweep.runs), 'run')}: {states}."
    if sweep.ranked_by is not None:
        text += f" Best first by {head(sweep.ranked_by)}."
    if any(len(variant.runs) > 1 for variant in sweep.variants):
        text += " Mean ± sample deviation over seeds."
    return text


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def variants_table(sweep: Sweep) -> str:
    """Return the table of the variants in Markdown, its columns aligned, with references below."""
    metrics = main_metrics(sweep)
    decimals = {metric: decimals_of(sweep, metric) for metric in metrics}
    keys = sweep.keys if len(sweep.keys) > 1 else []
    rows = [["", "label" if keys else "variant", *keys, "seeds", *(head(metric) for metric in metrics)]]
    for variant in sweep.variants:
        figures = [figure(variant.mean(m), variant.deviation(m), decimals[m]) for m in metrics]
        best = [
            f"**{text}**" if is_best(sweep, variant, metric) else text
            for metric, text in zip(metrics, figures, strict=True)
        ]
        name = variant.label + ("" if variant.state == "finished" else f" ({variant.state})")
        settings = [shown(variant.settings[key]) for key in keys]
        rows.append([str(variant.rank or "–"), name, *settings, variant.seeds, *best])
    for row, found in sweep.references.items():
        figures = [figure(found.get(metric), None, decimals[metric]) for metric in metrics]
        if any(text != "–" for text in figures):
            name = REFERENCES.get(row, row.replace("_", " "))
            rows.append(["", f"*{name}*", *("" for _ in keys), "", *figures])
    text = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in text)) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in text]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def decimals_of(sweep: Sweep, metric: str) -> int:
    """Return the decimals of a column."""
    means = [variant.mean(metric) for variant in sweep.variants]
    compared = [found[metric] for found in sweep.references.values() if metric in found]
    return digits([mean for mean in [*means, *compared] if mean is not None])


def is_best(sweep: Sweep, variant: Variant, metric: str) -> bool:
    """Return whether a variant has the best mean of a figure, of several that have finished.

    What reads as the best, with the digits of its column, counts as the best.
    """
    rivals = [v for v in sweep.variants if not v.partial and v.mean(metric) is not None]
    mean, best = variant.mean(metric), sweep.best(metric)
    if len(rivals) < 2 or variant.partial or mean is None or best is None:
        return False
    decimals = decimals_of(sweep, metric)
    return f"{mean:.{decimals}f}" == f"{best:.{decimals}f}"
