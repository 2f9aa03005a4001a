"""The generator of StyleGAN2 with output skips (Karras et al. 2020, section 4.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
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
from i2i_lightning.networks.stylegan2.layers import FullyConnected, activate, modulated_conv, upsample
from i2i_lightning.types import UserError

SMALLEST_PX = 4


def check_size(size_px: int, key: str = "size_px") -> None:
    """Raise ``UserError`` unless ``size_px`` is a power of two from 8."""
    if not isinstance(size_px, int) or size_px < 8 or size_px & (size_px - 1):
        raise UserError(f"{key}={size_px}: StyleGAN2 takes a power of two from 8 (32, 64, 128, 256, ...)")


def check_widths(size_px: int, channel_base: int, channel_max: int) -> None:
    """Raise ``UserError`` unless there is a channel at each resolution."""
    if channel_base < size_px or channel_max < 1:
        raise UserError(
            f"channel_base={channel_base}, channel_max={channel_max}: {size_px} px needs at least "
            f"{size_px} and 1"
        )


def resolutions(size_px: int) -> list[int]:
    """Return 4, 8, ..., ``size_px``."""
    return [2**level for level in range(2, int(math.log2(size_px)) + 1)]


class MappingNetwork(StyleMapping):
    """z, and the label where there is one, to w: eight dense layers that learn at a hundredth of the rate.

    Args:
        z_dim: Length of z; 0 for the label alone, as in the discriminator.
        label_dim: Length of the label; 0 for none.
        w_dim: Length of w.
        num_ws: Rows of w_plus.
        num_layers: Dense layers.
        lr_multiplier: How much slower than the rest they learn.
    """

    def __init__(
        self,
        z_dim: int,
        label_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__(num_ws, w_dim, saves_mean=z_dim > 0)
        self.z_dim = z_dim
        self.label_dim = label_dim
        self.num_layers = num_layers
        self.embed = FullyConnected(label_dim, w_dim) if label_dim else None
        widths = [z_dim + (w_dim if label_dim else 0)] + [w_dim] * num_layers
        for index, (width, following) in enumerate(itertools.pairwise(widths)):
            self.add_module(f"fc{index}", FullyConnected(width, following, "lrelu", lr_multiplier))

    def to_w(self, z: Tensor | None, label: Tensor | None = None) -> Tensor:
        """Return ``w (N, w_dim)``; in float32 at least, autocast or not: its small rates need it."""
        label = check_label(label, self.label_dim)
        parts = []
        if z is not None and self.z_dim:
            if z.dim() != 2 or z.shape[1] != self.z_dim:
                raise UserError(f"z has shape {tuple(z.shape)}: this generator takes (N, {self.z_dim})")
            parts.append(normalise_second_moment(at_least_float32(z)))
        with no_autocast(self.w_avg):
            if self.embed is not None:
                assert label is not None
                parts.append(normalise_second_moment(self.embed(label)))
            x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            for index in range(self.num_layers):
                x = getattr(self, f"fc{index}")(x)
        return x


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        w_dim: Length of w.
        size_px: Side of the output.
        up: Whether the output is twice as large as the input.
        clamp: Largest magnitude of the output.
    """

    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size_px: int,
        up: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.up = up
        self.clamp = clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.register_buffer("noise_const", torch.randn(size_px, size_px))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor, source: Tensor | str) -> Tensor:
        """Map ``x (N, I, H, W)`` under ``w (N, w_dim)`` with noise from ``source``."""
        with no_autocast(x):
            styles = self.affine(w)
        x = modulated_conv(x, self.weight, styles, up=self.up)
        noise = noise_of(source, self.noise_const, len(x))
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        return activate(x, self.bias, "lrelu", clamp=self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the image's channels, without demodulation.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the image.
        w_dim: Length of w.
        clamp: Largest magnitude of the output.
    """

    def __init__(self, in_channels: int, channels: int, w_dim: int, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map ``x (N, I, H, W)`` under ``w (N, w_dim)`` to ``(N, channels, H, W)``."""
        with no_autocast(x):
            styles = self.affine(w) * self.weight_gain
        x = modulated_conv(x, self.weight, styles, demodulate=False)
        return activate(x, self.bias, "linear", clamp=self.clamp)


class SynthesisBlock(nn.Module):
    """The layers of one resolution.

    Args:
        in_channels: Channels of the block below; 0 for the first, which begins with a learned constant.
        out_channels: Channels of this block.
        w_dim: Length of w.
        size_px: Side of its output.
        channels: Channels of the image.
        clamp: Largest magnitude of its activations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size_px: int,
        channels: int,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.first = in_channels == 0
        if self.first:
            self.const = nn.Parameter(torch.randn(out_channels, size_px, size_px))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, size_px, up=True, clamp=clamp)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, size_px, clamp=clamp)
        self.torgb = ToRGB(out_channels, channels, w_dim, clamp)


class SynthesisNetwork(nn.Module):
    """w_plus to image.

    Args:
        size_px: Side of the image.
        channels: Channels of the image.
        w_dim: Length of w.
        channel_base: Channels times resolution at the fine end.
        channel_max: Most channels of a layer.
        clamp: Largest magnitude of activations.
    """

    def __init__(
        self,
        size_px: int,
        channels: int,
        w_dim: int,
        channel_base: int,
        channel_max: int,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.sizes = resolutions(size_px)
        self.num_ws = 2 * len(self.sizes)
        below = 0
        for size in self.sizes:
            width = min(channel_base // size, channel_max)
            self.add_module(f"b{size}", SynthesisBlock(below, width, w_dim, size, channels, clamp))
            below = width
        self.layer_names = tuple(
            f"b{size}.{layer}"
            for size in self.sizes
            for layer in (("conv1", "image") if size == SMALLEST_PX else ("conv0", "conv1", "image"))
        )

    @property
    def layers(self) -> list[SynthesisLayer]:
        """The layers with noise, from coarse to fine."""
        blocks: list[SynthesisBlock] = [getattr(self, f"b{size}") for size in self.sizes]
        return [
            layer
            for block in blocks
            for layer in ([block.conv1] if block.first else [block.conv0, block.conv1])
        ]

    def forward(
        self, w_plus: Tensor, noise: Noise = "const", taps: Mapping[str, Tap] | None = None
    ) -> Tensor:
        """Return images ``(N, channels, size_px, size_px)`` of ``w_plus (N, num_ws, w_dim)``.

        Convolution k takes row k; the image's layer of a resolution shares its row with the first convolution
        of the next.

        Args:
            w_plus: Latents.
            noise: See :data:`~i2i_lightning.networks.style.Noise`.
            taps: For each of ``layer_names``, what to put in place of its activation. ``b8.image`` is the sum
                of images up to 8 px.

        Raises:
            UserError: If latents, noise or taps do not fit this network.
        """
        check_w_plus(w_plus, self.num_ws, self.w_dim)
        taps = check_taps(taps, self.layer_names)
        sources = iter(noise_sources(noise, self.num_ws - 1))
        rows = iter(w_plus.unbind(1))
        image: Tensor | None = None
        x = w_plus.new_empty(0)
        row = next(rows)
        for size in self.sizes:
            block: SynthesisBlock = getattr(self, f"b{size}")
            if block.first:
                x = block.const.to(w_plus.dtype).expand(len(w_plus), -1, -1, -1)
            else:
                x = block.conv0(x, row, next(sources))
                x = taps[f"b{size}.conv0"](x) if f"b{size}.conv0" in taps else x
                row = next(rows)
            x = block.conv1(x, row, next(sources))
            x = taps[f"b{size}.conv1"](x) if f"b{size}.conv1" in taps else x
            row = next(rows)
            # The image is summed in full precision, as the published networks do.
            rgb = at_least_float32(block.torgb(x, row))
            image = rgb if image is None else upsample(image) + rgb
            image = taps[f"b{size}.image"](image) if f"b{size}.image" in taps else image
        assert image is not None
        return image


class StyleGAN2Generator(StyleGenerator):
    """StyleGAN2's generator, with NVIDIA's names and shapes of all parameters.

    FFHQ at 1024 px in configuration f (``channel_base=32768``) has 30.37 M parameters; configuration e halves
    the fine layers (``channel_base=16384``).

    Args:
        size_px: Side of the images, a power of two from 8.
        channels: Channels of the images.
        z_dim: Length of z.
        w_dim: Length of w.
        label_dim: Length of the label; 0 for an unconditional generator.
        mapping_layers: Dense layers of the mapping; 8 in the paper, 2 for many small sets.
        channel_base: A resolution R has ``channel_base / R`` channels,
        channel_max: but not more than this.
        lr_multiplier: Rate of the mapping relative to the others.
        conv_clamp: Largest magnitude of activations: 256 where a network was trained in fp16.

    Raises:
        UserError: If an argument is impossible.
    """

    architecture = "stylegan2"
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
        channel_base: int = 32768,
        channel_max: int = 512,
        lr_multiplier: float = 0.01,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        check_size(size_px)
        whole = {"channels": channels, "z_dim": z_dim, "w_dim": w_dim, "mapping_layers": mapping_layers}
        check_settings(whole, label_dim, {"lr_multiplier": lr_multiplier, "conv_clamp": conv_clamp})
        check_widths(size_px, channel_base, channel_max)
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
            "conv_clamp": conv_clamp,
        }
        self.size_px, self.channels, self.label_dim = size_px, channels, label_dim
        self.z_dim, self.w_dim = z_dim, w_dim
        self.synthesis = SynthesisNetwork(size_px, channels, w_dim, channel_base, channel_max, conv_clamp)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, label_dim, w_dim, self.num_ws, mapping_layers, lr_multiplier)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """``b4.conv1``, ``b4.image``, ``b8.conv0``, ``b8.conv1``, ``b8.image``, ..."""
        return self.synthesis.layer_names

    @property
    def row_names(self) -> tuple[str, ...]:
        """The convolution that each row drives; the last row drives the last image layer alone."""
        convolutions = [name for name in self.layer_names if not name.endswith("image")]
        return (*convolutions, f"b{self.size_px}.torgb")

    def _noise_buffers(self) -> list[Tensor]:
        return [layer.noise_const for layer in self.synthesis.layers]
