"""Networks as the reference project stores them, written here from the list of their layers alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "instance_2018": partial(nn.InstanceNorm2d, track_running_stats=True),
    "none": lambda channels: nn.Identity(),
}


class Nested(nn.Module):
    """A level of the nested U-Net; all but the outermost put their input beside their output."""

    def __init__(self, layers: list[nn.Module], outermost: bool) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)
        self.outermost = outermost

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Wrapped(nn.Module):
    """What holds the layers under ``model.`` or ``net.``."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        setattr(self, name, inner)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)


class Residual(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def unet(
    into: int = 3, out: int = 3, downs: int = 8, base: int = 8, norm: str = "batch", dropout: bool = True
) -> nn.Module:
    make, bias = NORMS[norm], norm.startswith("instance")
    widths = [base * min(2**level, 8) for level in range(downs)]
    block: nn.Module | None = None
    for level in reversed(range(downs)):
        outer, inner = (widths[level - 1] if level else into), widths[level]
        down = nn.Conv2d(outer, inner, 4, 2, 1, bias=bias)
        if level == 0:
            assert block is not None
            up = nn.ConvTranspose2d(2 * inner, out, 4, 2, 1)
            block = Nested([down, block, nn.ReLU(), up, nn.Tanh()], outermost=True)
        elif block is None:
            up = nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=bias)
            block = Nested([nn.LeakyReLU(0.2), down, nn.ReLU(), up, make(outer)], outermost=False)
        else:
            up = nn.ConvTranspose2d(2 * inner, outer, 4, 2, 1, bias=bias)
            layers = [nn.LeakyReLU(0.2), down, make(inner), block, nn.ReLU(), up, make(outer)]
            dropped = dropout and 4 <= level < downs - 1
            block = Nested([*layers, nn.Dropout(0.5)] if dropped else layers, outermost=False)
    assert block is not None
    return Wrapped("model", block)


def resnet(
    into: int = 3, out: int = 3, blocks: int = 9, base: int = 4, norm: str = "instance", dropout: bool = False
) -> nn.Module:
    make, bias = NORMS[norm], norm.startswith("instance")
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(into, base, 7, bias=bias), make(base), nn.ReLU()]
    for width in (base, 2 * base):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1, bias=bias), make(2 * width), nn.ReLU()]
    wide = 4 * base
    for _ in range(blocks):
        half = [nn.ReflectionPad2d(1), nn.Conv2d(wide, wide, 3, bias=bias), make(wide)]
        other = [nn.ReflectionPad2d(1), nn.Conv2d(wide, wide, 3, bias=bias), make(wide)]
        layers.append(Residual([*half, nn.ReLU(), *([nn.Dropout(0.5)] if dropout else []), *other]))
    for width in (wide, wide // 2):
        up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1, bias=bias)
        layers += [up, make(width // 2), nn.ReLU()]
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(base, out, 7), nn.Tanh()]
    return Wrapped("model", nn.Sequential(*layers))


def patchgan(
    into: int = 6, halvings: int = 3, base: int = 4, norm: str = "batch", sigmoid: bool = False
) -> nn.Module:
    make, bias = NORMS[norm], norm.startswith("instance")
    layers: list[nn.Module] = [nn.Conv2d(into, base, 4, 2, 1), nn.LeakyReLU(0.2)]
    widths = [base * min(2**level, 8) for level in range(halvings + 1)]
    for level in range(1, halvings + 1):
        stride = 2 if level < halvings else 1
        conv = nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=bias)
        layers += [conv, make(widths[level]), nn.LeakyReLU(0.2)]
    layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
    return Wrapped("model", nn.Sequential(*layers, *([nn.Sigmoid()] if sigmoid else [])))


def pixelgan(into: int = 6, base: int = 4, norm: str = "batch") -> nn.Module:
    make, bias = NORMS[norm], norm.startswith("instance")
    return Wrapped(
        "net",
        nn.Sequential(
            nn.Conv2d(into, base, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(base, 2 * base, 1, bias=bias),
            make(2 * base),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * base, 1, 1, bias=bias),
        ),
    )


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return ``network`` with random weights, statistics and counts, as if training had been at them."""
    torch.manual_seed(seed)
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.fill_(1234)
        elif key.endswith("running_var"):
            value.copy_(torch.rand_like(value) + 0.5)
        elif value.dim() == 4:
            value.normal_(0, 1.2 / (value[0].numel() ** 0.5))
        elif key.endswith("weight"):
            value.normal_(1, 0.2)
        else:
            value.normal_(0, 0.2)
    return network


@pytest.fixture
def reference() -> SimpleNamespace:
    """Makers of the reference's networks: ``unet``, ``resnet``, ``patchgan``, ``pixelgan``, and
    ``trained``."""
    return SimpleNamespace(unet=unet, resnet=resnet, patchgan=patchgan, pixelgan=pixelgan, trained=trained)
