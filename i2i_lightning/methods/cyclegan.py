"""CycleGAN: translation between two sets without pairs (Zhu et al. 2017, arXiv 1703.10593)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from i2i_lightning.losses.adversarial import GANMode, discriminator_loss, generator_loss, real_threshold
from i2i_lightning.losses.augmentation import augment, check_augmentations
from i2i_lightning.losses.perceptual import LPIPS
from i2i_lightning.losses.reconstruction import l1_loss
from i2i_lightning.losses.regularizers import gradient_penalty
from i2i_lightning.methods.base import Columns, Method, OptimizerFactory, RateScaling, TestMode
from i2i_lightning.methods.checks import check_loss, check_weights
from i2i_lightning.methods.image_pool import ImagePool
from i2i_lightning.methods.ranks import gather
from i2i_lightning.methods.schedules import Schedule
from i2i_lightning.networks.passes import each, treats_images_alone
from i2i_lightning.types import UnpairedBatch, UserError


@dataclass(frozen=True)
class CycleGANLoss:
    """Objective of CycleGAN (equation 3, with the identity term of section 5.2).

    With G from a to b and F from b to a: ``lambda_gan * (GAN(G) + GAN(F)) + lambda_cycle_a * |F(G(a)) - a|
    + lambda_cycle_b * |G(F(b)) - b| + lambda_identity * (lambda_cycle_a * |F(a) - a| + lambda_cycle_b *
    |G(b) - b|)``.

    Args:
        gan_mode: lsgan (the paper's choice, section 4), vanilla, hinge or wgangp.
        lambda_gan: Weight of both adversarial terms; 0 trains on the cycles alone and leaves the
            discriminators out (the paper's ablation "cycle alone").
        lambda_cycle: Weight of both cycle terms (paper: 10); 0 trains on the adversarial terms alone.
        lambda_cycle_a: Weight of the cycle a, b, a; None takes ``lambda_cycle``.
        lambda_cycle_b: Weight of the cycle b, a, b; None takes ``lambda_cycle``.
        lambda_identity: Weight of the identity terms *as a multiple of the cycle's weight*, as in the
            authors' code: the default 0.5 on top of 10 is an effective 5. 0 leaves them and their generator
            passes out. Other projects print the effective weight under the same name.
        lambda_perceptual: Weight of the LPIPS distance (VGG) between an image and its cycle, beside its L1;
            needs RGB on both sides and the network's weights. 0, as published, leaves it out.
        lambda_gp: Weight of the gradient penalty; used by wgangp alone.
    """

    gan_mode: GANMode = "lsgan"
    lambda_gan: float = 1.0
    lambda_cycle: float = 10.0
    lambda_cycle_a: float | None = None
    lambda_cycle_b: float | None = None
    lambda_identity: float = 0.5
    lambda_perceptual: float = 0.0
    lambda_gp: float = 10.0

    def __post_init__(self) -> None:
        real_threshold(self.gan_mode)  # refuses an unknown mode
        check_weights(self)
        if self.lambda_gan == self.cycle_a == self.cycle_b == 0:
            raise UserError(
                "loss.lambda_gan=0 and loss.lambda_cycle=0 leave nothing to train on: give one a weight"
            )

    @property
    def cycle_a(self) -> float:
        """The weight of the cycle a, b, a."""
        return self.lambda_cycle if self.lambda_cycle_a is None else self.lambda_cycle_a

    @property
    def cycle_b(self) -> float:
        """The weight of the cycle b, a, b."""
        return self.lambda_cycle if self.lambda_cycle_b is None else self.lambda_cycle_b

    @property
    def generator_weights(self) -> dict[str, float]:
        """The weight of each term of the generators."""
        return {
            "gan_ab": self.lambda_gan,
            "gan_ba": self.lambda_gan,
            "cycle_a": self.cycle_a,
            "cycle_b": self.cycle_b,
            "identity_a": self.lambda_identity * self.cycle_a,
            "identity_b": self.lambda_identity * self.cycle_b,
            "perceptual_a": self.lambda_perceptual,
            "perceptual_b": self.lambda_perceptual,
        }


class CycleGAN(Method):
    """Two generators, two discriminators, and cycles that lead back to where they began.

    The order of updates and the halved discriminator loss follow the authors' PyTorch code: both generators
    step first, then both discriminators, on reals and on fakes that went through an image pool; a fake is
    made once, by the generator before its step. Where the norm treats images alone (instance norm, or none),
    translation and identity share a generator pass, and real and fake a discriminator pass, which gives the
    same result in 4 and 4 passes instead of 6 and 6.

    Args:
        generator_ab: G, maps ``real_a`` (N, A, H, W) to ``fake_b`` (N, B, H, W).
        generator_ba: F, maps b to a.
        discriminator_a: Judges images of a: raw logits.
        discriminator_b: Judges images of b.
        loss: Objective and weights.
        optimizer: Builds the optimiser of each side.
        scheduler: Builds the schedule of each optimiser; None keeps the rate.
        pool_size: Fakes kept for each discriminator (paper: 50); 0 shows it the newest alone.
        augment: Differentiable augmentations of all that discriminators see, for small sets: any of
            ``color``, ``translation``, ``cutout``.
        test_mode: ``train`` or ``eval``; the same where norms keep no statistics and there is no dropout.
        ema_decay: Decay of the averaged generators per step; None keeps none.
        accumulate_batches: Batches per optimiser step.
        clip_norm: Largest gradient norm per side; None does not clip.
        rate_scaling: How the rate grows with devices and accumulated batches: none, linear or sqrt.
        seed: Seed of the pools' draws.
    """

    directions: ClassVar[Mapping[str, str]] = {"ab": "generator_ab", "ba": "generator_ba"}

    def __init__(
        self,
        generator_ab: nn.Module,
        generator_ba: nn.Module,
        discriminator_a: nn.Module,
        discriminator_b: nn.Module,
        loss: CycleGANLoss,
        optimizer: OptimizerFactory,
        scheduler: Schedule | None = None,
        pool_size: int = 50,
        augment: Sequence[str] = (),
        test_mode: TestMode = "train",
        ema_decay: float | None = None,
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        rate_scaling: RateScaling = "none",
        seed: int = 0,
    ) -> None:
        check_loss(loss, CycleGANLoss, "cyclegan")
        super().__init__(
            optimizer=optimizer,
            scheduler=scheduler,
            weights={
                "generators": loss.generator_weights,
                "discriminators": {"gan_a": 1.0, "gan_b": 1.0}
                | dict.fromkeys(("gp_a", "gp_b"), loss.lambda_gp),
            },
            test_mode=test_mode,
            ema_decay=ema_decay,
            accumulate_batches=accumulate_batches,
            clip_norm=clip_norm,
            rate_scaling=rate_scaling,
        )
        in_channels, out_channels = (getattr(generator_ab, f"{end}_channels", None) for end in ("in", "out"))
        if loss.lambda_identity > 0 and in_channels != out_channels:
            raise UserError(
                f"loss.lambda_identity={loss.lambda_identity}: a generator from {in_channels} to "
                f"{out_channels} channels cannot leave an image as it is; set loss.lambda_identity=0"
            )
        if loss.gan_mode == "wgangp" and any(isinstance(m, _BatchNorm) for m in discriminator_b.modules()):
            raise UserError(
                "loss.gan_mode=wgangp penalises the slope at each image, which batch norm mixes with its "
                "neighbours': set discriminator.norm=instance or none"
            )
        self.generator_ab = generator_ab
        self.generator_ba = generator_ba
        self.discriminator_a = discriminator_a
        self.discriminator_b = discriminator_b
        self.loss = loss
        if loss.lambda_perceptual > 0 and not in_channels == out_channels == 3:
            raise UserError(
                f"loss.lambda_perceptual={loss.lambda_perceptual}: its network sees RGB, and this method "
                f"translates {in_channels} to {out_channels} channels; set loss.lambda_perceptual=0"
            )
        # In a list, so that its 59 MB are neither trained nor saved with every checkpoint.
        self.perceptual = [LPIPS("vgg")] if loss.lambda_perceptual > 0 else []
        self.augmentations = check_augmentations(augment, "method.augment")
        self.pools = {"a": ImagePool(pool_size, seed, stream=0), "b": ImagePool(pool_size, seed, stream=1)}
        networks = (*self.directions.values(), "discriminator_a", "discriminator_b")
        self.together = {name: treats_images_alone(getattr(self, name)) for name in networks}
        """Of each network, whether two batches may share a pass."""
        self.add_player("generators", [generator_ab, generator_ba])
        if loss.lambda_gan > 0:
            self.add_player("discriminators", [discriminator_a, discriminator_b])
        self.keep_average("generator_ab")
        self.keep_average("generator_ba")

    def setup(self, stage: str) -> None:
        """Refuse sizes that the networks cannot take, and give each process pools of its own."""
        super().setup(stage)
        for network in self.perceptual:
            network.to(self.trainer.strategy.root_device)
        for pool in self.pools.values():
            pool.rank = self.trainer.global_rank

    def generate(self, name: str, *images: Tensor) -> list[Tensor]:
        """Return the generator's output for each of ``images``, in one pass if that is the same."""
        return each(getattr(self, name), images, self.together[name])

    def judge(self, name: str, *images: Tensor) -> list[Tensor]:
        """Return the discriminator's logits for each of ``images``, in one pass if that is the same."""
        shown = [augment(batch, self.augmentations) for batch in images] if self.augmentations else images
        return each(getattr(self, name), shown, self.together[name])

    def step(self, batch: UnpairedBatch) -> Iterator[None]:
        """Step both generators, then both discriminators."""
        real_a, real_b, mode = batch["real_a"], batch["real_b"], self.loss.gan_mode
        with self.phase("generators") as minimize:
            terms: dict[str, Tensor] = {}
            if self.loss.lambda_identity > 0:
                fake_b, same_b = self.generate("generator_ab", real_a, real_b)
                fake_a, same_a = self.generate("generator_ba", real_b, real_a)
                terms |= {"identity_a": l1_loss(same_a, real_a), "identity_b": l1_loss(same_b, real_b)}
            else:
                fake_b, fake_a = self.generator_ab(real_a), self.generator_ba(real_b)
            cycle_a, cycle_b = self.generator_ba(fake_b), self.generator_ab(fake_a)
            terms |= {"cycle_a": l1_loss(cycle_a, real_a), "cycle_b": l1_loss(cycle_b, real_b)}
            for perceptual in self.perceptual:
                terms["perceptual_a"] = perceptual(cycle_a, real_a).mean()
                terms["perceptual_b"] = perceptual(cycle_b, real_b).mean()
            if self.loss.lambda_gan > 0:
                (pred_b,) = self.judge("discriminator_b", fake_b)
                (pred_a,) = self.judge("discriminator_a", fake_a)
                terms |= {"gan_ab": generator_loss(pred_b, mode), "gan_ba": generator_loss(pred_a, mode)}
            minimize(terms)
        yield

        if self.loss.lambda_gan > 0:
            with self.phase("discriminators") as minimize:
                terms = {}
                for domain, real, fake in (("a", real_a, fake_a), ("b", real_b, fake_b)):
                    name, shown = f"discriminator_{domain}", self.pools[domain](fake)
                    pred_real, pred_fake = self.judge(name, real, shown)
                    terms[f"gan_{domain}"] = discriminator_loss(pred_real, pred_fake, mode)
                    if mode == "wgangp":
                        terms[f"gp_{domain}"] = gradient_penalty(getattr(self, name), real, shown)
                    self.observe(name, pred_real, pred_fake, real_threshold(mode))
                minimize(terms)

    # ------------------------------------------------------------------------------------------------ testing

    def validation_step(self, batch: UnpairedBatch, batch_idx: int) -> dict[str, Tensor]:
        """Translate a batch there and back in test mode; callbacks measure the result.

        Returns:
            ``real_a``, ``fake_b``, ``cycle_a`` of the images of a that come for the first time, and
            ``real_b``, ``fake_a``, ``cycle_b`` of those of b: not as many where the sets differ in size.
        """
        real_a, real_b = batch["real_a"], batch["real_b"]
        with (
            self.testing("generator_ab", seed=self.test_seed(batch_idx)) as generator_ab,
            self.testing("generator_ba", seed=self.test_seed(batch_idx)) as generator_ba,
        ):
            fake_b, fake_a = generator_ab(real_a), generator_ba(real_b)
            cycle_a, cycle_b = generator_ba(fake_b), generator_ab(fake_a)
        from_a = {"real_a": real_a, "fake_b": fake_b, "cycle_a": cycle_a}
        from_b = {"real_b": real_b, "fake_a": fake_a, "cycle_b": cycle_b}
        if "first_a" in batch:
            from_a = {name: images[batch["first_a"]] for name, images in from_a.items()}
            from_b = {name: images[batch["first_b"]] for name, images in from_b.items()}
        return from_a | from_b

    def test_step(self, batch: UnpairedBatch, batch_idx: int) -> dict[str, Tensor]:
        """Translate a test batch, as ``validation_step`` does."""
        return self.validation_step(batch, batch_idx)

    def preview(self, batch: UnpairedBatch) -> dict[str, Columns]:
        """Return a | G(a) | F(G(a)) under ``ab`` and b | F(b) | G(F(b)) under ``ba``."""
        with self.testing("generator_ab") as generator_ab, self.testing("generator_ba") as generator_ba:
            # One image at a time: batch norm by test statistics must not depend on what else is shown.
            fakes_b = [generator_ab(image[None]) for image in batch["real_a"]]
            fakes_a = [generator_ba(image[None]) for image in batch["real_b"]]
            cycles_a = [generator_ba(fake) for fake in fakes_b]
            cycles_b = [generator_ab(fake) for fake in fakes_a]
        return {
            "ab": {"input": batch["real_a"], "output": torch.cat(fakes_b), "cycle": torch.cat(cycles_a)},
            "ba": {"input": batch["real_b"], "output": torch.cat(fakes_a), "cycle": torch.cat(cycles_b)},
        }

    # -------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the pools of every process."""
        super().on_save_checkpoint(checkpoint)
        mine = {domain: pool.state_dict() for domain, pool in self.pools.items()}
        checkpoint["image_pools"] = gather(self.trainer, mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this process's pools back; those of a process that was not there begin empty."""
        super().on_load_checkpoint(checkpoint)
        states = checkpoint.get("image_pools", [])
        if self.trainer.global_rank < len(states):
            for domain, pool in self.pools.items():
                pool.load_state_dict(states[self.trainer.global_rank][domain])
