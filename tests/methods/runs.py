"""Small methods, their images, and runs of which losses, gradients and parameters are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from i2i_lightning.methods.base import Method
from i2i_lightning.methods.cyclegan import CycleGAN, CycleGANLoss
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.networks.layers import Norm
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.strategies.precision import Float32

SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.5)
"""Not Adam, whose first steps turn the rounding noise of a gradient that is 0 into steps of full size."""
ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))

Item = dict[str, Tensor]


def images(count: int, size_px: int = 16) -> list[Item]:
    rng = torch.Generator().manual_seed(7)
    return [
        {key: torch.empty(3, size_px, size_px).uniform_(-1, 1, generator=rng) for key in ("real_a", "real_b")}
        for _ in range(count)
    ]


def batches(items: Sequence[Item], sizes: Sequence[int]) -> list[Item]:
    """Return ``items`` in batches of ``sizes``."""
    assert sum(sizes) == len(items)
    rest = iter(items)
    return [
        {key: torch.stack([item[key] for item in part]) for key in ("real_a", "real_b")}
        for part in ([next(rest) for _ in range(size)] for size in sizes)
    ]


def pix2pix(
    norm: Norm = "instance", optimizer: Any = SGD, conditional: bool = True, **options: Any
) -> Pix2Pix:
    torch.manual_seed(0)
    loss = options.pop("loss", Pix2PixLoss(lambda_l1=10.0))
    generator = UNet(3, 3, 4, 4, norm=norm, dropout=options.pop("dropout", "none"), init_gain=0.2)
    judge = PatchGAN(6 if conditional else 3, 4, 2, norm=options.pop("judge_norm", norm), init_gain=0.2)
    return Pix2Pix(generator, judge, loss, optimizer, conditional=conditional, **options)


def cyclegan(norm: Norm = "instance", optimizer: Any = SGD, **options: Any) -> CycleGAN:
    torch.manual_seed(0)
    loss = options.pop("loss", CycleGANLoss())
    return CycleGAN(
        *(ResNetGenerator(3, 3, 4, 1, norm, init_gain=0.2) for _ in range(2)),
        *(PatchGAN(3, 4, 1, norm, init_gain=0.2) for _ in range(2)),
        loss,
        optimizer,
        pool_size=0,
        **options,
    )


class Record(NamedTuple):
    """What a run left: terms and gradients of every step, and the state at its end."""

    terms: list[dict[str, float]]
    gradients: list[list[Tensor]]
    state: dict[str, Tensor]
    rates: list[float]


class Recorder(L.Callback):
    """Keep the terms of every step, and the gradients that every optimiser is about to step with."""

    def __init__(self) -> None:
        self.terms: list[dict[str, float]] = []
        self.gradients: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradients.append([p.grad.detach().clone() for p in parameters])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not pl_module.holds_batches:
            self.terms.append({name: value.item() for name, value in pl_module.step_terms.items()})


class Log(DummyLogger):  # type: ignore[misc]
    """Keep what is logged, and at which step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))
        self.steps.append(step)


def run(method: Method, data: list[Item], precision: Precision | None = None, **options: Any) -> Record:
    """Fit ``method`` on batches for an epoch and return what happened."""
    recorder = Recorder()
    fit(method, data, precision or Float32(tensor_float=False), callbacks=[recorder], **options)
    state = {name: value.detach().clone() for name, value in method.state_dict().items()}
    optimizers = method.trainer.optimizers
    return Record(recorder.terms, recorder.gradients, state, [o.param_groups[0]["lr"] for o in optimizers])


def fit(method: Method, data: list[Item], precision: Precision, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {"max_epochs": 1, "devices": 1, "logger": False, "plugins": [], **options}
    resume = settings.pop("resume", None)
    trainer = L.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings | {"plugins": [precision, *settings["plugins"]]},
    )
    trainer.fit(method, DataLoader(data, batch_size=None), ckpt_path=resume)  # type: ignore[arg-type]
    return trainer


def assert_same(left: Record, right: Record, tolerance: float = 1e-6) -> None:
    """Compare the losses of every step, the gradients of every player, and the state of every network.

    ``tolerance`` is relative; that of gradients and states is of their Euclidean norms, for a bias that a
    norm cancels has nothing but rounding noise for a gradient. Logits, which lie around 0, are given 0.01 of
    it.
    """
    assert len(left.terms) == len(right.terms) > 0
    for mine, theirs in zip(left.terms, right.terms, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            size = max(abs(theirs[name]), 0.01 if "logit" in name else 0.0)
            allowed = max(tolerance, 1e-6) if "accuracy" in name else tolerance  # these are float32
            assert abs(value - theirs[name]) <= allowed * size, (name, value, theirs[name])
    for step, (one, two) in enumerate(zip(left.gradients, right.gradients, strict=True)):
        assert distance(one, two) <= tolerance, (step, distance(one, two))
    assert left.state.keys() == right.state.keys()
    for network in {name.split(".")[0] for name in left.state}:
        one, two = (
            [value for name, value in record.state.items() if name.startswith(network)]
            for record in (left, right)
        )
        assert distance(one, two) <= tolerance, (network, distance(one, two))


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return how far two lists of tensors are from each other, relative to the second."""
    difference = [one.double() - two.double() for one, two in zip(left, right, strict=True)]
    return norm_of(difference) / norm_of([two.double() for two in right])


def norm_of(gradients: Sequence[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def updates(before: nn.Module, after: dict[str, Tensor]) -> Tensor:
    """Return by how much the parameters have moved, as one vector."""
    return torch.cat([(after[name] - p.detach()).flatten() for name, p in before.named_parameters()])
