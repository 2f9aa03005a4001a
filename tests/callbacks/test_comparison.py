from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from i2i_lightning.callbacks.comparison import ComparisonTable, measure
from i2i_lightning.callbacks.previews import preview
from i2i_lightning.loggers.csv_log import CSVLog
from i2i_lightning.metrics.image import psnr
from i2i_lightning.types import UserError


class Tables(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[dict[str, Any]] = []

    def log_table(self, key: str, **table: Any) -> None:
        self.tables.append({"key": key, **table})


def test_a_row_for_every_sample(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    tables = Tables()
    trainer = make_trainer([ComparisonTable(3, every_n_epochs=2)], logger=tables, max_epochs=3)
    trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    assert [table["step"] for table in tables.tables] == [5, 8], "epoch 2 and the last; no sanity check"
    table = tables.tables[-1]
    assert table["key"] == "comparison"
    assert table["columns"] == ["epoch", "name", "input", "output", "target", "l1", "psnr", "ssim"]
    assert [row[:2] for row in table["data"]] == [[3, f"shape_{index}.png"] for index in (100, 101, 102)]
    sample = preview(trainer, 3).samples[1]
    row = dict(zip(table["columns"], table["data"][1], strict=True))
    for column in ("input", "output", "target"):
        assert row[column].dtype == np.uint8
        np.testing.assert_array_equal(row[column], sample[column])
    made, wanted = (torch.from_numpy(sample[name]).permute(2, 0, 1)[None] for name in ("output", "target"))
    assert row["psnr"] == pytest.approx(float(psnr(made, wanted)))


def test_both_ways_have_rows(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    class TwoWays(scripted):  # type: ignore[misc]
        def preview(self, batch: Any) -> Any:
            one = super().preview(batch)
            there = {"input": one["input"], "output": one["output"], "cycle": one["input"]}
            return {"ab": there, "ba": there}

    tables = Tables()
    trainer = make_trainer([ComparisonTable(2)], logger=tables, max_epochs=1)
    trainer.fit(TwoWays(), datamodule=shapes(batch_size=4))
    (table,) = tables.tables
    assert table["columns"][:6] == ["epoch", "name", "direction", "input", "output", "cycle"]
    assert [row[2] for row in table["data"]] == ["a to b", "b to a"] * 2
    assert table["data"][0][-3:] == [None] * 3, "no target, no figures"


def test_figures_only_where_they_mean_something() -> None:
    image = np.full((8, 8, 3), 7, np.uint8)
    assert measure(image, None) == {}
    assert measure(image, image) == {"l1": 0.0}, "infinite PSNR; too small for SSIM"


def test_no_tables_no_work(scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path) -> None:
    class Refuses(scripted):  # type: ignore[misc]
        def preview(self, batch: Any) -> Any:
            raise AssertionError

    make_trainer([ComparisonTable()], logger=CSVLog(tmp_path)).fit(Refuses(), datamodule=shapes())
    with pytest.raises(UserError, match="num_samples=0"):
        ComparisonTable(0)
