"""The features that FID and KID compare: TensorFlow's Inception-v3 of 2015, up to its last pooling.

It differs from torchvision's ``inception_v3`` in its weights, and in the pooling inside of the mixed blocks
(Heusel et al. 2017 used TensorFlow's graph; the differences are those that pytorch-fid found): average
pooling does not count the padding, and the last block takes the maximum instead.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import (  # type: ignore[import-untyped]
    BasicConv2d,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from i2i_lightning import weights

NUM_FEATURES = 2048
INPUT_PX = 299


class _PooledA(InceptionA):  # type: ignore[misc]
    """35x35 positions: three convolutional branches and average pooling that leaves the padding out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(_average(x)),
            ],
            1,
        )


class _PooledC(InceptionC):  # type: ignore[misc]
    """17x17 positions, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        double = x
        for number in range(1, 6):
            double = getattr(self, f"branch7x7dbl_{number}")(double)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                double,
                self.branch_pool(_average(x)),
            ],
            1,
        )


class _PooledE(InceptionE):  # type: ignore[misc]
    """8x8 positions; the second of the two blocks takes the maximum.

    Args:
        in_channels: Channels of the input.
        maximum: Whether the pooling is of the maximum.
    """

    def __init__(self, in_channels: int, maximum: bool) -> None:
        super().__init__(in_channels)
        self.maximum = maximum

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionFeatures(nn.Module):
    """Images to the 2048 features of Inception's last pooling (``pool3``), for FID and KID.

    The protocol is pytorch-fid's: the image in [0, 1] is resized to 299x299 px, bilinear, corners not
    aligned, no antialiasing, whatever its size and shape, and brought to [-1, 1]. Numbers of other protocols
    (clean-fid resizes with antialiasing) are not comparable. The weights are fixed and the module stays in
    evaluation mode. It computes in float32, under autocast too.

    Args:
        folder: Folder or file of the weights; None for ``$I2I_WEIGHTS`` or the user's cache.

    Attributes:
        protocol: What the features are, in one line.

    Raises:
        UserError: If the weights are not at hand.
    """

    protocol = (
        "Inception-v3 2015-12-05, pool3, 2048 features; bilinear to 299x299 px, align_corners=False, no"
        " antialiasing; input 2x-1 (pytorch-fid)"
    )

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        state = weights.load("fid_inception", folder)
        # On the meta device nothing is drawn from the random numbers of the run.
        with torch.device("meta"):
            self.network = inception_v3()
        for key, value in self.network.state_dict().items():
            if key.endswith("num_batches_tracked"):
                state[key] = torch.zeros_like(value, device="cpu")
        self.network.load_state_dict(state, assign=True)
        self.eval()
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of each image.

        Args:
            image: (N, 3, H, W), RGB, uint8 in [0, 255] or float in [-1, 1], of any size.

        Returns:
            float32 (N, 2048), not negative.

        Raises:
            ValueError: If the images are not RGB.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"Inception takes RGB images (N, 3, H, W), these are {tuple(image.shape)}")
        with torch.autocast(image.device.type, enabled=False):
            image = image.float() / 255 if image.dtype == torch.uint8 else (image.float() + 1) / 2
            if image.shape[2:] != (INPUT_PX, INPUT_PX):
                image = F.interpolate(image, (INPUT_PX, INPUT_PX), mode="bilinear", align_corners=False)
            if image.device.type == "cpu":
                image = image.contiguous(memory_format=torch.channels_last)  # half as fast again
            features: Tensor = self.network(2 * image - 1)
        return features


def inception_v3() -> nn.Sequential:
    """Return the network from (N, 3, 299, 299) in [-1, 1] to (N, 2048), with fresh weights."""
    return nn.Sequential(
        OrderedDict(
            Conv2d_1a_3x3=BasicConv2d(3, 32, kernel_size=3, stride=2),
            Conv2d_2a_3x3=BasicConv2d(32, 32, kernel_size=3),
            Conv2d_2b_3x3=BasicConv2d(32, 64, kernel_size=3, padding=1),
            pool_1=nn.MaxPool2d(3, stride=2),
            Conv2d_3b_1x1=BasicConv2d(64, 80, kernel_size=1),
            Conv2d_4a_3x3=BasicConv2d(80, 192, kernel_size=3),
            pool_2=nn.MaxPool2d(3, stride=2),
            Mixed_5b=_PooledA(192, pool_features=32),
            Mixed_5c=_PooledA(256, pool_features=64),
            Mixed_5d=_PooledA(288, pool_features=64),
            Mixed_6a=InceptionB(288),
            Mixed_6b=_PooledC(768, channels_7x7=128),
            Mixed_6c=_PooledC(768, channels_7x7=160),
            Mixed_6d=_PooledC(768, channels_7x7=160),
            Mixed_6e=_PooledC(768, channels_7x7=192),
            Mixed_7a=InceptionD(768),
            Mixed_7b=_PooledE(1280, maximum=False),
            Mixed_7c=_PooledE(2048, maximum=True),
            pool_3=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
