"""The discriminator of StyleGAN2 (Karras et al. 2020, section 4.1), residual or plain."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from i2i_lightning.networks.layers import at_least_float32, check_channels, no_autocast
from i2i_lightning.networks.style import check_settings
from i2i_lightning.networks.stylegan2.generator import (
    SMALLEST_PX,
    MappingNetwork,
    check_size,
    check_widths,
    resolutions,
)
from i2i_lightning.networks.stylegan2.layers import Conv, FullyConnected
from i2i_lightning.types import UserError

Architecture = Literal["resnet", "orig"]


class DiscriminatorBlock(nn.Module):
    """Two convolutions, the second halving the size, beside a filtered 1x1 path where it is residual.

    Args:
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        channels: Channels of the image, for the first block; 0 for the others.
        residual: Whether there is a path beside the convolutions.
        clamp: Largest magnitude of its activations.
    """

    def __init__(
        self, in_channels: int, out_channels: int, channels: int, residual: bool, clamp: float | None
    ) -> None:
        super().__init__()
        self.fromrgb = Conv(channels, in_channels, 1, clamp=clamp) if channels else None
        self.conv0 = Conv(in_channels, in_channels, 3, clamp=clamp)
        self.conv1 = Conv(in_channels, out_channels, 3, down=True, clamp=clamp)
        self.skip = (
            Conv(in_channels, out_channels, 1, down=True, bias=False, activation="linear")
            if residual
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to half the size."""
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        if self.skip is None:
            narrower: Tensor = self.conv1(self.conv0(x))
            return narrower
        # Each of the two paths brings half of the variance.
        half = math.sqrt(0.5)
        both: Tensor = self.skip(x, half) + self.conv1(self.conv0(x), half)
        return both


class Epilogue(nn.Module):
    """From 4x4 to one number: minibatch standard deviation, a convolution, two dense layers.

    Args:
        in_channels: Channels of its input.
        out_features: 1, or the length of the label's embedding.
        group_size: Images of a batch that are compared with each other.
        std_channels: Channels with the standard deviation; 0 for none.
        clamp: Largest magnitude of the convolution.
    """

    def __init__(
        self, in_channels: int, out_features: int, group_size: int, std_channels: int, clamp: float | None
    ) -> None:
        super().__init__()
        self.group_size = group_size
        self.std_channels = std_channels
        self.conv = Conv(in_channels + std_channels, in_channels, 3, clamp=clamp)
        self.fc = FullyConnected(in_channels * SMALLEST_PX**2, in_channels, "lrelu")
        self.out = FullyConnected(in_channels, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, 4, 4)`` to ``(N, out_features)``."""
        if self.std_channels:
            x = torch.cat([x, minibatch_std(x, self.group_size, self.std_channels)], 1)
        x = self.conv(x)
        return self.out(self.fc(x.flatten(1)))  # type: ignore[no-any-return]


def minibatch_std(x: Tensor, group_size: int = 4, channels: int = 1) -> Tensor:
    """Return how much the images of a group differ, as maps (Karras et al. 2018, section 3).

    Image n is in one group with those whose number differs by multiples of N / group: the standard deviation
    over the group is averaged over pixels and over each of ``channels`` shares of the channels.

    Args:
        x: (N, C, H, W), C a multiple of ``channels``.
        group_size: Most images of a group; the largest divisor of N up to it is taken.
        channels: Maps.

    Returns:
        (N, channels, H, W), in float32 at least.
    """
    number, width, height, breadth = x.shape
    group = next(size for size in range(min(group_size, number), 0, -1) if number % size == 0)
    y = at_least_float32(x).reshape(group, number // group, channels, width // channels, height, breadth)
    std = (y.var(0, correction=0) + 1e-8).sqrt().mean((2, 3, 4))  # (N / group, channels)
    return std[:, :, None, None].repeat(group, 1, height, breadth)


class StyleGAN2Discriminator(nn.Module):
    """Image to logit, with NVIDIA's names and shapes of all parameters.

    29.01 M parameters at 1024 px with ``channel_base=32768``. A label enters by projection: the logit is the
    inner product of the image's features with the mapped label (Miyato and Koyama 2018).

    Args:
        size_px: Side of the images, a power of two from 8.
        channels: Channels of the images.
        label_dim: Length of the label; 0 for none.
        channel_base: A resolution R has ``channel_base / R`` channels,
        channel_max: but not more than this.
        conv_clamp: Largest magnitude of activations.
        mbstd_group_size: Images compared with each other by the minibatch standard deviation.
        mbstd_channels: Channels that it adds, a divisor of those at 4 px; 0 leaves it out.
        architecture: ``resnet``, or ``orig`` without the paths beside, as for CIFAR-10 in the ADA paper.
        mapping_layers: Dense layers of the label's mapping.

    Raises:
        UserError: If an argument is impossible.
    """

    def __init__(
        self,
        size_px: int,
        channels: int = 3,
        label_dim: int = 0,
        channel_base: int = 32768,
        channel_max: int = 512,
        conv_clamp: float | None = None,
        mbstd_group_size: int = 4,
        mbstd_channels: int = 1,
        architecture: Architecture = "resnet",
        mapping_layers: int = 8,
    ) -> None:
        super().__init__()
        check_size(size_px)
        whole = {"channels": channels, "mbstd_group_size": mbstd_group_size, "mapping_layers": mapping_layers}
        check_settings(whole, label_dim, {"conv_clamp": conv_clamp})
        check_widths(size_px, channel_base, channel_max)
        if architecture not in ("resnet", "orig"):
            raise UserError(f"architecture={architecture}: choose resnet or orig")
        self.size_px, self.channels, self.label_dim = size_px, channels, label_dim
        self.arguments = {
            "size_px": size_px,
            "channels": channels,
            "label_dim": label_dim,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "conv_clamp": conv_clamp,
            "mbstd_group_size": mbstd_group_size,
            "mbstd_channels": mbstd_channels,
            "architecture": architecture,
            "mapping_layers": mapping_layers,
        }
        widths = {size: min(channel_base // size, channel_max) for size in resolutions(size_px)}
        last = widths[SMALLEST_PX]
        if mbstd_channels < 0 or (mbstd_channels and last % mbstd_channels):
            raise UserError(
                f"mbstd_channels={mbstd_channels}: give a divisor of the {last} channels at 4 px, or 0"
            )
        self.sizes = resolutions(size_px)[:0:-1]  # the largest first, without 4
        for size in self.sizes:
            block = DiscriminatorBlock(
                widths[size],
                widths[size // 2],
                channels if size == size_px else 0,
                architecture == "resnet",
                conv_clamp,
            )
            self.add_module(f"b{size}", block)
        self.embedding = last if label_dim else 0
        self.mapping = MappingNetwork(0, label_dim, self.embedding, 1, mapping_layers) if label_dim else None
        self.b4 = Epilogue(last, self.embedding or 1, mbstd_group_size, mbstd_channels, conv_clamp)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return logits ``(N, 1)`` of ``image (N, channels, size_px, size_px)``.

        Raises:
            UserError: If the image or the label does not fit this network.
        """
        check_channels(image, self.channels, "discriminator")
        if tuple(image.shape[-2:]) != (self.size_px, self.size_px):
            raise UserError(
                f"the discriminator takes images of {self.size_px} px, got {tuple(image.shape[-2:])}"
            )
        x = image
        for size in self.sizes:
            x = getattr(self, f"b{size}")(x)
        with no_autocast(x):
            logits: Tensor = self.b4(at_least_float32(x))
            if self.mapping is None:
                return logits
            to = self.mapping.to_w(None, label)
            return (logits * to).sum(1, keepdim=True) / math.sqrt(self.embedding)
