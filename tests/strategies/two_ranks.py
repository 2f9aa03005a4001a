"""What two processes do together on a CPU, for the tests to compare with one process.

All cases run one after another in one pair of processes, which takes seconds to start.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import multiprocessing, nn

from i2i_lightning.methods.base import Method
from i2i_lightning.networks.layers import norm_layer
from i2i_lightning.networks.sync_batchnorm import SyncBatchNorm2d
from i2i_lightning.strategies.precision import fp32, fp64
from i2i_lightning.strategies.sync_batchnorm import SynchronizedNorms
from tests.methods.runs import Item, Log, batches, cyclegan, images, pix2pix, run
from tests.strategies.test_precision import Scaled, Watched

HALVES = ([0, 2], [1, 3, 4, 5])  # of six images, for processes that have different batches
ACCUMULATED_FP16: dict[str, Any] = {"accumulate_batches": 4, "clip_norm": 0.5, "ema_decay": 0.5}


def whole(count: int) -> list[Item]:
    return images(count)


def together(method: Method, sizes: list[int], precision: Precision | None = None, **options: Any) -> Any:
    """Fit on this process's every other image, in batches of ``sizes``."""
    mine = whole(2 * sum(sizes))[this_rank() :: 2]
    strategy = DDPStrategy(find_unused_parameters=True, timeout=timedelta(seconds=300))
    settings: dict[str, Any] = {"devices": 2, "strategy": strategy, **options}
    return run(method, batches(mine, sizes), precision or fp64(), **settings)._asdict()


def this_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def synchronised(kind: Callable[..., Method], **options: Any) -> Callable[[], Any]:
    return lambda: together(kind("batch", **options), [2, 2, 2, 2], plugins=[SynchronizedNorms()])


def fp16_with_overflow() -> Any:
    """Four windows' worth of overflow or more, as the test's one process sees it in float32."""
    precision = Watched(init_scale=2.0**20)
    record = together(pix2pix(**ACCUMULATED_FP16), [1] * 32, precision)
    return {**record, "taken": precision.taken, "scaler": precision.state_dict()}


def scaled_with_overflow() -> Any:
    """The same in float32 under the scaler, where nothing is rounded."""
    precision = Scaled(init_scale=2.0**127, growth_interval=2)
    record = together(pix2pix(**ACCUMULATED_FP16), [1] * 24, precision)
    return {**record, "taken": precision.taken, "scaler": precision.state_dict()}


def logged_terms() -> Any:
    """Each process logs the mean over both, while its own terms are its own."""

    log = Log()
    record = together(pix2pix(), [2], logger=log, log_every_n_steps=1)
    return {**record, "logged": log.rows}


def scaled_rates() -> Any:
    return together(pix2pix(accumulate_batches=2, rate_scaling="linear"), [1, 1])


def batch_norm_of_each() -> Any:
    """Each process has statistics of its own batches, until they are to measure."""
    method = pix2pix("batch")
    own: dict[str, Any] = {}

    def measure() -> None:
        own.update({name: value.clone() for name, value in method.state_dict().items()})
        method.on_validation_start()

    method.on_train_end = measure  # type: ignore[method-assign]
    return {**together(method, [2, 2]), "own": own}


def unequal_batches() -> Any:
    """Return outputs, gradients and statistics of a norm whose processes have two and four images."""
    torch.manual_seed(0)
    norm = norm_layer("syncbatch")(3).double()
    nn.init.normal_(norm.weight)
    x = torch.stack([item["real_a"] for item in whole(6)]).double()[HALVES[this_rank()]].requires_grad_()
    out = norm(x)
    (out.square() * out.detach().cos()).sum().backward()
    assert x.grad is not None
    return {
        "out": out.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "buffers": dict(norm.named_buffers()),
    }


def testing_alone() -> Any:
    """One process previews and validates while the other does not: nobody waits."""
    for sync in (SynchronizedNorms().apply(pix2pix("batch")), pix2pix("syncbatch")):
        assert isinstance(sync, Method)
        batch = batches(whole(2), [2])[0]
        before = {name: value.clone() for name, value in sync.state_dict().items()}
        if this_rank() == 0:
            sync.preview(batch)
            sync.validation_step(batch, 0)
        sync.eval()
        if this_rank() == 1:
            sync.generator(batch["real_a"])
        assert all(torch.equal(value, before[name]) for name, value in sync.state_dict().items())
        assert any(isinstance(module, SyncBatchNorm2d) for module in sync.modules())
    return {}


CASES: dict[str, Callable[[], Any]] = {
    "pix2pix": lambda: together(pix2pix(), [2, 2, 2, 2]),
    "pix2pix unconditional without norm": lambda: together(pix2pix("none", conditional=False), [2, 2]),
    "cyclegan": lambda: together(cyclegan(), [2, 2]),
    "pix2pix accumulated": lambda: together(pix2pix(accumulate_batches=2, ema_decay=0.9), [2, 2, 1, 2, 3]),
    "cyclegan accumulated": lambda: together(cyclegan(accumulate_batches=2), [2, 1, 2]),
    "pix2pix synchronised": synchronised(pix2pix),
    "cyclegan synchronised": synchronised(cyclegan),
    "pix2pix synchronised and accumulated": synchronised(pix2pix, accumulate_batches=2),
    "pix2pix in fp32": lambda: together(pix2pix(), [2], fp32()),
    "cyclegan in fp32": lambda: together(cyclegan(), [2], fp32()),
    "pix2pix synchronised in fp32": lambda: together(
        pix2pix("batch"), [2], fp32(), plugins=[SynchronizedNorms()]
    ),
    "fp16": fp16_with_overflow,
    "scaled fp32": scaled_with_overflow,
    "logged": logged_terms,
    "rates": scaled_rates,
    "statistics": batch_norm_of_each,
    "unequal": unequal_batches,
    "alone": testing_alone,
}


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
    for name, case in CASES.items():
        L.seed_everything(0, verbose=False)
        began = time.perf_counter()
        results[name] = case()
        print(f"rank {rank}: {name}: {time.perf_counter() - began:.1f} s", flush=True)
        torch.save(results, Path(folder, f"{rank}.pt"))


def run_all(folder: Path, limit_s: float = 600.0) -> list[dict[str, Any]]:
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
