from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.callbacks.finite import NonFiniteGuard
from i2i_lightning.callbacks.gallery import (
    DRAWN_POINTS,
    FILM_FRAMES,
    MAX_POINTS,
    Curve,
    Gallery,
    chart,
    duration,
    number,
    ticks,
)
from i2i_lightning.callbacks.health import Health
from i2i_lightning.callbacks.previews import PreviewGrid
from i2i_lightning.callbacks.validation import ValidationMetrics
from i2i_lightning.loggers.csv_log import CSVLog

VOID = {"meta", "link", "img", "br", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the page refers to and says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == [], self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def test_the_page_of_a_finished_run(scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: <b>toy</b> & co\n")
    (run / "environment.json").write_text(json.dumps({"git": "abc123", "packages": {"torch": "2.6"}}))
    (run / "report.json").write_text(
        json.dumps(
            {"task": "faces", "pixel_l1": 0.25, "iou": {"real": {"skin": 0.9}, "outputs": {"skin": 0.7}}}
        )
    )
    health = Health()
    health.warnings = [{"epoch": 1, "batch": 3, "kind": "x", "text": "all < well"}]
    callbacks = [Gallery(title="toy <run>"), PreviewGrid(2), ValidationMetrics(), health]
    make_trainer(callbacks, max_epochs=3).fit(scripted(), datamodule=shapes(batch_size=4))
    page = Page(run / "index.html")
    assert all(address.startswith("data:") for address in page.addresses), "everything is in the file"
    assert not re.search(r"https?://|@import|url\(|<script", page.html)
    for words in (
        "toy <run>", "finished", "3/3 epochs", "36 images seen", "best val/l1, epoch",
        "Newest results after epoch 3", "input output target", "shape_100.png", "Over the epochs",
        "generator l1", "generator total",
        "discriminator accuracy real 0.6 fake 0.5", "discriminator logits", "val/psnr", "learning rate 0.01",
        "epoch 1 all < well", "Report task: faces", "pixel l1 0.25", "outputs 0.7",
        "name: <b>toy</b> & co", "git abc123", "torch 2.6",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.html.count("<figure><figcaption>") == 2
    assert not list(run.glob("*.tmp"))


def test_a_page_is_there_before_the_first_epoch_is_over(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    texts = []

    class Looks(scripted):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            texts.append(Page(tmp_path / "run/index.html").text)

    make_trainer([Gallery()], max_epochs=2).fit(Looks(), datamodule=shapes(batch_size=6))
    assert "running · epoch 1 of 2" in texts[0]
    assert "running · epoch 2 of 2" in texts[2]


def test_a_stopped_run_says_why(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    module = scripted(lambda batch: healthy | ({"generator/l1": math.nan} if batch == 4 else {}))
    with pytest.raises(ValueError, match="not finite"):
        make_trainer([Gallery(), NonFiniteGuard()]).fit(module, datamodule=shapes(batch_size=4))
    text = Page(tmp_path / "run/index.html").text
    assert "stopped: the loss is not finite in epoch 2, batch 2: generator/l1 is nan" in text
    assert "1/2 epochs" in text


def test_a_resumed_run_continues_the_page_and_the_log(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    def script(batch: int) -> dict[str, float]:
        return healthy | {"generator/l1": 1 / (batch + 1)}

    def callbacks() -> list[Any]:
        return [Gallery(), PreviewGrid(2), ValidationMetrics(), Checkpoints(every_n_batches=2)]

    class Breaks(scripted):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            if self.batches_seen == 11:
                raise RuntimeError("power cut")
            super().training_step(batch, batch_idx)

    def fit(folder: str, module: Any, **options: Any) -> tuple[Gallery, list[str]]:
        run = tmp_path / folder
        trainer = make_trainer(callbacks(), max_epochs=4, logger=CSVLog(run), default_root_dir=str(run))
        trainer.fit(module, datamodule=shapes(batch_size=3), **options)
        return trainer.callbacks[0], (run / "metrics.csv").read_text().splitlines()

    torch.manual_seed(0)
    whole, whole_log = fit("whole", scripted(script))
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="power cut"):
        fit("broken", Breaks(script))
    resumed, resumed_log = fit(
        "broken", scripted(script), ckpt_path=tmp_path / "broken/checkpoints/last.ckpt"
    )
    assert resumed_log == whole_log
    state, expected = resumed.state_dict(), whole.state_dict()
    for key in ("curves", "film", "newest", "best", "images_seen", "epochs_done"):
        assert state[key] == expected[key], key
    assert "finished" in Page(tmp_path / "broken/index.html").text


def test_cost_does_not_grow_with_the_run(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    gallery = Gallery()
    data = shapes(num_train=4, num_val=4, batch_size=4)
    sizes = {}

    class Weighs(scripted):  # type: ignore[misc]
        def on_train_epoch_start(self) -> None:
            sizes[self.current_epoch] = (tmp_path / "run/index.html").stat().st_size

    make_trainer([gallery], max_epochs=40).fit(Weighs(), datamodule=data)
    state = gallery.state_dict()
    epochs = [frame["epoch"] for frame in state["film"]]
    assert len(epochs) <= FILM_FRAMES
    assert epochs[-1] == 40
    assert epochs[:-1] == list(range(1, 40, 4))
    assert sizes[39] < 1.5 * sizes[12]


def test_curves_stay_short() -> None:
    curve = Curve()
    for x in range(10_000):
        curve.add(x, 2.0 * x)
    assert len(curve.x) <= MAX_POINTS
    assert curve.x == sorted(curve.x)
    assert curve.y == pytest.approx([2 * x for x in curve.x])
    drawn = re.search(r"points='([^']*)'", chart("x", {"": curve}))
    assert drawn is not None
    assert DRAWN_POINTS / 2 <= len(drawn[1].split()) <= DRAWN_POINTS
    assert chart("x", {"": Curve([1.0], [math.nan])}) == ""


def test_curves_are_drawn_where_they_belong() -> None:
    svg = chart("x", {"": Curve([0, 1, 2], [0, 1, 0.5])}, bounds=(0.0, 1.0))
    points = re.search(r"polyline class='l0' points='([^']*)'", svg)
    assert points is not None
    (x0, y0), (x1, y1), (x2, y2) = ([float(n) for n in point.split(",")] for point in points[1].split())
    assert (y0, y1) == (130, 8)  # bottom and top
    assert y2 == (y0 + y1) / 2
    assert x1 == (x0 + x2) / 2


def test_numbers_are_written_for_people() -> None:
    assert [number(x) for x in (3.0, 0.12345, 2e-4, 12345.6, -0.5, math.inf)] == [
        "3", "0.123", "2e-4", "12\u202f346", "-0.5", "inf",
    ]  # fmt: skip
    assert ticks(0, 1) == [0, 0.5, 1]
    assert ticks(13.2, 14.1) == pytest.approx([13.5, 14.0])
    assert [duration(s) for s in (5, 125, 7500, 273600)] == ["5 s", "2 min 05 s", "2 h 05 min", "3 d 4 h"]
