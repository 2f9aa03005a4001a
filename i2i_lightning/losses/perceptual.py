"""LPIPS, the learned perceptual distance (Zhang et al. 2018), by the ``lpips`` package, version 0.1.

The package brings the linear heads; the backbone comes from our weights folder, so that nothing is downloaded
on the way.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from i2i_lightning import weights
from i2i_lightning.types import UserError

WEIGHTS_NAMES = {"vgg": "lpips_vgg16", "alex": "lpips_alexnet"}
# Less, and a pooling of the backbone has nothing to pool.
SMALLEST_PX = {"vgg": 16, "alex": 31}


class LPIPS(nn.Module):
    """Distance of images in the features of a network trained on ImageNet (Zhang et al. 2018, equation 1).

    The features of five layers are normalised to unit length in the channel dimension, their squared
    differences weighted by the learned heads (version 0.1), averaged over positions and summed over layers.
    Images are compared as they are, never resized. The weights are fixed and the module stays in evaluation
    mode; gradients flow to the images, so that it can also serve as a loss. It computes in float32, under
    autocast too.

    Args:
        net: The backbone: ``alex`` is what the authors report; ``vgg`` is the usual loss.
        folder: Folder or file of the weights; None for ``$I2I_WEIGHTS`` or the user's cache.

    Attributes:
        protocol: What the numbers are, in one line.

    Raises:
        UserError: If the weights or the ``lpips`` package are not at hand.
    """

    def __init__(self, net: Literal["vgg", "alex"] = "alex", folder: str | Path | None = None) -> None:
        super().__init__()
        if net not in WEIGHTS_NAMES:
            raise ValueError(f"net={net!r}: take one of {', '.join(WEIGHTS_NAMES)}")
        self.net = net
        self.protocol = f"LPIPS v0.1, {net}, images in [-1, 1] at their own size"
        self.network = _network(net, folder)

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in evaluation mode: the heads have dropout in front."""
        return super().train(False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair.

        Args:
            image: (N, 3, H, W), uint8 in [0, 255] or float in [-1, 1]; at least 31 px a side for ``alex``, 16
                for ``vgg``.
            target: The same shape.

        Returns:
            (N,), 0 for equal images; pictures of different things are around 0.7.

        Raises:
            ValueError: If the images are not RGB, differ in shape or are too small.
        """
        if image.shape != target.shape:
            raise ValueError(
                f"images of shape {tuple(image.shape)} and {tuple(target.shape)} cannot be compared"
            )
        self._check(image)
        with torch.autocast(image.device.type, enabled=False):
            distance: Tensor = self.network(_signed(image), _signed(target))
        return distance.flatten()

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Return what the distance compares, scaled so that it is the sum of squared differences.

        A target's can be kept while an image is fitted to it. But for rounding,
        ``sum_j ||features(image)[j] - features(target)[j]||^2`` is ``forward(image, target)``; where all
        channels of a place are zero its gradient is 0, not NaN. The precision is that of the weights.

        Args:
            image: As for :meth:`forward`.

        Returns:
            By layer, ``layer_1`` to ``layer_5``, ``(N, C_j, H_j, W_j)``: unit vectors over channels, times
            the square root of ``head / (H_j W_j)``.

        Raises:
            ValueError: If the images are not RGB or are too small.
        """
        self._check(image)
        network: Any = self.network
        with torch.autocast(image.device.type, enabled=False):
            signed = _signed(image, network.lins[0].model[-1].weight.dtype)
            features = {}
            for number, layer in enumerate(network.net(network.scaling_layer(signed))):
                head = network.lins[number].model[-1].weight
                features[f"layer_{number + 1}"] = unit_features(layer, head)
        return features

    def _check(self, image: Tensor) -> None:
        smallest = SMALLEST_PX[self.net]
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < smallest:
            raise ValueError(
                f"LPIPS ({self.net}) takes (N, 3, H, W) of at least {smallest}x{smallest} px,"
                f" these are {tuple(image.shape)}"
            )


def unit_features(features: Tensor, head: Tensor) -> Tensor:
    """Return ``features (N, C, H, W)`` as LPIPS compares them.

    Zhang et al. 2018, equation 1, with both of its factors inside the square: unit length over channels,
    times the square root of the weight of each channel and of one place's share in the mean.

    Args:
        features: Activations of a layer.
        head: Weights of the channels, none negative, ``(1, C, 1, 1)``.
    """
    height, width = features.shape[2:]
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    scaled: Tensor = features / (length + 1e-10) * (head / (height * width)).sqrt()
    return scaled


def _signed(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``dtype`` in [-1, 1]."""
    return image.to(dtype) / 127.5 - 1 if image.dtype == torch.uint8 else image.to(dtype)


def _network(net: str, folder: str | Path | None) -> nn.Module:
    """Return the package's network with its heads and our backbone."""
    backbone = weights.load(WEIGHTS_NAMES[net], folder)
    try:
        import lpips
    except ImportError as error:
        raise UserError(f"LPIPS needs the package lpips ({error}); pip install lpips") from None

    # On the meta device nothing is allocated or drawn: the package would else fill 123 million weights of a
    # classifier that it drops, from the random numbers of the run.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision.models._utils")  # it uses an old spelling
        network: nn.Module = lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    state: dict[str, Tensor] = torch.load(heads, map_location="cpu", weights_only=True)
    for key in network.state_dict():
        if key.startswith("net."):  # "net.slice2.5.weight" is torchvision's "features.5.weight"
            _, _, index, part = key.split(".")
            state[key] = backbone[f"features.{index}.{part}"]
    # The package lists its heads twice, as lin0 and as lins.0.
    for key in [key for key in state if key.startswith("lin") and not key.startswith("lins.")]:
        state[f"lins.{key.removeprefix('lin')}"] = state[key]
    scaling = lpips.ScalingLayer().state_dict()
    state.update({f"scaling_layer.{key}": value for key, value in scaling.items()})
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
