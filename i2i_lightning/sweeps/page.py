"""A sweep as one HTML page that loads nothing: table, ends, the same inputs side by side, curves, runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from i2i_lightning import __version__, callbacks
from i2i_lightning.callbacks.drawing import data_uri, html_page, number
from i2i_lightning.sweeps import charts, strips, tables
from i2i_lightning.sweeps.charts import REST, Line, Mark
from i2i_lightning.sweeps.directions import base_name, better
from i2i_lightning.sweeps.runs import RunRecord
from i2i_lightning.sweeps.variants import Sweep, Variant, count_states, shown
from i2i_lightning.sweeps.words import MEANINGS, REFERENCES, head, name_of

STYLES = (Path(callbacks.__file__).with_name("gallery.css"), Path(__file__).with_name("page.css"))
IN_FOCUS = 8
"""Variants with a colour of their own: the best ones, where there are more."""
MAX_ROWS = 6
PICTURE_PX = 192
ENDS = 24
"""Variants at most in a chart of ends."""
DRIFT, BLUR = "judge_iou", "sharpness"


def page(sweep: Sweep, beside: Path) -> str:
    """Return the page.

    Args:
        sweep: What to show.
        beside: The folder that the page will lie in, from which it refers to the pages of the runs.
    """
    colours = _colours(sweep)
    sections = [
        _header(sweep),
        _table(sweep, colours),
        _ends(sweep, colours),
        _pictures(sweep, colours),
        _study(sweep, colours),
        _curves(sweep, colours),
        _runs(sweep, colours, beside),
        f"<footer>i2i_lightning {escape(__version__)}</footer>",
    ]
    style = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    return html_page(tables.title(sweep), style, sections)


def _colours(sweep: Sweep) -> dict[str, str]:
    """Return the class of each variant, by its place in the sweep: it stays as ranks change."""
    if len(sweep.variants) <= IN_FOCUS:
        return {variant.label: f"c{variant.number}" for variant in sweep.variants}
    best = sorted(sweep.variants[:IN_FOCUS], key=lambda variant: variant.number)
    own = {variant.label: f"c{index}" for index, variant in enumerate(best)}
    return {variant.label: own.get(variant.label, REST) for variant in sweep.variants}


def _in_focus(sweep: Sweep, colours: dict[str, str]) -> list[Variant]:
    return [variant for variant in sweep.in_order if colours[variant.label] != REST]


def _swatch(colour: str) -> str:
    return f"<i class='swatch {colour}'></i>"


def _header(sweep: Sweep) -> str:
    states = count_states(sweep.runs)
    over = sum(states.get(state, 0) for state in ("finished", "pruned", "failed"))
    total = max(len(sweep.runs), sweep.planned or 0)
    goes_on = states.get("running") or states.get("waiting") or over + states.get("stopped", 0) < total
    troubled = states.get("failed") or states.get("stopped")
    state = "running" if goes_on else "stopped" if troubled else "finished"
    words = ", ".join(f"{count} {name}" for name, count in states.items())
    count = len(sweep.variants)
    cards = [(str(count), "variant" if count == 1 else "variants"), (f"{over}/{total}", "runs ended")]
    seeds = _range([len(variant.runs) for variant in sweep.variants])
    cards.append((seeds, "seed each" if seeds == "1" else "seeds each"))
    epochs = _range([run.max_epochs for run in sweep.runs if run.max_epochs])
    if epochs:
        cards.append((epochs, "epoch" if epochs == "1" else "epochs"))
    if sweep.ranked_by is not None and sweep.variants[0].mean(sweep.ranked_by) is not None:
        mean = sweep.variants[0].mean(sweep.ranked_by)
        assert mean is not None
        cards.insert(0, (number(mean), f"best {name_of(sweep.ranked_by)}: {sweep.variants[0].label}"))
    inside = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in cards)
    return (
        f"<header><div class='head'><h1>{escape(tables.title(sweep))}</h1>"
        f"<p class='state {state}'>{escape(words)}</p></div>"
        f"<p class='sub'>{escape(', '.join(sweep.keys) or 'one setting')}</p>"
        f"<div class='done {state}'><i style='width:{100 * over / max(total, 1):.1f}%'></i></div>"
        f"<div class='cards'>{inside}</div></header>"
    )


def _range(counts: Sequence[int]) -> str:
    """Write counts as ``2``, or ``1 to 3`` where they differ."""
    return " to ".join(map(str, dict.fromkeys((min(counts), max(counts))))) if counts else ""


# ----------------------------------------------------------------------------------------------- the table


def _table(sweep: Sweep, colours: dict[str, str]) -> str:
    metrics = tables.main_metrics(sweep)
    keys = sweep.keys if len(sweep.keys) > 1 else []
    decimals = {metric: tables.decimals_of(sweep, metric) for metric in metrics}
    several = any(len(variant.runs) > 1 for variant in sweep.variants)
    heads = "".join(f"<th>{escape(key)}</th>" for key in keys) + ("<th>seeds</th>" if several else "")
    heads += "".join(f"<th title='{escape(metric)}'>{escape(head(metric))}</th>" for metric in metrics)
    rows = []
    for variant in sweep.variants:
        cells = "".join(f"<td>{escape(shown(variant.settings[key]))}</td>" for key in keys)
        cells += f"<td>{escape(variant.seeds)}</td>" if several else ""
        for metric in metrics:
            mean, deviation = variant.mean(metric), variant.deviation(metric)
            text = "–" if mean is None else f"{mean:.{decimals[metric]}f}"
            text += "" if deviation is None else f"<small> ± {deviation:.{decimals[metric]}f}</small>"
            best = " class='best'" if tables.is_best(sweep, variant, metric) else ""
            cells += f"<td{best}>{text}</td>"
        state = f" <em class='{_worst(variant)}'>{escape(variant.state)}</em>"
        state = "" if variant.state == "finished" else state
        rows.append(
            f"<tr><td>{variant.rank or '–'}</td><th>{_swatch(colours[variant.label])}"
            f"{escape(variant.label)}{state}</th>{cells}</tr>"
        )
    blank = "<td></td>" * (len(keys) + several)
    for row, found in sweep.references.items():
        known = [found.get(metric) for metric in metrics]
        if any(value is not None for value in known):
            cells = "".join(
                f"<td>{'' if value is None else f'{value:.{decimals[metric]}f}'}</td>"
                for metric, value in zip(metrics, known, strict=True)
            )
            name = REFERENCES.get(row, row.replace("_", " "))
            rows.append(f"<tr class='reference'><td></td><th>{escape(name)}</th>{blank}{cells}</tr>")
    meanings = "".join(
        f"<li><b>{escape(name_of(base))}</b> {escape(MEANINGS[base])}</li>"
        for base in dict.fromkeys(map(base_name, metrics))
        if base in MEANINGS
    )
    note = "mean ± sample deviation over seeds" if several else "one seed each: differences may be chance"
    by = f", by {name_of(sweep.ranked_by)}" if sweep.ranked_by else ""
    return (
        f"<section><h2>Best first{escape(by)} <small>{note}; the best of a column is bold</small></h2>"
        "<div class='scroll'><table class='variants'>"
        f"<thead><tr><th></th><th>{'label' if keys else 'variant'}</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + (f"<ul class='meanings'>{meanings}</ul>" if meanings else "")
        + "</section>"
    )


def _worst(variant: Variant) -> str:
    states = {run.state for run in variant.runs}
    bad_to_good = ("failed", "stopped", "pruned", "running", "waiting")
    return next((state for state in bad_to_good if state in states), "")


# -------------------------------------------------------------------------------------------------- charts


def _marks(variants: Sequence[Variant], metric: str, colours: dict[str, str]) -> list[Mark]:
    marks = []
    for variant in variants:
        mean = variant.mean(metric)
        if mean is not None:
            deviation = variant.deviation(metric)
            marks.append(Mark(variant.label, colours[variant.label], mean, deviation, variant.values[metric]))
    return marks


def _ends(sweep: Sweep, colours: dict[str, str]) -> str:
    if len(sweep.variants) < 2:
        return ""
    metrics = tables.main_metrics(sweep)
    drawn = []
    drift, blur = (next((m for m in metrics if base_name(m) == base), None) for base in (DRIFT, BLUR))
    if drift is not None and blur is not None:
        both = [v for v in _in_focus(sweep, colours) if drift in v.values and blur in v.values]
        real = sweep.references.get("real", {}).get(drift)
        goal = None if real is None else ("real pictures", real, 1.0)
        title = (
            f"Drift and blur. To the right: {name_of(drift)}, the structure kept. Upwards: {name_of(blur)}, "
            "1 as the targets', less is blurred, more is noisy."
        )
        across, up = ((name_of(figure), _marks(both, figure, colours)) for figure in (drift, blur))
        drawn.append(charts.plane_chart(title, across, up, goal))
    for metric in metrics:
        references = [
            (REFERENCES.get(row, row.replace("_", " ")), found[metric])
            for row, found in sweep.references.items()
            if metric in found and row == "real"
        ]
        target = 1.0 if better(metric) == "near 1" else None
        marks = _marks(sweep.variants[:ENDS], metric, colours)
        drawn.append(charts.end_chart(head(metric), marks, references, target))
    inside = "".join(figure for figure in drawn if figure)
    return (
        "<section><h2>Where they end <small>dots: means; small dots: seeds; bars: deviations</small></h2>"
        f"<div class='charts'>{inside}</div></section>"
        if inside
        else ""
    )


def _curves(sweep: Sweep, colours: dict[str, str]) -> str:
    names = list(dict.fromkeys(name for run in sweep.runs for name in run.curves))
    validated = [name for name in names if name.startswith(("val/", "test/"))]
    trained = sorted(name for name in names if name.startswith("train/"))
    main = [_chart(sweep, colours, name) for name in validated]
    terms = [_chart(sweep, colours, name) for name in trained]
    if not any(main) and not any(terms):
        return ""
    legend = "".join(
        f"<span>{_swatch(colours[variant.label])}{escape(variant.label)}</span>"
        for variant in _in_focus(sweep, colours)
    )
    others = len(sweep.variants) - len(_in_focus(sweep, colours))
    legend += f"<span>{_swatch(REST)}{others} others</span>" if others else ""
    several = any(len(variant.runs) > 1 for variant in sweep.variants)
    note = "means over seeds, each seed faintly behind" if several else "by epoch"
    folded = ""
    if any(terms):
        inside = f"<div class='charts inside'>{''.join(terms)}</div>"
        folded = f"<details><summary>Terms of the training</summary>{inside}</details>"
    return (
        f"<section><h2>Curves <small>{note}</small></h2><p class='legend'>{legend}</p>"
        f"<div class='charts'>{''.join(main)}</div>{folded}</section>"
    )


def _chart(sweep: Sweep, colours: dict[str, str], name: str) -> str:
    lines: list[Line] = []
    focus = _in_focus(sweep, colours)
    for variant in [*focus, *(v for v in sweep.in_order if colours[v.label] == REST)]:
        curves = [run.curves[name] for run in variant.runs if run.curves.get(name)]
        if not curves:
            continue
        colour = colours[variant.label]
        lines.append(Line(variant.label, colour, charts.thin(_mean_curve(curves))))
        if len(curves) > 1:
            lines += [Line(variant.label, colour, curve, faint=True) for curve in curves]
    lines.sort(key=lambda line: line.faint)
    level = 1.0 if better(name) == "near 1" else None
    measured = name.startswith(("val/", "test/"))
    title = head(name) if measured else name.removeprefix("train/").replace("_", " ")
    return charts.line_chart(title, lines, level)


def _mean_curve(curves: Sequence[charts.Points]) -> list[tuple[float, float]]:
    """Return the mean over curves, at the points that all of them have reached."""
    length = min(len(curve) for curve in curves)
    rows = zip(*(curve[:length] for curve in curves), strict=True)
    return [
        (statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)) for points in rows
    ]


def _study(sweep: Sweep, colours: dict[str, str]) -> str:
    """Draw a study's trials: their values one after the other, and against each number that was varied."""
    trials = [t for t in sweep.study.get("trials", []) if isinstance(t, dict) and t.get("value") is not None]
    if not trials:
        return ""
    of_run = {run.name: variant.label for variant in sweep.variants for run in variant.runs}
    monitor = str(sweep.study.get("monitor"))
    down = sweep.study.get("direction") == "minimize"

    def colour(trial: dict[str, object]) -> str:
        return colours.get(of_run.get(str(trial["number"]), ""), REST)

    ordered = [(float(t["number"]), float(t["value"]), colour(t), f"trial {t['number']}") for t in trials]
    best: list[tuple[float, float]] = []
    for x, y, *_ in ordered:
        level = y if not best else (min if down else max)(best[-1][1], y)
        best.append((x, level))
    line = Line("best so far", "c0", best)
    drawn = [charts.line_chart(f"best {name_of(monitor)} so far", [line], across="trial")]
    drawn.append(charts.scatter_chart(f"{head(monitor)} by trial", ordered))
    for key in dict.fromkeys(key for t in trials for key in t.get("params", {})):
        points = []
        for t, (_, value, name_colour, name) in zip(trials, ordered, strict=True):
            x = t["params"].get(key)
            if isinstance(x, (int, float)) and not isinstance(x, bool):
                points.append((float(x), value, name_colour, name))
        places = [x for x, *_ in points]
        log = bool(places) and min(places) > 0 and max(places) / min(places) > 20
        drawn.append(charts.scatter_chart(f"{head(monitor)} by {key}", points, log))
    return (
        "<section><h2>Study <small>finished trials; the colours are those of the best</small></h2>"
        f"<div class='charts'>{''.join(drawn)}</div></section>"
    )


# ------------------------------------------------------------------------------------------------ pictures


def _pictures(sweep: Sweep, colours: dict[str, str]) -> str:
    variants = _in_focus(sweep, colours)
    found = [strips.previewed_run(variant.runs) for variant in variants]
    made = strips.strips([preview for _, preview in found], MAX_ROWS)
    if not made:
        return ""
    epochs = {preview.epoch for _, preview in found if preview is not None}
    several = any(len(variant.runs) > 1 for variant in sweep.variants)
    blocks = []
    for strip in made:
        heads = [f"<th>{escape(strip.source)}</th><th></th>"] if strip.source else []
        caption = f"<caption>{escape(strip.title)}</caption>" if len(made) > 1 else ""
        for variant, (run, preview) in zip(variants, found, strict=True):
            under = []
            if run is not None and several:
                under.append(f"seed {run.seed}")
            if preview is not None and len(epochs) > 1:
                under.append(f"epoch {preview.epoch}")
            small = f"<small>{escape(', '.join(under))}</small>" if under else ""
            heads.append(f"<th>{_swatch(colours[variant.label])}{escape(variant.label)}{small}</th>")
        heads.append(f"<th></th><th>{escape(strip.truth)}</th>" if strip.truth else "")
        rows = []
        for index, name in enumerate(strip.names):
            cells = [_cell(strip.sources[index]), "<td class='gap'></td>"] if strip.source else []
            cells += [_cell(outputs[index]) for outputs in strip.outputs]
            cells += ["<td class='gap'></td>", _cell(strip.truths[index])] if strip.truth else []
            rows.append(f"<tr title='{escape(name)}'>{''.join(cells)}</tr>")
        inside = f"<tr>{''.join(heads)}</tr>{''.join(rows)}"
        blocks.append(f"<div class='scroll'><table class='film strip'>{caption}{inside}</table></div>")
    when = f"after epoch {next(iter(epochs))}" if len(epochs) == 1 else "as far as each run is"
    return (
        f"<section><h2>The same inputs <small>held out, {when}; not chosen</small></h2>"
        f"{''.join(blocks)}</section>"
    )


def _cell(picture: object) -> str:
    from PIL import Image

    if not isinstance(picture, Image.Image):
        return "<td class='none'>–</td>"
    pixels = " class='pixels'" if picture.width < 128 else ""
    return f"<td><img{pixels} src='{data_uri(picture, PICTURE_PX)}' alt=''></td>"


# ---------------------------------------------------------------------------------------------------- runs


def _runs(sweep: Sweep, colours: dict[str, str], beside: Path) -> str:
    of = {id(run): variant for variant in sweep.variants for run in variant.runs}
    metric = sweep.ranked_by
    figures = f"<th>{escape(head(metric))}</th>" if metric else ""
    rows = []
    for run in sweep.runs:
        variant = of[id(run)]
        epochs = f"{run.epochs_done}{f' of {run.max_epochs}' if run.max_epochs else ''}"
        value = run.metrics.get(metric) if metric else None
        cell = f"<td>{'–' if value is None else number(value)}</td>" if metric else ""
        rows.append(
            f"<tr><th>{_link(run, beside)}</th>"
            f"<td>{_swatch(colours[variant.label])}{escape(variant.label)}</td><td>{escape(run.seed)}</td>"
            f"<td><em class='{run.state}'>{run.state}</em></td><td>{epochs}</td>{cell}"
            f"<td class='reason'>{escape(run.reason)}</td></tr>"
        )
    return (
        "<section><h2>Runs <small>in the order of the sweep; each leads to its own page</small></h2>"
        "<div class='scroll'><table class='variants runs'>"
        "<thead><tr><th>run</th><th>variant</th><th>seed</th><th>state</th><th>epochs</th>"
        f"{figures}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _link(run: RunRecord, beside: Path) -> str:
    target = run.folder / "index.html"
    if not target.is_file():
        return escape(run.name)
    inside, around = target.resolve(), beside.resolve()
    address = inside.relative_to(around).as_posix() if inside.is_relative_to(around) else inside.as_uri()
    address = address if "://" in address else quote(address)
    return f"<a href='{escape(address)}'>{escape(run.name)}</a>"
