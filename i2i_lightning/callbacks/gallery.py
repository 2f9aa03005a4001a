"""The run's page: ``index.html`` with pictures, curves, numbers and config, in one file on its own."""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer

import i2i_lightning
from i2i_lightning.callbacks.drawing import data_uri, duration, html_page, number, running_mean, ticks
from i2i_lightning.callbacks.health import Health
from i2i_lightning.callbacks.previews import Preview, PreviewGrid, preview
from i2i_lightning.callbacks.readings import Terms, TermSums, batch_size, batch_terms, batches_trained
from i2i_lightning.callbacks.writing import write_if_possible
from i2i_lightning.strategies.signals import Stopped
from i2i_lightning.types import UserError

FILM_FRAMES = 12
FILM_SAMPLES = 4
FILM_PX = 112
PICTURE_PX = 320
MAX_POINTS = 400
DRAWN_POINTS = 200
LONG_TABLE = 8
"""A report's table with more rows is folded away."""
STYLE = Path(__file__).with_name("gallery.css")


class Curve:
    """A curve of at most ``MAX_POINTS`` points, evenly dense, whatever the length of the run.

    When it is full, neighbours are averaged in pairs, and from then on a point is the mean of twice as many
    values.
    """

    def __init__(self, x: Sequence[float] = (), y: Sequence[float] = (), stride: int = 1) -> None:
        self.x, self.y = list(x), list(y)
        self.stride = stride
        self.waiting: list[list[float]] = []

    def add(self, x: float, y: float) -> None:
        """Add a value."""
        self.waiting.append([x, y])
        if len(self.waiting) < self.stride:
            return
        for values, news in zip((self.x, self.y), zip(*self.waiting, strict=True), strict=True):
            values.append(sum(news) / len(news))
        self.waiting = []
        if len(self.x) >= MAX_POINTS:
            self.x, self.y, self.stride = halve(self.x), halve(self.y), 2 * self.stride

    def state_dict(self) -> dict[str, Any]:
        """Return the curve as plain containers."""
        waiting = [pair[:] for pair in self.waiting]
        return {"x": self.x[:], "y": self.y[:], "stride": self.stride, "waiting": waiting}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Curve:
        """Return the curve that ``state_dict`` described."""
        curve = cls(state["x"], state["y"], state["stride"])
        curve.waiting = [list(pair) for pair in state["waiting"]]
        return curve


def halve(values: Sequence[float]) -> list[float]:
    """Return the means of neighbouring pairs; an odd last value stays alone."""
    pairs = [(a + b) / 2 for a, b in zip(values[::2], values[1::2], strict=False)]
    return pairs + list(values[2 * len(pairs) :])


class Gallery(Callback):
    """Write ``index.html`` into the run folder at the end of each epoch, and when the run ends or stops.

    The page holds the status, key numbers, the newest preview, the same samples over the epochs, curves,
    health warnings, the judge's ``report.json`` if there is one, config and environment. It loads nothing
    from anywhere. Its cost does not grow with the run: pictures are a fixed number, curves are thinned, and
    no growing file is read again; the history is kept in memory and in checkpoints. Nothing happens in the
    step but appending to a list.

    Args:
        title: Heading; None takes the name of the folder above the run's.
        monitor: Logged metric whose best value is shown.
        mode: Whether smaller (``min``) or larger (``max``) is better.
        num_samples: Samples in the newest preview, if there is no ``PreviewGrid`` to agree with.
        every_n_epochs: Epochs between two writings; the page is also written at the end of the run.
    """

    def __init__(
        self,
        title: str | None = None,
        monitor: str | None = "val/l1",
        mode: Literal["min", "max"] = "min",
        num_samples: int = 8,
        every_n_epochs: int = 1,
    ) -> None:
        for key, value in (("num_samples", num_samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise UserError(f"callbacks.gallery.{key}={value}: give at least 1")
        if mode not in ("min", "max"):
            raise UserError(f"callbacks.gallery.mode={mode}: give min or max")
        self.title = title
        self.monitor = monitor
        self.mode = mode
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self._curves: dict[str, Curve] = {}
        self._film: list[dict[str, Any]] = []
        self._film_stride = 1
        self._newest: dict[str, Any] | None = None
        self._best: dict[str, float] | None = None
        self._images_seen = 0
        self._epochs_done = 0
        self._seconds_before = 0.0
        self._began: float | None = None
        self._status: tuple[str, str] = ("waiting", "")
        self._window = 1
        self._sums = TermSums()
        self._unread: list[tuple[float, Terms]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain lists; pictures are base64 text."""
        self._read_device()
        return {
            "curves": {name: curve.state_dict() for name, curve in self._curves.items()},
            "film": [dict(frame) for frame in self._film],
            "film_stride": self._film_stride,
            "newest": self._newest,
            "best": self._best,
            "images_seen": self._images_seen,
            "epochs_done": self._epochs_done,
            "seconds": self._seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back: a resumed run goes on with the same page."""
        self._curves = {name: Curve.from_state_dict(state) for name, state in state_dict["curves"].items()}
        self._film = [dict(frame) for frame in state_dict["film"]]
        self._film_stride = state_dict["film_stride"]
        self._newest = state_dict["newest"]
        self._best = state_dict["best"]
        self._images_seen = state_dict["images_seen"]
        self._epochs_done = state_dict["epochs_done"]
        self._seconds_before = state_dict["seconds"]

    # ------------------------------------------------------------------------------------------------
    # collecting

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and write a first page, to be looked at before the first epoch is over."""
        self._began = time.monotonic()
        self._sums.clear()
        self._unread = []
        total = trainer.num_training_batches * max(trainer.max_epochs or 1, 1)
        self._window = max(1, round(total / DRAWN_POINTS)) if math.isfinite(total) else 50
        if math.isfinite(trainer.num_training_batches):
            self._window = max(1, min(self._window, int(trainer.num_training_batches)))
        self._status = ("running", "")
        self.write(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the rates of this epoch: at its end, schedulers have already moved on."""
        names = list(getattr(pl_module, "players", {}))
        for index, optimizer in enumerate(trainer.optimizers):
            name = names[index] if index < len(names) else f"optimizer {index + 1}"
            rate = float(optimizer.param_groups[0]["lr"])
            for x in (trainer.current_epoch, trainer.current_epoch + 1):
                self._curve(f"rate/{name}").add(x, rate)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the terms in; every so many batches their means are set aside on the device."""
        self._images_seen += batch_size(batch) * trainer.world_size
        terms = batch_terms(pl_module)
        if terms is None:
            return
        self._sums.add(terms)
        if batches_trained(trainer) % self._window == 0:
            batches = trainer.num_training_batches
            position = trainer.current_epoch + ((batch_idx + 1) / batches if math.isfinite(batches) else 0.0)
            means = self._sums.means()
            assert means is not None
            self._unread.append((position, means))
            self._sums.clear()

    def _curve(self, name: str) -> Curve:
        return self._curves.setdefault(name, Curve())

    def _read_device(self) -> None:
        """Bring the means set aside to the host, in one transfer."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        values = iter(torch.cat([terms.values for _, terms in unread]).tolist())
        for position, terms in unread:
            for name in terms.names:
                self._curve(f"term/{name}").add(position, next(values))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the epoch's metrics and pictures in, and write the page."""
        epoch = trainer.current_epoch + 1
        self._epochs_done = epoch
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/"):
                self._note_metric(name, epoch, float(value))
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs and not trainer.should_stop:
            return
        if hasattr(pl_module, "preview") and hasattr(trainer.datamodule, "preview_batch"):  # type: ignore[attr-defined]
            shown = preview(trainer, self._samples_shown(trainer))
            if shown.samples and trainer.is_global_zero:
                self._keep_pictures(shown, epoch)
        self.write(trainer)

    def _samples_shown(self, trainer: Trainer) -> int:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        grids = [callback.num_samples for callback in callbacks if isinstance(callback, PreviewGrid)]
        return grids[0] if grids else self.num_samples

    def _note_metric(self, name: str, epoch: int, value: float) -> None:
        self._curve(f"metric/{name}").add(epoch, value)
        if name != self.monitor or not math.isfinite(value):
            return
        if self._best is None or (value < self._best["value"]) == (self.mode == "min") != (
            value == self._best["value"]
        ):
            self._best = {"value": value, "epoch": epoch}

    def _keep_pictures(self, shown: Preview, epoch: int) -> None:
        self._newest = {
            "epoch": epoch,
            "names": [
                f"{name} · {direction[0]} to {direction[1]}" if len(set(shown.directions)) > 1 else name
                for name, direction in zip(shown.names, shown.directions, strict=True)
            ],
            "samples": [
                {name: data_uri(pixels, PICTURE_PX) for name, pixels in sample.items()}
                for sample in shown.samples
            ],
            "width": min(next(iter(shown.samples[0].values())).shape[1], PICTURE_PX),
            "inputs": shown.has_inputs,
        }
        outputs = [
            data_uri(sample["output"], FILM_PX)
            for sample in shown.samples[:FILM_SAMPLES]
            if "output" in sample
        ]
        # The newest frame is always there; of the others, those on an even stride that leaves at most
        # FILM_FRAMES.
        film = [
            frame
            for frame in self._film
            if on_stride(frame["epoch"], self._film_stride) and frame["epoch"] < epoch
        ]
        while len(film) >= FILM_FRAMES:
            self._film_stride *= 2
            film = [frame for frame in film if on_stride(frame["epoch"], self._film_stride)]
        self._film = [*film, {"epoch": epoch, "outputs": outputs}]

    # ------------------------------------------------------------------------------------------------ the end
    # of a run

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say on the page why the run stopped."""
        if trainer.state.fn != "fit" or self._began is None:
            return
        if isinstance(exception, KeyboardInterrupt):
            reason = "interrupted by hand"
        elif isinstance(exception, Stopped):
            reason = str(exception)
        else:
            lines = str(exception).strip().splitlines()
            reason = lines[0] if lines else type(exception).__name__
            if not isinstance(exception, UserError):
                reason = f"{type(exception).__name__}: {reason}"
        self._stop(trainer, "stopped", reason)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say on the page that the run is over."""
        early = (
            trainer.should_stop and trainer.max_epochs is not None and self._epochs_done < trainer.max_epochs
        )
        self._stop(trainer, "finished", f"early, after epoch {self._epochs_done}" if early else "")

    def _stop(self, trainer: Trainer, state: str, reason: str) -> None:
        self._seconds_before, self._began = self._seconds(), None
        self._status = (state, reason)
        self.write(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write once more: another callback's report may have been written as the run ended."""
        if stage == "fit" and self._status[0] == "finished":
            self.write(trainer)

    # ------------------------------------------------------------------------------------------------ the
    # page

    def _seconds(self) -> float:
        return self._seconds_before + (time.monotonic() - self._began if self._began is not None else 0.0)

    def write(self, trainer: Trainer) -> Path | None:
        """Write the page as things stand, and return its path; only the first process writes.

        A command may call this after it has added a ``report.json`` to the run folder.
        """
        self._read_device()
        if not trainer.is_global_zero:
            return None
        path = Path(trainer.default_root_dir) / "index.html"
        page = self._page(trainer, Path(trainer.default_root_dir))
        written = write_if_possible(path, page)
        return path if written else None

    def _page(self, trainer: Trainer, run: Path) -> str:
        title = self.title or run.resolve().parent.name
        warnings = [
            warning
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, Health)
            for warning in callback.warnings
        ]
        sections = [
            self._header(trainer, title, run),
            _warnings(warnings),
            self._pictures(),
            self._film_strip(),
            _report(run / "report.json"),
            self._charts(),
            _details("Configuration", _text(run / "config.yaml")),
            _environment(run / "environment.json"),
        ]
        written = dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        footer = f"<footer>i2i_lightning {escape(i2i_lightning.__version__)} · written {written}</footer>"
        return html_page(title, _text(STYLE), [*sections, footer])

    def _header(self, trainer: Trainer, title: str, run: Path) -> str:
        state, reason = self._status
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        of = f" of {epochs}" if epochs else ""
        running = f"running · epoch {min(self._epochs_done + 1, epochs or self._epochs_done + 1)}{of}"
        label = running if state == "running" else f"{state}{': ' + reason if reason else ''}"
        done = self._epochs_done / epochs if epochs else 0.0
        numbers = []
        if self._best is not None:
            numbers.append(
                (number(self._best["value"]), f"best {self.monitor}, epoch {self._best['epoch']:.0f}")
            )
        numbers += [
            (f"{self._epochs_done}{f'/{epochs}' if epochs else ''}", "epochs"),
            (f"{self._images_seen:,}".replace(",", "\u202f"), "images seen"),
            (duration(self._seconds()), "training time"),
        ]
        if self._seconds() > 0 and self._images_seen:
            numbers.append((number(self._images_seen / self._seconds()), "images per second, all in"))
        cards = "".join(
            f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in numbers
        )
        method = type(trainer.lightning_module).__name__
        return (
            f"<header><div class='head'><h1>{escape(title)}</h1>"
            f"<p class='state {state}'>{escape(label)}</p></div>"
            f"<p class='sub'>{escape(method)} · {escape(str(run))}</p>"
            f"<div class='done {state}'><i style='width:{100 * min(done, 1):.1f}%'></i></div>"
            f"<div class='cards'>{cards}</div></header>"
        )

    def _pictures(self) -> str:
        if self._newest is None:
            return ""
        small = " class='pixels'" if self._newest["width"] < 128 else ""
        if not self._newest.get("inputs", True):
            return self._sheets(small)
        figures = []
        for name, sample in zip(self._newest["names"], self._newest["samples"], strict=True):
            columns = "".join(
                f"<div><img{small} src='{uri}' alt='{escape(column)}'><span>{escape(column)}</span></div>"
                for column, uri in sample.items()
            )
            figures.append(
                f"<figure><figcaption>{escape(name)}</figcaption><div class='row'>{columns}</div></figure>"
            )
        return (
            "<section><h2>Newest results "
            f"<small>after epoch {self._newest['epoch']}, validation samples</small></h2>"
            f"<div class='samples'>{''.join(figures)}</div></section>"
        )

    def _sheets(self, small: str) -> str:
        """Show samples that have no input: all pictures of a column together."""
        assert self._newest is not None
        samples = self._newest["samples"]
        blocks = []
        for column in samples[0]:
            pictures = "".join(
                f"<img{small} src='{sample[column]}' alt='{escape(name)}'>"
                for name, sample in zip(self._newest["names"], samples, strict=True)
            )
            columns = math.ceil(math.sqrt(len(samples)))
            blocks.append(
                f"<figure><figcaption>{escape(column)}</figcaption>"
                f"<div class='sheet' style='--columns:{columns}'>{pictures}</div></figure>"
            )
        return (
            "<section><h2>Newest results "
            f"<small>after epoch {self._newest['epoch']}, the same noise each time</small></h2>"
            f"<div class='sheets'>{''.join(blocks)}</div></section>"
        )

    def _film_strip(self) -> str:
        if self._newest is None or len(self._film) < 2 or not self._film[0]["outputs"]:
            return ""
        newest = self._newest["samples"]
        small = " class='pixels'" if self._newest["width"] < FILM_PX else ""
        heads = "".join(f"<th>{frame['epoch']}</th>" for frame in self._film)
        inputs = self._newest.get("inputs", True)
        last = "cycle" if "cycle" in newest[0] else "target"
        rows = []
        for index in range(min(FILM_SAMPLES, *(len(frame["outputs"]) for frame in self._film))):
            uris = [frame["outputs"][index] for frame in self._film]
            if inputs:
                uris = [newest[index].get("input", ""), *uris, newest[index].get(last, "")]
            cells = [f"<td><img{small} src='{uri}' alt=''></td>" for uri in uris]
            if inputs:
                cells[1:-1] = ["<td class='gap'></td>", *cells[1:-1], "<td class='gap'></td>"]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        titles = f"<th>input</th><th></th>{heads}<th></th><th>{last}</th>" if inputs else heads
        return (
            "<section><h2>Over the epochs <small>the same samples, evenly spaced</small></h2>"
            f"<div class='scroll'><table class='film'><tr>{titles}</tr>{''.join(rows)}</table></div>"
            "</section>"
        )

    def _charts(self) -> str:
        names = [name.removeprefix("term/") for name in self._curves if name.startswith("term/")]
        players = list(dict.fromkeys(name.split("/")[0] for name in names))
        metrics = [name for name in self._curves if name.startswith("metric/")]
        charts = [chart(name.removeprefix("metric/"), {"": self._curves[name]}) for name in metrics]
        # Generators before discriminators: people look for them first.
        for player in sorted(players, key=lambda player: player.startswith("discriminator")):
            spoken = player.replace("_", " ")
            for kind, title, bounds in (("accuracy", "accuracy", (0.0, 1.0)), ("logit", "logits", None)):
                sides = {side: f"{player}/{kind}_{side}" for side in ("real", "fake")}
                if all(name in names for name in sides.values()):
                    lines = {side: self._curves[f"term/{name}"] for side, name in sides.items()}
                    charts.append(chart(f"{spoken} {title}", lines, bounds, smooth=True))
            terms = [name for name in names if name.startswith(player + "/")]
            terms = [
                name for name in terms if not name.startswith((f"{player}/accuracy_", f"{player}/logit_"))
            ]
            if len(terms) == 2:
                terms = [
                    name for name in terms if not name.endswith("/total")
                ]  # the total of one term is that term
            for name in terms:
                title = f"{spoken} {name.removeprefix(player + '/')}"
                charts.append(chart(title, {"": self._curves[f"term/{name}"]}, smooth=True))
        rates = {
            name.removeprefix("rate/"): curve
            for name, curve in self._curves.items()
            if name.startswith("rate/")
        }
        if len({tuple(curve.y) for curve in rates.values()}) == 1:
            rates = {"": next(iter(rates.values()))}
        if rates:
            highest = max(max(curve.y, default=0.0) for curve in rates.values())
            charts.append(chart("learning rate", rates, (0.0, 1.15 * highest or 1.0)))
        if not charts:
            return ""
        return (
            "<section><h2>Curves <small>by epoch; faint as measured, strong smoothed</small></h2>"
            f"<div class='charts'>{''.join(charts)}</div></section>"
        )


def on_stride(epoch: int, stride: int) -> bool:
    """Say whether ``epoch`` (from 1) is one of every ``stride`` epochs, the first included."""
    return (epoch - 1) % stride == 0


def chart(
    title: str, lines: Mapping[str, Curve], bounds: tuple[float, float] | None = None, smooth: bool = False
) -> str:
    """Draw curves over epochs as inline SVG, from epoch 0 on.

    Args:
        title: Heading.
        lines: Label to curve; a single curve needs no label.
        bounds: Range of the vertical axis; None takes it from the values, without the wildest hundredth of
            them.
        smooth: Draw the values faintly and their running mean above them.
    """
    width, height, left, right, bottom, top = 320, 150, 44, 6, 20, 8
    drawn = {label: thin(curve) for label, curve in lines.items()}
    ys = sorted(y for points in drawn.values() for _, y in points if math.isfinite(y))
    if not ys:
        return ""
    if bounds is None:
        cut = len(ys) // 100
        low, high = ys[cut], ys[-1 - cut]
        margin = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-6)
        low, high = (0.0 if 0 <= low < margin else low - margin), high + margin
    else:
        low, high = bounds
    last = max(x for points in drawn.values() for x, _ in points) or 1.0

    def place(x: float, y: float) -> str:
        level = min(max((y - low) / (high - low), 0.0), 1.0)
        across, down = x / last * (width - left - right), (1 - level) * (height - top - bottom)
        return f"{left + across:.1f},{top + down:.1f}"

    parts = []
    for tick in ticks(low, high):
        level = float(place(0.0, tick).split(",")[1])
        parts.append(f"<line x1='{left}' x2='{width - right}' y1='{level}' y2='{level}'/>")
        parts.append(f"<text x='{left - 6}' y='{level + 4}' text-anchor='end'>{number(tick)}</text>")
    parts.append(f"<text x='{left}' y='{height - 3}'>0</text>")
    parts.append(f"<text x='{width - right}' y='{height - 3}' text-anchor='end'>{number(last)}</text>")
    legend = []
    for index, (label, measured) in enumerate(drawn.items()):
        points = [(x, y) for x, y in measured if math.isfinite(y)]
        if not points:
            continue
        if smooth and len(points) > 20:
            raw = " ".join(place(x, y) for x, y in points)
            parts.append(f"<polyline class='l{index % 4} faint' points='{raw}'/>")
            points = running_mean(points)
        places = [place(x, y) for x, y in points]
        parts.append(f"<polyline class='l{index % 4}' points='{' '.join(places)}'/>")
        end_x, end_y = places[-1].split(",")
        parts.append(f"<circle class='l{index % 4}' cx='{end_x}' cy='{end_y}' r='2.8'/>")
        legend.append(f"<b class='l{index % 4}'>{escape(label)} {number(points[-1][1])}</b>")
    return (
        f"<figure class='chart'><figcaption><span>{escape(title)}</span>{''.join(legend)}</figcaption>"
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(title)}'>"
        f"{''.join(parts)}</svg></figure>"
    )


def thin(curve: Curve) -> list[tuple[float, float]]:
    """Return at most ``DRAWN_POINTS`` points of a curve: neighbours averaged."""
    x, y = curve.x, curve.y
    while len(x) > DRAWN_POINTS:
        x, y = halve(x), halve(y)
    return list(zip(x, y, strict=True))


def _warnings(warnings: Sequence[Mapping[str, Any]]) -> str:
    """List the warnings, the newest first; a repeated one is said once, with all its epochs."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for warning in sorted(warnings, key=lambda warning: int(warning["batch"])):
        by_kind.setdefault(str(warning["kind"]), []).append(warning)
    items = []
    for given in sorted(by_kind.values(), key=lambda given: -int(given[-1]["batch"])):
        epochs = [str(warning["epoch"]) for warning in given]
        shown = ", ".join(epochs if len(epochs) <= 4 else [*epochs[:2], "…", epochs[-1]])
        items.append(
            f"<li><b>epoch{'s' if len(epochs) > 1 else ''} {shown}</b> {escape(str(given[-1]['text']))}</li>"
        )
    return f"<section class='warnings'><h2>Health</h2><ul>{''.join(items)}</ul></section>" if items else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError:
        return None


def _details(title: str, text: str) -> str:
    if not text.strip():
        return ""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text.rstrip())}</pre></details>"


def _environment(path: Path) -> str:
    values = _json(path)
    if not isinstance(values, dict):
        return _details("Environment", _text(path))
    rows = []
    for name, value in values.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {item}" for key, item in value.items())
        rows.append(f"<tr><th>{escape(str(name))}</th><td>{escape(str(shown))}</td></tr>")
    return f"<details><summary>Environment</summary><table class='facts'>{''.join(rows)}</table></details>"


def _report(path: Path) -> str:
    """Draw a report: numbers as rows, nested groups of numbers as columns, plain text as notes."""
    report = _json(path)
    if not isinstance(report, dict) or not report:
        return ""
    tables, notes, rows = [], [], []
    for name, value in report.items():
        if isinstance(value, dict) and value:
            tables.append(_table(str(name), value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append(f"<tr><th>{escape(_spoken(str(name)))}</th><td>{number(float(value))}</td></tr>")
        elif isinstance(value, str):
            notes.append(f"<p>{escape(_spoken(str(name)))}: {escape(value)}</p>")
    plain = f"<table class='report'>{''.join(rows)}</table>" if rows else ""
    return (
        f"<section class='judge'><h2>Report</h2>{''.join(notes)}"
        f"<div class='scroll'>{plain}{''.join(tables)}</div></section>"
    )


def _table(title: str, group: Mapping[str, Any]) -> str:
    """Draw one group: its members are rows; if they are groups themselves, their members are columns."""
    columns: list[str] = []
    for value in group.values():
        if isinstance(value, dict):
            columns += [str(key) for key in value if str(key) not in columns]
    head = "".join(f"<th>{escape(_spoken(column))}</th>" for column in columns)
    rows = []
    for name, value in group.items():
        cells = [value.get(column, "") for column in columns] if isinstance(value, dict) else [value]
        rows.append(
            f"<tr><th>{escape(_spoken(str(name)))}</th>"
            + "".join(f"<td>{escape(_cell(cell))}</td>" for cell in cells)
            + "</tr>"
        )
    long = len(rows) > LONG_TABLE
    heading = f"<tr><th>{'' if long else escape(_spoken(title))}</th>{head}</tr>"
    table = f"<table class='report'>{heading}{''.join(rows)}</table>"
    return f"<details><summary>{escape(_spoken(title))}</summary>{table}</details>" if long else table


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return number(float(value))


def _spoken(name: str) -> str:
    return name.replace("_", " ")
