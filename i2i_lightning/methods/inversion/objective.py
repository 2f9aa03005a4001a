"""What an embedded image pays for: a number for each image and term, never one for a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.losses.features import Perceptual, style_loss
from i2i_lightning.losses.identity import Identity, identity_loss
from i2i_lightning.losses.reconstruction import at_least_float32, masked_mse
from i2i_lightning.methods.checks import check_weights
from i2i_lightning.methods.inversion.stages import TERMS
from i2i_lightning.methods.inversion.targets import Targets
from i2i_lightning.types import UserError

STYLE_LAYERS = ("conv3_3",)
"""Where style is compared (Abdal et al. 2020, section 3.2)."""
OF_IMAGES = ("perceptual", "mse", "mse_outside", "style", "identity")
"""Terms that the image decides, and not the latent."""
NO_RECOGNISER = "identities need a network; give your loss.identity.path=model_ir_se50.pth"


@dataclass(frozen=True)
class InversionLoss:
    """The objective of an inversion (Abdal et al. 2019, equation 1, and 2020, equation 2), and its weights.

    ``perceptual``, where the perceptual mask lets through, and ``mse``, where the mask does, compare with the
    image wanted; ``mse_outside`` compares the rest with another, and ``style`` Gram matrices with a third.
    ``identity`` compares who is seen where features count (Richardson et al. 2021, arXiv 2008.00951, equation
    4). ``prior`` is the mean over rows of ``||w - mean||^2 / std^2``: 1 for latents as the mapping gives
    them. ``anchor`` is the same distance from the latent that a stage begins with, or one that was given.
    ``noise`` keeps noise maps free of pictures (Karras et al. 2020, appendix D). Terms whose images are not
    given, or that what moves cannot change, are left out.

    Args:
        perceptual: What compares images by features; None leaves the term out.
        lambda_perceptual: Weight of the perceptual term.
        lambda_mse: Weight of the squared error over pixels at full size.
        lambda_mse_outside: Weight of that outside of the mask.
        lambda_style: Weight of the style.
        lambda_prior: Weight of the distance from the mean latent.
        lambda_anchor: Weight of the distance from the anchor.
        lambda_noise: Weight of the noise regulariser.
        identity: What compares identities; None leaves the term out.
        lambda_identity: Weight of the identity.

    Raises:
        UserError: If a weight is negative or not finite, or identity has one and no network.
    """

    perceptual: Perceptual | None
    lambda_perceptual: float = 1.0
    lambda_mse: float = 1.0
    lambda_mse_outside: float = 1.0
    lambda_style: float = 0.0
    lambda_prior: float = 0.0
    lambda_anchor: float = 0.0
    lambda_noise: float = 0.0
    identity: Identity | None = None
    lambda_identity: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self)
        if self.lambda_identity > 0 and self.identity is None:
            raise UserError(f"loss.lambda_identity={self.lambda_identity}: {NO_RECOGNISER}")

    def weights(self) -> dict[str, float]:
        """Return the weight of each term."""
        weights = self._weights()
        return weights if self.perceptual is not None else weights | {"perceptual": 0.0, "style": 0.0}

    def _weights(self) -> dict[str, float]:
        return {term: float(getattr(self, f"lambda_{term}")) for term in TERMS}

    def notes(self) -> list[str]:
        """Return what is not what its name says, and which file of the user's it depends on."""
        notes = []
        if self.perceptual is not None and self.perceptual.substitute:
            shown = self.perceptual.protocol.partition(" (")[0]  # the rest is in the settings
            notes.append(f"perceptual distance: {shown}; fetch the weights with i2i-weights")
        if self.identity is not None:
            notes.append(f"identity: {self.identity.source}")
        return notes

    def settings(self) -> dict[str, Any]:
        """Return weights and networks as plain containers."""
        networks = {
            "perceptual": None if self.perceptual is None else self.perceptual.protocol,
            "identity": None if self.identity is None else self.identity.protocol,
        }
        return networks | {f"lambda_{term}": value for term, value in self._weights().items()}


class Objective:
    """The terms of the objective of a batch of targets, whose features are computed once.

    Args:
        loss: Networks and weights.
        targets: What is wanted, on the device and in the precision of the search.
        names: Terms that any stage will ask for.

    Raises:
        UserError: If the network lacks the layers for the style.
    """

    def __init__(self, loss: InversionLoss, targets: Targets, names: Collection[str]) -> None:
        self.targets = targets
        self.perceptual = loss.perceptual
        self.features: dict[str, Tensor] = {}
        self.style: dict[str, Tensor] = {}
        self.identity = loss.identity if "identity" in names else None
        self.faces: Tensor | None = None
        if self.identity is not None:
            self.identity.to(targets.real.device, at_least_float32(targets.real).dtype)
            self.faces = self._faces_wanted()
        if self.perceptual is None:
            return
        self.perceptual.to(targets.real.device, targets.real.dtype)
        if "perceptual" in names:
            everyone = torch.arange(len(targets), device=targets.real.device)
            self.features = self._features(self._known(targets.real, everyone))
        if "style" in names and targets.style is not None:
            style = self._features(targets.style)
            lacking = [layer for layer in STYLE_LAYERS if layer not in style]
            if lacking:
                raise UserError(
                    f"loss.perceptual.layers: style is compared in {lacking[0]}, which is not among "
                    f"{', '.join(style)}"
                )
            self.style = {layer: style[layer] for layer in STYLE_LAYERS}

    @torch.no_grad()
    def _features(self, images: Tensor) -> dict[str, Tensor]:
        assert self.perceptual is not None
        # One by one: the features of a target are then the same bits in every batch.
        parts = [self.perceptual.features(image) for image in torch.split(images, 1)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def _faces_wanted(self) -> Tensor:
        everyone = torch.arange(len(self.targets), device=self.targets.real.device)
        return torch.cat([self._faces(self.targets.real[one], one) for one in torch.split(everyone, 1)])

    def _faces(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the features of who is seen in ``images``, grey where features of the targets do not count.

        What a target shows there may be anything; so it is the same on both sides.
        """
        assert self.identity is not None
        where = self._where(index)
        return self.identity.features(images if where is None else images * where)

    def _known(self, images: Tensor, index: Tensor) -> Tensor:
        where = self._where(index) if self.targets.holes else None
        return images if where is None else torch.where(where > 0, images, torch.zeros_like(images))

    def _where(self, index: Tensor) -> Tensor | None:
        """Return where the features of the targets ``index`` count; None for everywhere."""
        where = self.targets.rows("perceptual_mask", index)
        return self.targets.rows("mask", index) if where is None else where

    def terms(self, image: Tensor, weights: Mapping[str, float], index: Tensor) -> dict[str, Tensor]:
        """Return the terms that the images decide, unweighted, (n,) each.

        Args:
            image: Renders (n, C, S, S), or (c, C, S, S) to be compared with one target.
            weights: Terms that are wanted; their values do not matter.
            index: Which targets they are compared with, (n,) or (1,).
        """
        targets = self.targets
        image = at_least_float32(image)
        mask = targets.rows("mask", index)
        terms: dict[str, Tensor] = {}
        features: Mapping[str, Tensor] = {}
        if self.perceptual is not None and ("perceptual" in weights or ("style" in weights and self.style)):
            features = self.perceptual.features(self._known(image, index))
        if "perceptual" in weights and self.perceptual is not None:
            wanted = {name: value[index] for name, value in self.features.items()}
            terms["perceptual"] = self.perceptual.distance(features, wanted, self._where(index))
        if "mse" in weights:
            terms["mse"] = masked_mse(image, targets.real[index], mask)
        if "mse_outside" in weights and "mse_outside" not in targets.lacking:
            outside = targets.rows("outside", index)
            assert outside is not None
            assert mask is not None
            terms["mse_outside"] = masked_mse(image, outside, 1 - mask)
        if "style" in weights and self.style:
            wanted = {name: value if len(value) == 1 else value[index] for name, value in self.style.items()}
            where = targets.rows("style_mask", index)
            terms["style"] = style_loss(features, wanted, where, layers=STYLE_LAYERS)
        if "identity" in weights and self.faces is not None:
            terms["identity"] = identity_loss(self._faces(image, index), self.faces[index])
        return terms

    def cross(self, images: Tensor, weights: Mapping[str, float], index: Tensor) -> Tensor:
        """Return the weighted sum of those terms of every one of ``images (c, C, S, S)`` for every target.

        Returns:
            (n, c).
        """
        weights = {name: value for name, value in weights.items() if name in OF_IMAGES}
        totals = []
        for target in torch.split(index, 1):
            terms = self.terms(images, weights, target)
            totals.append(
                sum((weights[name] * value for name, value in terms.items()), images.new_zeros(len(images)))
            )
        return torch.stack(totals)


def latent_distance(w_plus: Tensor, centre: Tensor, std: Tensor) -> Tensor:
    """Return ``||w_l - c_l||^2 / std^2`` of every row, (n, L).

    Args:
        w_plus: (n, L, D).
        centre: c, (1 or n, 1 or L, D).
        std: Deviation of w, (1 or n,); see :class:`~i2i_lightning.methods.inversion.starts.Statistics`.
    """
    return (w_plus - centre).square().sum(2) / std.square()[:, None]
