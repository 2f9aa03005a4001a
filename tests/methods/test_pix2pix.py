"""pix2pix against the reference step written out in plain PyTorch, its ablations, and its slips."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import reference_pix2pix
from i2i_lightning.losses.adversarial import discriminator_loss, generator_loss
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.methods.schedules import Linear
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.types import UserError

ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))


def pairs(count: int, size_px: int = 32, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "real_a": torch.rand(3, size_px, size_px, generator=generator, dtype=torch.float64).to(dtype) * 2
            - 1,
            "real_b": torch.rand(3, size_px, size_px, generator=generator, dtype=torch.float64).to(dtype) * 2
            - 1,
            "name": str(index),
        }
        for index in range(count)
    ]


def build(conditional: bool = True, **options: Any) -> Pix2Pix:
    torch.manual_seed(0)
    loss = options.pop("loss", Pix2PixLoss())
    generator = UNet(3, 3, num_downs=5, base_channels=8, dropout="none", z_channels=options.get("z_dim", 0))
    discriminator = PatchGAN(6 if conditional else 3, base_channels=8)
    return Pix2Pix(generator, discriminator, loss, ADAM, conditional=conditional, **options)


class Recorder(L.Callback):
    """Keep the loss terms of every batch."""

    def __init__(self) -> None:
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.terms.append({name: value.item() for name, value in pl_module.step_terms.items()})


def fit(method: Pix2Pix, items: list[dict[str, Any]], batch_size: int = 2, **options: Any) -> Recorder:
    recorder = Recorder()
    settings: dict[str, Any] = {"max_epochs": 1, "precision": "32-true", **options}
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        **settings,
    )
    trainer.fit(method, DataLoader(items, batch_size=batch_size))  # type: ignore[arg-type]
    return recorder


def reference_steps(
    generator: nn.Module,
    discriminator: nn.Module,
    items: list[dict[str, Any]],
    batch_size: int,
    conditional: bool,
) -> list[dict[str, float]]:
    """The authors' order of updates, written out: fake, discriminator on fake then real, generator on the new
    one."""
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    losses = []
    for start in range(0, len(items), batch_size):
        a = torch.stack([item["real_a"] for item in items[start : start + batch_size]])
        b = torch.stack([item["real_b"] for item in items[start : start + batch_size]])

        def pair(image: Tensor, a: Tensor = a) -> Tensor:
            return torch.cat((a, image), 1) if conditional else image

        fake = generator(a)

        for parameter in discriminator.parameters():
            parameter.requires_grad = True
        adam_d.zero_grad()
        pred_fake = discriminator(pair(fake).detach())
        loss_fake = F.binary_cross_entropy_with_logits(pred_fake, torch.zeros_like(pred_fake))
        pred_real = discriminator(pair(b))
        loss_real = F.binary_cross_entropy_with_logits(pred_real, torch.ones_like(pred_real))
        loss_d = (loss_fake + loss_real) * 0.5
        loss_d.backward()
        adam_d.step()

        for parameter in discriminator.parameters():
            parameter.requires_grad = False
        adam_g.zero_grad()
        pred_fake = discriminator(pair(fake))
        loss_gan = F.binary_cross_entropy_with_logits(pred_fake, torch.ones_like(pred_fake))
        loss_l1 = F.l1_loss(fake, b) * 100.0
        (loss_gan + loss_l1).backward()
        adam_g.step()
        losses.append({"d": loss_d.item(), "gan": loss_gan.item(), "l1": loss_l1.item() / 100.0})
    return losses


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"), [(torch.float64, "64-true", 1e-10), (torch.float32, "32-true", 1e-4)]
)
def test_five_steps_equal_the_reference(
    dtype: torch.dtype, precision: str, tolerance: float, conditional: bool
) -> None:
    items = pairs(10, dtype=dtype)
    method = build(conditional)
    # Networks written independently, nested as the reference nests them.
    generator = reference_pix2pix.unet(3, 3, num_downs=5, base_channels=8, dropout=False)
    discriminator = reference_pix2pix.patchgan(6 if conditional else 3, base_channels=8)
    for ours_n, theirs_n in ((method.generator, generator), (method.discriminator, discriminator)):
        reference_pix2pix.copy_weights(ours_n, theirs_n)
        theirs_n.to(dtype)
    ours = fit(method, items, precision=precision)
    theirs = reference_steps(generator, discriminator, items, 2, conditional)
    assert len(ours.terms) == len(theirs) == 5
    for mine, reference in zip(ours.terms, theirs, strict=True):
        assert mine["discriminator/gan"] == pytest.approx(reference["d"], rel=tolerance)
        assert mine["generator/gan"] == pytest.approx(reference["gan"], rel=tolerance)
        assert mine["generator/l1"] == pytest.approx(reference["l1"], rel=tolerance)
    if dtype == torch.float64:
        # No bias is left out: convolutions before a batch norm have none.
        for network, twin in ((method.generator, generator), (method.discriminator, discriminator)):
            for mine_p, reference_p in zip(network.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(mine_p.to(dtype), reference_p, rtol=1e-10, atol=1e-13)


def test_the_discriminator_runs_three_times_a_batch() -> None:
    method = build()
    fit(method, pairs(4))
    norms = [m for m in method.discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [6] * len(norms)  # type: ignore[arg-type]


def test_l1_only_leaves_the_discriminator_out() -> None:
    method = build(loss=Pix2PixLoss(lambda_gan=0))
    before = copy.deepcopy(method.discriminator.state_dict())
    recorder = fit(method, pairs(4))
    assert set(recorder.terms[0]) == {"generator/l1", "generator/total"}
    assert recorder.terms[0]["generator/total"] == pytest.approx(100 * recorder.terms[0]["generator/l1"])
    for name, value in method.discriminator.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_gan_only_gives_the_l1_term_no_gradient() -> None:
    """With ``lambda_l1=0`` the generator's gradient is that of the adversarial term alone."""
    method, items = build(loss=Pix2PixLoss(lambda_l1=0)), pairs(2)
    twin = copy.deepcopy(method)
    recorder = fit(method, items)
    assert recorder.terms[0]["generator/total"] == pytest.approx(recorder.terms[0]["generator/gan"])
    assert recorder.terms[0]["generator/l1"] > 0
    batch = torch.utils.data.default_collate(items)
    real_a, real_b = batch["real_a"], batch["real_b"]
    adam_d, adam_g = ADAM(twin.discriminator.parameters()), ADAM(twin.generator.parameters())
    fake_b = twin.generator(real_a)
    discriminator_loss(twin.judge(real_a, real_b), twin.judge(real_a, fake_b.detach()), "vanilla").backward()
    adam_d.step()
    generator_loss(twin.judge(real_a, fake_b), "vanilla").backward()
    adam_g.step()
    for mine, expected in zip(method.generator.parameters(), twin.generator.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_penalty_is_applied() -> None:
    def discriminator_after(lambda_gp: float) -> Tensor:
        torch.manual_seed(0)
        loss = Pix2PixLoss(gan_mode="wgangp", lambda_gp=lambda_gp)
        discriminator = PatchGAN(6, base_channels=8, num_layers=2, norm="none")
        method = Pix2Pix(UNet(3, 3, num_downs=5, base_channels=8), discriminator, loss, ADAM)
        recorder = fit(method, pairs(2))
        terms = recorder.terms[0]
        expected = terms["discriminator/gan"] + lambda_gp * terms["discriminator/gp"]
        assert terms["discriminator/total"] == pytest.approx(expected, rel=1e-5)
        return next(discriminator.parameters()).detach().clone()

    assert not torch.equal(discriminator_after(0.0), discriminator_after(10.0))


def test_explicit_z_changes_the_output_and_dropout_is_the_paper_noise() -> None:
    method = build(z_dim=4)
    fit(method, pairs(2))
    image = pairs(1)[0]["real_a"][None]
    with method.testing("generator", seed=0) as generator:
        first, second = method.translate(generator, image), method.translate(generator, image)
    with method.testing("generator", seed=0) as generator:
        again = method.translate(generator, image)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize("test_mode", ["train", "eval"])
def test_testing_leaves_no_trace(test_mode: Any) -> None:
    method = build(test_mode=test_mode).train()
    state, rng = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    batch = torch.utils.data.default_collate(pairs(2))
    columns = method.preview(batch)
    assert list(columns) == ["input", "output", "target"]
    assert not columns["output"].requires_grad
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in method.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(module.training for module in method.modules())
    assert all(m.track_running_stats for m in method.modules() if isinstance(m, nn.BatchNorm2d))


def test_test_mode_eval_uses_running_statistics() -> None:
    batch = torch.utils.data.default_collate(pairs(2))
    paper, evaluation = build(test_mode="train"), build(test_mode="eval")
    assert not torch.allclose(paper.preview(batch)["output"], evaluation.preview(batch)["output"])
    expected = evaluation.generator.eval()(batch["real_a"])
    torch.testing.assert_close(evaluation.preview(batch)["output"], expected, rtol=1e-4, atol=1e-5)


def test_the_average_follows_its_equation() -> None:
    method = build(ema_decay=0.9)
    start = [p.detach().clone() for p in method.generator.parameters()]
    fit(method, pairs(2))
    for before, now, mean in zip(
        start, method.generator.parameters(), method.averages["generator"].parameters(), strict=True
    ):
        torch.testing.assert_close(mean, 0.9 * before + 0.1 * now)
        assert not mean.requires_grad


def test_clipping_bounds_each_players_gradient() -> None:
    norms: list[float] = []

    class Watched(Pix2Pix):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            super().on_before_optimizer_step(optimizer)
            grads = [
                p.grad.flatten() for g in optimizer.param_groups for p in g["params"] if p.grad is not None
            ]
            norms.append(float(torch.cat(grads).norm()))

    networks = UNet(3, 3, num_downs=5, base_channels=8), PatchGAN(6, base_channels=8, num_layers=2)
    fit(Watched(*networks, Pix2PixLoss(), ADAM, clip_norm=1e-3), pairs(4))
    assert norms == pytest.approx([1e-3] * 4, rel=1e-3)


def test_schedulers_step_once_an_epoch() -> None:
    method = build(scheduler=Linear(total_epochs=4, decay_epochs=2))
    rates: list[float] = []

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 2e-4)

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )
    trainer.fit(method, DataLoader(pairs(2), batch_size=2))  # type: ignore[arg-type]
    assert rates == pytest.approx([1, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lambda_l1": -1.0}, "loss.lambda_l1=-1.0"),
        ({"lambda_l1": 0.0, "lambda_gan": 0.0}, "leave nothing to train on"),
        ({"gan_mode": "lsgna"}, "lsgna"),
    ],
)
def test_impossible_losses_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Pix2PixLoss(**options)


def test_a_z_that_the_generator_cannot_take_is_refused() -> None:
    networks = ResNetGenerator(3, 3, 8, 6), PatchGAN(6, 8)
    with pytest.raises(UserError, match=r"method\.z_dim=4.*U-Nets"):
        Pix2Pix(*networks, Pix2PixLoss(), ADAM, z_dim=4)
    with pytest.raises(UserError, match=r"method\.z_dim=0"):
        Pix2Pix(UNet(3, 3, 5, 8, z_channels=4), networks[1], Pix2PixLoss(), ADAM)


def test_the_penalty_refuses_batch_norm() -> None:
    with pytest.raises(UserError, match=r"discriminator\.norm=instance"):
        build(loss=Pix2PixLoss(gan_mode="wgangp"))


def test_lambda_gan_leaves_the_discriminator_alone() -> None:
    recorder = fit(build(loss=Pix2PixLoss(lambda_gan=0.5)), pairs(2))
    terms = recorder.terms[0]
    assert terms["discriminator/total"] == pytest.approx(terms["discriminator/gan"])
    assert terms["generator/total"] == pytest.approx(
        0.5 * terms["generator/gan"] + 100 * terms["generator/l1"]
    )
