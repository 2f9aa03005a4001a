"""A progress bar that says what matters in one line, and a tidy log where there is no terminal."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TextIO

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm.contrib.logging import logging_redirect_tqdm  # type: ignore[import-untyped]

from i2i_lightning.callbacks.readings import Readout, TermSums, batch_terms
from i2i_lightning.callbacks.throughput import Pace, fetch_timer

MAIN_TERMS = ("l1", "gan", "cycle")
"""Terms shown before any others."""

SMOOTHING_S = 3.0
"""Time constant of the shown terms and speed; a GAN's terms jump from batch to batch."""


GAP = "  "
SHORTEST_BAR, LONGEST_BAR = 6, 24


class Segment(NamedTuple):
    """A piece of the line. In a narrow terminal the pieces of the highest ``rank`` are left out first."""

    rank: int
    label: str
    value: str

    @property
    def width(self) -> int:
        """Columns taken, without colours."""
        return len(self.label) + (1 if self.label else 0) + len(self.value)


class ProgressBar(TQDMProgressBar):
    """Show epoch, batch, the terms that matter, images per second, time waited for data and time left.

    On a terminal one line is redrawn every ``refresh_s`` seconds, and each finished epoch leaves a line above
    it. Elsewhere (a SLURM log, a pipe) there are no control characters: a line per epoch, and one every
    ``report_s`` seconds within a long epoch. Terms are means of what was trained since the last drawing; they
    are read from the device at the bar's pace and never waited for.

    Args:
        refresh_s: Seconds between two drawings on a terminal.
        report_s: Seconds between two lines within an epoch where there is no terminal; None for none.
        terms: Terms to show, by their key in ``step_terms`` (``generator/l1``), in order; None shows the
            generators' total and terms, and the discriminators' accuracy on real and fake images.
    """

    def __init__(
        self, refresh_s: float = 0.25, report_s: float | None = 600.0, terms: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.refresh_s = refresh_s
        self.report_s = report_s
        self.terms = list(terms) if terms is not None else None
        self._recent, self._epoch_sums = TermSums(), TermSums()
        self._readout = Readout()
        self._shown: dict[str, float] = {}
        self._pace: Pace | None = None
        self._epoch_pace: Pace | None = None
        self._speed: dict[str, float] = {}
        self._drawn_at = 0.0
        self._epoch_began = 0.0
        self._trained_s = 0.0
        self._batches_here = 0
        self._batch = 0
        self._validated = False
        self._exits = ExitStack()
        self._is_terminal = False

    # ------------------------------------------------------------------------------------------------ life of
    # a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what kind of output there is, and let log messages pass above the bar."""
        super().setup(trainer, pl_module, stage)
        self._is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        if stage == "fit":
            fetch_timer(trainer)
        if not trainer.is_global_zero:
            self.disable()

    @property
    def _stream(self) -> TextIO:
        return sys.stdout

    @property
    def is_disabled(self) -> bool:
        """Whether no bar is drawn; lines per epoch are written all the same where there is no terminal."""
        return super().is_disabled or not self._is_terminal

    def on_sanity_check_start(self, *_: Any) -> None:
        """Draw nothing for the sanity check: it takes two batches."""
        self.train_progress_bar = self.val_progress_bar = Tqdm(disable=True)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Open the bar."""
        self.train_progress_bar = Tqdm(
            bar_format="{desc}", disable=self.is_disabled, leave=False, dynamic_ncols=True, file=self._stream
        )
        if not self.train_progress_bar.disable:
            # Log messages that go to the terminal would otherwise be written into the bar.
            loggers = [logging.getLogger()] + [
                logger
                for logger in map(logging.getLogger, list(logging.Logger.manager.loggerDict))
                if logger.handlers and not logger.propagate
            ]
            self._exits.enter_context(logging_redirect_tqdm(loggers, tqdm_class=Tqdm))
        self._recent.clear()
        self._epoch_sums.clear()
        self._shown, self._speed = {}, {}
        self._pace = self._epoch_pace = None
        self._trained_s, self._batches_here = 0.0, 0
        self._begin_epoch()  # a run that resumes within an epoch has no start of an epoch

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin an epoch."""
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch_began = self._drawn_at = time.perf_counter()
        self._epoch_sums.clear()
        self._batch = 0
        self._validated = False
        for pace in (self._pace, self._epoch_pace):
            if pace is not None:
                pace.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch in; draw if the time has come."""
        if not self.is_enabled:
            return
        self._batch = batch_idx + 1
        terms = batch_terms(pl_module)
        if terms is not None:
            self._epoch_sums.add(terms)
            self._recent.add(terms)
        if self._pace is None or self._epoch_pace is None:
            # The first batch starts workers and chooses kernels: it would spoil the estimate of the time
            # left.
            timer = fetch_timer(trainer)
            self._pace, self._epoch_pace = Pace(timer, trainer.world_size), Pace(timer, trainer.world_size)
            for pace in (self._pace, self._epoch_pace):
                pace.resume()
        else:
            self._pace.count(batch)
            self._epoch_pace.count(batch)
            self._batches_here += 1
        now = time.perf_counter()
        every = self.refresh_s if self._is_terminal else self.report_s
        if every is not None and now - self._drawn_at >= every and not trainer.is_last_batch:
            self._take_readings(now - self._drawn_at)
            self._drawn_at = now
            self._draw(trainer)
        if trainer.is_last_batch:
            for pace in (self._pace, self._epoch_pace):
                pace.pause()

    def _take_readings(self, seconds: float) -> None:
        """Fold the means since the last drawing into what is shown."""
        means = self._recent.means()
        if means is not None:
            self._readout.offer(means)
            self._recent.clear()
        keep = math.exp(-seconds / SMOOTHING_S)
        speed = self._pace.read() if self._pace is not None else {}
        for shown, news in ((self._shown, self._readout.latest()), (self._speed, speed)):
            for name, value in news.items():
                shown[name] = keep * shown[name] + (1 - keep) * value if name in shown else value

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out of the speed; outside of training, draw Lightning's own bar."""
        if trainer.state.fn != "fit":
            super().on_validation_start(trainer, pl_module)
            return
        for pace in (self._pace, self._epoch_pace):
            if pace is not None:
                pace.pause()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw Lightning's own bar outside of training."""
        if trainer.state.fn != "fit":
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say in the same line how far validation is."""
        if trainer.state.fn != "fit":
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            return
        now = time.perf_counter()
        if trainer.sanity_checking or not self._is_terminal or now - self._drawn_at < self.refresh_s:
            return
        self._drawn_at = now
        total = sum(map(int, trainer.num_val_batches))
        self._draw(trainer, Segment(0, "validating", f"{batch_idx + 1}/{total}"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on after a validation in the middle of an epoch."""
        if trainer.state.fn != "fit":
            super().on_validation_end(trainer, pl_module)
            return
        self._validated = not trainer.sanity_checking
        for pace in (self._pace, self._epoch_pace):
            if pace is not None and not trainer.is_last_batch:
                pace.resume()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave one line for the epoch."""
        if not self.is_enabled:
            return
        means = self._epoch_sums.means()
        values = dict(zip(means.names, means.values.tolist(), strict=True)) if means is not None else {}
        speed = self._epoch_pace.read() if self._epoch_pace is not None else {}
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/") and self._validated
        }
        seconds = time.perf_counter() - self._epoch_began
        self._trained_s += seconds
        segments = [
            *self._term_segments(values),
            *_metric_segments(metrics),
            *_speed_segments(speed),
            Segment(1, "", _duration(seconds)),
            *self._left_segment(trainer, at_epoch_end=True),
        ]
        self._write(self._compose(_epoch_text(trainer), None, segments, self._columns()))

    def on_train_end(self, *_: Any) -> None:
        """Take the bar away; the epochs' lines stay."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away before the error is printed."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the log back its own handlers."""
        self._close()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar, or plainly where there is none."""
        if self._is_terminal:
            super().print(*args, sep=sep, **kwargs)
        else:
            print(*args, sep=sep, **kwargs)

    def _close(self) -> None:
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()
        self._exits.close()

    # ------------------------------------------------------------------------------------------------ the
    # line

    def _columns(self) -> int | None:
        """Columns to keep to; None where lines may be of any length."""
        if not self._is_terminal:
            return None
        try:
            return max(os.get_terminal_size(self._stream.fileno()).columns - 1, 20)
        except (OSError, ValueError):
            return 79

    def _draw(self, trainer: Trainer, state: Segment | None = None) -> None:
        total = trainer.num_training_batches
        counted = (
            f"{self._batch:>{len(str(int(total)))}}/{int(total)}"
            if math.isfinite(total)
            else str(self._batch)
        )
        done = self._batch / total if math.isfinite(total) and total else 0.0
        segments = [
            *([state] if state is not None else [Segment(0, "", counted)]),
            *self._term_segments(self._shown),
            *_speed_segments(self._speed),
            *self._left_segment(trainer),
        ]
        line = self._compose(_epoch_text(trainer), done, segments, self._columns())
        if self._is_terminal:
            self.train_progress_bar.set_description_str(line)
        else:
            self._write(line)

    def _write(self, line: str) -> None:
        if self._is_terminal:
            self.train_progress_bar.clear()
        self._stream.write(line + "\n")
        self._stream.flush()

    def _term_segments(self, values: Mapping[str, float]) -> list[Segment]:
        if self.terms is not None:
            return [Segment(2, _short(name), _number(values[name])) for name in self.terms if name in values]
        return term_segments(values)

    def _left_segment(self, trainer: Trainer, at_epoch_end: bool = False) -> list[Segment]:
        """Say how long the run still takes at its pace so far, validation included."""
        total, epochs = trainer.num_training_batches, trainer.max_epochs
        if not math.isfinite(total) or epochs is None or epochs < 1 or not self._batches_here:
            return []
        elapsed = self._trained_s + (0.0 if at_epoch_end else time.perf_counter() - self._epoch_began)
        left = (epochs - trainer.current_epoch) * total - self._batch
        return [Segment(3, "left", _duration(elapsed / self._batches_here * left))] if left > 0 else []

    def _compose(
        self, head: str, done: float | None, segments: Sequence[Segment], columns: int | None
    ) -> str:
        """Join the pieces, leaving out the least important ones where they do not fit in ``columns``.

        What is left over on a terminal is filled with a bar, if ``done`` (from 0 to 1) is given.
        """
        kept = [segment for segment in segments if segment.value]

        def width() -> int:
            return len(head) + sum(len(GAP) + segment.width for segment in kept)

        while columns is not None and width() > columns and max(segment.rank for segment in kept) > 0:
            worst = max(segment.rank for segment in kept)
            # Of equally important pieces the last goes first.
            kept.pop(max(index for index, segment in enumerate(kept) if segment.rank == worst))
        paint = _Paint(self._is_terminal and "NO_COLOR" not in os.environ)
        pieces = [paint.strong(head)]
        if columns is not None and done is not None:
            spare = min(columns - width() - len(GAP), LONGEST_BAR)
            if spare >= SHORTEST_BAR:
                pieces.append(paint.accent(_bar(done, spare, self._stream.encoding)))
        pieces += [
            f"{paint.faint(segment.label)} {segment.value}" if segment.label else segment.value
            for segment in kept
        ]
        return GAP.join(pieces)


class _Paint:
    """Colours of the line; none where the output is not a terminal."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def _wrap(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.on and text else text

    def strong(self, text: str) -> str:
        return self._wrap("1", text)

    def faint(self, text: str) -> str:
        return self._wrap("2", text)

    def accent(self, text: str) -> str:
        return self._wrap("36", text)


def term_segments(values: Mapping[str, float]) -> list[Segment]:
    """Choose the terms that matter: generators' total and terms, discriminators' accuracy on real and fake.

    A player's initial stands for it where it is the only one of its kind; its terms then need no name in
    front.
    """
    players = list(dict.fromkeys(name.split("/")[0] for name in values if "/" in name))
    judges = [player for player in players if f"{player}/accuracy_real" in values]
    makers = [player for player in players if player not in judges and not player.startswith("discriminator")]
    segments = []
    for player in makers:
        tag = "G" if len(makers) == 1 else player.replace("generator", "G")
        prefix = "" if len(makers) == 1 else f"{tag}."
        terms = [name.removeprefix(f"{player}/") for name in values if name.startswith(f"{player}/")]
        parts = sorted((term for term in terms if term != "total"), key=lambda term: term not in MAIN_TERMS)
        if "total" in terms and len(parts) != 1:
            segments.append(Segment(6 if parts else 2, tag, _number(values[f"{player}/total"])))
        segments += [
            Segment(2 if index < 2 else 7, prefix + part, _number(values[f"{player}/{part}"]))
            for index, part in enumerate(parts)
        ]
    for player in judges:
        tag = "D" if len(judges) == 1 else player.replace("discriminator", "D")
        real, fake = values[f"{player}/accuracy_real"], values[f"{player}/accuracy_fake"]
        # Accuracy on real and on fake images, in per cent.
        segments.append(Segment(2, tag, f"{_percent(real)}/{_percent(fake)}%"))
    return segments


def _metric_segments(metrics: Mapping[str, float]) -> list[Segment]:
    names = [name.removeprefix("val/") for name in metrics]
    labels = [f"val {name}" if index == 0 else name for index, name in enumerate(names)]
    return [Segment(1, label, _number(value)) for label, value in zip(labels, metrics.values(), strict=True)]


def _speed_segments(speed: Mapping[str, float]) -> list[Segment]:
    if not speed:
        return []
    per_second = speed["images_per_s"]
    return [
        Segment(4, "", f"{per_second:.0f} img/s" if per_second >= 9.95 else f"{per_second:.1f} img/s"),
        Segment(5, "data", f"{_percent(speed['data_wait_share'])}%"),
    ]


def _short(name: str) -> str:
    return name.split("/", 1)[-1]


def _epoch_text(trainer: Trainer) -> str:
    epochs = trainer.max_epochs
    total = "" if epochs is None or epochs < 1 else str(epochs)
    number = f"{trainer.current_epoch + 1:>{len(total)}}"
    return f"epoch {number}/{total}" if total else f"epoch {number}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if math.isfinite(share) else str(share)


def _number(value: float) -> str:
    """Write a number in five columns, so that lines keep still: 0.123, 1.234, 12.34, 123.4, 12.3k."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size >= 999_950 or 0 < size < 5e-4:
        return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", f"{value:.1e}")
    if size >= 9999.5:
        return f"{value / 1000:.1f}k"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"


def _duration(seconds: float) -> str:
    """Write a time as 45s, 3:05 (minutes), 2h05 or 3d04h."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _bar(done: float, width: int, encoding: str | None = "utf-8") -> str:
    """Return a bar of ``width`` columns, with half columns where the output can show them."""
    halves = round(min(max(done, 0.0), 1.0) * width * 2)
    full, half, empty = "━╸─" if (encoding or "").lower().replace("-", "").startswith("utf") else "#--"
    bar = full * (halves // 2) + half * (halves % 2)
    return bar + empty * (width - len(bar))
