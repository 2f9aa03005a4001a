"""What every network here is made of: norms, spectral normalisation, and the checks of an input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.networks.sync_batchnorm import SyncBatchNorm2d
from i2i_lightning.types import UserError

Norm = Literal["batch", "instance", "syncbatch", "none"]
"""Normalisation over the batch, over each image, over the batch of all processes, or not at all."""

SPECTRAL_WARM_UP = 15  # power iterations before the first step; one more at each training forward keeps up


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is half precision, else untouched (float64 stays float64)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context in which products of ``x`` keep its precision (the meta device has none to keep)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class InstanceNorm2d(nn.InstanceNorm2d):
    """Normalise each channel of each image to mean 0 and variance 1, with statistics in float32 at least.

    Ulyanov et al. 2016: ``y = (x - mean) / sqrt(var + eps)``, mean and biased variance over height and width.
    Squares of fp16 activations overflow above 256, so half-precision inputs are normalised in float32 and
    returned as they came. There are neither parameters nor running statistics, as in pix2pix and CycleGAN:
    nothing to save.

    Args:
        num_features: Channels of the input.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-5, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (N, C, H, W)`` normalised, in its own dtype; needs more than one pixel."""
        return F.instance_norm(at_least_float32(x), eps=self.eps).to(x.dtype)


def norm_layer(kind: Norm) -> Callable[[int], nn.Module]:
    """Return the constructor of a norm: it takes the number of channels.

    Args:
        kind: ``batch`` (affine, running statistics with momentum 0.1), ``instance`` (no parameters,
            statistics in float32), ``syncbatch`` (as batch, over all processes) or ``none`` (the identity).

    Raises:
        UserError: If ``kind`` is none of these.
    """
    layers: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d,
        "instance": InstanceNorm2d,
        "syncbatch": SyncBatchNorm2d,
        "none": lambda channels: nn.Identity(),
    }
    if kind not in layers:
        raise UserError(f"norm={kind}: choose one of {', '.join(layers)}")
    return layers[kind]


def bias_before(norm: Norm) -> bool:
    """Return whether a convolution that the reference pairs with ``norm`` carries a bias.

    The published networks have one only under instance norm, where its gradient is zero all the same, and
    none under batch norm, which has its own shift, nor without any norm. Their checkpoints need the same rule
    here.
    """
    return norm == "instance"


class SpectralConv2d(nn.Conv2d):
    """A convolution with its weight divided by its largest singular value (Miyato et al. 2018, algorithm 1).

    ``W_sn = W / sigma(W)`` with ``W`` seen as an (out_channels, in_channels * k * k) matrix and
    ``sigma(W) = u^T W v``. ``u`` and ``v`` are buffers, improved by one power iteration at each forward in
    training mode and left alone in evaluation mode. ``weight`` stays the raw weight, under the plain
    convolution's name.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        matrix = self.weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn_like(matrix[:, 0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn_like(matrix[0]), dim=0))
        self.iterate(SPECTRAL_WARM_UP)

    @torch.no_grad()
    def iterate(self, steps: int) -> None:
        """Improve ``u`` and ``v`` by ``steps`` power iterations on the present weight."""
        with no_autocast(self.weight):
            matrix = at_least_float32(self.weight).flatten(1)
            u, v = self.u.to(matrix.dtype), self.v.to(matrix.dtype)
            for _ in range(steps):
                v = F.normalize(matrix.t() @ u, dim=0)
                u = F.normalize(matrix @ v, dim=0)
            self.u.copy_(u)
            self.v.copy_(v)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x (N, in_channels, H, W)`` with the normalised weight."""
        if self.training:
            self.iterate(1)
        # Clones, because a second forward before the backward (fake, then real) moves the buffers in place.
        u, v = self.u.clone(), self.v.clone()
        with no_autocast(x):
            matrix = at_least_float32(self.weight).flatten(1)
            sigma = torch.dot(u.to(matrix.dtype), matrix @ v.to(matrix.dtype))
            weight = self.weight / sigma.to(self.weight.dtype)
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


def conv_layer(spectral_norm: bool) -> type[nn.Conv2d]:
    """Return the convolution class: plain, or with spectral normalisation."""
    return SpectralConv2d if spectral_norm else nn.Conv2d


def check_channels(x: Tensor, channels: int, network: str) -> None:
    """Raise ``UserError`` unless ``x`` is ``(N, channels, H, W)``; ``network`` names who complains."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise UserError(
            f"the {network} takes images of shape (N, {channels}, H, W), got {tuple(x.shape)}: "
            f"its in_channels and the data's must agree"
        )


def check_least_side(height: int, width: int, least_px: int, network: str, remedy: str) -> None:
    """Raise ``UserError`` if a side is shorter than ``least_px``."""
    if min(height, width) < least_px:
        raise UserError(
            f"the {network} needs sides of at least {least_px} px, got {height}x{width} (height x width): "
            f"{remedy}"
        )
