"""MobileStyleGAN (Belousov 2021, arXiv 2104.04767): StyleGAN2 in separable convolutions and wavelets.

It was distilled from StyleGAN2 and shares its teacher's mapping, so that directions in W found for the
teacher hold for it too. Its synthesis predicts Haar coefficients and has one image layer, at the end. The
published networks were exported with the demodulation folded into the weights: what is left of a modulated
convolution is a scaled input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
    check_taps,
    check_w_plus,
    noise_of,
    noise_sources,
    normalise_second_moment,
)
from i2i_lightning.types import UserError

SMALLEST_PX = 4
SLOPE = 0.2
FFHQ_WIDTHS = (512, 512, 512, 512, 512, 256, 128, 64)
"""Channels at 4, 8, ..., 512 px of the published generator of 1024 px faces."""


def inverse_haar(x: Tensor) -> Tensor:
    """Return what the Haar transform of one level takes to the coefficients ``x``.

    The first quarter of the channels is the mean (LL); behind it, each output channel has its differences
    between rows (LH), between columns (HL) and across (HH), one after the other. With a = LL + LH,
    b = LL - LH, c = HL + HH, d = HL - HH, a block of 2 x 2 pixels is ((a + c, a - c), (b + d, b - d)) / 2.

    Args:
        x: (N, 4 C, H, W).

    Returns:
        (N, C, 2 H, 2 W).
    """
    batch, width, height, breadth = x.shape
    mean = x[:, : width // 4]
    rows, columns, across = x[:, width // 4 :].reshape(batch, width // 4, 3, height, breadth).unbind(2)
    above, below = mean + rows, mean - rows
    over, under = columns + across, columns - across
    pixels = torch.stack([above + over, above - over, below + under, below - under], 2)
    return F.pixel_shuffle(0.5 * pixels.flatten(1, 2), 2)


class Affine(nn.Module):
    """The styles of a layer, ``gain (A w + b)``.

    Args:
        w_dim: Length of w.
        channels: Channels that are scaled.
        gain: A constant factor.
    """

    def __init__(self, w_dim: int, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        # Small: without demodulation, what styles add to the variance multiplies from layer to layer.
        self.weight = nn.Parameter(0.1 * torch.randn(channels, w_dim) / math.sqrt(w_dim))
        self.bias = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Return ``x (N, channels, H, W)`` scaled by the styles of ``w (N, w_dim)``."""
        with no_autocast(x):
            styles = F.linear(w.to(self.weight.dtype), self.weight, self.bias) * self.gain
        return x * styles.to(x.dtype)[:, :, None, None]


class MobileLayer(nn.Module):
    """Scaled input, convolution, noise, bias, leaky ReLU without a gain.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        w_dim: Length of w.
        size_px: Side of input and output.
        separable: Whether the 3x3 convolution is one per channel, followed by a 1x1 over channels.
    """

    noise_const: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, size_px: int, separable: bool = True
    ) -> None:
        super().__init__()
        # The gain keeps the variance where styles are 1 and weights from N(0, 1), but for the leaky ReLU.
        self.affine = Affine(w_dim, in_channels, 1 / math.sqrt(9 * in_channels))
        side = 1 if separable else 3
        spread = math.sqrt(2 / (1 + SLOPE**2))
        self.depthwise = nn.Parameter(torch.randn(in_channels, 1, 3, 3)) if separable else None
        self.weight = nn.Parameter(spread * torch.randn(out_channels, in_channels, side, side))
        self.register_buffer("noise_const", torch.randn(size_px, size_px))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor, source: Tensor | str) -> Tensor:
        """Map ``x (N, I, H, W)`` under ``w (N, w_dim)`` with noise from ``source`` to ``(N, O, H, W)``."""
        x = self.affine(x, w)
        if self.depthwise is not None:
            x = F.conv2d(x, self.depthwise.to(x.dtype), padding=1, groups=x.shape[1])
        # At full size a layer is as much about memory as about products: the bias comes with the convolution,
        # and the activation takes the place of its input, which no gradient needs.
        bias = self.bias.to(x.dtype)
        x = F.conv2d(x, self.weight.to(x.dtype), bias, padding=self.weight.shape[-1] // 2)
        noise = noise_of(source, self.noise_const, len(x))
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        return F.leaky_relu_(x, SLOPE)


class FirstBlock(nn.Module):
    """4x4: a learned constant and the only dense convolution.

    Args:
        width: Channels.
        w_dim: Length of w.
    """

    def __init__(self, width: int, w_dim: int) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.randn(width, SMALLEST_PX, SMALLEST_PX))
        self.conv1 = MobileLayer(width, width, w_dim, SMALLEST_PX, separable=False)


class Block(nn.Module):
    """Doubles the size by the inverse wavelet transform, then two separable convolutions.

    Args:
        in_channels: Channels of the block below.
        out_channels: Channels of this block.
        w_dim: Length of w.
        size_px: Side of its output.
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, size_px: int) -> None:
        super().__init__()
        self.up = Affine(w_dim, in_channels)
        self.conv0 = MobileLayer(in_channels // 4, out_channels, w_dim, size_px)
        self.conv1 = MobileLayer(out_channels, out_channels, w_dim, size_px)


class ToImage(nn.Module):
    """Scaled input, 1x1 convolution to Haar coefficients, inverse transform.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the image.
        w_dim: Length of w.
    """

    def __init__(self, in_channels: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = Affine(w_dim, in_channels, 1 / math.sqrt(in_channels))
        self.weight = nn.Parameter(torch.randn(4 * channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(4 * channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map ``x (N, I, H, W)`` under ``w (N, w_dim)`` to ``(N, channels, 2 H, 2 W)``."""
        x = F.conv2d(self.affine(x, w), self.weight.to(x.dtype), self.bias.to(x.dtype))
        return inverse_haar(at_least_float32(x))


class Dense(nn.Module):
    """``sqrt(2) lrelu(W x + b)``.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / math.sqrt(in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        return F.leaky_relu(F.linear(x, self.weight, self.bias), SLOPE) * math.sqrt(2)


class MobileMapping(StyleMapping):
    """z to w as StyleGAN2 has it, with the gains of its equalised learning rate multiplied into the weights.

    Args:
        z_dim: Length of z.
        w_dim: Length of w.
        num_ws: Rows of w_plus.
        num_layers: Dense layers.
    """

    def __init__(self, z_dim: int, w_dim: int, num_ws: int, num_layers: int) -> None:
        super().__init__(num_ws, w_dim)
        self.z_dim = z_dim
        self.num_layers = num_layers
        for index in range(num_layers):
            self.add_module(f"fc{index}", Dense(w_dim if index else z_dim, w_dim))

    def to_w(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return ``w (N, w_dim)`` of ``z (N, z_dim)``; in float32 at least. There are no labels.

        Raises:
            UserError: If z has another length, or there is a label.
        """
        check_label(label, 0)
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise UserError(f"z has shape {tuple(z.shape)}: this generator takes (N, {self.z_dim})")
        x = normalise_second_moment(at_least_float32(z))
        with no_autocast(self.w_avg):
            for index in range(self.num_layers):
                x = getattr(self, f"fc{index}")(x)
        return x


class MobileSynthesis(nn.Module):
    """w_plus to image.

    Args:
        widths: Channels at 4, 8, ... px.
        channels: Channels of the image.
        w_dim: Length of w.
    """

    def __init__(self, widths: Sequence[int], channels: int, w_dim: int) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.num_ws = 2 * len(widths)
        self.sizes = [SMALLEST_PX * 2**level for level in range(len(widths))]
        self.size_px = 2 * self.sizes[-1]
        self.b4 = FirstBlock(widths[0], w_dim)
        for level, size in enumerate(self.sizes[1:]):
            self.add_module(f"b{size}", Block(widths[level], widths[level + 1], w_dim, size))
        self.torgb = ToImage(widths[-1], channels, w_dim)
        self.layer_names = (
            "b4.conv1",
            *(f"b{size}.{layer}" for size in self.sizes[1:] for layer in ("up", "conv0", "conv1")),
            f"b{self.size_px}.image",
        )

    @property
    def layers(self) -> list[MobileLayer]:
        """The layers with noise, from coarse to fine."""
        blocks: list[Block] = [getattr(self, f"b{size}") for size in self.sizes[1:]]
        return [self.b4.conv1, *(layer for block in blocks for layer in (block.conv0, block.conv1))]

    def forward(
        self, w_plus: Tensor, noise: Noise = "const", taps: Mapping[str, Tap] | None = None
    ) -> Tensor:
        """Return images ``(N, channels, size_px, size_px)`` of ``w_plus (N, num_ws, w_dim)``.

        Convolution k takes row k, and the wavelet layer below it the same; the image's layer has the last.

        Args:
            w_plus: Latents.
            noise: See :data:`~i2i_lightning.networks.style.Noise`.
            taps: For each of ``layer_names``, what to put in place of its activation.

        Raises:
            UserError: If latents, noise or taps do not fit this network.
        """
        check_w_plus(w_plus, self.num_ws, self.w_dim)
        taps = check_taps(taps, self.layer_names)
        sources = iter(noise_sources(noise, self.num_ws - 1))
        rows = iter(w_plus.unbind(1))

        def tapped(name: str, x: Tensor) -> Tensor:
            return taps[name](x) if name in taps else x

        const = self.b4.const.to(w_plus.dtype).expand(len(w_plus), -1, -1, -1)
        x = tapped("b4.conv1", self.b4.conv1(const, next(rows), next(sources)))
        for size in self.sizes[1:]:
            block: Block = getattr(self, f"b{size}")
            row = next(rows)
            x = tapped(f"b{size}.up", inverse_haar(block.up(x, row)))
            x = tapped(f"b{size}.conv0", block.conv0(x, row, next(sources)))
            x = tapped(f"b{size}.conv1", block.conv1(x, next(rows), next(sources)))
        return tapped(f"b{self.size_px}.image", self.torgb(x, next(rows)))


class MobileStyleGAN(StyleGenerator):
    """The student generator: 9.41 M parameters for faces of 1024 px, besides 0.70 M numbers of stored noise.

    Layers and rows are named as the teacher's: ``b8.conv0`` takes the row that it takes in StyleGAN2. The
    teacher's two convolutions at full size have no counterpart, so that there are 16 rows for its 18.

    Unlike the teacher's, the noise maps and their strengths were multiplied together when the network was
    exported. Here each map has mean square 1 and its strength is what was taken out, so that fresh noise has
    the size of the stored.

    Args:
        widths: Channels at 4, 8, ... px, all but the last multiples of 4; the image is twice as large as the
            last.
        channels: Channels of the images.
        z_dim: Length of z.
        w_dim: Length of w.
        mapping_layers: Dense layers of the mapping.

    Raises:
        UserError: If an argument is impossible.
    """

    architecture = "mobile_stylegan"
    mapping: MobileMapping
    synthesis: MobileSynthesis

    def __init__(
        self,
        widths: Sequence[int] = FFHQ_WIDTHS,
        channels: int = 3,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
    ) -> None:
        super().__init__()
        whole = all(isinstance(width, int) and width > 0 for width in widths)
        if not widths or not whole or any(width % 4 for width in widths[:-1]):
            raise UserError(
                f"widths={list(widths)}: give the channels at 4, 8, ... px, multiples of 4 but for the last"
            )
        numbers = {"channels": channels, "z_dim": z_dim, "w_dim": w_dim, "mapping_layers": mapping_layers}
        for name, value in numbers.items():
            if value < 1:
                raise UserError(f"{name}={value}: give at least 1")
        self.arguments = {"widths": list(widths), **numbers}
        self.channels, self.label_dim = channels, 0
        self.z_dim, self.w_dim = z_dim, w_dim
        self.synthesis = MobileSynthesis(widths, channels, w_dim)
        self.size_px, self.num_ws = self.synthesis.size_px, self.synthesis.num_ws
        self.mapping = MobileMapping(z_dim, w_dim, self.num_ws, mapping_layers)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """``b4.conv1``, ``b8.up``, ``b8.conv0``, ``b8.conv1``, ..., ``b1024.image``."""
        return self.synthesis.layer_names

    @property
    def row_names(self) -> tuple[str, ...]:
        """The convolution that each row drives; the last row drives the image's layer alone."""
        convolutions = [name for name in self.layer_names if ".conv" in name]
        return (*convolutions, f"b{self.size_px}.torgb")

    def _noise_buffers(self) -> list[Tensor]:
        return [layer.noise_const for layer in self.synthesis.layers]
