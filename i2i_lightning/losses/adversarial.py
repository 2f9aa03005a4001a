"""Objectives of the adversarial game, on raw logits of any shape.

All are means over images and patches. Half-precision logits are judged in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.losses.reconstruction import at_least_float32
from i2i_lightning.types import UserError

GANMode = Literal["vanilla", "lsgan", "hinge", "wgangp"]
GAN_MODES = ("vanilla", "lsgan", "hinge", "wgangp")


def discriminator_loss(pred_real: Tensor, pred_fake: Tensor, mode: GANMode = "vanilla") -> Tensor:
    """Return what the discriminator minimises.

    With r, f the logits of real and generated patches and E the mean:

    * ``vanilla`` (Goodfellow et al. 2014): ``(E[-log sigmoid(r)] + E[-log(1 - sigmoid(f))]) / 2``
    * ``lsgan`` (Mao et al. 2017): ``(E[(r - 1)^2] + E[f^2]) / 2``
    * ``hinge`` (Lim and Ye 2017): ``E[max(0, 1 - r)] + E[max(0, 1 + f)]``
    * ``wgangp`` (Gulrajani et al. 2017): ``E[f] - E[r]``; add the penalty of ``losses.regularizers``.

    The first two are halved, as pix2pix and CycleGAN do to slow the discriminator down; the last two are not,
    as in their papers, so that a penalty of weight 10 means what it means there.

    Args:
        pred_real: Logits of real images.
        pred_fake: Logits of generated images.
        mode: One of the four.

    Returns:
        A scalar.

    Raises:
        UserError: If ``mode`` is none of the four.
    """
    pred_real, pred_fake = at_least_float32(pred_real), at_least_float32(pred_fake)
    if mode == "vanilla":
        real = F.binary_cross_entropy_with_logits(pred_real, torch.ones_like(pred_real))
        fake = F.binary_cross_entropy_with_logits(pred_fake, torch.zeros_like(pred_fake))
        return (fake + real) * 0.5
    if mode == "lsgan":
        real = F.mse_loss(pred_real, torch.ones_like(pred_real))
        fake = F.mse_loss(pred_fake, torch.zeros_like(pred_fake))
        return (fake + real) * 0.5
    if mode == "hinge":
        return F.relu(1 - pred_real).mean() + F.relu(1 + pred_fake).mean()
    if mode == "wgangp":
        return pred_fake.mean() - pred_real.mean()
    raise _unknown(mode)


def generator_loss(pred_fake: Tensor, mode: GANMode = "vanilla") -> Tensor:
    """Return what the generator minimises to pass for real.

    ``vanilla``: ``E[-log sigmoid(f)]``, the non-saturating form. ``lsgan``: ``E[(f - 1)^2]``. ``hinge`` and
    ``wgangp``: ``-E[f]``.

    Args:
        pred_fake: Logits of generated images.
        mode: As for the discriminator.

    Returns:
        A scalar.

    Raises:
        UserError: If ``mode`` is none of the four.
    """
    pred_fake = at_least_float32(pred_fake)
    if mode == "vanilla":
        return F.binary_cross_entropy_with_logits(pred_fake, torch.ones_like(pred_fake))
    if mode == "lsgan":
        return F.mse_loss(pred_fake, torch.ones_like(pred_fake))
    if mode in ("hinge", "wgangp"):
        return -pred_fake.mean()
    raise _unknown(mode)


def real_threshold(mode: GANMode = "vanilla") -> float:
    """Return the logit above which a patch counts as judged real, half-way between the two labels.

    0.5 for ``lsgan`` (labels 0 and 1), else 0. A ``wgangp`` critic has no such point, only differences mean
    something.

    Raises:
        UserError: If ``mode`` is none of the four.
    """
    if mode not in GAN_MODES:
        raise _unknown(mode)
    return 0.5 if mode == "lsgan" else 0.0


def _unknown(mode: str) -> UserError:
    return UserError(f"gan_mode={mode}: choose one of {', '.join(GAN_MODES)}")
