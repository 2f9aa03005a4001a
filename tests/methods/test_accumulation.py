"""Accumulated batches take the step that one large batch takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from i2i_lightning.methods.base import Method
from i2i_lightning.methods.cyclegan import CycleGANLoss
from i2i_lightning.methods.pix2pix import Pix2PixLoss
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.recompute import recomputed
from i2i_lightning.networks.unet import UNet
from i2i_lightning.strategies.precision import fp32, fp64
from i2i_lightning.types import UserError
from tests.methods.runs import Log, assert_same, batches, cyclegan, fit, images, pix2pix, run

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

WGANGP = Pix2PixLoss(gan_mode="wgangp", lambda_l1=10.0)
BUILDS: dict[str, Callable[..., Method]] = {
    "pix2pix": pix2pix,
    "pix2pix without norm": lambda **options: pix2pix("none", **options),
    "pix2pix unconditional": lambda **options: pix2pix(conditional=False, **options),
    "pix2pix l1 alone": lambda **options: pix2pix(
        loss=Pix2PixLoss(lambda_gan=0.0, lambda_l1=10.0), **options
    ),
    "pix2pix wgangp": lambda **options: pix2pix(loss=WGANGP, **options),
    "cyclegan": cyclegan,
    "cyclegan without norm": lambda **options: cyclegan("none", **options),
    "cyclegan wgangp": lambda **options: cyclegan(loss=CycleGANLoss(gan_mode="wgangp"), **options),
    "cyclegan cycle alone": lambda **options: cyclegan(loss=CycleGANLoss(lambda_gan=0.0), **options),
}


@pytest.mark.parametrize("name", BUILDS)
def test_accumulation_equals_the_full_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step in float32, and in float64 three: of two batches, of two of other sizes, and of what is left.

    In float32 the steps that follow part further, because a convolution of two images rounds otherwise than
    one of four, and |x| has a kink.
    """
    # Two domains draw their penalties' weights in another order when batches take turns.
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.full(size, 0.3, **options))
    for precision, accumulated, full, tolerance in (
        (fp32, [2, 2], [4], 5e-6),
        (fp64, [2, 2, 3, 1, 2], [4, 4, 2], 1e-11),
    ):
        items = images(sum(full))
        assert_same(
            run(BUILDS[name](accumulate_batches=2), batches(items, accumulated), precision()),
            run(BUILDS[name](), batches(items, full), precision()),
            tolerance,
        )


def test_clipping_and_averages_see_whole_steps() -> None:
    items, options = images(8), {"clip_norm": 0.01, "ema_decay": 0.9}
    accumulated = run(pix2pix(accumulate_batches=4, **options), batches(items, [1] * 8), fp64())
    assert_same(accumulated, run(pix2pix(**options), batches(items, [4, 4]), fp64()), 1e-11)


def test_every_epoch_begins_with_a_step_of_its_own() -> None:
    items = images(3)
    accumulated = run(pix2pix(accumulate_batches=2), batches(items, [1, 1, 1]), fp64(), max_epochs=2)
    assert_same(accumulated, run(pix2pix(), batches(items, [2, 1]), fp64(), max_epochs=2), 1e-11)


def test_batches_wait_and_the_loggers_hear_of_every_step() -> None:
    seen: list[tuple[bool, bool]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append((pl_module.holds_batches, bool(pl_module.step_terms)))

    method, log = pix2pix(accumulate_batches=3), Log()
    fit(method, batches(images(8), [1] * 8), fp32(), callbacks=[Watch()], logger=log, log_every_n_steps=2)
    # Batches 2, 4, 6 and 8 are to be logged; those that wait are logged with their step.
    assert seen == [(True, False), (True, False), (False, True)] * 2 + [(True, False), (False, True)]
    assert log.steps == [2, 5, 7]
    assert method.batches_seen == 8


@pytest.mark.parametrize("spectral", [False, True])
def test_a_recomputed_pass_has_the_same_gradients_and_leaves_no_trace(spectral: bool) -> None:
    """With dropout, batch norm and spectral normalisation: noise, statistics and vectors of the first run."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return (
            PatchGAN(3, 4, 2, spectral_norm=True) if spectral else UNet(3, 3, 5, 4, dropout="paper")
        ).double()

    def function(network: nn.Module, x: Tensor) -> Tensor:
        return network(x + 0.1 * torch.randn_like(x))  # type: ignore[no-any-return]

    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain, twin = build(), build()
    results = []
    for network, call in ((plain, function), (twin, lambda net, x: recomputed(net, function, x))):
        torch.manual_seed(1)
        first, second = call(network, x), call(network, x.flip(3))
        after = torch.rand(1)
        (first.square().mean() + second.mean()).backward()
        results.append((first, second, after, torch.rand(1)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    for (name, one), (_, two) in zip(plain.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-12, atol=1e-14, msg=name)
    for (name, one), (_, two) in zip(plain.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("build", [pix2pix, cyclegan])
def test_accumulation_keeps_images_alone(build: Callable[..., Method]) -> None:
    """What waits for gradients at any time does not grow with the number of batches; their images do."""

    def most_saved(accumulate: int) -> int:
        now = most = 0

        class Saved:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal now, most
                self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
                now += self.bytes
                most = max(most, now)

            def __del__(self) -> None:
                nonlocal now
                now -= self.bytes

        with saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            run(build(accumulate_batches=accumulate), batches(images(8, 64), [1] * 8))
        return most

    one, two, eight = (most_saved(count) for count in (1, 2, 8))
    image = 3 * 64 * 64 * 4
    assert one > 15 * image
    assert eight - two <= 6 * image
    assert eight <= one


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_rates_grow_with_what_is_accumulated(scaling: Any, factor: float) -> None:
    record = run(pix2pix(accumulate_batches=4, rate_scaling=scaling), batches(images(4), [1] * 4))
    assert record.rates == pytest.approx([1e-3 * factor] * 2)


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.rate_scaling=square: give none, linear or sqrt"):
        pix2pix(rate_scaling="square")
