"""How strongly a discriminator's images are augmented (ADA: Karras et al. 2020b, arXiv 2006.06676).

Every transform is applied to each image with the same probability p, and p follows how much the discriminator
has learned its reals by heart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from i2i_lightning.losses.adaptive_transforms import (
    COLOUR,
    COLOUR_CHANNELS,
    TRANSFORMS,
    augment_adaptively,
    check_transforms,
)
from i2i_lightning.types import UserError


class AdaptiveStrength(nn.Module):
    """The probability p of each transform, kept where the discriminator just does not overfit (section 3).

    ``r_t = E[sign(D(real))]`` over the steps since the last change: 0 where half of the reals are taken for
    fakes, 1 where the discriminator knows them all. Above the target p rises, else it falls, by as much as
    would take it from 0 to 1 in ``speed_kimg``; it stays within [0, 1]. Several processes adjust one p from
    what all of them saw.

    Args:
        target: The ``r_t`` aimed at.
        interval: Steps between two changes; batches that take one step together count once.
        speed_kimg: Thousands of real images in which p can go from 0 to 1.
        initial: p at the start.

    Attributes:
        p: The probability, a buffer, so that it is saved and resumed; as are the sums below.
        sign_sum: Sum of the signs since the last change.
        sign_count: Logits since then.
        images: Real images since then.
        batches: Steps since then.
        overfitting: ``r_t`` at the last change.

    Raises:
        UserError: If a value makes no sense.
    """

    p: Tensor
    sign_sum: Tensor
    sign_count: Tensor
    images: Tensor
    batches: Tensor
    overfitting: Tensor

    def __init__(
        self, target: float = 0.6, interval: int = 4, speed_kimg: float = 500.0, initial: float = 0.0
    ) -> None:
        super().__init__()
        if not -1 < target < 1:
            raise UserError(f"target={target}: a mean of signs to aim at, between -1 and 1; 0.6 in the paper")
        if interval < 1:
            raise UserError(f"interval={interval}: give at least 1 step")
        if not speed_kimg > 0:  # NaN neither
            raise UserError(f"speed_kimg={speed_kimg}: give a positive number of thousand images")
        if not 0 <= initial <= 1:
            raise UserError(f"initial={initial}: a probability is from 0 to 1")
        self.target = target
        self.interval = interval
        self.speed_kimg = speed_kimg
        self.register_buffer("p", torch.tensor(float(initial)))
        self.register_buffer("sign_sum", torch.zeros([]))
        self.register_buffer("sign_count", torch.zeros([]))
        self.register_buffer("images", torch.zeros([]))
        self.register_buffer("batches", torch.zeros([], dtype=torch.int64))
        self.register_buffer("overfitting", torch.zeros([]))

    @torch.no_grad()
    def observe(self, pred_real: Tensor, completes: bool = True) -> None:
        """Take in the logits ``(N, ...)`` of one batch of real images, and change p every few steps.

        Nothing is read back from the device.

        Args:
            pred_real: The logits.
            completes: Whether the batch is the last of its step.
        """
        seen = torch.stack(
            [
                pred_real.detach().float().sign().sum(),
                torch.full([], float(pred_real.numel()), device=pred_real.device),
                torch.full([], float(len(pred_real)), device=pred_real.device),
            ]
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)
        seen = seen.to(self.p.dtype)
        self.sign_sum += seen[0]
        self.sign_count += seen[1]
        self.images += seen[2]
        if not completes:
            return
        self.batches += 1
        due = self.batches >= self.interval
        ratio = self.sign_sum / self.sign_count
        step = torch.sign(ratio - self.target) * self.images / (self.speed_kimg * 1000)
        self.p.copy_(torch.where(due, (self.p + step).clamp(0, 1), self.p))
        self.overfitting.copy_(torch.where(due, ratio, self.overfitting))
        for total in (self.sign_sum, self.sign_count, self.images, self.batches):
            total.masked_fill_(due, 0)


class AdaptiveAugmentation(nn.Module):
    """Augment all that a discriminator sees, as strongly as its overfitting asks for.

    Args:
        target: As for :class:`AdaptiveStrength`.
        interval: The same.
        speed_kimg: The same.
        initial: The same.
        names: Transforms to use, any of :data:`TRANSFORMS`.

    Attributes:
        strength: The controller; a method logs its ``p`` and ``overfitting``.

    Raises:
        UserError: If a value makes no sense or there is no such transform.
    """

    def __init__(
        self,
        target: float = 0.6,
        interval: int = 4,
        speed_kimg: float = 500.0,
        initial: float = 0.0,
        names: Sequence[str] = TRANSFORMS,
    ) -> None:
        super().__init__()
        self.strength = AdaptiveStrength(target, interval, speed_kimg, initial)
        self.names = check_transforms(names, "names")

    def forward(self, images: Tensor) -> Tensor:
        """Return :func:`augment_adaptively` of ``images (N, C, H, W)`` at the present strength."""
        return augment_adaptively(images, self.strength.p, self.names)

    def check_channels(self, channels: int, key: str) -> None:
        """Refuse images of which the transforms cannot change the colours.

        Raises:
            UserError: If one of ``names`` is of colour and ``channels`` are neither 1 nor 3; ``key`` is named
                in it.
        """
        colours = [name for name in self.names if name in COLOUR]
        if colours and channels not in COLOUR_CHANNELS:
            rest = ",".join(name for name in self.names if name not in COLOUR)
            raise UserError(
                f"{key}={channels}: {', '.join(colours)} of method.adaptive.names change 1 or 3 channels; "
                f"give method.adaptive.names=[{rest}]"
            )

    def observe(self, pred_real: Tensor, completes: bool = True) -> None:
        """Take in the logits of a batch of reals, as :meth:`AdaptiveStrength.observe`."""
        self.strength.observe(pred_real, completes)
