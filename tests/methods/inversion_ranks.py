"""What two processes embed together on a CPU, for the tests to compare with one process."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import multiprocessing
from torch.utils.data import DataLoader

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.methods.inversion import Embedding, Stage, Start, Targets, statistics
from i2i_lightning.methods.inversion.method import Inversion
from i2i_lightning.strategies.precision import fp32
from tests.methods.inversions import generator, images, method, names
from tests.methods.test_inversion_method import Chunk, Collect

SIZE = 2
START = Start("random", noise="random")
CASES: dict[str, dict[str, Stage]] = {
    "joint": {"joint": Stage(["w", "noise"], 4, rate=0.05, w_noise=0.05, normalise_noise=True, keep="last")},
    # The first image stops at once, and with it the batch of its process is half as large, or over.
    "stops": {"w_plus": Stage(["w_plus"], 25, rate=0.05, stop_at={"mse": 1e-6})},
    "tuned": {"w_plus": Stage(["w_plus"], 3, rate=0.05), "tune": Stage(["generator"], 2, keep="last")},
}


def start(case: str) -> Start:
    return Start("mean") if case == "stops" else START


def wanted(case: str) -> Targets:
    """Five images: of two processes that take two at a time, one has none left in the second turn."""
    real = images(5).clone()
    if case == "stops":
        network = generator()
        mean = statistics(network).mean[:, None].expand(-1, network.num_ws, -1)
        real[:2] = network.synthesis(mean).detach()
    return Targets(real, names(5))


class Shares(L.LightningDataModule):
    """Chunks of ``SIZE`` images, dealt to the processes in turn."""

    batch_size = SIZE

    def __init__(self, targets: Targets) -> None:
        super().__init__()
        self.targets = targets

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        turn = self.trainer.current_epoch * self.trainer.world_size + self.trainer.global_rank
        some = slice(turn * SIZE, (turn + 1) * SIZE)
        batch = {"real": self.targets.real[some], "name": list(self.targets.names)[some]}
        steps = self.trainer.lightning_module.steps_per_chunk(SIZE)
        return DataLoader(Chunk(batch, steps), batch_size=None)  # type: ignore[arg-type]


class KeepOne(L.Callback):
    """Copy the checkpoint after batch ``after`` aside, as the first process has written it."""

    def __init__(self, after: int, path: Path) -> None:
        self.after, self.path = after, path

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.batches_seen == self.after and trainer.is_global_zero and not self.path.exists():
            last = Path(trainer.default_root_dir, "checkpoints", "last.ckpt")
            self.path.write_bytes(last.read_bytes())


def plain(found: list[Embedding]) -> list[dict[str, Any]]:
    return [
        {
            "names": one.names,
            "w_plus": one.w_plus,
            "noise": one.noise,
            "image": one.image,
            "steps": one.steps,
            "tuned": one.tuned,
        }
        for one in found
    ]


def embed_shares(
    case: str, unused: bool, root: Path, resume: Path | None = None, keep: KeepOne | None = None
) -> dict[str, Any]:
    """Fit, and return what this process has found."""
    inversion: Inversion = method(CASES[case], seed=1, start=start(case))
    before = {name: value.clone() for name, value in inversion.generator.state_dict().items()}
    collect = Collect()
    strategy = DDPStrategy(find_unused_parameters=unused, timeout=timedelta(seconds=120))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=2,
        plugins=[fp32()],
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[collect, Checkpoints(monitor=None, every_n_batches=1), *([keep] if keep else [])],
    )
    trainer.fit(inversion, datamodule=Shares(wanted(case)), ckpt_path=resume)
    after = inversion.generator.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    return {"found": plain(collect.found), "batches": inversion.batches_seen}


def work(rank: int, port: int, folder: str) -> None:
    """Be one of the two processes, and write what every case returns."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }
    results: dict[str, Any] = {}
    for case in CASES:
        for unused in (False, True) if case == "joint" else (True,):
            root = Path(folder, f"{case}-{unused}")
            kept = root.with_suffix(".ckpt")
            L.seed_everything(0, verbose=False)
            key = f"{case}{' ddp' if not unused else ''}"
            results[key] = embed_shares(case, unused, root, keep=KeepOne(2, kept))
            if unused:
                L.seed_everything(99, verbose=False)
                results[f"{case} resumed"] = embed_shares(
                    case, unused, root.with_name(f"{case}-resumed"), resume=kept
                )
    torch.save(results, Path(folder, f"{rank}.pt"))


def run_all(folder: Path, limit_s: float = 240.0) -> list[dict[str, Any]]:
    """Run every case and return the results of both processes; stop them at the time limit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = multiprocessing.spawn(work, args=(port, str(folder)), nprocs=2, join=False)
    assert processes is not None
    ends = time.monotonic() + limit_s
    try:
        while not processes.join(timeout=5):
            assert time.monotonic() < ends, "the processes wait for each other"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
