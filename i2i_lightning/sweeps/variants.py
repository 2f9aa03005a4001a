"""The runs of a sweep as variants: what differs between them, and how well each does over its seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2i_lightning.sweeps.directions import badness, base_name, better
from i2i_lightning.sweeps.runs import STUDY, RunRecord, find_runs, read_json, read_run
from i2i_lightning.types import UserError

NOT_A_SETTING = ("seed", "debug", "resume", "launcher", "logger", "sweep", "hydra")
"""Keys, and roots of keys, that change nothing about what is trained."""
MAX_UNTYPED = 4
"""Settings at most that nobody typed, to tell variants apart whose overrides are the same."""
NOTHING = "–"

RANKED_BY = (
    "judge_iou",
    "parsing_iou",
    "fid",
    "kid",
    "judge_distance",
    "lpips_vgg",
    "lpips_alex",
    "mean_iou",
    "ms_ssim",
    "ssim",
    "psnr",
    "l1",
)
"""Figures to rank by, the first that there is: what people would call better, before nearness in pixels."""

PLACES = ("", "test", "val")
"""Where a figure may have been measured, the better held out first."""


@dataclass
class Variant:
    """Runs that differ in their seed alone.

    Args:
        label: What to call it, short.
        settings: Its values of the keys in which variants differ.
        runs: Its runs, by seed.
        number: Its place in the order in which the sweep began them.
        values: By figure: the value of each run that counts.
        partial: Whether those runs have not finished yet.
        rank: From 1, the best; None where there is nothing to rank it by.
    """

    label: str
    settings: dict[str, str]
    runs: list[RunRecord]
    number: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    partial: bool = False
    rank: int | None = None

    def mean(self, metric: str) -> float | None:
        """Return a figure's mean over seeds."""
        values = self.values.get(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Return a figure's sample deviation over seeds; None of fewer than two."""
        values = self.values.get(metric, [])
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def seeds(self) -> str:
        """The seeds of its runs."""
        return ", ".join(run.seed for run in self.runs)

    @property
    def state(self) -> str:
        """The states of its runs: ``finished``, or ``1 finished, 1 failed``."""
        counts = count_states(self.runs)
        words = [f"{count} {state}" for state, count in counts.items()]
        return next(iter(counts)) if len(counts) == 1 else ", ".join(words)


@dataclass
class Sweep:
    """All runs below a folder, best first.

    Args:
        folder: The folder.
        runs: In the order of their numbers.
        variants: The best first; those that cannot be ranked last.
        keys: In which variants differ.
        metrics: Figures with a known direction, the most telling first.
        ranked_by: The figure that orders the variants; None where there is none.
        references: By name of the row, what to compare figures with: those of real pictures, say.
        study: What Optuna left, if this is a study.
        planned: Runs that there are to be; None where nobody said.
    """

    folder: Path
    runs: list[RunRecord]
    variants: list[Variant]
    keys: list[str]
    metrics: list[str]
    ranked_by: str | None
    references: dict[str, dict[str, float]]
    study: dict[str, Any]
    planned: int | None = None

    @property
    def in_order(self) -> list[Variant]:
        """The variants in the order in which the sweep began them."""
        return sorted(self.variants, key=lambda variant: variant.number)

    def best(self, metric: str) -> float | None:
        """Return the best mean of a figure among the variants that have finished."""
        means = [v.mean(metric) for v in self.variants if not v.partial]
        known = [mean for mean in means if mean is not None]
        if better(metric) is None:  # a study's own figure, by which they are ranked
            return next((v.mean(metric) for v in self.variants if not v.partial), None)
        return min(known, key=lambda mean: badness(metric, mean)) if known else None


def read_sweep(
    folder: Path,
    ranked_by: str | None = None,
    is_running: Callable[[Path], bool] = lambda folder: False,
    planned: int | None = None,
) -> Sweep:
    """Read all runs below ``folder``: of a sweep, a job array, a study, or none of these.

    Args:
        folder: A folder with run folders below it.
        ranked_by: Figure to rank by; None takes a study's own, else the first of :data:`RANKED_BY`.
        is_running: Says whether a process trains the run in a folder.
        planned: Runs that there are to be; a study says so itself.

    Raises:
        UserError: If there are no runs, or no run has the figure to rank by.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    runs = [read_run(path, folder, is_running) for path in find_runs(folder)]
    if not runs:
        raise UserError(f"{folder}: no runs in it; a run folder holds .hydra/overrides.yaml or metrics.csv")
    study = read_json(folder / STUDY)
    _take_states(runs, study)
    keys, groups = group(runs)
    variants = [
        Variant("", settings, sorted(members, key=lambda run: natural_seed(run.seed)), number)
        for number, (settings, members) in enumerate(groups)
    ]
    for variant, label in zip(variants, labels(variants), strict=True):
        # The values of a trial are numbers that nobody chose: they fill columns, not a name.
        variant.label = f"trial {', '.join(run.name for run in variant.runs)}" if study else label
        variant.values, variant.partial = _values(variant.runs)
    metrics = _metrics(variants)
    wanted = ranked_by or study.get("monitor")
    way = {"minimize": "lower", "maximize": "higher"}.get(str(study.get("direction")))
    if ranked_by is not None and ranked_by not in metrics:
        known = ", ".join(metrics) or "none"
        raise UserError(f"--by {ranked_by}: no run has this figure with a direction; there is: {known}")
    if wanted is not None and better(wanted) is None and any(v.values.get(wanted) for v in variants):
        metrics.insert(0, wanted)  # of a study, which says itself which way is better
    chain = _chain(metrics, wanted)
    _rank(variants, chain, way)
    # A variant that is not done yet goes by the figure that all have so far, behind those that are.
    variants.sort(key=lambda v: (v.rank is None, v.rank or 0, v.number))
    references: dict[str, dict[str, float]] = {}
    for run in runs:
        for row, figures in run.references.items():
            references[row] = {**figures, **references.get(row, {})}
    first = chain[0] if chain else None
    total = study.get("trials_wanted", planned)
    return Sweep(folder, runs, variants, keys, metrics, first, references, study, total)


def count_states(runs: Iterable[RunRecord]) -> dict[str, int]:
    """Return how many runs are in each state, in the order of :data:`~i2i_lightning.sweeps.runs.STATES`."""
    from i2i_lightning.sweeps.runs import STATES

    states = [run.state for run in runs]
    return {state: states.count(state) for state in STATES if state in states}


def _take_states(runs: Sequence[RunRecord], study: Mapping[str, Any]) -> None:
    """Take from a study what a run's folder does not tell: that it was pruned, or that its trial failed."""
    trials = {str(t.get("number")): t for t in study.get("trials", []) if isinstance(t, dict)}
    for run in runs:
        trial = trials.get(run.name, {})
        if trial.get("state") == "pruned":
            run.state, run.reason = "pruned", f"after epoch {run.epochs_done}" if run.epochs_done else ""
        elif trial.get("state") == "fail" and run.state not in ("running", "failed"):
            reason = str(trial.get("reason") or "")
            if reason:
                run.state, run.reason = "failed", reason


# --------------------------------------------------------------------------------------------- variants


def is_setting(key: str) -> bool:
    """Return whether a key says what is trained, not which seed or how it is started."""
    return key.partition(".")[0].partition("/")[0].partition("@")[0] not in NOT_A_SETTING


def group(runs: Sequence[RunRecord]) -> tuple[list[str], list[tuple[dict[str, str], list[RunRecord]]]]:
    """Sort runs into variants.

    Runs belong together if their overrides are the same but for the seed, and so are their configs, which may
    have been edited in between.

    Returns:
        The keys in which variants differ, and for each variant, in the order of its first run: its values of
        these keys, and its runs.
    """
    typed = list(dict.fromkeys(key for run in runs for key in run.overrides if is_setting(key)))
    keys = [key for key in typed if len({_value(run, key) for run in runs}) > 1]
    flat = [_flat({k: v for k, v in run.source.items() if is_setting(str(k))}) for run in runs]
    prints = [json.dumps(config, sort_keys=True, default=str) if config else "" for config in flat]
    groups: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for index, run in enumerate(runs):
        same_words = groups.setdefault(tuple(_value(run, key) for key in keys), {})
        same_words.setdefault(prints[index], []).append(index)
    untyped: list[str] = []
    for by_print in groups.values():
        # A run that failed before it wrote its config belongs to those of the same words.
        if "" in by_print and len(by_print) > 1:
            next(members for text, members in by_print.items() if text).extend(by_print.pop(""))
        firsts = [flat[members[0]] for members in by_print.values()]
        names = sorted({name for config in firsts for name in config})
        untyped += [name for name in names if len({str(config.get(name)) for config in firsts}) > 1]
    shown = [key for key in dict.fromkeys(untyped) if key not in keys][:MAX_UNTYPED]
    found = [
        (
            dict(zip(keys, values, strict=True))
            | {key: str(flat[members[0]].get(key, NOTHING)) for key in shown},
            sorted(members),
        )
        for values, by_print in groups.items()
        for members in by_print.values()
    ]
    found.sort(key=lambda pair: pair[1][0])
    return [*keys, *shown], [(settings, [runs[i] for i in members]) for settings, members in found]


def _value(run: RunRecord, key: str) -> str:
    """Return the value of a key: as it was typed, else as the config has it."""
    if key in run.overrides:
        return run.overrides[key] if run.overrides[key] else "left out"
    node: Any = run.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if node is None or isinstance(node, (dict, list)):
        return NOTHING
    return str(node).lower() if isinstance(node, bool) else str(node)


def _flat(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def natural_seed(seed: str) -> tuple[float, str]:
    """Sort key of a seed: by its number."""
    try:
        return float(seed), seed
    except ValueError:
        return math.inf, seed


def labels(variants: Sequence[Variant]) -> list[str]:
    """Return a short name for each variant: values, with the last part of their keys where they need it."""
    made = []
    for variant in variants:
        ends = [key.rpartition(".")[2] for key in variant.settings]
        parts = []
        for (key, value), end in zip(variant.settings.items(), ends, strict=True):
            is_option = "." not in key and not _is_number(value) and value != NOTHING
            name = end if ends.count(end) == 1 else key
            parts.append(value if is_option else f"{name} {shown(value)}")
        made.append(" · ".join(parts) or _name_of(variant.runs[0]))
    # Two labels that came out the same are told apart by their runs.
    return [
        label if made.count(label) == 1 else f"{label} ({variant.runs[0].name})"
        for label, variant in zip(made, variants, strict=True)
    ]


def _name_of(run: RunRecord) -> str:
    return str(run.config.get("name") or run.overrides.get("experiment") or "as it is")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def shown(value: str) -> str:
    """Return a value as a person would write it: long fractions with four digits.

    >>> shown("27.385487761399936"), shown("batch"), shown("16")
    ('27.39', 'batch', '16')
    """
    return f"{float(value):.4g}" if len(value) > 6 and _is_number(value) else value


# ---------------------------------------------------------------------------------------------- figures


def _values(runs: Sequence[RunRecord]) -> tuple[dict[str, list[float]], bool]:
    """Return the figures of the runs that finished; of those under way where none has."""
    counted = [run for run in runs if run.state == "finished"]
    partial = not counted
    if partial:
        counted = [run for run in runs if run.state in ("running", "stopped", "pruned")]
    values: dict[str, list[float]] = {}
    for run in counted:
        for name, value in run.metrics.items():
            values.setdefault(name, []).append(value)
    return values, partial


def _metrics(variants: Sequence[Variant]) -> list[str]:
    """Return the figures with a known direction: held out before validated, and by how telling they are."""
    names = {name for variant in variants for name in variant.values if better(name) is not None}
    return sorted(names, key=lambda name: (_place(name), _telling(name), name))


def _place(name: str) -> int:
    where = name.rpartition("/")[0]
    begins = [where == place or (bool(place) and where.startswith(place)) for place in PLACES]
    return begins.index(True) if any(begins) else len(PLACES)


def _telling(name: str) -> int:
    order = (
        "judge_iou",
        "judge_iou_ratio",
        "parsing_iou",
        "judge_landmark_error",
        "photo_probability",
        "cartoon_probability",
        "judge_style",
        "rank_first",
        "sharpness",
        "pixel_error",
        *RANKED_BY,
    )
    base = base_name(name)
    return order.index(base) if base in order else len(order)


def _chain(metrics: Sequence[str], wanted: str | None) -> list[str]:
    """Return the figures to rank by, each for those who lack the ones before."""
    ranked = [name for base in RANKED_BY for name in metrics if base_name(name) == base]
    chain = [wanted, *ranked] if wanted in metrics and wanted is not None else ranked or list(metrics)
    return list(dict.fromkeys(chain))


def _rank(variants: Sequence[Variant], chain: Sequence[str], way: str | None) -> None:
    """Number the variants from the best; ``way`` is that of a figure whose own nobody knows."""
    keyed = []
    for variant in variants:
        for place, name in enumerate(chain):
            mean = variant.mean(name)
            if mean is not None:
                bad = badness(name, mean) if better(name) else mean if way == "lower" else -mean
                keyed.append((place, bad, variant.number, variant))
                break
    keyed.sort(key=lambda item: item[:3])
    for rank, (*_, variant) in enumerate(keyed, start=1):
        variant.rank = rank
