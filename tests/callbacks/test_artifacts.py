from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from i2i_lightning.callbacks.artifacts import Artifacts
from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.callbacks.gallery import Gallery
from i2i_lightning.callbacks.validation import ValidationMetrics


class Files(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, list[str], list[str]]] = []
        self.used: list[tuple[str, str]] = []
        self.notes: dict[str, Any] = {}
        self.preempted = False

    def log_files(self, kind: str, files: dict[str, Path], aliases: list[str], facts: dict[str, Any]) -> None:
        assert all(path.is_file() for path in files.values())
        self.sent.append((kind, sorted(files), aliases))

    def use_checkpoint(self, path: Path, role: str) -> None:
        self.used.append((path.name, role))

    def note(self, values: dict[str, Any]) -> None:
        self.notes |= values

    def mark_preempting(self) -> None:
        self.preempted = True


def test_last_and_best_once_each(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    files = Files()
    callbacks = [ValidationMetrics(["l1"]), Gallery(), Artifacts(), Checkpoints()]
    make_trainer(callbacks, logger=files, max_epochs=2).fit(scripted(), datamodule=shapes(batch_size=4))
    best = callbacks[-1].best_epoch
    models = [aliases for kind, _, aliases in files.sent if kind == "checkpoint"]
    expected = [["last", "epoch_2", "best"]] if best == 2 else [["last", "epoch_2"], ["best", "epoch_1"]]
    assert models == expected
    assert files.sent[-1] == ("gallery", ["index.html"], ["last", "epoch_2"])
    assert files.notes["best/epoch"] == best
    assert not files.used


def test_only_what_is_asked_for(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    files = Files()
    callbacks = [
        ValidationMetrics(["l1"]),
        Gallery(),
        Artifacts(checkpoints=["epochs"], gallery=False),
        Checkpoints(keep_every_n_epochs=1),
    ]
    make_trainer(callbacks, logger=files, max_epochs=2).fit(scripted(), datamodule=shapes(batch_size=4))
    assert [aliases for _, _, aliases in files.sent] == [["epoch_1"], ["epoch_2"]]
    files = Files()
    callbacks = [ValidationMetrics(["l1"]), Artifacts(checkpoints=[], gallery=False), Checkpoints()]
    make_trainer(callbacks, logger=files, max_epochs=1).fit(scripted(), datamodule=shapes(batch_size=4))
    assert not files.sent


@pytest.mark.parametrize("requeued", [False, True])
def test_a_run_that_stops_sends_its_page_alone(
    scripted: Any, shapes: Any, make_trainer: Any, requeued: bool
) -> None:
    class Stop(Exception):
        pass

    class Stops(scripted):  # type: ignore[misc]
        def on_train_epoch_end(self) -> None:
            if self.trainer.current_epoch == 1:
                stop = Stop()
                stop.requeued = requeued  # type: ignore[attr-defined]
                raise stop

    files = Files()
    callbacks = [ValidationMetrics(["l1"]), Gallery(), Artifacts(), Checkpoints()]
    with pytest.raises(Stop):
        make_trainer(callbacks, logger=files, max_epochs=3).fit(Stops(), datamodule=shapes(batch_size=4))
    assert [kind for kind, _, _ in files.sent] == ["gallery"]
    assert files.preempted is requeued


def test_where_the_weights_came_from(scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "start.ckpt").write_bytes(b"weights")
    start = str(tmp_path / "start.ckpt")
    files = Files()
    callbacks = [ValidationMetrics(["l1"]), Artifacts(warm_start=start), Checkpoints()]
    trainer = make_trainer(callbacks, logger=files, max_epochs=1)
    trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    assert files.used == [("start.ckpt", "warm_start")]
    files = Files()
    callbacks = [ValidationMetrics(["l1"]), Artifacts(warm_start=start), Checkpoints()]
    again = make_trainer(callbacks, logger=files, max_epochs=2)
    last = callbacks[-1].folder(trainer) / "last.ckpt"
    again.fit(scripted(), datamodule=shapes(batch_size=4), ckpt_path=last)
    assert files.used == [("last.ckpt", "resume")]
