"""The U-Net generator of pix2pix (Isola et al. 2017, section 6.1.1), at any depth."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.networks.init import Init, init_weights
from i2i_lightning.networks.layers import Norm, bias_before, check_channels, norm_layer
from i2i_lightning.types import UserError

DropoutPlacement = Literal["reference", "paper", "none"]


class Down(nn.Module):
    """Halve height and width: LeakyReLU 0.2 (not at the image itself), 4x4 convolution of stride 2, norm."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, activate: bool) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H/2, W/2)``; may overwrite ``x``."""
        if self.activate:
            # In place although x is a skip connection too: all that the decoder takes of it is its ReLU,
            # which the LeakyReLU does not change.
            x = F.leaky_relu(x, 0.2, inplace=True)
        out: Tensor = self.norm(self.conv(x))
        return out


class Up(nn.Module):
    """Double height and width: ReLU, 4x4 transposed convolution of stride 2, norm, dropout."""

    def __init__(self, conv: nn.ConvTranspose2d, norm: nn.Module, dropout: bool) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.dropout: nn.Module = nn.Dropout(0.5) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, 2H, 2W)``; overwrites ``x``."""
        out: Tensor = self.dropout(self.norm(self.conv(F.relu(x, inplace=True))))
        return out


class UNet(nn.Module):
    """Translate an image through a bottleneck, with a skip connection at every resolution.

    Without the connections (``skips=False``) it is the encoder-decoder that the paper compares it with
    (sections 3.2.1 and 4.3): all that the output knows of the input has passed the bottleneck.

    The encoder has ``num_downs`` halvings of widths base * (1, 2, 4, 8, 8, ...), the decoder mirrors it, and
    each decoder layer but the first sees the encoder's map of its size beside its own. Neither the outermost
    nor the innermost encoder layer has a norm; the output is a tanh. At 3 -> 3 channels, base 64 and batch
    norm there are 41.83 M parameters at 7 halvings (128 px) and 54.41 M at 8 (256 px); 30.68 M and 39.08 M
    without the connections, which halve what the decoder reads. ``decoder[0]`` is the innermost layer.

    Args:
        in_channels: Channels of the input image.
        out_channels: Channels of the output, which lies in (-1, 1).
        num_downs: Number of halvings, at least 2: 6 for 64 px, 7 for 128, 8 for 256, 9 for 512 with a 1x1
            bottleneck.
        base_channels: Width of the outermost layer.
        norm: Norm of the hidden layers.
        dropout: Where dropout of one half stands. ``paper``: the three innermost decoder layers.
            ``reference``: as in the authors' PyTorch code, which skips the innermost one: decoder layers 2 to
            num_downs - 4 counted from the bottleneck (2, 3, 4 at 256 px, none at 5 halvings or fewer).
            ``none``: nowhere.
        z_channels: Length of the explicit noise vector, 0 for none.
        skips: Whether there are skip connections.
        init: How the weights are drawn.
        init_gain: Its scale.

    Raises:
        UserError: If an option is not among those above.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_downs: int = 8,
        base_channels: int = 64,
        norm: Norm = "batch",
        dropout: DropoutPlacement = "reference",
        z_channels: int = 0,
        skips: bool = True,
        init: Init = "normal",
        init_gain: float = 0.02,
    ) -> None:
        super().__init__()
        if num_downs < 2:
            raise UserError(f"num_downs={num_downs}: the U-Net halves its input at least 2 times")
        if dropout not in ("reference", "paper", "none"):
            raise UserError(f"dropout={dropout}: choose one of reference, paper, none")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_downs = num_downs
        self.z_channels = z_channels
        self.skips = skips
        self.size_multiple = 2**num_downs

        make_norm, bias = norm_layer(norm), bias_before(norm)
        widths = [base_channels * min(2**level, 8) for level in range(num_downs)]
        encoder: list[Down] = []
        for level, width in enumerate(widths):
            channels = widths[level - 1] if level > 0 else in_channels + z_channels
            conv = nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=1, bias=bias)
            plain = level in (0, num_downs - 1)
            encoder.append(Down(conv, nn.Identity() if plain else make_norm(width), activate=level > 0))
        self.encoder = nn.ModuleList(encoder)

        dropped = {"reference": range(2, num_downs - 3), "paper": range(1, 4), "none": range(0)}[dropout]
        decoder: list[Up] = []
        for number in range(1, num_downs + 1):  # counted from the bottleneck
            level = num_downs - number
            channels = widths[level] * (2 if skips and number > 1 else 1)
            last = level == 0
            width = out_channels if last else widths[level - 1]
            up_conv = nn.ConvTranspose2d(
                channels, width, kernel_size=4, stride=2, padding=1, bias=bias or last
            )
            up_norm = nn.Identity() if last else make_norm(width)
            decoder.append(Up(up_conv, up_norm, dropout=number in dropped and not last))
        self.decoder = nn.ModuleList(decoder)
        init_weights(self, init, init_gain)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Translate ``x``.

        Args:
            x: Images ``(N, in_channels, H, W)`` in [-1, 1], H and W multiples of ``size_multiple``.
            z: Noise ``(N, z_channels)``, given to the network as constant planes beside ``x``; needed exactly
                when ``z_channels`` is not 0.

        Returns:
            Images ``(N, out_channels, H, W)`` in (-1, 1).

        Raises:
            UserError: If ``x`` has a size or a number of channels that this network cannot take.
            ValueError: If ``z`` is missing, superfluous or of another shape.
        """
        check_channels(x, self.in_channels, "U-Net")
        self.check_size(*x.shape[-2:])
        h = x if z is None and self.z_channels == 0 else self._with_noise(x, z)
        skipped: list[Tensor] = []
        for down in self.encoder:
            h = down(h)
            if self.skips:
                skipped.append(h)
        skipped = skipped[:-1]  # the bottleneck itself
        for up in self.decoder:
            h = up(h)
            if skipped:
                h = torch.cat([skipped.pop(), h], dim=1)
        return torch.tanh(h)

    def _with_noise(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Return ``x`` with the planes of ``z`` behind its channels."""
        shape = (x.shape[0], self.z_channels)
        if z is None or tuple(z.shape) != shape or self.z_channels == 0:
            given = "none" if z is None else str(tuple(z.shape))
            raise ValueError(f"z of shape {given}: this U-Net has z_channels={self.z_channels}, so {shape}")
        planes = z.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[-2:])
        return torch.cat([x, planes], dim=1)

    def check_size(self, height: int, width: int) -> None:
        """Raise ``UserError`` unless both sides, in pixels, can be halved ``num_downs`` times."""
        if height % self.size_multiple == 0 and width % self.size_multiple == 0:
            return
        depth = 0
        while height % 2 ** (depth + 1) == 0 and width % 2 ** (depth + 1) == 0:
            depth += 1
        shallower = f", or generator.num_downs to at most {depth}" if depth >= 2 else ""
        raise UserError(
            f"the U-Net with num_downs={self.num_downs} takes sides that are multiples of "
            f"{self.size_multiple} px, got {height}x{width} (height x width)\n"
            f"set data.crop_px to multiples of {self.size_multiple}{shallower}"
        )
