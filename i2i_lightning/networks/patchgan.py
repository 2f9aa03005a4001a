"""Discriminators that judge patches (Isola et al. 2017, sections 3.2.2 and 6.1.2) or single pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.networks.init import Init, init_weights
from i2i_lightning.networks.layers import (
    Norm,
    bias_before,
    check_channels,
    check_least_side,
    conv_layer,
    norm_layer,
)
from i2i_lightning.types import UserError


class ConvNormLeakyReLU(nn.Module):
    """Convolution, norm, LeakyReLU 0.2."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the convolution's channels and size."""
        return F.leaky_relu(self.norm(self.conv(x)), 0.2, inplace=True)


class PatchGAN(nn.Module):
    """Judge each overlapping patch of an image as real or generated.

    ``num_layers`` 4x4 convolutions of stride 2 and widths base * (1, 2, 4, 8, 8, ...), one more of stride 1,
    and one to a single channel. Each output sees a patch of 9 * 2^num_layers - 2 pixels: 16, 34, 70, 142, 286
    for 1 to 5 layers. At 3 layers, base 64 and batch norm there are 2.77 M parameters; 256 px give 30x30
    outputs.

    Args:
        in_channels: Channels of the input: those of the image, and of its condition where it has one.
        base_channels: Width of the first layer.
        num_layers: Number of halvings, at least 1.
        norm: Norm of all layers but the first and the last.
        spectral_norm: Whether every weight is divided by its largest singular value (Miyato et al. 2018);
            usually with ``norm="none"``.
        init: How the weights are drawn.
        init_gain: Its scale.

    Attributes:
        size_multiple: 1: any size of at least ``min_px`` will do.
        min_px: The shortest side that leaves one output.
        receptive_field_px: Side of the patch that one output sees.

    Raises:
        UserError: If an option is not among those above.
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 64,
        num_layers: int = 3,
        norm: Norm = "batch",
        spectral_norm: bool = False,
        init: Init = "normal",
        init_gain: float = 0.02,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise UserError(
                f"num_layers={num_layers}: PatchGAN has at least 1 layer; discriminator=pixel has none"
            )
        self.in_channels = in_channels
        self.num_layers = num_layers
        self.size_multiple = 1
        self.min_px = 3 * 2**num_layers
        self.receptive_field_px = 9 * 2**num_layers - 2

        conv, make_norm, bias = conv_layer(spectral_norm), norm_layer(norm), bias_before(norm)
        widths = [base_channels * min(2**level, 8) for level in range(num_layers + 1)]
        blocks = [ConvNormLeakyReLU(conv(in_channels, widths[0], 4, stride=2, padding=1), nn.Identity())]
        for level in range(1, num_layers + 1):
            stride = 2 if level < num_layers else 1
            blocks.append(
                ConvNormLeakyReLU(
                    conv(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=bias),
                    make_norm(widths[level]),
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.head = conv(widths[-1], 1, 4, stride=1, padding=1)
        init_weights(self, init, init_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Judge ``x``.

        Args:
            x: Images ``(N, in_channels, H, W)`` in [-1, 1], condition first where there is one.

        Returns:
            Raw logits ``(N, 1, H', W')`` with H' = floor(H / 2^num_layers) - 2, high for real.

        Raises:
            UserError: If ``x`` is too small or has another number of channels.
        """
        check_channels(x, self.in_channels, "PatchGAN discriminator")
        self.check_size(*x.shape[-2:])
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    def check_size(self, height: int, width: int) -> None:
        """Raise ``UserError`` if an image of this size, in pixels, leaves no output."""
        name = f"PatchGAN discriminator with num_layers={self.num_layers}"
        check_least_side(
            height, width, self.min_px, name, "raise data.crop_px or lower discriminator.num_layers"
        )


class PixelGAN(nn.Module):
    """Judge each pixel by itself, by 1x1 convolutions of widths base and 2 * base (the paper's 1x1 PixelGAN).

    Args:
        in_channels: Channels of the input: those of the image, and of its condition where it has one.
        base_channels: Width of the first layer.
        norm: Norm of the middle layer.
        spectral_norm: Whether every weight is divided by its largest singular value.
        init: How the weights are drawn.
        init_gain: Its scale.
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 64,
        norm: Norm = "batch",
        spectral_norm: bool = False,
        init: Init = "normal",
        init_gain: float = 0.02,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.size_multiple = 1
        self.min_px = 2  # statistics of a single pixel are none
        self.receptive_field_px = 1
        conv, bias, base = conv_layer(spectral_norm), bias_before(norm), base_channels
        self.blocks = nn.ModuleList(
            [
                ConvNormLeakyReLU(conv(in_channels, base, 1), nn.Identity()),
                ConvNormLeakyReLU(conv(base, 2 * base, 1, bias=bias), norm_layer(norm)(2 * base)),
            ]
        )
        self.head = conv(2 * base, 1, 1, bias=bias)
        init_weights(self, init, init_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Judge ``x (N, in_channels, H, W)``: raw logits ``(N, 1, H, W)``, high for real.

        Raises:
            UserError: If ``x`` is a single pixel wide or high, or has another number of channels.
        """
        check_channels(x, self.in_channels, "PixelGAN discriminator")
        self.check_size(*x.shape[-2:])
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    def check_size(self, height: int, width: int) -> None:
        """Raise ``UserError`` if a side is a single pixel."""
        check_least_side(height, width, self.min_px, "PixelGAN discriminator", "raise data.crop_px")
