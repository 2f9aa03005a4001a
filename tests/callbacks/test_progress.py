from __future__ import annotations

import io
import logging
import os
import pty
import re
import sys
import threading
from typing import Any

import pytest

from i2i_lightning.callbacks.progress import ProgressBar, Segment, _bar, _duration, _number, term_segments
from i2i_lightning.callbacks.throughput import Throughput
from i2i_lightning.callbacks.validation import ValidationMetrics

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def test_without_a_terminal_one_tidy_line_per_epoch(
    scripted: Any, shapes: Any, make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer([ProgressBar(), Throughput(), ValidationMetrics()])
    trainer.fit(scripted(), datamodule=shapes(batch_size=2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.match(
        r"epoch 1/2  G 25\.70  l1 0\.250  gan 0\.700  D 60/50%  val l1 \d\.\d{3}  psnr \S+  ssim \S+  "
        r"\d+ img/s  data \d+%  \S+s  left \S+s$",
        lines[0],
    )
    assert lines[1].startswith("epoch 2/2")
    assert "left" not in lines[1]
    assert not any(ord(letter) < 32 for line in lines for letter in line)


def test_long_epochs_report_in_between(
    scripted: Any, shapes: Any, make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer([ProgressBar(report_s=0.0)], max_epochs=1)
    trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines[:2]] == ["1/3", "2/3"]
    assert len(lines) == 3


class Terminal(io.TextIOWrapper):
    """Standard output on a pseudo-terminal of a given width."""

    def __init__(self, columns: int) -> None:
        import fcntl
        import struct
        import termios

        self.parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        super().__init__(os.fdopen(child, "wb", 0), encoding="utf-8", write_through=True)
        self.received = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.parent, 65536)
            except OSError:
                return
            if not data:
                return
            self.received += data

    def text(self) -> str:
        self.close()
        self.reader.join(5)
        return self.received.decode()


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_on_a_terminal_the_line_fits(
    columns: int, scripted: Any, shapes: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    trainer = make_trainer([ProgressBar(refresh_s=0.0), ValidationMetrics()])
    trainer.fit(scripted(), datamodule=shapes(batch_size=2))
    text = terminal.text()
    monkeypatch.undo()
    plain = ESCAPES.sub("", text)
    shown = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert max(map(len, shown)) < columns
    live = [line for line in shown if "2/6" in line]
    assert live
    assert all("l1 0.250" in line for line in live)
    assert any("validating" in line for line in shown)
    if columns >= 80:
        assert all("D 60/50%" in line and "img/s" in line for line in live), live
    if columns >= 100:
        assert all("━" in line and "G 25.70" in line and "data" in line for line in live), live
    # The epochs' lines end in a line feed and stay; the live line is drawn over and taken away.
    kept = [line.rstrip("\r").split("\r")[-1] for line in plain.split("\n") if "val l1" in line]
    assert [line.split("  ")[0] for line in kept] == ["epoch 1/2", "epoch 2/2"]
    assert text.rstrip(" \x1b[A\r").endswith("\n") or not text.split("\r")[-1].strip()


def test_log_messages_pass_above_the_bar_and_handlers_come_back(
    scripted: Any, shapes: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(100)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("i2i_lightning_test")
    logger.propagate = False
    logger.addHandler(handler)

    class Speaks(scripted):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            if self.batches_seen == 4:
                logger.warning("something to say")
            if self.batches_seen == 9:
                raise RuntimeError("stop")

    trainer = make_trainer([ProgressBar(refresh_s=0.0)])
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(Speaks(), datamodule=shapes(batch_size=2))
    assert logger.handlers == [handler]
    text = ESCAPES.sub("", terminal.text())
    monkeypatch.undo()
    (line,) = [line for line in text.split("\n") if "something to say" in line]
    assert line.rstrip("\r").split("\r")[-1] == "something to say"


def test_terms_of_several_players_are_told_apart() -> None:
    values = {
        "discriminator_a/gan": 0.3,
        "discriminator_a/accuracy_real": 1.0,
        "discriminator_a/accuracy_fake": 0.25,
        "generator_ab/gan": 0.5,
        "generator_ab/cycle": 0.125,
        "generator_ba/gan": 0.25,
    }
    assert [(segment.label, segment.value) for segment in term_segments(values)] == [
        ("G_ab.gan", "0.500"),
        ("G_ab.cycle", "0.125"),
        ("G_ba.gan", "0.250"),
        ("D", "100/25%"),
    ]


def test_chosen_terms_alone_are_shown(
    scripted: Any, shapes: Any, make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer([ProgressBar(terms=["discriminator/gan"])], max_epochs=1)
    trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    assert capsys.readouterr().out.startswith("epoch 1/1  gan 0.690  ")


def test_numbers_keep_to_five_columns() -> None:
    values = [0, 0.1234, 1.2345, 12.345, 123.45, 1234.5, 12345.6, 123456.0, 1.5e7, 2e-5]
    assert [_number(value) for value in values] == [
        "0.000", "0.123", "1.234", "12.35", "123.5", "1234.5", "12.3k", "123.5k", "1.5e7", "2.0e-5",
    ]  # fmt: skip
    assert _number(float("nan")) == "nan"
    assert [_duration(s) for s in (3.21, 45, 185, 7500, 273600)] == ["3.2s", "45s", "3:05", "2h05", "3d04h"]
    assert [_bar(done, 4) for done in (0, 0.1, 0.5, 1, 2)] == ["────", "╸───", "━━──", "━━━━", "━━━━"]
    assert _bar(0.5, 4, "ascii") == "##--"
    assert Segment(0, "l1", "0.5").width == 6
