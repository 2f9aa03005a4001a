"""StyleGAN2: images from noise (Karras et al. 2020, arXiv 1912.04958), and its training on few images (ADA).

The trained generator is what inversion and latent editing stand on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from i2i_lightning.losses.adaptive_augmentation import AdaptiveAugmentation
from i2i_lightning.losses.adversarial import discriminator_loss, generator_loss, real_threshold
from i2i_lightning.losses.augmentation import augment, check_augmentations
from i2i_lightning.losses.regularizers import path_length_penalty, r1_penalty
from i2i_lightning.methods.base import Method, OptimizerFactory, RateScaling
from i2i_lightning.methods.checks import check_loss, check_weights
from i2i_lightning.methods.schedules import Schedule
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import ImageBatch, UserError


@dataclass(frozen=True)
class StyleGAN2Loss:
    """Objective of StyleGAN2: non-saturating logistic loss, R1 and path length, both lazy (section 4.1, 3.2).

    Args:
        lambda_r1: gamma: the discriminator pays ``gamma / 2 E||grad D(x)||^2`` (Mescheder et al. 2018); 0
            leaves it out.
        lambda_path_length: Weight of the path length penalty (equation 4); 0 leaves it out.
        r1_interval: Batches between two steps on R1, which then counts that many times.
        path_length_interval: The same for the path length.
        path_length_decay: How quickly the target length follows the lengths seen.
        path_length_shrink: The path length takes a batch smaller by this factor.
        style_mixing: Probability that the rows from a random one on come from a second z (Karras et al. 2019,
            section 3.1).
    """

    lambda_r1: float = 10.0
    lambda_path_length: float = 2.0
    r1_interval: int = 16
    path_length_interval: int = 4
    path_length_decay: float = 0.01
    path_length_shrink: int = 2
    style_mixing: float = 0.9

    def __post_init__(self) -> None:
        check_weights(self)
        for name in ("r1_interval", "path_length_interval", "path_length_shrink"):
            if getattr(self, name) < 1:
                raise UserError(f"loss.{name}={getattr(self, name)}: give at least 1")
        for name in ("path_length_decay", "style_mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"loss.{name}={getattr(self, name)}: give a number from 0 to 1")


class StyleGAN2(Method):
    """Train a style-based generator against real images, with labels where the data has them.

    The order follows StyleGAN2-ADA: the generator's step, its path length, the discriminator's step, its R1.
    The regularisers take steps of their own every few batches ("lazy", section 3.2): each counts as many
    times as batches have passed, and the rate and betas of Adam are adjusted for the extra steps (appendix
    B).

    Args:
        generator: z, and label, to image.
        discriminator: Image, and label, to logit.
        loss: Objective and weights.
        optimizer: Builds the optimiser of each player.
        scheduler: Builds the schedule of each optimiser; None keeps the rate.
        ema_half_life_kimg: Thousands of images after which half of the averaged generator is new; None keeps
            no average.
        ema_ramp_up: In the beginning the half-life is this share of the images seen; None does without.
        w_avg_decay: Decay of the mean latent per batch.
        augment: Differentiable augmentation of all that the discriminator sees (Zhao et al. 2020), for small
            sets: any of ``color``, ``translation`` and ``cutout``.
        adaptive: Adaptive augmentation (Karras et al. 2020b) instead; None does without.
        truncation: Truncation of the previews' second row.
        accumulate_batches: Batches per optimiser step.
        clip_norm: Largest gradient norm per player; None does not clip.
        rate_scaling: How the rate grows with devices and accumulated batches.
        seed: Of the latents that previews and validation show.

    Attributes:
        path_length_mean: The target length a of equation 4.
    """

    directions: ClassVar[Mapping[str, str]] = {}
    needs_images: ClassVar[bool] = True
    path_length_mean: Tensor

    def __init__(
        self,
        generator: StyleGenerator,
        discriminator: nn.Module,
        loss: StyleGAN2Loss,
        optimizer: OptimizerFactory,
        scheduler: Schedule | None = None,
        ema_half_life_kimg: float | None = 10.0,
        ema_ramp_up: float | None = 0.05,
        w_avg_decay: float = 0.995,
        augment: Sequence[str] = (),
        adaptive: AdaptiveAugmentation | None = None,
        truncation: float = 0.7,
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        rate_scaling: RateScaling = "none",
        seed: int = 0,
    ) -> None:
        check_loss(loss, StyleGAN2Loss, "stylegan2")
        if not isinstance(generator, StyleGenerator):
            raise UserError(
                f"generator: method=stylegan2 takes generator=stylegan2, not a {type(generator).__name__}"
            )
        super().__init__(
            optimizer=optimizer,
            scheduler=scheduler,
            weights={
                # The shared loss is halved, as pix2pix has it; here both terms count whole.
                "discriminator": {"gan": 2.0, "r1": loss.lambda_r1 / 2 * loss.r1_interval},
                "generator": {
                    "gan": 1.0,
                    "path_length": loss.lambda_path_length * loss.path_length_interval,
                },
            },
            test_mode="eval",
            accumulate_batches=accumulate_batches,
            clip_norm=clip_norm,
            rate_scaling=rate_scaling,
        )
        if ema_half_life_kimg is not None and not ema_half_life_kimg > 0:
            raise UserError(
                f"method.ema_half_life_kimg={ema_half_life_kimg}: give a positive number, or null for no "
                "average"
            )
        if ema_ramp_up is not None and not ema_ramp_up >= 0:
            raise UserError(f"method.ema_ramp_up={ema_ramp_up}: give 0 or more, or null to do without")
        if not 0 <= w_avg_decay <= 1:
            raise UserError(f"method.w_avg_decay={w_avg_decay}: give a number from 0 to 1")
        if adaptive is not None and augment:
            raise UserError("method.augment and method.adaptive: give one of them, the other null or []")
        if adaptive is not None:
            adaptive.check_channels(generator.channels, "data.channels")
        for name in ("size_px", "channels", "label_dim"):
            made = getattr(generator, name)
            unsaid = 0 if name == "label_dim" else made  # by a network that is not StyleGAN2's
            if (judged := getattr(discriminator, name, unsaid)) != made:
                raise UserError(f"discriminator.{name}={judged}: the generator's is {made}")
        self.generator = generator
        self.discriminator = discriminator
        self.loss = loss
        self.ema_half_life_kimg = ema_half_life_kimg
        self.ema_ramp_up = ema_ramp_up
        self.w_avg_decay = w_avg_decay
        self.augmentations = check_augmentations(augment, "method.augment")
        self.adaptive = adaptive
        self.truncation = truncation
        self.seed = seed
        self.register_buffer("path_length_mean", torch.zeros([]))
        self.add_player("generator", [generator])
        self.add_player("discriminator", [discriminator])
        if ema_half_life_kimg is not None:
            self.averages["generator"] = copy.deepcopy(generator).requires_grad_(False)

    # ----------------------------------------------------------------------------------------------- training

    def prepare_optimizer(self, player: str, optimizer: Optimizer) -> None:
        """Allow for the steps that a lazy regulariser adds (appendix B).

        One step more in every k: ``c = k / (k + 1)``, the rate times c, Adam's betas to the power of c.
        """
        loss = self.loss
        weight, interval = {
            "generator": (loss.lambda_path_length, loss.path_length_interval),
            "discriminator": (loss.lambda_r1, loss.r1_interval),
        }[player]
        if weight == 0:
            return
        ratio = interval / (interval + 1)
        for group in optimizer.param_groups:
            group["lr"] *= ratio
            if "betas" in group:
                group["betas"] = tuple(beta**ratio for beta in group["betas"])

    def average_decay(self) -> float:
        """Return the decay for this step: half of the average is new after ``ema_half_life_kimg``."""
        assert self.ema_half_life_kimg is not None
        half_life = self.ema_half_life_kimg * 1000
        if self.ema_ramp_up is not None:
            half_life = min(half_life, self.images_seen * self.ema_ramp_up)
        return float(0.5 ** (self.step_images / max(half_life, 1e-8)))

    def draw(self, number: int, label: Tensor | None) -> Tensor:
        """Return ``w_plus`` of ``number`` random latents, styles mixed."""
        mapping = self.generator.mapping
        dtype = self.generator.w_avg.dtype
        z = torch.randn(number, self.generator.z_dim, device=self.device, dtype=dtype)
        w_plus: Tensor = mapping(z, label)
        if self.loss.style_mixing > 0 and float(torch.rand([])) < self.loss.style_mixing:
            first = int(torch.randint(1, self.generator.num_ws, []))
            other = torch.randn(number, self.generator.z_dim, device=self.device, dtype=dtype)
            w_plus = torch.cat([w_plus[:, :first], mapping(other, label)[:, first:]], 1)
        return w_plus

    def judge(self, images: Tensor, label: Tensor | None) -> Tensor:
        """Return logits of ``images``, augmented where the method augments."""
        if self.augmentations:
            images = augment(images, self.augmentations)
        if self.adaptive is not None:
            images = self.adaptive(images)
        logits: Tensor = self.discriminator(images, label)
        return logits

    def step(self, batch: ImageBatch) -> Iterator[None]:
        """Step the generator, its path length, the discriminator, its R1."""
        real, label, loss = batch["real"], batch.get("label"), self.loss
        number = len(real)

        with self.phase("generator") as minimize:
            w_plus = self.draw(number, label)
            self.track_mean(w_plus[:, 0])
            fake = self.generator.synthesis(w_plus, "random")
            minimize({"gan": generator_loss(self.judge(fake, label))})
        yield

        if loss.lambda_path_length > 0 and self.is_turn(loss.path_length_interval):
            with self.phase("generator") as minimize:
                fewer = max(1, number // loss.path_length_shrink)
                part = None if label is None else label[:fewer]
                penalty, mean = path_length_penalty(
                    lambda w_plus: self.generator.synthesis(w_plus, "random"),
                    self.draw(fewer, part),
                    self.path_length_mean,
                    loss.path_length_decay,
                )
                # One target for all processes: a checkpoint holds that of the first.
                self.path_length_mean.copy_(self.over_processes(mean))
                minimize({"path_length": penalty})
            yield

        with self.phase("discriminator") as minimize:
            with torch.no_grad():
                fake = self.generator.synthesis(self.draw(number, label), "random")
            pred_fake, pred_real = self.judge(fake, label), self.judge(real, label)
            minimize({"gan": discriminator_loss(pred_real, pred_fake)})
            self.observe("discriminator", pred_real, pred_fake, real_threshold())
            if self.adaptive is not None:
                self.adaptive.observe(pred_real.detach(), self.completes)
                if self.completes:  # what the step ends with, and no mean over its batches
                    strength = self.adaptive.strength
                    self.step_terms["discriminator/augment_p"] = strength.p.clone()
                    self.step_terms["discriminator/overfitting"] = strength.overfitting.clone()
        yield

        if loss.lambda_r1 > 0 and self.is_turn(loss.r1_interval):
            with self.phase("discriminator") as minimize:
                minimize({"r1": r1_penalty(lambda images: self.judge(images, label), real)})

    def is_turn(self, interval: int) -> bool:
        """Return whether a lazy regulariser that comes every ``interval`` steps comes in this one."""
        return (self.batches_seen // self.accumulate_batches) % interval == 0

    @torch.no_grad()
    def track_mean(self, w: Tensor) -> None:
        """Move the mean latent towards that of ``w (N, w_dim)`` over all processes.

        The generator's main phase alone does so: stylegan2-ada-pytorch also counts the first latents of the
        path length's and the discriminator's phases, and its mean is at least twice as quick at one decay.
        """
        w_avg = self.generator.mapping.w_avg
        w_avg.copy_(self.over_processes(w.detach().mean(0)).lerp(w_avg, self.w_avg_decay))

    def over_processes(self, value: Tensor) -> Tensor:
        """Return the mean of ``value`` over all processes."""
        if self.trainer.world_size == 1:
            return value
        mean: Tensor = self.trainer.strategy.reduce(value, reduce_op="mean")
        return mean

    # ------------------------------------------------------------------------------------------------ testing

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Generate as many images as the batch has, for callbacks to compare their distributions."""
        with self.testing("generator", seed=self.seed + 1 + self.test_seed(batch_idx)) as generator:
            z = torch.randn(len(batch["real"]), self.generator.z_dim, device=self.device)
            fake = generator(z.to(self.generator.w_avg.dtype), batch.get("label"), noise="random")
        return {"fake_b": fake, "real_b": batch["real"]}

    def test_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Generate a test batch, as ``validation_step`` does."""
        return self.validation_step(batch, batch_idx)

    def preview(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the same samples each time, float (N, C, H, W): truncated, and as they are."""
        number = len(batch["real"])
        with self.testing("generator", seed=self.seed) as network:
            assert isinstance(network, StyleGenerator)
            z = torch.randn(number, network.z_dim, device=self.device).to(network.w_avg.dtype)
            label = batch.get("label")
            return {
                "truncated": network(z, label, truncation=self.truncation),
                "output": network(z, label),
            }
