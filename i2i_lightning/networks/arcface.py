"""The network that tells faces apart: an improved residual network of 50 layers with squeeze and excitation.

Deng et al. 2019 (ArcFace, arXiv 1801.07698) train such networks; pSp, e4e and those who follow them compare
identities by this one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACE_PX = 112
"""Side of the faces that it was trained on (Deng et al. 2019, section 3.1)."""
WIDTH = 512
"""Numbers that describe a face."""
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))
"""Channels and number of units; the first unit of each stage halves height and width."""
REDUCTION = 16


class SqueezeExcite(nn.Module):
    """Weigh channels by what their means say of all of them (Hu et al. 2018, arXiv 1709.01507, section 3).

    Args:
        channels: At least 16.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(means))))


class Unit(nn.Module):
    """Add norm, convolution, PReLU, convolution, norm and squeeze-excitation to the input.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Of the second convolution; the input is brought to its size by taking every so many pixels,
            and to its channels by a convolution of 1x1 and a norm where they differ.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if in_channels != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        out: Tensor = self.shortcut_layer(x) + self.res_layer(x)
        return out


class IRSE50(nn.Module):
    """Describe a face by a unit vector: the nearer two of them, the likelier they show the same person.

    24 units in four stages, and norm, fully connected layer and norm on top (Deng et al. 2019, section 3.1).
    There are 43.80 M parameters. Its parts have the names that they have in the published files.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = STAGES[0][0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.PReLU(channels)
        )
        units = []
        for out_channels, count in STAGES:
            for number in range(count):
                units.append(Unit(channels, out_channels, 2 if number == 0 else 1))
                channels = out_channels
        self.body = nn.Sequential(*units)
        side = FACE_PX // 2 ** len(STAGES)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Identity(),  # dropout when it was trained
            nn.Flatten(),
            nn.Linear(channels * side**2, WIDTH),
            nn.BatchNorm1d(WIDTH),
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Return unit vectors ``(N, 512)``.

        Args:
            faces: RGB in [-1, 1], upright and filling the picture, ``(N, 3, 112, 112)``.

        Raises:
            ValueError: If they have another shape.
        """
        if faces.shape[1:] != (3, FACE_PX, FACE_PX):
            raise ValueError(f"IR-SE50 takes (N, 3, {FACE_PX}, {FACE_PX}), these are {tuple(faces.shape)}")
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))), dim=1)
