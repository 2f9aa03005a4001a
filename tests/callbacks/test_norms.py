from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from i2i_lightning.callbacks.norms import Norms, norm


class Rows(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.rows.setdefault(step, {}).update(metrics)


def test_norm_is_that_of_all_values_together() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5), torch.randn(())]
    expected = torch.cat([tensor.flatten() for tensor in tensors]).norm()
    torch.testing.assert_close(norm(tensors), expected)
    assert norm([]) == 0


def test_norms_of_each_player_where_the_loggers_log(
    scripted: Any, shapes: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []

    class Watched(scripted):  # type: ignore[misc]
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
            for parameter in parameters:  # as clipping would; the callback has seen it before
                parameter.grad.mul_(0.5)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            norms.clear()
            super().training_step(batch, batch_idx)
            weights = {
                player: float(torch.cat([p.detach().flatten() for p in nets[0].parameters()]).norm())
                for player, nets in self.players.items()
            }
            seen.append(
                {**dict(zip(self.players, norms, strict=True)), **{f"w {k}": v for k, v in weights.items()}}
            )

    norms: list[float] = []
    rows = Rows()
    trainer = make_trainer([Norms(gradients=True, parameters=True)], logger=rows, max_epochs=1)
    trainer.fit(Watched(), datamodule=shapes(batch_size=2))
    logged = {step: row for step, row in rows.rows.items() if any(key.startswith("norms/") for key in row)}
    assert list(logged) == [1, 3, 5]
    for step, row in logged.items():
        for player in ("discriminator", "generator"):
            assert row[f"norms/{player}/gradient"] == pytest.approx(seen[step][player])
            assert row[f"norms/{player}/parameters"] == pytest.approx(seen[step][f"w {player}"])


def test_with_accumulation_the_last_step_before_counts(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    steps: list[int] = []

    class Accumulates(scripted):  # type: ignore[misc]
        accumulate_batches = 3

        def training_step(self, batch: Any, batch_idx: int) -> None:
            if (self.batches_seen + 1) % 3 == 0:
                steps.append(self.batches_seen)
                super().training_step(batch, batch_idx)
            else:
                self.batches_seen += 1

    rows = Rows()
    trainer = make_trainer([Norms(gradients=True)], logger=rows, max_epochs=1)
    trainer.fit(Accumulates(), datamodule=shapes(num_train=12, batch_size=1))
    assert steps == [2, 5, 8, 11]
    logged = [step for step, row in rows.rows.items() if "norms/generator/gradient" in row]
    assert logged == [3, 5, 9, 11], "in batches 1 and 7 there was no new step to tell of"


def test_off_by_default(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    rows = Rows()
    make_trainer([Norms()], logger=rows, max_epochs=1).fit(scripted(), datamodule=shapes(batch_size=2))
    assert not [key for row in rows.rows.values() for key in row if key.startswith("norms/")]
