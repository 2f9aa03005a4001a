from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.callbacks.finite import NonFiniteGuard, NonFiniteLossError
from i2i_lightning.types import UserError

BAD_BATCH = 4  # counted from 0: the second of epoch 2 (three batches an epoch)


def breaks(healthy: dict[str, float], value: float = math.nan) -> Any:
    def script(batch: int) -> dict[str, float]:
        return healthy | ({"generator/l1": value, "generator/total": value} if batch == BAD_BATCH else {})

    return script


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("check_every", [None, 50])
def test_a_bad_loss_names_batch_terms_and_images(
    value: float, check_every: int | None, healthy: Any, scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    guard = NonFiniteGuard(check_every)
    trainer = make_trainer([guard], max_epochs=4)
    module = scripted(breaks(healthy, value))
    data = shapes(batch_size=4)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(module, datamodule=data)
    message = str(caught.value)
    assert f"epoch 2, batch 2: generator/l1 is {value}, generator/total is {value}" in message
    names = [data.train_set[1, index]["name"] for index in data._train_sampler.order(1)[4:8]]
    assert ", ".join(names) in message
    assert len(message.splitlines()) <= 3
    assert isinstance(caught.value, UserError)
    # At once on a CPU; with a longer interval at the epoch's end at the latest.
    assert module.batches_seen == (BAD_BATCH + 1 if check_every is None else 6)


@pytest.mark.parametrize("guard_first", [True, False])
def test_no_checkpoint_holds_a_poisoned_state(
    guard_first: bool, healthy: Any, scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    # The interval is so long that only the check before a checkpoint can find the batch in time.
    callbacks: list[Callback] = [NonFiniteGuard(1000), Checkpoints(monitor=None, every_n_batches=1)]
    trainer = make_trainer(callbacks if guard_first else callbacks[::-1])
    with pytest.raises(NonFiniteLossError, match="batch 2"):
        trainer.fit(scripted(breaks(healthy)), datamodule=shapes(batch_size=4))
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["batches_seen"] == BAD_BATCH


class PoisonWeights(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.batches_seen == 2:
            pl_module.generator.weight.data[0, 0, 0, 0] = math.inf


def test_bad_weights_are_kept_out_though_every_loss_is_finite(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer([PoisonWeights(), NonFiniteGuard(), Checkpoints(monitor=None)])
    with pytest.raises(NonFiniteLossError, match=r"although every loss was: generator\.weight"):
        trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_any_other_writer_is_refused_too(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    class Writer(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{pl_module.batches_seen}.ckpt")

    trainer = make_trainer([Writer(), NonFiniteGuard(1000)])
    with pytest.raises(NonFiniteLossError):
        trainer.fit(scripted(breaks(healthy)), datamodule=shapes(batch_size=4))
    assert sorted(int(path.stem) for path in tmp_path.glob("*.ckpt")) == [1, 2, 3, 4]


def test_a_finite_run_is_left_alone(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    trainer = make_trainer([NonFiniteGuard(2)])
    trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    assert trainer.current_epoch == 2


def test_interval_must_be_positive() -> None:
    with pytest.raises(UserError, match="check_every=0"):
        NonFiniteGuard(0)
