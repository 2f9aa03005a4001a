"""pix2pix: translation of aligned pairs by a conditional GAN (Isola et al. 2017, arXiv 1611.07004)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from i2i_lightning.losses.adversarial import GANMode, discriminator_loss, generator_loss, real_threshold
from i2i_lightning.losses.reconstruction import l1_loss
from i2i_lightning.losses.regularizers import gradient_penalty
from i2i_lightning.methods.base import Method, OptimizerFactory, RateScaling, TestMode
from i2i_lightning.methods.checks import check_loss, check_weights
from i2i_lightning.methods.schedules import Schedule
from i2i_lightning.networks.recompute import recomputed
from i2i_lightning.types import PairedBatch, UserError


@dataclass(frozen=True)
class Pix2PixLoss:
    """Objective of pix2pix (equation 4): ``lambda_gan * GAN + lambda_l1 * L1``.

    Args:
        gan_mode: vanilla (equation 1, non-saturating), lsgan, hinge or wgangp.
        lambda_gan: Weight of the generator's adversarial term; 0 trains on the L1 term alone and leaves the
            discriminator out.
        lambda_l1: Weight of the L1 term (paper: 100); 0 trains on the adversarial term alone.
        lambda_gp: Weight of the gradient penalty; used by wgangp alone.
    """

    gan_mode: GANMode = "vanilla"
    lambda_gan: float = 1.0
    lambda_l1: float = 100.0
    lambda_gp: float = 10.0

    def __post_init__(self) -> None:
        real_threshold(self.gan_mode)  # refuses an unknown mode
        check_weights(self)
        if self.lambda_gan == 0 and self.lambda_l1 == 0:
            raise UserError(
                "loss.lambda_gan=0 and loss.lambda_l1=0 leave nothing to train on: give one of them a weight"
            )


class Pix2Pix(Method):
    """Conditional GAN with an L1 term.

    The order of updates and the halved discriminator loss follow the authors' PyTorch code: the generator
    runs once, the discriminator steps on fake then real, and the *updated* discriminator judges the same fake
    for the generator. The noise is the decoder's dropout (section 2.1), kept on at test time by default; an
    explicit z is given by ``z_dim``.

    Args:
        generator: Maps ``real_a`` (N, A, H, W), and z (N, ``z_dim``) if there is one, to ``fake_b`` (N, B, H,
            W).
        discriminator: Maps (N, A + B, H, W), or (N, B, H, W) if not ``conditional``, to raw logits.
        loss: Objective and weights.
        optimizer: Builds the optimiser of each player.
        scheduler: Builds the schedule of each optimiser; None keeps the rate.
        conditional: Whether the discriminator sees the input too (section 6.2's cGAN), or the output alone
            (GAN).
        z_dim: Length of the explicit noise vector drawn from N(0, 1) for every image; 0 for none.
        test_mode: ``train`` (dropout and batch statistics at test time, section 3.3) or ``eval``.
        ema_decay: Decay of the averaged generator per step; None keeps none.
        accumulate_batches: Batches per optimiser step.
        clip_norm: Largest gradient norm per player; None does not clip.
        rate_scaling: How the rate grows with devices and accumulated batches: none, linear or sqrt.
    """

    needs_pairs = True

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: Pix2PixLoss,
        optimizer: OptimizerFactory,
        scheduler: Schedule | None = None,
        conditional: bool = True,
        z_dim: int = 0,
        test_mode: TestMode = "train",
        ema_decay: float | None = None,
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        rate_scaling: RateScaling = "none",
    ) -> None:
        check_loss(loss, Pix2PixLoss, "pix2pix")
        super().__init__(
            optimizer=optimizer,
            scheduler=scheduler,
            weights={
                "discriminator": {"gan": 1.0, "gp": loss.lambda_gp},
                "generator": {"gan": loss.lambda_gan, "l1": loss.lambda_l1},
            },
            test_mode=test_mode,
            ema_decay=ema_decay,
            accumulate_batches=accumulate_batches,
            clip_norm=clip_norm,
            rate_scaling=rate_scaling,
        )
        z_channels = getattr(generator, "z_channels", 0)
        if z_dim != z_channels:
            raise UserError(
                f"method.z_dim={z_dim}: this generator takes a z of length {z_channels}"
                + (
                    "; only the U-Nets take one (generator.z_channels)"
                    if not hasattr(generator, "z_channels")
                    else ""
                )
            )
        if loss.gan_mode == "wgangp" and any(isinstance(m, _BatchNorm) for m in discriminator.modules()):
            raise UserError(
                "loss.gan_mode=wgangp penalises the slope at each image, which batch norm mixes with its "
                "neighbours': set discriminator.norm=instance or none"
            )
        self.generator = generator
        self.discriminator = discriminator
        self.loss = loss
        self.conditional = conditional
        self.z_dim = z_dim
        if loss.lambda_gan > 0:
            self.add_player("discriminator", [discriminator])
        self.add_player("generator", [generator])
        self.keep_average("generator")

    def translate(self, generator: nn.Module, real_a: Tensor) -> Tensor:
        """Return ``generator``'s output for ``real_a``, with a fresh z where the method has one."""
        if not self.z_dim:
            return generator(real_a)  # type: ignore[no-any-return]
        z = torch.randn(len(real_a), self.z_dim, device=real_a.device, dtype=real_a.dtype)
        return generator(real_a, z)  # type: ignore[no-any-return]

    def judge(self, real_a: Tensor, b: Tensor) -> Tensor:
        """Return the discriminator's logits for ``b``, given ``real_a`` if it is conditional."""
        return self.discriminator(torch.cat([real_a, b], 1) if self.conditional else b)  # type: ignore[no-any-return]

    def generate(self, real_a: Tensor) -> Tensor:
        """Return ``fake_b`` for the step.

        Accumulated batches all wait here for the discriminator's step: they keep their images alone, and the
        generator runs again for its gradients.
        """
        if self.accumulates and self.loss.lambda_gan > 0:
            return recomputed(self.generator, self.translate, real_a)
        return self.translate(self.generator, real_a)

    def step(self, batch: PairedBatch) -> Iterator[None]:
        """Step the discriminator, then the generator (section 3.3)."""
        real_a, real_b, mode = batch["real_a"], batch["real_b"], self.loss.gan_mode
        fake_b = self.generate(real_a)

        if self.loss.lambda_gan > 0:
            with self.phase("discriminator") as minimize:
                pred_fake = self.judge(real_a, fake_b.detach())
                pred_real = self.judge(real_a, real_b)
                terms = {"gan": discriminator_loss(pred_real, pred_fake, mode)}
                if mode == "wgangp":
                    terms["gp"] = gradient_penalty(lambda b: self.judge(real_a, b), real_b, fake_b.detach())
                minimize(terms)
                self.observe("discriminator", pred_real, pred_fake, real_threshold(mode))
            yield

        with self.phase("generator") as minimize:
            terms = {"l1": l1_loss(fake_b, real_b)}
            if self.loss.lambda_gan > 0:
                terms["gan"] = generator_loss(self.judge(real_a, fake_b), mode)
            minimize(terms)

    def validation_step(self, batch: PairedBatch, batch_idx: int) -> dict[str, Tensor]:
        """Translate a batch in test mode; callbacks measure the result."""
        with self.testing("generator", seed=self.test_seed(batch_idx)) as generator:
            fake_b = self.translate(generator, batch["real_a"])
        return {"real_a": batch["real_a"], "fake_b": fake_b, "real_b": batch["real_b"]}

    def test_step(self, batch: PairedBatch, batch_idx: int) -> dict[str, Tensor]:
        """Translate a test batch, as ``validation_step`` does."""
        return self.validation_step(batch, batch_idx)

    def preview(self, batch: PairedBatch) -> dict[str, Tensor]:
        """Return input | output | target, each float (N, C, H, W)."""
        with self.testing("generator") as generator:
            # One image at a time: batch norm by test statistics must not depend on what else is shown.
            outputs = [self.translate(generator, image[None]) for image in batch["real_a"]]
        return {"input": batch["real_a"], "output": torch.cat(outputs), "target": batch["real_b"]}
