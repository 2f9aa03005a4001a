"""The authors' pix2pix in plain PyTorch: networks, order of updates, optimiser. What we are timed against.

Nothing here comes from the package. The networks nest as the published ones do and activate in place; their
convolutions are in NCHW and run by PyTorch's default kernels; each player has a ``torch.optim.Adam`` in its
default implementation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SkipLevel(nn.Module):
    """One level of the nested U-Net: halve, whatever is inside, double, lay the result beside the input."""

    def __init__(
        self, outer: int, inner: int, inside: nn.Module | None, dropout: bool, image_channels: int = 0
    ) -> None:
        super().__init__()
        self.outermost = image_channels > 0
        down = nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=False)
        width = inner if inside is None else 2 * inner
        up = nn.ConvTranspose2d(width, image_channels or outer, 4, stride=2, padding=1, bias=self.outermost)
        before: list[nn.Module] = [down] if self.outermost else [nn.LeakyReLU(0.2, inplace=True), down]
        if inside is not None:
            if not self.outermost:
                before.append(nn.BatchNorm2d(inner))
            before.append(inside)
        after: list[nn.Module] = [nn.ReLU(inplace=True), up]
        after.append(nn.Tanh() if self.outermost else nn.BatchNorm2d(outer))
        if dropout:
            after.append(nn.Dropout(0.5))
        self.body = nn.Sequential(*before, *after)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, 2C, H, W)``, or to an image at the outermost level."""
        out: Tensor = self.body(x)
        return out if self.outermost else torch.cat([x, out], 1)


def unet(in_channels: int, out_channels: int, num_downs: int, base_channels: int, dropout: bool) -> nn.Module:
    """Build the generator from the bottleneck outwards; dropout on its middle levels of full width."""
    widths = [base_channels * min(2**level, 8) for level in range(num_downs)]
    net: nn.Module | None = None
    for level in reversed(range(1, num_downs)):
        drop = dropout and 4 <= level < num_downs - 1
        net = SkipLevel(widths[level - 1], widths[level], net, drop)
    return SkipLevel(in_channels, widths[0], net, dropout=False, image_channels=out_channels)


def patchgan(in_channels: int, base_channels: int) -> nn.Sequential:
    """Build the discriminator of 70x70 patches."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, base_channels, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    width = base_channels
    for stride in (2, 2, 1):
        layers += [
            nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy every parameter and buffer of ``source`` to ``target``, whose tensors come in the same order."""
    ours, theirs = source.state_dict(), target.state_dict()
    target.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))


class PlainPix2Pix:
    """Two networks, two optimisers, and the step.

    Args:
        generator: Maps (N, A, H, W) to (N, B, H, W).
        discriminator: Maps (N, A + B, H, W) to logits.
        optimizers: Optimisers of generator and discriminator; None for the default Adam.
        lambda_l1: Weight of the L1 term.
        drops_gradients_early: Whether gradients are dropped as soon as their optimiser has stepped, as ours
            are, rather than before the next backward pass; it leaves more memory to reuse, changes no number.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None,
        lambda_l1: float = 100.0,
        drops_gradients_early: bool = False,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.lambda_l1 = lambda_l1
        self.drops_gradients_early = drops_gradients_early
        self.adam_g, self.adam_d = optimizers or (
            torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
            torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        )

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Train on a batch and return the three terms, detached."""
        real_a, real_b = batch["real_a"], batch["real_b"]
        fake_b = self.generator(real_a)

        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(True)
        self.adam_d.zero_grad()
        pred_fake = self.discriminator(torch.cat([real_a, fake_b], 1).detach())
        loss_fake = F.binary_cross_entropy_with_logits(pred_fake, torch.zeros_like(pred_fake))
        pred_real = self.discriminator(torch.cat([real_a, real_b], 1))
        loss_real = F.binary_cross_entropy_with_logits(pred_real, torch.ones_like(pred_real))
        loss_d = (loss_fake + loss_real) * 0.5
        torch.autograd.backward(loss_d)
        self.adam_d.step()
        if self.drops_gradients_early:
            self.adam_d.zero_grad()

        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(False)
        self.adam_g.zero_grad()
        pred_fake = self.discriminator(torch.cat([real_a, fake_b], 1))
        loss_gan = F.binary_cross_entropy_with_logits(pred_fake, torch.ones_like(pred_fake))
        loss_l1 = F.l1_loss(fake_b, real_b)
        torch.autograd.backward(loss_gan + self.lambda_l1 * loss_l1)
        self.adam_g.step()
        if self.drops_gradients_early:
            self.adam_g.zero_grad()
        return {
            "discriminator/gan": loss_d.detach(),
            "generator/gan": loss_gan.detach(),
            "generator/l1": loss_l1.detach(),
        }
