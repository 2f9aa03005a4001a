"""The layers of StyleGAN2: equalised learning rates, modulated convolutions, separable resampling.

Every weight is kept at unit variance and scaled when it is used (Karras et al. 2018, section 4.1), so that
Adam moves all of them at one relative speed.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.networks.layers import at_least_float32, no_autocast

Activation = Literal["linear", "lrelu"]

FILTER = (1, 3, 3, 1)
"""The binomial low-pass filter of all published configurations, before normalisation."""
SLOPE = 0.2
GAIN = {"linear": 1.0, "lrelu": math.sqrt(2)}
"""What an activation is multiplied by to keep the variance."""


def activate(
    x: Tensor, bias: Tensor | None, activation: Activation, gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """Return ``gain' * act(x + bias)``, clamped to ``clamp`` times ``gain``; ``gain'`` keeps the variance.

    Args:
        x: (N, C, ...).
        bias: (C,).
        activation: ``linear``, or ``lrelu`` with slope 0.2.
        gain: What to multiply by besides.
        clamp: Largest magnitude, as networks trained in fp16 have one (Karras et al. 2020b, appendix D).
    """
    if bias is not None:
        x = x + bias.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
    if activation == "lrelu":
        x = F.leaky_relu(x, SLOPE)
    scale = GAIN[activation] * gain
    if scale != 1:
        x = x * scale
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


class FullyConnected(nn.Module):
    """A dense layer with an equalised learning rate.

    ``act(W x * lr / sqrt(in) + b * lr)``, W from N(0, 1) / lr.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
        activation: What follows.
        lr_multiplier: How much slower than the others it learns.
        bias_init: Value that the bias begins with.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Activation = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        return activate(
            F.linear(x, self.weight * self.weight_gain), self.bias * self.bias_gain, self.activation
        )


class Conv(nn.Module):
    """A convolution with an equalised learning rate, as the discriminator uses it.

    Halving, it filters first and then takes every second pixel.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 1 or 3.
        down: Whether height and width are halved.
        bias: Whether there is a bias.
        activation: What follows.
        clamp: Largest magnitude of the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        down: bool = False,
        bias: bool = True,
        activation: Activation = "lrelu",
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.down = down
        self.activation: Activation = activation
        self.clamp = clamp
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``."""
        weight = self.weight * self.weight_gain
        if not self.down:
            x = F.conv2d(x, weight, padding=self.padding)
        elif self.padding:
            x = F.conv2d(blur(x, 2), weight, stride=2)
        else:
            x = F.conv2d(downsample(x), weight)
        return activate(x, self.bias, self.activation, gain, self.clamp)


def modulated_conv(
    x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool = True, up: bool = False
) -> Tensor:
    """Convolve each image with its own scaled weights (Karras et al. 2020, equations 1 and 3).

    ``w'_ijk = s_i w_ijk`` and ``w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + 1e-8)``. Scaling the input by s and
    the output by the demodulation is the same as scaling the weights (section 2.2), and lets a batch share
    one dense convolution, where the grouped one of the published code slows down with every image.

    Args:
        x: (N, I, H, W).
        weight: (O, I, k, k), without the 1 / sqrt(fan_in) that demodulation would cancel.
        styles: s, (N, I).
        demodulate: Whether the output is brought back to unit variance.
        up: Whether height and width are doubled first.

    Returns:
        (N, O, H, W), or (N, O, 2H, 2W).
    """
    scale: Tensor | None = None
    with no_autocast(x):
        styles, weight = at_least_float32(styles), at_least_float32(weight)
        if demodulate:
            if half_range(x):
                # Products of fp16 overflow at 65504; the demodulation takes both factors out again.
                weight = weight / weight.abs().amax((1, 2, 3), keepdim=True) / math.sqrt(weight[0].numel())
                styles = styles / styles.abs().amax(1, keepdim=True)
            power = styles.square() @ weight.square().sum((2, 3)).t()
            scale = (power + 1e-8).rsqrt()
    x = x * styles.to(x.dtype)[:, :, None, None]
    weight = weight.to(x.dtype)
    if up:
        # Of the x2 zero-insertion and the convolution, the transposed one leaves out what meets zeros.
        x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), 1, gain=4.0)
    else:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return x if scale is None else x * scale.to(x.dtype)[:, :, None, None]


def half_range(x: Tensor) -> bool:
    """Return whether a convolution of ``x`` is computed in fp16."""
    if x.is_meta:
        return False
    kind = x.device.type
    return x.dtype == torch.float16 or (
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    )


def blur(x: Tensor, pad: int, gain: float = 1.0) -> Tensor:
    """Filter ``x (N, C, H, W)`` by the low-pass filter after ``pad`` zeros on each side.

    The filter is separable: two passes of four taps instead of one of sixteen.

    Returns:
        (N, C, H + 2 pad - 3, W + 2 pad - 3).
    """
    taps = torch.tensor(FILTER, device=x.device, dtype=x.dtype) * (math.sqrt(gain) / sum(FILTER))
    channels = x.shape[1]
    row = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    column = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    x = F.conv2d(x, row, padding=(0, pad), groups=channels)
    return F.conv2d(x, column, padding=(pad, 0), groups=channels)


def downsample(x: Tensor) -> Tensor:
    """Return ``x (N, C, H, W)`` at half the size, filtered."""
    return blur(x, 1)[:, :, ::2, ::2]


def upsample(x: Tensor) -> Tensor:
    """Return ``x (N, C, H, W)`` at twice the size, filtered.

    Between zeros outside the image, the filter's two phases are (1/4, 3/4) and (3/4, 1/4): bilinear
    interpolation.
    """
    padded = F.pad(x, (1, 1, 1, 1))
    return F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]
