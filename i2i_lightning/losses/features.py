"""Perceptual distances in the features of a fixed network, with target features that can be kept.

What Image2StyleGAN (Abdal et al. 2019, arXiv 1904.03189), Image2StyleGAN++ (Abdal et al. 2020, arXiv
1911.11544) and StyleGAN2's projector (Karras et al. 2020, arXiv 1912.04958, appendix D) compare images by.
The networks are in :mod:`i2i_lightning.losses.backbones`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.losses.backbones import (
    IMAGE2STYLEGAN_LAYERS,
    NETWORKS,
    Network,
    check_layers,
    feature_network,
)
from i2i_lightning.losses.perceptual import WEIGHTS_NAMES
from i2i_lightning.losses.reconstruction import at_least_float32
from i2i_lightning.types import UserError
from i2i_lightning.weights.store import at_hand

log = logging.getLogger(__name__)

PerceptualName = Literal["vgg16", "lpips_vgg", "lpips_alex", "substitute", "auto"]
Resize = Literal["bilinear", "area"]


def perceptual_loss(
    features: Mapping[str, Tensor],
    target_features: Mapping[str, Tensor],
    masks: Tensor | None = None,
    lambdas: Mapping[str, float] | None = None,
) -> Tensor:
    """Return ``sum_j lambda_j / N_j ||F_j - F'_j||^2`` of each image.

    Abdal et al. 2019, equation 2; with masks ``sum_j lambda_j / N_j ||M_j * (F_j - F'_j)||^2``, as in Abdal
    et al. 2020, where M_j is the mask brought to the size of the features. N_j is the number of scalars of
    one image's F_j, whatever the mask lets through.

    Args:
        features: Activations by layer, ``(N, C_j, H_j, W_j)``.
        target_features: The same layers, of N images or of one.
        masks: In [0, 1], ``(N or 1, 1, H, W)`` at the images' size; None for everywhere.
        lambdas: Weight of each layer; 1 where it is not given.

    Returns:
        ``(N,)``, in float32 at least; no image's depends on another.
    """
    total: Tensor | None = None
    for name, difference in _differences(features, target_features, masks):
        weight = 1.0 if lambdas is None else lambdas.get(name, 1.0)
        term = weight * difference.square().flatten(1).mean(1)
        total = term if total is None else total + term
    assert total is not None
    return total


def feature_distance(
    features: Mapping[str, Tensor], target_features: Mapping[str, Tensor], masks: Tensor | None = None
) -> Tensor:
    """Return ``sum_j ||M_j * (F_j - F'_j)||^2`` of each image, nothing divided.

    The distance of StyleGAN2's projector (Karras et al. 2020, appendix D), and LPIPS, on features that carry
    all factors: :meth:`LPIPS.features` and :class:`UnitFeatures`. Arguments are those of
    :func:`perceptual_loss`.
    """
    total: Tensor | None = None
    for _, difference in _differences(features, target_features, masks):
        term = difference.square().flatten(1).sum(1)
        total = term if total is None else total + term
    assert total is not None
    return total


def style_loss(
    features: Mapping[str, Tensor],
    target_features: Mapping[str, Tensor],
    masks: Tensor | None = None,
    layers: Sequence[str] = ("conv3_3",),
) -> Tensor:
    """Return ``sum_j ||Gram(M_j * F_j) - Gram(M_j * F'_j)||_F^2`` of each image.

    Abdal et al. 2020, the style term of equation 2, with one layer there. The Gram matrix is divided by the
    number of its features' scalars, as in Johnson et al. 2016, so that the size of the image hardly matters.

    Args:
        features: Activations by layer, ``(N, C_j, H_j, W_j)``.
        target_features: The same of the images that lend their style, N of them or one.
        masks: Where the style is compared, and taken from, ``(N or 1, 1, H, W)``; None for everywhere.
        layers: Layers to compare.

    Returns:
        ``(N,)``, in float32 at least.
    """
    total: Tensor | None = None
    for name in layers:
        gram = gram_matrix(features[name], masks)
        target = gram_matrix(target_features[name], masks)
        term = (gram - target).square().flatten(1).sum(1)
        total = term if total is None else total + term
    if total is None:
        raise ValueError("layers=(): style is compared in one layer at least")
    return total


def gram_matrix(features: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return ``(M * F)(M * F)^T / (C H W)``, ``(N, C, C)``, of ``features (N, C, H, W)``."""
    features = at_least_float32(features)
    if masks is not None:
        features = features * resize_masks(masks, features)
    rows = features.flatten(2)
    with torch.autocast(features.device.type, enabled=False):
        return rows @ rows.mT / rows[0].numel()


def resize_masks(masks: Tensor, like: Tensor) -> Tensor:
    """Return ``masks (N or 1, 1, H, W)`` at the height and width of ``like``, by averages over areas."""
    if masks.shape[2:] == like.shape[2:]:
        return masks.to(like.dtype)
    return F.interpolate(masks.to(like.dtype), tuple(like.shape[2:]), mode="area")


def downsample_px(images: Tensor, size_px: int = 256, mode: Resize = "area") -> Tensor:
    """Return ``images (N, C, H, W)`` with their longer side at ``min(size_px, longer side)``.

    Args:
        images: Float.
        size_px: What the longer side becomes if it is more.
        mode: ``area`` averages over boxes, as StyleGAN2's projector does; ``bilinear`` takes four pixels, as
            re-implementations of Image2StyleGAN do, and aliases where images shrink by more than half.

    Raises:
        UserError: If the mode is neither.
    """
    if mode not in ("area", "bilinear"):
        raise UserError(f"resize={mode}: choose area or bilinear")
    height, width = images.shape[2:]
    longer = max(height, width)
    if longer <= size_px:
        return images
    size = (max(1, round(height * size_px / longer)), max(1, round(width * size_px / longer)))
    if mode == "area":
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _differences(
    features: Mapping[str, Tensor], target_features: Mapping[str, Tensor], masks: Tensor | None
) -> list[tuple[str, Tensor]]:
    if not features or features.keys() != target_features.keys():
        raise ValueError(f"features of {list(features)} and of {list(target_features)} cannot be compared")
    differences = []
    for name, feature in features.items():
        difference = at_least_float32(feature) - at_least_float32(target_features[name])
        if masks is not None:
            difference = difference * resize_masks(masks, difference)
        differences.append((name, difference))
    return differences


# ----------------------------------------------------------------------------------------- the whole distance


class Perceptual(nn.Module):
    """A perceptual distance of images, whose targets' features can be kept.

    ``distance(features(images), features(targets))``; grey images count as RGB of three equal channels. The
    network is fixed and no part of the module's state: checkpoints do not carry it. It moves along with
    ``to``, and its precision is that of the module.

    Args:
        network: Maps RGB images in [-1, 1] to features by layer.
        measure: Distance of two such features: features, target features, masks to ``(N,)``.
        name: What results are to call it.
        protocol: What the numbers are, in one line.
        size_px: Images are compared at ``min(size_px, their longer side)``.
        resize: How they get there, see :func:`downsample_px`.
        substitute: Whether this stands for a distance whose weights were not at hand.

    Attributes:
        name: As given; a substitute's begins with ``substitute:``.
        protocol: As given.
        substitute: As given.
    """

    def __init__(
        self,
        network: nn.Module,
        measure: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor | None], Tensor],
        name: str,
        protocol: str,
        size_px: int = 256,
        resize: Resize = "area",
        substitute: bool = False,
    ) -> None:
        super().__init__()
        self._network = (network.eval().requires_grad_(False),)  # in a tuple, and so not registered
        self.measure = measure
        self.name = name
        self.protocol = protocol
        self.size_px = size_px
        self.resize: Resize = resize
        self.substitute = substitute

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Perceptual:
        """Move the network too."""
        self._network[0]._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def network(self) -> nn.Module:
        """The fixed network."""
        return self._network[0]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return features by layer of float ``images (N, 3 or 1, H, W)`` in [-1, 1], at the size compared."""
        images = downsample_px(images, self.size_px, self.resize)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        activations: dict[str, Tensor] = self.network(images)
        return activations

    def distance(
        self,
        features: Mapping[str, Tensor],
        target_features: Mapping[str, Tensor],
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return the distance of each image, ``(N,)``, 0 for equal ones.

        Args:
            features: From :meth:`features`.
            target_features: The same, of N images or of one.
            masks: In [0, 1], ``(N or 1, 1, H, W)`` at the images' size or any other; None for everywhere.
        """
        return self.measure(features, target_features, masks)

    def forward(self, images: Tensor, targets: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the distance of each pair, ``(N,)``."""
        return self.distance(self.features(images), self.features(targets), masks)


class _Weighted:
    """``perceptual_loss`` with its weights; a class, so that it can be copied and pickled."""

    def __init__(self, lambdas: Mapping[str, float] | None) -> None:
        self.lambdas = None if lambdas is None else dict(lambdas)

    def __call__(
        self, features: Mapping[str, Tensor], target: Mapping[str, Tensor], masks: Tensor | None
    ) -> Tensor:
        return perceptual_loss(features, target, masks, self.lambdas)


def perceptual(
    name: PerceptualName = "auto",
    like: Network = "vgg16",
    layers: Sequence[str] = IMAGE2STYLEGAN_LAYERS,
    lambdas: Mapping[str, float] | None = None,
    size_px: int = 256,
    resize: Resize = "area",
    normalise: bool = True,
    folder: str | Path | None = None,
) -> Perceptual:
    """Return a perceptual distance by name.

    Args:
        name: ``vgg16`` for :func:`perceptual_loss` on VGG-16; ``lpips_vgg`` and ``lpips_alex`` for LPIPS
            v0.1 as :func:`feature_distance`; ``substitute`` for the same sums on a random network; ``auto``
            for ``like`` where its weights are at hand, else its substitute, which one line in the log tells.
        like: What ``substitute`` and ``auto`` stand for.
        layers: Layers of VGG-16; LPIPS has its own.
        lambdas: Weight of each of them, 1 where not given; LPIPS has none.
        size_px: Images are compared at ``min(size_px, their longer side)``.
        resize: How they get there, see :func:`downsample_px`.
        normalise: As for :class:`VGG16Features`; LPIPS always does.
        folder: Folder or file of the weights; None for ``$I2I_WEIGHTS`` or the user's cache.

    Raises:
        UserError: If there is no such name or layer, or weights asked for by name are not at hand, or are
            there but broken.
    """
    if name not in (*NETWORKS, "substitute", "auto"):
        raise UserError(f"perceptual={name}: choose one of {', '.join((*NETWORKS, 'substitute', 'auto'))}")
    if like not in NETWORKS:
        raise UserError(f"like={like}: choose one of {', '.join(NETWORKS)}")
    if size_px < 1:
        raise UserError(f"size_px={size_px}: give a positive number of pixels")
    layers = check_layers(layers)
    if lambdas is not None and set(lambdas) - set(layers):
        unknown = ", ".join(sorted(set(lambdas) - set(layers)))
        raise UserError(f"lambdas: {unknown} not among the layers {', '.join(layers)}")
    network: Network = like if name == "substitute" or name == "auto" else name
    if name == "auto":
        weights_name = WEIGHTS_NAMES["alex" if network == "lpips_alex" else "vgg"]
        try:
            return perceptual(network, network, layers, lambdas, size_px, resize, normalise, folder)
        except UserError:
            if at_hand(weights_name, None if folder is None else Path(folder)):
                raise  # there is something, and it is wrong
            found = perceptual("substitute", network, layers, lambdas, size_px, resize, normalise)
            log.warning(
                "perceptual distance: %s stands in for %s, whose weights are not at hand "
                "(i2i-weights get %s)",
                found.name.removeprefix("substitute: "),
                network,
                weights_name,
            )
            return found
    built, kind = feature_network(name, network, layers, normalise, folder)
    summed = network != "vgg16"
    size = f"at most {size_px} px ({resize})"
    if summed:
        protocol = f"{kind}, squared differences of unit features, {size}"
    else:
        scaling = "ImageNet's mean and deviation" if normalise else "[0, 1]"
        protocol = f"{kind} {', '.join(layers)}, mean squared differences, {scaling}, {size}"
    measure = feature_distance if summed else _Weighted(lambdas)
    substitute = name == "substitute"
    shown = "substitute: random_vgg16" if substitute else network
    return Perceptual(built, measure, shown, protocol, size_px, resize, substitute)
