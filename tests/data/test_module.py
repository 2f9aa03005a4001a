"""Loaders, exact resume under Lightning, and what every data module inherits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from i2i_lightning.data.module import ImageDataModule, Item, collate
from i2i_lightning.data.sampler import AnyKey, EpochSampler, epoch_and_index, item_rng
from i2i_lightning.types import PairedBatch, UserError


class Noise:
    """Items that are a pure function of the key."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: AnyKey) -> Item:
        epoch, index = epoch_and_index(key)
        pixels = item_rng(0, epoch, index).integers(0, 256, (1, 2, 2), dtype=np.uint8)
        return {"real_a": pixels, "real_b": torch.from_numpy(pixels), "name": f"{epoch}/{index}"}


class NoiseModule(ImageDataModule):
    in_channels = out_channels = 1
    size_px = (2, 2)

    def setup(self, stage: str) -> None:
        self.train_set, self.val_set, self.test_set = Noise(10), Noise(3), Noise(3)

    def to_network(self, batch: Item) -> PairedBatch:
        return {"real_a": batch["real_a"].float(), "real_b": batch["real_b"].float(), "name": batch["name"]}

    def display_input(self, real_a: Tensor) -> Tensor:
        return real_a.expand(-1, 3, -1, -1).to(torch.uint8)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        return b.expand(-1, 3, -1, -1).to(torch.uint8)


class Recorder(LightningModule):
    """Two manual optimiser steps a batch, as a GAN takes, and a list of what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([self.weight], 0.1) for _ in range(2)]

    def training_step(self, batch: PairedBatch, batch_idx: int) -> None:
        self.seen.append(batch["name"])
        assert batch["real_a"].dtype == self.weight.dtype
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch: PairedBatch, batch_idx: int) -> None:
        pass


class SaveAt(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.batches += 1
        trainer.save_checkpoint(self.folder / f"batch_{self.batches}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch_{trainer.current_epoch}.ckpt")


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **options})


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_sees_exactly_what_an_unbroken_run_sees(tmp_path: Path, workers: int) -> None:
    whole = Recorder()
    trainer(callbacks=[SaveAt(tmp_path)]).fit(whole, datamodule=NoiseModule(3, 1, workers, seed=5))
    # Ten items, batches of three, the short last batch dropped: three batches an epoch.
    assert len(whole.seen) == 9
    assert {name.split("/")[0] for batch in whole.seen[3:6] for name in batch} == {"1"}
    assert [batch for batch in whole.seen if len(batch) != 3] == []
    # 3 and 6 are the last batches of their epochs.
    batches = range(1, 9) if workers == 0 else (4,)
    for done in batches:
        resumed = Recorder()
        data = NoiseModule(3, 1, workers, seed=5)
        trainer().fit(resumed, datamodule=data, ckpt_path=tmp_path / f"batch_{done}.ckpt")
        assert resumed.seen == whole.seen[done:], f"after batch {done}"
    for epoch in (0, 1) if workers == 0 else ():
        resumed = Recorder()
        data = NoiseModule(3, 1, workers, seed=5)
        trainer().fit(resumed, datamodule=data, ckpt_path=tmp_path / f"epoch_{epoch}.ckpt")
        assert resumed.seen == whole.seen[3 * (epoch + 1) :], f"after epoch {epoch}"


def test_a_second_resume_from_a_resumed_run(tmp_path: Path) -> None:
    whole = Recorder()
    trainer(callbacks=[SaveAt(tmp_path)]).fit(whole, datamodule=NoiseModule(3, seed=5))
    (tmp_path / "again").mkdir()
    middle = Recorder()
    save = SaveAt(tmp_path / "again")
    trainer(callbacks=[save]).fit(
        middle, datamodule=NoiseModule(3, seed=5), ckpt_path=tmp_path / "batch_4.ckpt"
    )
    for done in (1, 2, 3):
        last = Recorder()
        checkpoint = tmp_path / "again" / f"batch_{done}.ckpt"
        trainer().fit(last, datamodule=NoiseModule(3, seed=5), ckpt_path=checkpoint)
        assert last.seen == whole.seen[4 + done :]


def test_another_fit_with_the_same_module_starts_afresh(tmp_path: Path) -> None:
    whole, data = Recorder(), NoiseModule(3, seed=5)
    trainer(callbacks=[SaveAt(tmp_path)]).fit(whole, datamodule=data)
    trainer().fit(Recorder(), datamodule=data, ckpt_path=tmp_path / "batch_2.ckpt")
    again = Recorder()
    trainer().fit(again, datamodule=data)
    assert again.seen == whole.seen


def test_limited_epochs_resume_at_their_own_end(tmp_path: Path) -> None:
    whole = Recorder()
    trainer(limit_train_batches=2, callbacks=[SaveAt(tmp_path)]).fit(whole, datamodule=NoiseModule(3))
    state = torch.load(tmp_path / "batch_2.ckpt", weights_only=True)["NoiseModule"]
    assert state == {"epoch": 1, "items": 0}
    assert torch.load(tmp_path / "batch_3.ckpt", weights_only=True)["NoiseModule"] == {"epoch": 1, "items": 3}
    resumed = Recorder()
    trainer(limit_train_batches=2).fit(
        resumed, datamodule=NoiseModule(3), ckpt_path=tmp_path / "batch_3.ckpt"
    )
    assert resumed.seen == whole.seen[3:]


def test_state_without_a_trainer_is_what_was_loaded() -> None:
    data = NoiseModule()
    assert data.state_dict() == {"epoch": 0, "items": 0}
    data.load_state_dict({"epoch": 2, "items": 4})
    assert data.state_dict() == {"epoch": 2, "items": 4}
    data.setup("fit")
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, EpochSampler)
    assert len(list(sampler)) == 6
    assert len(sampler) == 10


def test_precision_is_the_trainer_s() -> None:
    model = Recorder()
    trainer(precision="64-true", max_epochs=1).fit(model, datamodule=NoiseModule(3))
    assert model.weight.dtype == torch.float64


def test_loaders_outside_of_a_trainer() -> None:
    data = NoiseModule(batch_size=4, val_batch_size=2)
    with pytest.raises(UserError, match=r"train split .* call setup"):
        data.train_dataloader()
    data.setup("fit")
    assert data.num_train_images == 10
    assert [len(batch["name"]) for batch in data.train_dataloader()] == [4, 4]
    assert [batch["name"] for batch in data.val_dataloader()] == [["0/0", "0/1"], ["0/2"]]
    assert [batch["name"] for batch in data.test_dataloader()] == [["0/0", "0/1"], ["0/2"]]
    data.batch_size = 16
    assert [len(batch["name"]) for batch in data.train_dataloader()] == [10]


def test_preview_is_the_first_validation_items() -> None:
    data = NoiseModule()
    data.setup("fit")
    assert data.preview_batch(2)["name"] == ["0/0", "0/1"]
    assert data.preview_batch(20)["real_a"].shape == (3, 1, 2, 2)


def test_workers_by_default_only_where_they_help(monkeypatch: pytest.MonkeyPatch) -> None:
    data = NoiseModule()
    monkeypatch.setattr("i2i_lightning.data.module.available_cores", lambda: 16)
    assert data.effective_num_workers == 4
    data.cache_in_memory = True
    assert data.effective_num_workers == 0
    assert NoiseModule(num_workers=3).effective_num_workers == 3


def test_global_random_state_is_left_alone() -> None:
    data = NoiseModule(batch_size=2)
    data.setup("fit")
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for _ in data.train_dataloader():
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("key", ["batch_size", "val_batch_size", "num_workers", "seed"])
def test_impossible_numbers(key: str) -> None:
    with pytest.raises(UserError, match=f"data.{key}=-1: must be at least"):
        NoiseModule(**{key: -1})


def test_collate_stacks_arrays_and_tensors_and_lists_text() -> None:
    batch = collate([Noise(2)[0], Noise(2)[1]])
    assert batch["real_a"].shape == (2, 1, 2, 2)
    assert torch.equal(batch["real_a"], batch["real_b"])
    assert batch["name"] == ["0/0", "0/1"]
    assert collate(batch) is batch
