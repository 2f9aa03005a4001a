"""A resumed CycleGAN run equals the uninterrupted one bit for bit: networks, optimisers, pools, data, log."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.data.toyfaces.unpaired import ToyFacesUnpairedDataModule
from i2i_lightning.loggers.csv_log import CSVLog
from i2i_lightning.methods.cyclegan import CycleGAN, CycleGANLoss
from i2i_lightning.methods.schedules import Linear
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from tests.methods.test_resume import KeepEvery, assert_same

EPOCHS, BATCHES = 3, 3


def run(root: Path, workers: int = 0, resume: Path | None = None, keep: Path | None = None) -> dict[str, Any]:
    torch.manual_seed(0 if resume is None else 99)  # a new process has another random state
    method = CycleGAN(
        *(ResNetGenerator(3, 3, 4, 1) for _ in range(2)),
        *(PatchGAN(3, 4, 1, "instance") for _ in range(2)),
        CycleGANLoss(),
        partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999)),
        Linear(EPOCHS, 2),
        pool_size=4,
        augment=["color", "cutout"],  # draws from the global state
        ema_decay=0.9,
        seed=5,
    )
    data = ToyFacesUnpairedDataModule(
        crop_px=16,
        num_train_a=4,
        num_train_b=7,
        num_val=2,
        num_test=1,
        batch_size=2,
        num_workers=workers,
        seed=5,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        default_root_dir=root,
        logger=CSVLog(root),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[Checkpoints(monitor=None, every_n_batches=1), *([KeepEvery(keep)] if keep else [])],
    )
    trainer.fit(method, datamodule=data, ckpt_path=resume)
    return read_checkpoint(root / "checkpoints" / "last.ckpt")


def logged(root: Path) -> dict[str, dict[str, str]]:
    """Return the logged values by step."""
    with (root / "metrics.csv").open(newline="") as file:
        return {row["step"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("workers", [0, 2])
def test_bit_equal_from_every_checkpoint(tmp_path: Path, workers: int) -> None:
    store = tmp_path / "store"
    whole = run(tmp_path / "whole", workers, keep=store)
    stops = sorted(store.iterdir())
    assert len(stops) == EPOCHS * BATCHES
    pools = whole["image_pools"][0]
    assert [len(pool["images"]) for pool in pools.values()] == [4, 4]
    assert pools["a"]["seen"] == EPOCHS * BATCHES * 2
    values = logged(tmp_path / "whole")
    # With workers each run costs seconds: within the first epoch while the pools fill, at its end, after it.
    for stop in stops[:-1] if workers == 0 else (stops[0], stops[2], stops[4]):
        resumed = run(tmp_path / f"resumed-{stop.stem}", workers, resume=stop)
        for part in (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "image_pools",
            "batches_seen",
            "epoch",
            "global_step",
            "ToyFacesUnpairedDataModule",
        ):
            assert_same(whole[part], resumed[part], f"{stop.stem}/{part}")
        assert_same(whole["random_state"]["torch"], resumed["random_state"]["torch"], stop.stem)
        again = logged(tmp_path / f"resumed-{stop.stem}")
        assert again
        assert {step: row for step, row in values.items() if step in again} == again
