"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020, arXiv 2006.10738)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.types import UserError

AUGMENTATIONS = ("color", "translation", "cutout")


def check_augmentations(names: Sequence[str], key: str) -> tuple[str, ...]:
    """Return ``names`` as a tuple.

    Raises:
        UserError: If there is no such augmentation; ``key`` is named in it.
    """
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown:
        raise UserError(f"{key}: no augmentation {', '.join(unknown)}; there is {', '.join(AUGMENTATIONS)}")
    return tuple(names)


def augment(images: Tensor, names: Sequence[str]) -> Tensor:
    """Return ``images`` changed at random, differentiably, each image in its own way.

    Discriminators then see augmented reals and augmented fakes alone (equations 4 and 5), and so cannot learn
    the few reals by heart, while generators are not taught the augmentations. The strengths are the paper's.

    Args:
        images: Float (N, C, H, W) in [-1, 1].
        names: Any of ``color``, ``translation`` and ``cutout``, done in that order.

    Returns:
        The same shape; colours may leave [-1, 1].
    """
    if "color" in names:
        images = jitter_colour(images)
    if "translation" in names:
        images = translate(images)
    if "cutout" in names:
        images = cut_out(images)
    return images


def jitter_colour(images: Tensor) -> Tensor:
    """Shift brightness by U(-0.5, 0.5), scale saturation by U(0, 2), then contrast by U(0.5, 1.5)."""
    shape = (3, len(images), 1, 1, 1)
    brightness, saturation, contrast = torch.rand(shape, device=images.device, dtype=images.dtype)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    changed: Tensor = mean + (images - mean) * (contrast + 0.5)
    return changed


def translate(images: Tensor, ratio: float = 1 / 8) -> Tensor:
    """Move each image by up to ``ratio`` of its height and width; zeros, a middle grey, move in."""
    height, width = images.shape[-2:]
    down, across = round(height * ratio), round(width * ratio)
    rows = _upto(images, 2 * down) + torch.arange(height, device=images.device)  # (N, H), (N, W)
    columns = _upto(images, 2 * across) + torch.arange(width, device=images.device)
    padded = F.pad(images, (across, across, down, down)).permute(0, 2, 3, 1)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, ratio: float = 1 / 2) -> Tensor:
    """Set a box of ``ratio`` times the sides to zero, its middle anywhere in the image."""
    inside = []
    for side in images.shape[-2:]:
        box = round(side * ratio)
        first = _upto(images, side - box % 2) - box // 2
        place = torch.arange(side, device=images.device)
        inside.append((place >= first) & (place < first + box))  # (N, H), then (N, W)
    hidden = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hidden, 0)


def _upto(images: Tensor, most: int) -> Tensor:
    """Return a whole number from 0 to ``most`` for each image, ``(N, 1)``."""
    return torch.randint(0, most + 1, (len(images), 1), device=images.device)
