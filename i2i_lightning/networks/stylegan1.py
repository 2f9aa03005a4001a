"""The generator of the first StyleGAN (Karras et al. 2019, arXiv 1812.04948), with instance norm for a style.

All weights are kept as trained, at unit variance, and scaled when they are used, as in the published
checkpoints. The gain sqrt(2) of the leaky ReLU stands in the weights' scale, where StyleGAN2 multiplies the
activation by it: between the two, the biases of the mapping differ by that factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.networks.layers import at_least_float32, no_autocast
from i2i_lightning.networks.style import (
    Noise,
    StyleGenerator,
    StyleMapping,
    Tap,
    check_label,
    check_settings,
    check_taps,
    check_w_plus,
    noise_of,
    noise_sources,
    normalise_second_moment,
)
from i2i_lightning.networks.stylegan2.generator import SMALLEST_PX, resolutions
from i2i_lightning.networks.stylegan2.layers import FullyConnected
from i2i_lightning.types import UserError

SLOPE = 0.2
GAIN = math.sqrt(2)
EPS = 1e-8
"""Of the instance norm. The usual 1e-5 makes activations of standard deviation 0.01 a twentieth too small."""
FLIPPED_FROM_PX = 128
"""From this output size on, the published networks upsample and convolve in one transposed convolution, which
mirrors the kernel; see :class:`StyleGAN1Generator`."""


class MappingLayer(nn.Module):
    """A dense layer and a leaky ReLU: ``lrelu(W x sqrt(2) lr / sqrt(in) + b lr)``, W from N(0, 1) / lr.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
        lr_multiplier: How much slower than the others it learns.
    """

    def __init__(self, in_features: int, out_features: int, lr_multiplier: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.weight_gain = GAIN * lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        return F.leaky_relu(F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain), SLOPE)


class LabelEmbedding(nn.Module):
    """A label to a vector as long as z, without scale or bias.

    Args:
        label_dim: Length of the label.
        out_features: Length of the vector.
    """

    def __init__(self, label_dim: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, label_dim))

    def forward(self, label: Tensor) -> Tensor:
        """Map ``(N, label_dim)`` to ``(N, out_features)``."""
        return F.linear(label, self.weight)


class MappingNetwork(StyleMapping):
    """z to w: eight dense layers that learn at a hundredth of the rate of the others.

    A label is embedded beside z, and both are normalised together; StyleGAN2 normalises each on its own.

    Args:
        z_dim: Length of z.
        label_dim: Length of the label; 0 for none.
        w_dim: Length of w.
        num_ws: Rows of w_plus.
        num_layers: Dense layers.
        lr_multiplier: How much slower than the rest they learn.
    """

    def __init__(
        self, z_dim: int, label_dim: int, w_dim: int, num_ws: int, num_layers: int, lr_multiplier: float
    ) -> None:
        super().__init__(num_ws, w_dim)
        self.z_dim = z_dim
        self.label_dim = label_dim
        self.num_layers = num_layers
        self.embed = LabelEmbedding(label_dim, z_dim) if label_dim else None
        width = 2 * z_dim if label_dim else z_dim
        for index in range(num_layers):
            self.add_module(f"fc{index}", MappingLayer(width, w_dim, lr_multiplier))
            width = w_dim

    def to_w(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return ``w (N, w_dim)``; in float32 at least, autocast or not: its small rates need it."""
        label = check_label(label, self.label_dim)
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise UserError(f"z has shape {tuple(z.shape)}: this generator takes (N, {self.z_dim})")
        x = at_least_float32(z)
        with no_autocast(self.w_avg):
            if self.embed is not None:
                assert label is not None
                x = torch.cat([x, self.embed(label)], 1)
            x = normalise_second_moment(x)
            for index in range(self.num_layers):
                x = getattr(self, f"fc{index}")(x)
        return x


class Epilogue(nn.Module):
    """What follows each convolution, and the constant: noise, bias, leaky ReLU, then the style (section 3).

    ``AdaIN(x, y) = (y_s + 1) (x - mean(x)) / sqrt(var(x) + 1e-8) + y_b`` (equation 1), the statistics of each
    channel of each image, y an affine map of w.

    Args:
        channels: Channels.
        w_dim: Length of w.
        size_px: Side of the noise map.
    """

    noise_const: Tensor

    def __init__(self, channels: int, w_dim: int, size_px: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise_weight = nn.Parameter(torch.zeros(channels))
        self.register_buffer("noise_const", torch.randn(size_px, size_px))
        self.style = FullyConnected(w_dim, 2 * channels)

    def finish(self, x: Tensor, w: Tensor, source: Tensor | str) -> Tensor:
        """Apply all to ``x (N, C, H, W)`` under ``w (N, w_dim)``, in float32 at least; return x's dtype."""
        dtype = x.dtype
        with no_autocast(x):
            x = at_least_float32(x)
            noise = noise_of(source, self.noise_const, len(x))
            if noise is not None:
                x = x + noise * self.noise_weight[:, None, None]
            x = F.leaky_relu(x + self.bias[:, None, None], SLOPE)
            variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
            scale, shift = self.style(w)[:, :, None, None].chunk(2, 1)
            # Scale and norm are one factor for each channel: one pass less over the picture.
            y: Tensor = (x - mean) * ((scale + 1) * (variance + EPS).rsqrt()) + shift
        return y.to(dtype)

    def forward(self, x: Tensor, w: Tensor, source: Tensor | str) -> Tensor:
        """Map the constant ``(N, C, H, W)`` under ``w (N, w_dim)`` with noise from ``source``."""
        return self.finish(x, w, source)


class SynthesisLayer(Epilogue):
    """A 3x3 convolution and its epilogue.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        w_dim: Length of w.
        size_px: Side of the output.
        up: Whether the output is twice as large as the input: pixels are repeated first and blurred after.
    """

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, size_px: int, up: bool = False
    ) -> None:
        super().__init__(out_channels, w_dim, size_px)
        self.up = up
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.weight_gain = GAIN / math.sqrt(in_channels * 9)

    def forward(self, x: Tensor, w: Tensor, source: Tensor | str) -> Tensor:
        """Map ``x (N, I, H, W)`` under ``w (N, w_dim)`` with noise from ``source``."""
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.conv2d(x, self.weight * self.weight_gain, padding=1)
        return self.finish(blur(x) if self.up else x, w, source)


def blur(x: Tensor) -> Tensor:
    """Filter ``x (N, C, H, W)`` by [1, 2, 1] / 4 along both sides, zeros outside."""
    channels = x.shape[1]
    taps = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
    row = taps.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    column = taps.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
    x = F.conv2d(x, row, padding=(0, 1), groups=channels)
    return F.conv2d(x, column, padding=(1, 0), groups=channels)


class ToRGB(nn.Module):
    """1x1 convolution to the image's channels, without a style.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the image.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, channels, H, W)``, in float32 at least."""
        with no_autocast(x):
            return F.conv2d(at_least_float32(x), self.weight * self.weight_gain, self.bias)


class SynthesisBlock(nn.Module):
    """The two layers of one resolution; in the first, the constant takes the place of a convolution.

    Args:
        in_channels: Channels of the block below; 0 for the first.
        out_channels: Channels of this block.
        w_dim: Length of w.
        size_px: Side of its output.
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, size_px: int) -> None:
        super().__init__()
        self.first = in_channels == 0
        self.conv0: Epilogue
        if self.first:
            self.const = nn.Parameter(torch.ones(out_channels, size_px, size_px))
            self.conv0 = Epilogue(out_channels, w_dim, size_px)
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, size_px, up=True)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, size_px)


class SynthesisNetwork(nn.Module):
    """w_plus to image.

    Args:
        size_px: Side of the image.
        channels: Channels of the image.
        w_dim: Length of w.
        channel_base: Twice this over the resolution are a layer's channels.
        channel_max: Most channels of a layer.
    """

    def __init__(self, size_px: int, channels: int, w_dim: int, channel_base: int, channel_max: int) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.sizes = resolutions(size_px)
        self.num_ws = 2 * len(self.sizes)
        below = 0
        for size in self.sizes:
            width = min(2 * channel_base // size, channel_max)
            self.add_module(f"b{size}", SynthesisBlock(below, width, w_dim, size))
            below = width
        self.torgb = ToRGB(below, channels)
        self.row_names = tuple(f"b{size}.{layer}" for size in self.sizes for layer in ("conv0", "conv1"))
        self.layer_names = (*self.row_names, f"b{size_px}.image")

    @property
    def layers(self) -> list[Epilogue]:
        """The layers with noise and style, from coarse to fine."""
        blocks: list[SynthesisBlock] = [getattr(self, f"b{size}") for size in self.sizes]
        return [layer for block in blocks for layer in (block.conv0, block.conv1)]

    def forward(
        self, w_plus: Tensor, noise: Noise = "const", taps: Mapping[str, Tap] | None = None
    ) -> Tensor:
        """Return images ``(N, channels, size_px, size_px)`` of ``w_plus (N, num_ws, w_dim)``.

        Args:
            w_plus: Latents; row k is the style of layer k.
            noise: See :data:`~i2i_lightning.networks.style.Noise`.
            taps: For each of ``layer_names``, what to put in place of its activation. ``b4.conv0`` is the
                constant after its style.

        Raises:
            UserError: If latents, noise or taps do not fit this network.
        """
        check_w_plus(w_plus, self.num_ws, self.w_dim)
        taps = check_taps(taps, self.layer_names)
        sources = noise_sources(noise, self.num_ws)
        first: SynthesisBlock = getattr(self, f"b{SMALLEST_PX}")
        x = first.const.to(w_plus.dtype).expand(len(w_plus), -1, -1, -1)
        for name, layer, w, source in zip(
            self.row_names, self.layers, w_plus.unbind(1), sources, strict=True
        ):
            x = layer(x, w, source)
            x = taps[name](x) if name in taps else x
        image: Tensor = self.torgb(x)
        name = self.layer_names[-1]
        return taps[name](image) if name in taps else image


class StyleGAN1Generator(StyleGenerator):
    """The first StyleGAN's generator at its last resolution, without progressive growing.

    FFHQ at 1024 px has 18 rows of w_plus and 26,212,019 parameters, 7,608 fewer than the published print-out,
    which counts the image layers of the eight lower resolutions.

    Where a layer doubles the size, its weight is that of a convolution (correlation) *after* repeating each
    pixel, at every resolution. The published networks do the same below 128 px; from there on they use a
    transposed convolution, the same function with the kernel mirrored along both sides. Their kernels for
    outputs of :data:`FLIPPED_FROM_PX` and more are therefore mirrored when they are read, once.

    The published sampling truncates with psi 0.7 the first 8 rows; here nothing is truncated unless asked.

    Args:
        size_px: Side of the images, a power of two from 4.
        channels: Channels of the images.
        z_dim: Length of z.
        w_dim: Length of w.
        label_dim: Length of the label; 0 for an unconditional generator.
        mapping_layers: Dense layers of the mapping.
        channel_base: A resolution R has ``2 channel_base / R`` channels,
        channel_max: but not more than this.
        lr_multiplier: Rate of the mapping relative to the others.

    Raises:
        UserError: If an argument is impossible.
    """

    architecture = "stylegan1"
    mapping: MappingNetwork
    synthesis: SynthesisNetwork

    def __init__(
        self,
        size_px: int,
        channels: int = 3,
        z_dim: int = 512,
        w_dim: int = 512,
        label_dim: int = 0,
        mapping_layers: int = 8,
        channel_base: int = 8192,
        channel_max: int = 512,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        if not isinstance(size_px, int) or size_px < SMALLEST_PX or size_px & (size_px - 1):
            raise UserError(
                f"size_px={size_px}: StyleGAN takes a power of two from {SMALLEST_PX} (64, 128, ...)"
            )
        whole = {"channels": channels, "z_dim": z_dim, "w_dim": w_dim, "mapping_layers": mapping_layers}
        check_settings(whole, label_dim, {"lr_multiplier": lr_multiplier})
        if 2 * channel_base < size_px or channel_max < 1:
            raise UserError(
                f"channel_base={channel_base}, channel_max={channel_max}: {size_px} px needs at least "
                f"{size_px // 2} and 1"
            )
        self.arguments = {
            "size_px": size_px,
            "channels": channels,
            "z_dim": z_dim,
            "w_dim": w_dim,
            "label_dim": label_dim,
            "mapping_layers": mapping_layers,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "lr_multiplier": lr_multiplier,
        }
        self.size_px, self.channels, self.label_dim = size_px, channels, label_dim
        self.z_dim, self.w_dim = z_dim, w_dim
        self.synthesis = SynthesisNetwork(size_px, channels, w_dim, channel_base, channel_max)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, label_dim, w_dim, self.num_ws, mapping_layers, lr_multiplier)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """``b4.conv0`` (the constant), ``b4.conv1``, ``b8.conv0``, ..., and the image of the last size."""
        return self.synthesis.layer_names

    @property
    def row_names(self) -> tuple[str, ...]:
        """The layer that each row drives."""
        return self.synthesis.row_names

    def _noise_buffers(self) -> list[Tensor]:
        return [layer.noise_const for layer in self.synthesis.layers]
