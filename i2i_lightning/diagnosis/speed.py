"""How fast data comes, and how fast a step is: short measurements, each on what a run would use."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning.diagnosis.findings import Finding

if TYPE_CHECKING:
    from lightning import LightningModule
    from torch import Tensor

    from i2i_lightning.data.module import ImageDataModule

SAMPLE_PICTURES = 64
"""Pictures of the user's own that are tried."""
LEAST_S = 0.7
"""A rate is taken over at least so many seconds."""
WARMUP_STEPS, PROBE_STEPS = 4, 20
LARGE_WAIT_SHARE = 0.1


def toyfaces() -> Iterator[Finding]:
    """Draw some of the toy data's faces, and read them as a run does."""
    from i2i_lightning.data.toyfaces.module import ToyFacesDataModule

    data = ToyFacesDataModule(num_train=160, num_val=16, num_test=16, batch_size=16)
    began = time.perf_counter()
    data.setup("fit")
    drawn = (160 + 16) / (time.perf_counter() - began)
    cached = _images_per_s(data)
    text = f"ToyFaces at 64 px: {drawn:,.0f} pairs/s drawn, once; then {cached:,.0f} pairs/s from memory"
    values = {"set": "ToyFaces", "size_px": 64, "decoded_per_s": drawn, "cached_per_s": cached}
    yield Finding("data", text, values=values)


def own_data(root: Path) -> Iterator[Finding]:
    """Read a sample of the pictures below ``root`` as a run does: decoded every time, and from the cache.

    Whether they are pairs or not, each file counts as one picture, resized to 286 px and cut to 256 px.

    Raises:
        UserError: If there are none, or one cannot be read.
    """
    from i2i_lightning.data.pairs import list_images
    from i2i_lightning.data.unpaired import UnpairedDataModule
    from i2i_lightning.types import UserError

    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder")
    paths = list_images(root)
    if len(paths) < 4:
        raise UserError(f"--data {root}: {len(paths)} pictures there, 4 are the least")
    sample = paths[:: max(1, len(paths) // SAMPLE_PICTURES)][:SAMPLE_PICTURES]
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        lists = [Path(folder) / "a.txt", Path(folder) / "b.txt"]
        for side, path in enumerate(lists):
            path.write_text(
                "".join(f"{picture.resolve()}\n" for picture in sample[side::2]), encoding="utf-8"
            )
        for cache in ("none", "memory"):
            data = UnpairedDataModule(
                folder_a=lists[0],
                folder_b=lists[1],
                convert="match",
                cache=cache,
                cache_dir=folder,
                num_workers=0,
            )
            with quiet():  # about the few that would be held out
                data.setup("fit")
            rates[cache] = 2 * _images_per_s(data)
    text = (
        f"{root}: {len(paths):,} pictures; at 256 px one process decodes {rates['none']:,.0f}/s, "
        f"and reads {rates['memory']:,.0f}/s from the cache"
    )
    values = {"root": str(root), "pictures": len(paths), "sampled": len(sample), "size_px": 256,
              "decoded_per_s": rates["none"], "cached_per_s": rates["memory"]}  # fmt: skip
    yield Finding("own data", text, values=values)


def _images_per_s(data: ImageDataModule) -> float:
    """Return the items per second of whole epochs, up to the floats that a network sees."""
    images, began = 0, time.perf_counter()
    epoch = 0
    while True:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            pairs: Any = data.to_network(batch)
            images += len(pairs["real_a"])
            elapsed = time.perf_counter() - began
            if elapsed > 5 * LEAST_S:
                return images / elapsed
        epoch += 1
        if (elapsed := time.perf_counter() - began) > LEAST_S:
            return images / elapsed


def probe(method: LightningModule, data: ImageDataModule, accelerator: str) -> Iterator[Finding]:
    """Train a few steps and say how long they take, whether the losses are finite, and what they wait for.

    Args:
        method: The method, freshly built.
        data: Its data; at least 24 batches of them.
        accelerator: ``cpu``, ``gpu`` or ``mps``.
    """
    from lightning import Callback, Trainer
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from i2i_lightning.callbacks.throughput import Pace, fetch_timer

    class Watch(Callback):
        """Take the pace of the last steps, the device included, and every loss."""

        def __init__(self) -> None:
            self.pace: dict[str, float] = {}
            self.seconds = 0.0
            self.terms: list[Mapping[str, Tensor]] = []
            self._began = 0.0
            self._pace: Pace | None = None

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.batch_idx + 1 == WARMUP_STEPS:
                wait()
                self._pace = Pace(fetch_timer(trainer), 1)
                self._pace.resume()
                self._began = time.perf_counter()
            elif self._pace is not None:
                self._pace.count({"name": [""] * data.batch_size})
            self.terms.append(getattr(trainer.lightning_module, "step_terms", {}))

        def on_train_end(self, *_: Any) -> None:
            wait()
            self.seconds = time.perf_counter() - self._began
            assert self._pace is not None
            self.pace = self._pace.read()

    import torch

    wait = {"gpu": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(accelerator, lambda: None)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=1,
            limit_train_batches=WARMUP_STEPS + PROBE_STEPS,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[watch],
            # One process, whatever job this one is part of.
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # what a run says of its steps
            trainer.fit(method, datamodule=data)
    # Read only now: to look at a loss is to wait for the device.
    losses = [{name: float(value) for name, value in terms.items()} for terms in watch.terms]
    yield _judge(losses, watch.seconds, watch.pace, data, accelerator)


def _judge(
    losses: list[dict[str, float]],
    seconds: float,
    pace: dict[str, float],
    data: ImageDataModule,
    accelerator: str,
) -> Finding:
    step_ms, share = 1000 * seconds / PROBE_STEPS, pace["data_wait_share"]
    images_per_s = PROBE_STEPS * data.batch_size / seconds
    wrong = sorted({name for terms in losses for name, value in terms.items() if not math.isfinite(value)})
    last = {name: value for name, value in losses[-1].items() if math.isfinite(value)} if losses else {}
    text = (
        f"{PROBE_STEPS} steps of pix2pix, batch {data.batch_size} at 64 px, on {accelerator}: "
        f"{step_ms:.0f} ms per step, {images_per_s:.1f} images/s, {share:.0%} of the time waiting for data; "
        + (f"NOT finite: {', '.join(wrong)}" if wrong else "every loss finite" if last else "no loss at all")
    )
    values = {
        "accelerator": accelerator, "steps": PROBE_STEPS, "batch_size": data.batch_size, "step_ms": step_ms,
        "images_per_s": images_per_s, "data_wait_share": share, "not_finite": wrong, "losses": last,
    }  # fmt: skip
    if wrong or not last:
        advice = "the arithmetic of this device or build of torch is broken: try trainer=cpu, another build"
        return Finding("step", text, "problem", advice, values)
    if share > LARGE_WAIT_SHARE:
        return Finding("step", text, "note", "training waits for data: try data.num_workers=4", values)
    return Finding("step", text, values=values)


def best_accelerator(devices: Sequence[str]) -> str:
    """Return what Lightning calls the best of the devices that were found."""
    return {"cuda": "gpu", "mps": "mps"}.get(devices[-1].partition(":")[0], "cpu")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's own words off the page."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
