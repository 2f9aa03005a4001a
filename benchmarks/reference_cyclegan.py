"""The authors' CycleGAN in plain PyTorch: networks, image pool, order of updates. What we are timed against.

Nothing here comes from the package. Modules nest and activate in place as the published ones do; every
generator and discriminator runs on one batch at a time: six generator passes and six discriminator passes a
step.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block: two reflection-padded convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        out: Tensor = x + self.body(x)
        return out


def resnet(in_channels: int, out_channels: int, base_channels: int, num_blocks: int) -> nn.Sequential:
    """Build the residual generator with instance norm."""
    layers: list[nn.Module] = [
        nn.ReflectionPad2d(3),
        nn.Conv2d(in_channels, base_channels, 7),
        nn.InstanceNorm2d(base_channels),
        nn.ReLU(inplace=True),
    ]
    width = base_channels
    for _ in range(2):
        layers += [
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.InstanceNorm2d(2 * width),
            nn.ReLU(inplace=True),
        ]
        width *= 2
    layers += [Block(width) for _ in range(num_blocks)]
    for _ in range(2):
        layers += [
            nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(width // 2),
            nn.ReLU(inplace=True),
        ]
        width //= 2
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh()]
    return nn.Sequential(*layers)


def patchgan(in_channels: int, base_channels: int, num_layers: int = 3) -> nn.Sequential:
    """Build the discriminator of patches, with instance norm."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, base_channels, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    width = base_channels
    for level in range(1, num_layers + 1):
        wider = base_channels * min(2**level, 8)
        layers += [
            nn.Conv2d(width, wider, 4, 2 if level < num_layers else 1, 1),
            nn.InstanceNorm2d(wider),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width = wider
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy every parameter of ``source`` to ``target``, whose tensors come in the same order."""
    ours, theirs = source.state_dict(), target.state_dict()
    target.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))


Draw = Callable[[int], tuple[bool, int]]
"""Of image number n: whether it is exchanged, and with which of the pool."""


class PlainPool:
    """The history of fakes.

    Args:
        size: Images in it; 0 for none.
        draw: Decides on exchanges; None draws from Python's generator.
    """

    def __init__(self, size: int, draw: Draw | None = None) -> None:
        self.size = size
        self.draw = draw or (lambda number: (random.uniform(0, 1) > 0.5, random.randint(0, size - 1)))
        self.images: list[Tensor] = []
        self.seen = 0

    def query(self, images: Tensor) -> Tensor:
        """Return what the discriminator is shown for ``images``, (N, C, H, W)."""
        if self.size == 0:
            return images
        shown = []
        for image in images.detach().split(1):
            if len(self.images) < self.size:
                self.images.append(image)
                shown.append(image)
            else:
                swaps, place = self.draw(self.seen)
                if swaps:
                    old = self.images[place].clone()
                    self.images[place] = image
                    shown.append(old)
                else:
                    shown.append(image)
            self.seen += 1
        return torch.cat(shown, 0)


class PlainCycleGAN:
    """Four networks, two optimisers, and the step.

    Args:
        generator_ab: Maps a to b.
        generator_ba: Maps b to a.
        discriminator_a: Judges a.
        discriminator_b: Judges b.
        pool_a: History of the fakes of a.
        pool_b: History of the fakes of b.
        lambda_cycle: Weight of the cycles.
        lambda_identity: Weight of the identity terms, over that of the cycles; 0 leaves them out.
        optimizers: Optimisers of generators and discriminators; None for the default Adam.
        drops_gradients_early: Whether gradients are dropped as soon as their optimiser has stepped, as ours
            are, rather than before the next backward pass; it leaves more memory to reuse, changes no number.
    """

    def __init__(
        self,
        generator_ab: nn.Module,
        generator_ba: nn.Module,
        discriminator_a: nn.Module,
        discriminator_b: nn.Module,
        pool_a: PlainPool,
        pool_b: PlainPool,
        lambda_cycle: float = 10.0,
        lambda_identity: float = 0.5,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None,
        drops_gradients_early: bool = False,
    ) -> None:
        self.generator_ab, self.generator_ba = generator_ab, generator_ba
        self.discriminator_a, self.discriminator_b = discriminator_a, discriminator_b
        self.pool_a, self.pool_b = pool_a, pool_b
        self.lambda_cycle, self.lambda_identity = lambda_cycle, lambda_identity
        self.drops_gradients_early = drops_gradients_early
        players = (generator_ab, generator_ba), (discriminator_a, discriminator_b)
        self.adam_g, self.adam_d = optimizers or [
            torch.optim.Adam(
                itertools.chain(*(network.parameters() for network in networks)), lr=2e-4, betas=(0.5, 0.999)
            )
            for networks in players
        ]

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Train on a batch and return the terms, detached."""
        real_a, real_b = batch["real_a"], batch["real_b"]
        fake_b = self.generator_ab(real_a)
        cycle_a = self.generator_ba(fake_b)
        fake_a = self.generator_ba(real_b)
        cycle_b = self.generator_ab(fake_a)

        self._train_discriminators(False)
        self.adam_g.zero_grad()
        total: Tensor = real_a.new_zeros(())
        terms: dict[str, Tensor] = {}
        if self.lambda_identity > 0:
            terms["identity_b"] = F.l1_loss(self.generator_ab(real_b), real_b)
            terms["identity_a"] = F.l1_loss(self.generator_ba(real_a), real_a)
            total = (terms["identity_a"] + terms["identity_b"]) * self.lambda_cycle * self.lambda_identity
        pred_b, pred_a = self.discriminator_b(fake_b), self.discriminator_a(fake_a)
        terms["gan_ab"] = F.mse_loss(pred_b, torch.ones_like(pred_b))
        terms["gan_ba"] = F.mse_loss(pred_a, torch.ones_like(pred_a))
        terms["cycle_a"], terms["cycle_b"] = F.l1_loss(cycle_a, real_a), F.l1_loss(cycle_b, real_b)
        total = total + terms["gan_ab"] + terms["gan_ba"]
        total = total + self.lambda_cycle * (terms["cycle_a"] + terms["cycle_b"])
        torch.autograd.backward(total)
        self.adam_g.step()
        if self.drops_gradients_early:
            self.adam_g.zero_grad()

        self._train_discriminators(True)
        self.adam_d.zero_grad()
        for letter, discriminator, real, pool, fake in (
            ("b", self.discriminator_b, real_b, self.pool_b, fake_b),
            ("a", self.discriminator_a, real_a, self.pool_a, fake_a),
        ):
            shown = pool.query(fake)
            pred_real = discriminator(real)
            loss_real = F.mse_loss(pred_real, torch.ones_like(pred_real))
            pred_fake = discriminator(shown.detach())
            loss_fake = F.mse_loss(pred_fake, torch.zeros_like(pred_fake))
            loss = (loss_real + loss_fake) * 0.5
            torch.autograd.backward(loss)
            terms[f"gan_{letter}"] = loss
        self.adam_d.step()
        if self.drops_gradients_early:
            self.adam_d.zero_grad()
        return {
            f"{'discriminators' if name in ('gan_a', 'gan_b') else 'generators'}/{name}": value.detach()
            for name, value in terms.items()
        }

    def _train_discriminators(self, learns: bool) -> None:
        for network in (self.discriminator_a, self.discriminator_b):
            for parameter in network.parameters():
                parameter.requires_grad_(learns)
