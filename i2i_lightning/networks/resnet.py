"""The residual generator of CycleGAN (Zhu et al. 2017, section 7.2, after Johnson et al. 2016)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.networks.init import Init, init_weights
from i2i_lightning.networks.layers import Norm, bias_before, check_channels, check_least_side, norm_layer
from i2i_lightning.types import UserError

Upsample = Literal["transpose", "resize"]


class ConvNormReLU(nn.Module):
    """Convolution, norm, ReLU; ``resize`` repeats each pixel twice each way first (Odena et al. 2016)."""

    def __init__(self, conv: nn.Module, norm: nn.Module, resize: bool = False) -> None:
        super().__init__()
        self.resize = resize
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the convolution's channels and size."""
        if self.resize:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ResNetBlock(nn.Module):
    """Add to ``x`` what two reflection-padded 3x3 convolutions make of it; no ReLU after the sum."""

    def __init__(self, channels: int, norm: Norm, dropout: bool) -> None:
        super().__init__()
        make_norm, bias = norm_layer(norm), bias_before(norm)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=bias)
        self.norm1 = make_norm(channels)
        self.dropout: nn.Module = nn.Dropout(0.5) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=bias)
        self.norm2 = make_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        h = self.dropout(F.relu(self.norm1(self.conv1(x)), inplace=True))
        out: Tensor = x + self.norm2(self.conv2(h))
        return out


class ResNetGenerator(nn.Module):
    """Translate an image: a 7x7 layer, two halvings, residual blocks, two doublings, a 7x7 layer, tanh.

    At 3 -> 3 channels, base 64 and instance norm there are 7.84 M parameters with 6 blocks (meant for 128 px)
    and 11.38 M with 9 (for 256 px and more). The halvings pad with zeros and everything else by reflection.

    Args:
        in_channels: Channels of the input image.
        out_channels: Channels of the output, which lies in (-1, 1).
        base_channels: Width of the outermost layers; the blocks are 4 times as wide.
        num_blocks: Number of residual blocks.
        norm: Norm of the hidden layers.
        dropout: Whether each block drops half of its hidden activations.
        upsample: ``transpose``: 3x3 transposed convolutions, as published. ``resize``: repetition of pixels
            and a reflection-padded 3x3 convolution, which has as many parameters and leaves no checkerboard.
        init: How the weights are drawn.
        init_gain: Its scale.

    Raises:
        UserError: If an option is not among those above.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int = 64,
        num_blocks: int = 9,
        norm: Norm = "instance",
        dropout: bool = False,
        upsample: Upsample = "transpose",
        init: Init = "normal",
        init_gain: float = 0.02,
    ) -> None:
        super().__init__()
        if num_blocks < 0:
            raise UserError(
                f"num_blocks={num_blocks}: the residual generator has 0 blocks or more, usually 6 or 9"
            )
        if upsample not in ("transpose", "resize"):
            raise UserError(f"upsample={upsample}: choose one of transpose, resize")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.size_multiple = 4

        make_norm, bias = norm_layer(norm), bias_before(norm)
        base, resize = base_channels, upsample == "resize"
        self.stem = ConvNormReLU(
            nn.Conv2d(in_channels, base, 7, padding=3, padding_mode="reflect", bias=bias), make_norm(base)
        )
        self.downs = nn.ModuleList(
            ConvNormReLU(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias), make_norm(2 * width))
            for width in (base, 2 * base)
        )
        self.blocks = nn.ModuleList(ResNetBlock(4 * base, norm, dropout) for _ in range(num_blocks))
        self.ups = nn.ModuleList(
            ConvNormReLU(_up_conv(width, width // 2, bias, resize), make_norm(width // 2), resize)
            for width in (4 * base, 2 * base)
        )
        self.head = nn.Conv2d(base, out_channels, 7, padding=3, padding_mode="reflect")
        init_weights(self, init, init_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``x``.

        Args:
            x: Images ``(N, in_channels, H, W)`` in [-1, 1], H and W multiples of 4 and at least 8.

        Returns:
            Images ``(N, out_channels, H, W)`` in (-1, 1).

        Raises:
            UserError: If ``x`` has a size or a number of channels that this network cannot take.
        """
        check_channels(x, self.in_channels, "ResNet generator")
        self.check_size(*x.shape[-2:])
        h: Tensor = self.stem(x)
        for down in self.downs:
            h = down(h)
        for block in self.blocks:
            h = block(h)
        for up in self.ups:
            h = up(h)
        return torch.tanh(self.head(h))

    def check_size(self, height: int, width: int) -> None:
        """Raise ``UserError`` unless both sides are multiples of 4 px and at least 8."""
        if height % 4 or width % 4:
            raise UserError(
                f"the ResNet generator takes sides that are multiples of 4 px, got {height}x{width} "
                f"(height x width): change data.crop_px"
            )
        check_least_side(height, width, 8, "ResNet generator", "raise data.crop_px")


def _up_conv(in_channels: int, out_channels: int, bias: bool, resize: bool) -> nn.Module:
    """Return the convolution of a doubling: after a resize, or one that doubles by itself."""
    if resize:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect", bias=bias)
    return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=bias)
