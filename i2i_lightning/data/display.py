"""Network space to RGB for people and metrics."""

from __future__ import annotations

import torch
from torch import Tensor


def images_to_rgb(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as RGB, rounded to the nearest of 256 levels rather than truncated.

    Args:
        images: Float ``(N, C, H, W)``; values outside [-1, 1] are clamped.

    Returns:
        uint8 ``(N, 3, H, W)``: grey is repeated, two channels become red and green, of more than three the
        first three are shown.
    """
    channels = images.shape[1]
    if channels == 1:
        images = images.expand(-1, 3, -1, -1)
    elif channels == 2:
        images = torch.cat([images, torch.full_like(images[:, :1], -1)], dim=1)
    return images[:, :3].float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def label_palette(classes: int) -> Tensor:
    """Return a colour for each of ``classes`` ids, uint8 ``(classes, 3)``.

    The bits of the id are dealt out to red, green and blue in turn, each from its highest bit down.
    Neighbouring ids get distant colours, id 0 is black, and the colour of an id does not depend on how many
    there are. It is the scheme of the PASCAL VOC label maps.
    """
    ids = torch.arange(classes, dtype=torch.int64)
    colours = torch.zeros(classes, 3, dtype=torch.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.to(torch.uint8)


def labels_to_rgb(scores: Tensor, palette: Tensor | None = None) -> Tensor:
    """Return one-hot label maps or class scores ``(N, K, H, W)`` as RGB, uint8 ``(N, 3, H, W)``.

    Args:
        scores: Any real numbers; the largest of the K wins.
        palette: uint8 ``(K, 3)``; None takes :func:`label_palette`.
    """
    if palette is None:
        palette = label_palette(scores.shape[1])
    return palette.to(scores.device)[scores.argmax(dim=1)].permute(0, 3, 1, 2).contiguous()
