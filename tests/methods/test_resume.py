"""A resumed run equals the uninterrupted one, bit for bit, from every checkpoint it could have stopped at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.callbacks.random_state import random_state, set_random_state
from i2i_lightning.checkpoints.io import read_checkpoint, write_beside
from i2i_lightning.checkpoints.warm_start import warm_start
from i2i_lightning.data.module import ImageDataModule
from i2i_lightning.data.sampler import epoch_and_index, item_rng
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.methods.schedules import Linear, Plateau, Schedule
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.unet import UNet
from i2i_lightning.types import PairedBatch, UserError

EPOCHS, BATCHES = 3, 3


class NoisyPairs:
    """Seven pairs, augmented by noise that is a pure function of the key."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = epoch_and_index(key)
        rng = item_rng(3, epoch, index)
        return {
            "real_a": rng.random((3, 32, 32), dtype=np.float32) * 2 - 1,
            "real_b": rng.random((3, 32, 32), dtype=np.float32) * 2 - 1,
            "name": str(index),
        }


class NoisyData(ImageDataModule):
    in_channels, out_channels, size_px = 3, 3, (32, 32)

    def setup(self, stage: str) -> None:
        self.train_set = self.val_set = self.test_set = NoisyPairs()

    def to_network(self, batch: Any) -> PairedBatch:
        return batch  # type: ignore[no-any-return]

    def display_input(self, real_a: Tensor) -> Tensor:
        return ((real_a + 1) * 127.5).round().to(torch.uint8)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        return self.display_input(b)


class MeasureL1(L.Callback):
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        pl_module.log("val/l1", (outputs["fake_b"] - outputs["real_b"]).abs().mean(), on_epoch=True)


class KeepEvery(L.Callback):
    """Copy every version of last.ckpt aside."""

    def __init__(self, store: Path) -> None:
        self.store, self.seen = store, 0.0
        self.store.mkdir()

    def keep(self, trainer: Any) -> None:
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists() and last.stat().st_mtime_ns != self.seen:
            self.seen = last.stat().st_mtime_ns
            shutil.copy(last, self.store / f"{len(list(self.store.iterdir())):03d}.ckpt")

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.keep(trainer)

    def on_train_end(self, trainer: Any, *args: Any) -> None:
        self.keep(trainer)


def build(schedule: Schedule, accumulate: int = 1) -> Pix2Pix:
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
    generator = UNet(3, 3, num_downs=5, base_channels=4, dropout="paper")
    discriminator = PatchGAN(6, base_channels=4, num_layers=2)
    return Pix2Pix(
        generator, discriminator, Pix2PixLoss(), adam, schedule, ema_decay=0.9, accumulate_batches=accumulate
    )


def run(
    root: Path,
    schedule: Schedule,
    workers: int = 0,
    accumulate: int = 1,
    resume: Path | None = None,
    keep: Path | None = None,
    extra: Sequence[L.Callback] = (),
) -> dict[str, Any]:
    method = build(schedule, accumulate)
    checkpoints = Checkpoints(monitor="val/l1", every_n_batches=1, keep_every_n_epochs=2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[checkpoints, MeasureL1(), *([KeepEvery(keep)] if keep else []), *extra],
    )
    trainer.fit(method, NoisyData(batch_size=2, num_workers=workers), ckpt_path=resume)
    return read_checkpoint(root / "checkpoints" / "last.ckpt")


def assert_same(left: Any, right: Any, where: str = "") -> None:
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    else:
        assert left == right, (where, left, right)


@pytest.mark.parametrize(
    ("schedule", "workers", "accumulate", "stops_expected"),
    [
        (Linear(EPOCHS, 2), 0, 1, EPOCHS * BATCHES),
        (Linear(EPOCHS, 2), 2, 1, EPOCHS * BATCHES),
        (Plateau(patience_epochs=0, threshold=0.5), 0, 1, EPOCHS * BATCHES),
        # Steps after batches 2, 3, 5, 6, 8 and 9: a checkpoint never falls between two accumulated batches.
        (Linear(EPOCHS, 2), 0, 2, 6),
    ],
    ids=["linear", "linear-two-workers", "plateau", "accumulation"],
)
def test_bit_equal_from_every_checkpoint(
    tmp_path: Path, schedule: Schedule, workers: int, accumulate: int, stops_expected: int
) -> None:
    store = tmp_path / "store"
    whole = run(tmp_path / "whole", schedule, workers, accumulate, keep=store)
    stops = sorted(store.iterdir())
    assert len(stops) == stops_expected
    for stop in stops[:-1] if workers == 0 else stops[1:5]:
        torch.manual_seed(99)  # a new process has another random state
        resumed = run(tmp_path / f"resumed-{stop.stem}", schedule, workers, accumulate, resume=stop)
        for part in (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "batches_seen",
            "epoch",
            "global_step",
        ):
            assert_same(whole[part], resumed[part], f"{stop.stem}/{part}")
        assert_same(whole["random_state"]["torch"], resumed["random_state"]["torch"], stop.stem)
        assert_same(whole["NoisyData"], resumed["NoisyData"], stop.stem)
        assert_same(whole["callbacks"], resumed["callbacks"], stop.stem)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stopped_in_mid_epoch_goes_on_there(tmp_path: Path, accumulate: int) -> None:
    """``trainer.max_time`` sets ``should_stop``; Lightning then runs the epoch's end as usual.

    Of two batches that take a step together, the one that waits is not left behind.
    """

    class StopAfter(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.lightning_module.batches_seen == BATCHES + 1

    whole = run(tmp_path / "whole", Linear(EPOCHS, 2), accumulate=accumulate)
    run(tmp_path / "stopped", Linear(EPOCHS, 2), accumulate=accumulate, extra=[StopAfter()])
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["batches_seen"] == BATCHES + accumulate
    resumed = run(tmp_path / "stopped", Linear(EPOCHS, 2), accumulate=accumulate, resume=last)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "batches_seen", "epoch", "NoisyData"):
        assert_same(whole[part], resumed[part], part)


def test_the_files_of_a_run(tmp_path: Path) -> None:
    run(tmp_path, Linear(EPOCHS, 2))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch_0002.ckpt", "last.ckpt", "last_1.ckpt"]
    assert not any("=" in name for name in names)
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["epoch"] == EPOCHS - 1
    assert last["batches_seen"] == EPOCHS * BATCHES


def test_random_state_goes_round() -> None:
    import random

    state = random_state()
    first = (random.random(), np.random.rand(), torch.rand(3))
    set_random_state(state)
    again = (random.random(), np.random.rand(), torch.rand(3))
    assert first[:2] == again[:2]
    assert torch.equal(first[2], again[2])


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Checkpoints(monitor="val/lpipz"), MeasureL1()],
    )
    with pytest.raises(UserError, match=r"monitor=val/lpipz.*val/l1"):
        trainer.fit(build(Linear(1, 0)), NoisyData(batch_size=2))


def test_what_is_not_about_the_file_is_not_called_so(tmp_path: Path) -> None:
    """Saving takes part in collectives: another process may die in them."""

    def peer_dies(target: Path) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")

    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        write_beside(tmp_path / "last.ckpt", peer_dies)
    assert list(tmp_path.iterdir()) == []


def test_what_is_best_near_1_cannot_be_monitored() -> None:
    with pytest.raises(UserError, match=r"monitor=val/sharpness: it is best near 1"):
        Checkpoints(monitor="val/sharpness", mode="max")


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("good")

    def half(target: Path) -> None:
        target.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write_beside(path, half)
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.ckpt"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="not a plain file"):
        write_beside(pipe, lambda target: target.write_text("whole") and None)
    assert pipe.is_fifo()


def test_a_full_disk_under_torch_is_put_plainly(tmp_path: Path) -> None:
    def full(target: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 18176 vs 18064")

    with pytest.raises(UserError) as error:
        write_beside(tmp_path / "last.ckpt", full)
    text = str(error.value)
    assert "is the disk full?" in text
    assert "inline_container" not in text
    assert "earlier file" not in text


def test_a_truncated_file_is_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="not a whole checkpoint file") as error:
        read_checkpoint(path)
    assert len(str(error.value)) < len(str(path)) + 150


class TestWarmStart:
    def test_fills_every_network(self, tmp_path: Path) -> None:
        trained = run(tmp_path, Linear(EPOCHS, 2))["state_dict"]
        fresh = build(Linear(EPOCHS, 2))
        warm_start(fresh, tmp_path / "checkpoints" / "last.ckpt")
        assert_same(dict(fresh.state_dict()), dict(trained))

    def test_other_networks_are_refused(self, tmp_path: Path) -> None:
        run(tmp_path, Linear(EPOCHS, 2))
        adam = partial(torch.optim.Adam, lr=1e-3)
        wider = Pix2Pix(UNet(3, 3, num_downs=5, base_channels=8), PatchGAN(6, 4, 2), Pix2PixLoss(), adam)
        before = {key: value.clone() for key, value in wider.state_dict().items()}
        with pytest.raises(UserError, match=r"generator\.encoder\.0\.conv\.weight has shape"):
            warm_start(wider, tmp_path / "checkpoints" / "last.ckpt")
        assert_same(dict(wider.state_dict()), before)

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
    def test_a_broken_file_is_one_clear_line(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "broken.ckpt"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.ckpt"):
            read_checkpoint(path)

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        marker = tmp_path / "ran"

        class Bomb:
            def __reduce__(self) -> Any:
                return (Path.touch, (marker,))

        torch.save({"state_dict": {}, "bomb": Bomb()}, tmp_path / "bomb.ckpt")
        with pytest.raises(UserError, match="refused"):
            read_checkpoint(tmp_path / "bomb.ckpt")
        assert not marker.exists()
