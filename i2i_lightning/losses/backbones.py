"""Fixed networks in whose features images are compared: VGG-16, that of LPIPS, and a substitute.

The weights come from the weights folder. Where they are not at hand there is a substitute that needs none,
and says so in its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning import weights
from i2i_lightning.losses.perceptual import LPIPS, WEIGHTS_NAMES, unit_features
from i2i_lightning.losses.reconstruction import at_least_float32
from i2i_lightning.types import UserError

Network = Literal["vgg16", "lpips_vgg", "lpips_alex"]
NETWORKS: tuple[Network, ...] = ("vgg16", "lpips_vgg", "lpips_alex")

IMAGE2STYLEGAN_LAYERS = ("conv1_1", "conv1_2", "conv3_2", "conv4_2")
IMAGE2STYLEGANPP_LAYERS = ("conv1_1", "conv1_2", "conv2_2", "conv3_3")
LPIPS_LAYERS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")

# Convolutions in order: torchvision's index, and channels. Blocks are parted by a maximum over 2 x 2.
VGG16_LAYERS: Mapping[str, tuple[int, int]] = {
    "conv1_1": (0, 64),
    "conv1_2": (2, 64),
    "conv2_1": (5, 128),
    "conv2_2": (7, 128),
    "conv3_1": (10, 256),
    "conv3_2": (12, 256),
    "conv3_3": (14, 256),
    "conv4_1": (17, 512),
    "conv4_2": (19, 512),
    "conv4_3": (21, 512),
    "conv5_1": (24, 512),
    "conv5_2": (26, 512),
    "conv5_3": (28, 512),
}
# Mean and standard deviation of ImageNet's channels, of images in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SUBSTITUTE_WIDTH = 0.25


class VGG16Features(nn.Module):
    """Activations of VGG-16 (Simonyan and Zisserman 2014) after their ReLU, by name.

    Layers past the last one asked for are not built. Weights are fixed; gradients flow to the images. It
    computes in the precision of its weights (``module.double()`` works), or in autocast's.

    Args:
        names: Layers to return, as ``conv3_2``: the second convolution of the third block.
        state: Weights under torchvision's names, ``features.0.weight`` and so on; None loads
            ``lpips_vgg16``, trained on ImageNet, from the weights folder. Channels may be fewer than VGG's.
        normalise: Standardise the images by ImageNet's mean and deviation, as the network was trained; False
            only brings them to [0, 1], as some re-implementations of Image2StyleGAN do.
        folder: Folder or file of the weights; None for ``$I2I_WEIGHTS`` or the user's cache.

    Attributes:
        smallest_px: Less, and a pooling has nothing to pool.

    Raises:
        UserError: If there is no such layer, or the weights are not at hand.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        names: Sequence[str] = IMAGE2STYLEGAN_LAYERS,
        state: Mapping[str, Tensor] | None = None,
        normalise: bool = True,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.names = check_layers(names)
        state = weights.load(WEIGHTS_NAMES["vgg"], folder) if state is None else state
        everything = tuple(VGG16_LAYERS)
        self.sequence = everything[: max(everything.index(name) for name in self.names) + 1]
        self.smallest_px = 2 ** (int(self.sequence[-1][4]) - 1)
        self.convolutions = nn.ModuleDict()
        for name in self.sequence:
            index, _ = VGG16_LAYERS[name]
            kernel, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
            with torch.device("meta"):  # nothing is drawn from the random numbers of the run
                convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
            convolution.load_state_dict({"weight": kernel, "bias": bias}, assign=True)
            self.convolutions[name] = convolution
        mean, deviation = (IMAGENET_MEAN, IMAGENET_STD) if normalise else ((0.0,) * 3, (1.0,) * 3)
        # Of images in [-1, 1].
        self.register_buffer("shift", 2 * torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1) - 1)
        self.register_buffer("scale", 2 * torch.tensor(deviation, dtype=torch.float64).view(1, 3, 1, 1))
        self.to(next(self.parameters()).dtype).requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the activations by name, ``(N, C_j, H_j, W_j)``, none negative.

        Args:
            images: Float ``(N, 3, H, W)`` in [-1, 1].

        Raises:
            ValueError: If the images are not RGB or are too small.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < self.smallest_px:
            raise ValueError(
                f"VGG-16 up to {self.sequence[-1]} takes (N, 3, H, W) of at least {self.smallest_px} px a"
                f" side, these are {tuple(images.shape)}"
            )
        x = (images.to(self.scale.dtype) - self.shift) / self.scale
        activations = {}
        for name in self.sequence:
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = F.relu(self.convolutions[name](x))
            if name in self.names:
                activations[name] = x
        return {name: activations[name] for name in self.names}


def check_layers(names: Sequence[str], key: str = "layers") -> tuple[str, ...]:
    """Return ``names`` as a tuple.

    Raises:
        UserError: If there is none, or no such layer; ``key`` is named in it.
    """
    unknown = [name for name in names if name not in VGG16_LAYERS]
    if unknown or not names:
        problem = f"no layer {', '.join(unknown)}" if unknown else "give at least one"
        raise UserError(f"{key}: {problem}; VGG-16 has {', '.join(VGG16_LAYERS)}")
    return tuple(dict.fromkeys(names))


def random_vgg16(width: float = SUBSTITUTE_WIDTH, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights for VGG-16 under torchvision's names, everywhere the same but for rounding.

    He et al. 2015's normal distribution keeps the activations' scale through ReLUs; biases are 0. Each layer
    has a generator of its own, so that a network cut short has the same weights as a whole one.

    Args:
        width: Share of VGG's channels. A quarter costs a sixteenth; there is nothing learned to lose.
        seed: Of the generators.
    """
    state, in_channels = {}, 3
    for index, channels in VGG16_LAYERS.values():
        out_channels = max(1, round(channels * width))
        generator = torch.Generator().manual_seed(1000 * seed + index)
        kernel = torch.randn(out_channels, in_channels, 3, 3, generator=generator)
        state[f"features.{index}.weight"] = kernel * (2 / (in_channels * 9)) ** 0.5
        state[f"features.{index}.bias"] = torch.zeros(out_channels)
        in_channels = out_channels
    return state


class UnitFeatures(nn.Module):
    """What LPIPS would compare if its heads had learned nothing: a substitute for :meth:`LPIPS.features`.

    Unit vectors over the channels of five layers of VGG-16; all channels and all layers count alike, so that
    the distance lies in [0, 2].

    Args:
        network: Its activations are taken, all of them.
    """

    def __init__(self, network: VGG16Features) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return scaled features of ``images (N, 3, H, W)`` in [-1, 1] by layer."""
        activations = {name: at_least_float32(x) for name, x in self.network(images).items()}
        return {
            name: unit_features(x, x.new_full((1, 1, 1, 1), 1 / len(activations)))
            for name, x in activations.items()
        }


class _LPIPSFeatures(nn.Module):
    """LPIPS as a module whose call gives features."""

    def __init__(self, lpips: LPIPS) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.lpips.features(images)


def feature_network(
    name: str, network: str, layers: Sequence[str], normalise: bool, folder: str | Path | None
) -> tuple[nn.Module, str]:
    """Return the network that gives the features, and what it is."""
    if name == "substitute":
        kind = f"substitute for {network}: random_vgg16 (nothing learned, width {SUBSTITUTE_WIDTH})"
        if network == "vgg16":
            return VGG16Features(layers, random_vgg16(), normalise), kind
        return UnitFeatures(VGG16Features(LPIPS_LAYERS, random_vgg16())), kind
    if network == "vgg16":
        return VGG16Features(layers, None, normalise, folder), "VGG-16"
    net: Literal["vgg", "alex"] = "alex" if network == "lpips_alex" else "vgg"
    return _LPIPSFeatures(LPIPS(net, folder)), f"LPIPS v0.1, {net}"
